"""From files to a model: what is refused, what the arguments mean, and that nothing is lost on the way back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ojak.engines.native import engine_of, generate
from ojak.errors import InputRefused, OjakError, ResourceExhausted, TargetExists, UsageError
from ojak.model import hub, load
from ojak.model.load import default_dtype, from_source, load_model, read_source
from ojak.model.request import Request

IDS_BT = torch.randint(0, tiny.VOCAB, (2, 11), generator=torch.Generator().manual_seed(5))
CHANGED = "model.layers.1.mlp.up_proj.weight"
Weights = dict[str, Tensor]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.model("llama").save(tmp_path / "model")


def change(folder: Path, edit: Callable[[Weights], object]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    edit(weights)
    save_file(weights, path, metadata={"format": "pt"})


def put(value: float) -> Callable[[Weights], object]:
    return lambda weights: weights[CHANGED][3, 5:6].fill_(value)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_is_what_is_loaded(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = tiny.model(family, dtype=dtype)
    again = load_model(model.save(tmp_path / "saved"), dtype=dtype, device="cpu")
    assert torch.equal(again.decoder(IDS_BT), model.decoder(IDS_BT))
    assert again.config == model.config
    assert (again.dtype, again.stop_ids, again.chat_template) == (dtype, model.stop_ids, None)
    assert again.tokenizer.encode("a <s>\u00e9") == model.tokenizer.encode("a <s>\u00e9")
    assert (again.tokenizer.bos_id, again.tokenizer.eos_id) == (tiny.BOS, tiny.EOS)
    twice = load_model(again.save(tmp_path / "twice"), dtype=dtype, device="cpu")
    assert twice.sha256 == again.sha256, "the second writing holds the same bytes"
    assert not any(parameter.requires_grad for parameter in again.decoder.parameters())


def test_a_folder_that_is_there_is_not_written_over(folder: Path) -> None:
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(TargetExists):
        tiny.model("llama", seed=1).save(folder)
    assert (folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda w: w.pop(CHANGED), f"1 weights are missing.*{CHANGED}"),
        (lambda w: w.pop("model.norm.weight"), "missing"),
        (lambda w: w.pop("lm_head.weight"), "lm_head"),
        (lambda w: w.update({"model.layers.2.mlp.up_proj.weight": torch.ones(48, 32)}), "no such weight"),
        (lambda w: w.update({"extra": torch.ones(1)}), "'extra' does not fit"),
        (lambda w: w.update({CHANGED: w[CHANGED].T.contiguous()}), r"\(32, 48\).*\(48, 32\)"),
        (lambda w: w.update({CHANGED: w[CHANGED][:-1].contiguous()}), "does not fit"),
        (lambda w: w.update({CHANGED: w[CHANGED][None].contiguous()}), "does not fit"),
        (put(float("nan")), "infinities or NaNs"),
        (put(float("inf")), "infinities or NaNs"),
        (put(float("-inf")), "infinities or NaNs"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    edit: Callable[[Weights], object], said: str, folder: Path
) -> None:
    change(folder, edit)
    with pytest.raises(InputRefused, match=f"(?s){said}"):
        load_model(folder, dtype="float32", device="cpu")


def test_an_infinity_made_by_the_dtype_is_refused(folder: Path) -> None:
    change(folder, put(1e5))
    load_model(folder, dtype="float32", device="cpu")
    with pytest.raises(InputRefused, match="infinities"):
        load_model(folder, dtype="float16", device="cpu")


def test_tied_embeddings_share_one_tensor(tmp_path: Path) -> None:
    folder = tiny.model("qwen2").save(tmp_path / "model")
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    change(folder, lambda w: w.update({"lm_head.weight": torch.zeros(tiny.VOCAB, 32)}))
    decoder = load_model(folder, device="cpu").decoder
    assert decoder.lm_head.weight is decoder.model.embed_tokens.weight
    assert decoder.model.embed_tokens.weight.any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", torch.float32, torch.bfloat16, None])
def test_the_dtype_is_the_one_asked_for(dtype: str | torch.dtype | None, folder: Path) -> None:
    model = load_model(folder, dtype=dtype, device=torch.device("cpu"))
    named = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    assert {p.dtype for p in model.decoder.parameters()} == {named or default_dtype(torch.device("cpu"))}
    assert {p.device.type for p in model.decoder.parameters()} == {"cpu"}
    assert model.device.type == "cpu"


def test_unknown_dtypes_and_names_are_wrong_usage(folder: Path) -> None:
    with pytest.raises(UsageError, match="bfloat16"):
        load_model(folder, dtype="int4")
    with pytest.raises(OjakError, match="no-such-model"):
        load_model("no-such-model")


def test_a_model_that_does_not_fit_is_refused_before_its_weights_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = read_source(folder)
    count = sum(parameter.numel() for parameter in tiny.decoder("llama").parameters())
    monkeypatch.setattr(load, "available_bytes", lambda _device: 4 * count - 1)
    change(folder, put(float("nan")))
    with pytest.raises(ResourceExhausted, match="GiB"):
        from_source(source, "float32", "cpu")
    with pytest.raises(InputRefused, match="NaN"):  # half as wide, it fits, and is read
        from_source(source, "bfloat16", "cpu")


def test_the_configuration_is_checked_against_the_weights(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**config, "num_hidden_layers": 3}), "utf-8")
    with pytest.raises(InputRefused, match=r"9 weights are missing"):
        load_model(folder, device="cpu")
    path.write_text(json.dumps({**config, "hidden_size": 64}), "utf-8")
    with pytest.raises(InputRefused, match="does not fit"):
        load_model(folder, device="cpu")


def test_a_model_carries_what_it_was_read_from(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}", "utf-8")
    model = load_model(folder, device="cpu")
    assert model.chat_template == "{{ messages }}"
    assert (model.quantization, model.license, model.stop_ids) == (None, None, (tiny.EOS,))
    assert len(model.sha256) == 64
    before = model.sha256
    change(folder, put(0.5))
    assert load_model(folder, device="cpu").sha256 != before


def edit_json(path: Path, **values: object) -> None:
    content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**content, **values}), "utf-8")


def saved_with(folder: Path, extra: list[str], *, special: bool) -> Path:
    """A model whose tokenizer has tokens for each of its rows, and after those the given ones."""
    model = tiny.model("llama")
    fill = [f"<fill{n}>" for n in range(tiny.VOCAB - tiny.EOS - 1)]
    added = [tokenizers.AddedToken(text, special=special) for text in (*fill, *extra)]
    model.tokenizer.backend.add_tokens(added)
    assert model.tokenizer.backend.get_vocab_size() == tiny.VOCAB + len(extra)
    return model.save(folder)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    folder = saved_with(tmp_path / "model", ["hello", "world"], special=False)
    with pytest.raises(InputRefused, match=r"(?s)does not fit.*264 tokens.*2 beyond.*'hello' \(264\).*fix"):
        load_model(folder, device="cpu")


def test_a_vocabulary_that_fills_the_model_or_less_is_normal(tmp_path: Path, folder: Path) -> None:
    assert load_model(folder, device="cpu").tokenizer.vocab_size < tiny.VOCAB
    full = load_model(saved_with(tmp_path / "full", [], special=False), device="cpu")
    assert full.tokenizer.vocab_size == tiny.VOCAB


def test_a_special_token_beyond_the_rows_counts_where_something_needs_it(tmp_path: Path) -> None:
    """Gemma 3's text models come with an image token that they have no row for."""
    folder = saved_with(tmp_path / "model", ["<image>"], special=True)
    model = load_model(folder, device="cpu")
    assert len(generate(model, ["a"], max_tokens=2)[0].token_ids) == 2
    with pytest.raises(UsageError, match="token id that the model does not have"):
        generate(model, ["a<image>"], max_tokens=2)
    engine = engine_of(model)
    with pytest.raises(InputRefused, match=r"(?s)id is 264.*has 264 tokens"):
        list(engine.generate(iter([Request(prompt="a<image>", max_tokens=2)]), longest=10))
    (folder / "chat_template.jinja").write_text("<image>{{ messages }}", "utf-8")
    with pytest.raises(InputRefused, match="does not fit the model"):
        load_model(folder, device="cpu")
    (folder / "chat_template.jinja").unlink()
    edit_json(folder / "generation_config.json", eos_token_id=tiny.VOCAB)
    with pytest.raises(InputRefused, match="does not fit the model"):
        load_model(folder, device="cpu")


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("wrong", [10**6, -1, 10**30, "</s>", [tiny.EOS, 261]])
def test_an_end_token_without_a_token_is_refused(file: str, wrong: object, folder: Path) -> None:
    edit_json(folder / file, eos_token_id=wrong)
    with pytest.raises(InputRefused, match=r"(?s)end token.*eos_token_id.*fix"):
        load_model(folder, device="cpu")


def test_an_end_token_that_the_vocabulary_lacks_is_refused(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", eos_token="<|no-such-end|>")
    with pytest.raises(InputRefused, match=r"(?s)lacks its own end token.*no-such-end.*fix"):
        load_model(folder, device="cpu")


def test_an_embedding_model_is_refused_before_it_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetched(*_given: object, **_options: object) -> Path:
        raise AssertionError("fetched")

    monkeypatch.setattr(hub, "pull", fetched)
    with pytest.raises(
        UsageError, match=r"(?s)embedding model.*smollm2-135m-instruct, gemma-3-270m"
    ) as refused:
        load_model("all-minilm-l6-v2")
    assert "minilm" not in refused.value.fix
    monkeypatch.chdir(tmp_path)
    tiny.model("llama").save("all-minilm-l6-v2")
    assert load_model("all-minilm-l6-v2", device="cpu").config.vocab_size == tiny.VOCAB
