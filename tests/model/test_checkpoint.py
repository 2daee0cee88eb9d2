"""Model folders: what transformers writes is read, what is written transformers loads, what is hostile is refused."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import small_gguf
import torch

from ojak.errors import InputRefused, ResourceExhausted, TargetExists, UsageError
from ojak.model import checkpoint, gguf_tokenizer
from ojak.model.tokenizer import Tokenizer

SIZES = {"vocab_size": 261, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64, "sliding_window": 8}  # fmt: skip
FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma2": "Gemma2",
            "gemma3_text": "Gemma3"}  # fmt: skip
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def tokenizer() -> Tokenizer:
    return gguf_tokenizer.build(small_gguf.byte_vocabulary(["<|im_start|>", "<|im_end|>"]))


def transformers_model(model_type: str, **more: Any) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **(SIZES | more))
    return getattr(transformers, f"{FAMILIES[model_type]}ForCausalLM")(config)


def put_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(tokenizer().to_json(), "utf-8")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_folder_of_transformers_is_read_and_written_back_the_same(model_type: str, tmp_path: Path) -> None:
    """transformers -> read -> save -> transformers: equal logits, although its config has another form than ours."""
    import transformers

    first = transformers_model(model_type)
    first.save_pretrained(tmp_path / "a", max_shard_size="20KB")
    put_tokenizer(tmp_path / "a")
    source = checkpoint.read(tmp_path / "a")
    state = first.state_dict()
    read = dict(source.tensors())
    assert set(read) >= {name for name in state if name != "lm_head.weight"}
    assert all(torch.equal(tensor, state[name]) for name, tensor in read.items())
    checkpoint.save(tmp_path / "b", source.config, source.tensors(), source.tokenizer, max_shard_bytes=30_000)
    assert len(list((tmp_path / "b").glob("model-*-of-*.safetensors"))) > 1
    second = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    ids = torch.arange(2, 22).view(1, -1)
    with torch.inference_mode():
        torch.testing.assert_close(second(ids).logits, first(ids).logits, rtol=0, atol=1e-6)


def small_config(**more: Any) -> dict[str, Any]:
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True,
            **{k: v for k, v in SIZES.items() if k != "sliding_window"}, **more}  # fmt: skip


def save_small(folder: Path, *, template: str | None = TEMPLATE, **more: Any) -> Path:
    model = transformers_model("llama", tie_word_embeddings=True)
    generation = {"eos_token_id": [260, 258], "do_sample": True}
    return checkpoint.save(
        folder, small_config(**more), model.state_dict().items(), tokenizer(), template, generation
    )


def test_what_is_saved_is_what_transformers_and_we_read(tmp_path: Path) -> None:
    import transformers

    folder = save_small(tmp_path / "m", pad_token_id=258)
    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), checkpoint.read(folder)
    for text in ("hello", "<|im_start|>user\nhé  日本<|im_end|>\n", " a  b "):
        assert theirs(text).input_ids == ours.tokenizer.encode(text)
        assert theirs.decode(ours.tokenizer.encode(text)) == text
    assert theirs.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False).startswith(
        "<|im_start|>user"
    )
    assert (theirs.eos_token_id, theirs.pad_token_id) == (258, 258)
    assert transformers.GenerationConfig.from_pretrained(folder).eos_token_id == [260, 258]
    assert (ours.chat_template, ours.stop_ids, ours.quantization, ours.name) == (
        TEMPLATE,
        (260, 258),
        None,
        "m",
    )


def test_tied_embeddings_are_stored_once_and_load_tied(tmp_path: Path) -> None:
    import transformers

    folder = save_small(tmp_path / "m")
    assert "lm_head.weight" not in checkpoint.check_safetensors(folder / "model.safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    untied = checkpoint.save(
        tmp_path / "u", small_config(tie_word_embeddings=False), model.state_dict().items(), tokenizer()
    )
    assert "lm_head.weight" in dict(checkpoint.read(untied).tensors())


def test_views_are_saved_alone_and_dtypes_are_kept(tmp_path: Path) -> None:
    whole = torch.arange(4000.0, dtype=torch.bfloat16)
    checkpoint.save(
        tmp_path / "m", small_config(), [("a", whole[:10]), ("b", whole.view(40, 100).T)], tokenizer()
    )
    assert (tmp_path / "m" / "model.safetensors").stat().st_size < 9000
    read = dict(checkpoint.read(tmp_path / "m").tensors())
    assert torch.equal(read["a"], whole[:10]) and torch.equal(read["b"], whole.view(40, 100).T)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    folder = save_small(tmp_path / "m")
    before = (folder / "config.json").read_bytes()
    with pytest.raises(TargetExists):
        save_small(folder)
    assert (folder / "config.json").read_bytes() == before
    (tmp_path / "empty").mkdir()
    save_small(tmp_path / "empty")


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def tensors() -> Any:
        yield "a", torch.ones(2)
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        checkpoint.save(tmp_path / "m", {}, tensors())
    with pytest.raises(UsageError, match="twice"):
        checkpoint.save(tmp_path / "m", {}, [("a", torch.ones(2)), ("a", torch.ones(2))])
    assert list(tmp_path.iterdir()) == []


FULL_DISK = """
import resource, sys, torch
from ojak.errors import ResourceExhausted
from ojak.model import checkpoint
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(sys.argv[1], {}, [("a", torch.ones(int(sys.argv[2])))])
except ResourceExhausted as error:
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize(("weights", "code"), [(100_000, 6), (1000, 0)])
def test_a_full_disk_has_its_own_error_and_leaves_nothing(weights: int, code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "m"), str(weights)]
    root = Path(checkpoint.__file__).parents[2]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=root, env=os.environ)
    assert done.returncode == code, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ([] if code else ["m"])


class Trap:
    """Unpickling this writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> Any:
        return (open, (self.marker, "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pkl"])
def test_pickles_are_refused_unopened(name: str, tmp_path: Path) -> None:
    folder, marker = tmp_path / "m", tmp_path / "marker"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(small_config()))
    (folder / name).write_bytes(pickle.dumps(Trap(marker)))
    with pytest.raises(InputRefused) as caught:
        checkpoint.read(folder)
    assert "pickle" in str(caught.value) and name in str(caught.value)
    assert not marker.exists()


def test_code_in_a_folder_is_not_run_nor_named(tmp_path: Path) -> None:
    folder, marker = save_small(tmp_path / "m"), tmp_path / "marker"
    (folder / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    config["_attn_implementation_internal"] = "evil/kernel"
    config["nested"] = [{"trust_remote_code": True, "kept": 1}]
    (folder / "config.json").write_text(json.dumps(config))
    source = checkpoint.read(folder)
    assert source.config["nested"] == [{"kept": 1}]
    assert "auto_map" not in source.config and "_attn_implementation_internal" not in source.config
    assert len(dict(source.tensors())) > 10 and not marker.exists()


@pytest.mark.parametrize(
    "name", ["../m2/model.safetensors", "/etc/passwd", "a/b.safetensors", "..safetensors", "x.bin", ""]
)
def test_an_index_names_files_of_its_folder_only(name: str, tmp_path: Path) -> None:
    folder = save_small(tmp_path / "m")
    save_small(tmp_path / "m2")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(InputRefused, match="its index names"):
        checkpoint.read(folder)


def safetensors_file(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def entry(**change: Any) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | change}).encode()


UNSOUND = {
    "empty": b"",
    "short": b"\x01\x02",
    "a header of 2^63 bytes": safetensors_file(b"{}", length=2**63),
    "a header longer than the file": safetensors_file(b"{}", length=3),
    "a header over the cap": safetensors_file(b"{" + b" " * (17 << 20) + b"}"),
    "no JSON": safetensors_file(b"{x}"),
    "a list": safetensors_file(b"[]"),
    "deep": safetensors_file(b'{"a":' + b"[" * 100_000),
    "past the end": safetensors_file(entry(), bytes(7)),
    "backwards": safetensors_file(entry(data_offsets=[8, 0]), bytes(8)),
    "negative": safetensors_file(entry(shape=[-2], data_offsets=[-8, 0]), bytes(8)),
    "another size": safetensors_file(entry(shape=[3]), bytes(8)),
    "a huge shape": safetensors_file(entry(shape=[2**40, 2**40]), bytes(8)),
    "integers": safetensors_file(entry(dtype="I64", shape=[1]), bytes(8)),
    "no dtype": safetensors_file(b'{"a": {"shape": [2], "data_offsets": [0, 8]}}', bytes(8)),
    "text for numbers": safetensors_file(entry(shape=["2"]), bytes(8)),
    "too many tensors": safetensors_file(json.dumps(dict.fromkeys(map(str, range(100_001)), 0)).encode()),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_unsound_safetensors_are_refused_before_the_library_sees_them(case: str, tmp_path: Path) -> None:
    folder = save_small(tmp_path / "m")
    (folder / "model.safetensors").write_bytes(UNSOUND[case])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputRefused, match="not a sound safetensors file"):
        checkpoint.read(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"a": ' + "9" * 10_000 + "}"])
def test_an_unreadable_config_is_refused(text: str, tmp_path: Path) -> None:
    folder = save_small(tmp_path / "m")
    (folder / "config.json").write_text(text)
    with pytest.raises(InputRefused, match="cannot be read"):
        checkpoint.read(folder)


def test_quantised_folders_and_folders_without_config_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="quantised"):
        checkpoint.read(save_small(tmp_path / "q", quantization_config={"quant_method": "gptq"}))
    with pytest.raises(InputRefused, match="not a model folder"):
        checkpoint.read(tmp_path)


def test_the_hash_covers_weights_and_text(tmp_path: Path) -> None:
    folder = save_small(tmp_path / "m")
    first = checkpoint.read(folder).sha256
    assert first == checkpoint.read(folder).sha256 == checkpoint.read(save_small(tmp_path / "other")).sha256
    (folder / "chat_template.jinja").write_text("other")
    assert checkpoint.read(folder).sha256 != first


def test_templates_and_licences_of_older_folders(tmp_path: Path) -> None:
    folder = save_small(tmp_path / "m", template=None)
    assert checkpoint.read(folder).chat_template is None
    named = [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    (folder / "README.md").write_text(
        "---\nlanguage: en\nlicense: apache-2.0\n---\n# Model\nlicense: other\n"
    )
    source = checkpoint.read(folder)
    assert (source.chat_template, source.license) == ("D", "apache-2.0")


def test_the_text_part_of_a_model_that_sees(tmp_path: Path) -> None:
    names = ["language_model.model.norm.weight", "model.language_model.embed_tokens.weight", "vision_tower.x",
             "multi_modal_projector.y", "language_model.lm_head.weight"]  # fmt: skip
    config = small_config(text_config={"hidden_size": 2}, tie_word_embeddings=False)
    folder = checkpoint.save(tmp_path / "m", config, [(name, torch.ones(2)) for name in names], tokenizer())
    assert set(dict(checkpoint.read(folder).tensors())) == {
        "model.norm.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    }


def test_resource_exhausted_is_told_from_other_library_errors() -> None:
    assert checkpoint._says_disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert not checkpoint._says_disk_full(RuntimeError("os error 13"))
    assert issubclass(ResourceExhausted, Exception)
