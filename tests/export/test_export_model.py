"""Exported models: the same logits in transformers and llama.cpp, the same tokens, the same stops."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

sys.path[:0] = [str(Path(__file__).parent.parent / "model"), str(Path(__file__).parent)]

import exported  # noqa: E402 (beside this file)
from exported import CHATML, FAMILIES, TEXT, VOCAB  # noqa: E402
from llama_oracle import LlamaCpp  # noqa: E402

from ojak.chat import ChatTemplate  # noqa: E402
from ojak.cli.app import app  # noqa: E402
from ojak.errors import InputRefused  # noqa: E402
from ojak.export.model import export_model  # noqa: E402
from ojak.export.ollama import modelfile, read_round  # noqa: E402
from ojak.model.load import Model, load_model  # noqa: E402
from ojak.model.lora import apply_lora, save_adapter  # noqa: E402
from ojak.model.lora_config import LoraConfig  # noqa: E402

pytestmark = pytest.mark.usefixtures("folder")
IDS = [[5, 17, 101, 255, 8, 64, 300, 200, 31, 7, 260, 19]]
END, TURN_END, OPENING = 0, 2, 1


def export(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["export", *arguments])


def in_transformers(folder: str) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def logits(model: Model) -> torch.Tensor:
    with torch.no_grad():
        return model.decoder(torch.tensor(IDS))


# --------------------------------------------------------------------------------------------- Hugging Face folder


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_gives_the_same_logits(family: str) -> None:
    made = exported.model(family)
    made.save("m")
    told = json.loads(export("m", "--format", "hf", "--out", "x", "--json").stdout)
    assert (told["type"], told["stop_ids"]) == ("f32", [END, TURN_END])
    assert told["stops"] == ["<|endoftext|>", "<|im_end|>"]
    with torch.no_grad():
        theirs = in_transformers("x")(torch.tensor(IDS)).logits
    assert float((theirs - logits(made)).abs().max()) <= 1e-4


def test_a_folder_has_every_stop_its_template_and_a_card() -> None:
    exported.model().save("m")
    assert export("m", "--format", "hf", "--out", "x", "--type", "bf16").exit_code == 0
    written = json.loads(Path("x/generation_config.json").read_text())
    assert set(written["eos_token_id"]) == {END, TURN_END, OPENING}
    assert Path("x/chat_template.jinja").read_text() == CHATML
    card = Path("x/README.md").read_text()
    assert '"<|im_end|> (id 2)"' in card
    assert "stored as bf16" in card
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained("x")
    chat = [{"role": "user", "content": TEXT}]
    ids = theirs.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    (text,) = ChatTemplate(CHATML).render([chat], add_generation_prompt=True)
    assert ids == exported.tokenizer().encode(text)
    assert load_model("x", device="cpu", dtype="float32").decoder.model.norm.weight.dtype == torch.float32
    assert export("x", "--format", "hf", "--out", "y").exit_code == 0
    assert Path("y/model.safetensors").stat().st_size == Path("x/model.safetensors").stat().st_size


def test_an_adapter_is_merged() -> None:
    exported.model().save("m")
    model = load_model("m", dtype="float32", device="cpu")
    with torch.no_grad():
        for parameter in apply_lora(model.decoder, LoraConfig(r=2, variant="dora"), seed=0):
            parameter += 0.2
    save_adapter("adapter", model, LoraConfig(r=2, variant="dora"), base="m")
    assert export("adapter", "--format", "hf", "--out", "x").exit_code == 0
    assert export("adapter", "--format", "gguf", "--out", "x.gguf", "--type", "f32").exit_code == 0
    with torch.no_grad():
        theirs = in_transformers("x")(torch.tensor(IDS)).logits
    assert float((theirs - logits(model)).abs().max()) <= 1e-4
    assert float((logits(load_model("x.gguf", dtype="float32")) - logits(model)).abs().max()) <= 1e-4


# ------------------------------------------------------------------------------------------------------------ GGUF


@pytest.mark.parametrize("family", FAMILIES)
def test_llama_cpp_gives_the_same_probabilities_and_tokens(family: str) -> None:
    made = exported.model(family)
    made.save("m")
    result = export("m", "--format", "gguf", "--out", "x.gguf", "--type", "f32")
    assert result.exit_code == 0, result.stderr
    llama = LlamaCpp(Path("x.gguf").absolute())
    compared = 0
    for count in range(2, len(IDS[0])):
        with torch.no_grad():
            ours = made.decoder(torch.tensor([IDS[0][:count]]))[0, -1].log_softmax(-1)
        if not is_text(made, int(ours.argmax())):
            continue
        compared += 1
        theirs = llama.next_token(IDS[0][:count], 300)
        found = np.array(list(theirs.values()))
        assert np.abs(found - ours[list(theirs)].numpy()).max() < 5e-3
        assert ours.max() - ours.min() > 1
    assert compared
    for text in (TEXT, "x = 12345\n\n  y", "<|im_start|>user\nHi<|im_end|>", "é e\u0301 ﬁ"):
        assert llama.tokenize(text, special=True) == made.tokenizer.encode(text)


def is_text(model: Model, token: int) -> bool:
    """Whether llama.cpp has something to tell of a token: it ends nothing, and is no part of a character."""
    try:
        return token not in (END, TURN_END) and bool(model.tokenizer.token_bytes(token).decode())
    except UnicodeDecodeError:
        return False


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8_0"])
def test_a_file_is_read_as_it_was_written(kind: str, family: str) -> None:
    made = exported.model(family)
    made.save("m")
    assert export("m", "--format", "gguf", "--out", "x.gguf", "--type", kind).exit_code == 0
    back = load_model("x.gguf", dtype="float32", device="cpu")
    assert back.chat_template == CHATML
    assert {END, TURN_END} <= set(back.stop_ids)
    assert back.tokenizer.encode(TEXT) == made.tokenizer.encode(TEXT)
    for (name, own), (_, read) in zip(
        sorted(made.decoder.named_parameters()), sorted(back.decoder.named_parameters()), strict=True
    ):
        error = float((read - own).abs().max())
        if own.ndim == 1 or kind == "f32":
            assert error < 1e-6, name
        elif kind == "q8_0":  # a block's scale is a half-precision number: its largest value over 127
            assert error <= float(own.abs().max()) * (0.5 / 127 + 2**-10), name
        else:
            assert torch.equal(read, own.half().float() if kind == "f16" else own.bfloat16().float()), name


@pytest.mark.parametrize(
    ("family", "changes", "why"),
    [
        ("gemma2", {"query_pre_attn_scalar": 16}, "query_pre_attn_scalar"),
        ("gemma3", {"layer_types": ["full_attention"] * 2}, "layer_types"),
        ("qwen2_sliding", {}, "layer_types"),
        ("mistral", {}, "see 12 tokens of 512"),
        ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 3.0, "low_freq_factor": 1.0,
                                    "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}, "rope_freqs"),
    ],
    ids=["scale", "pattern", "qwen", "mistral", "rope"],
)  # fmt: skip
def test_what_llama_cpp_would_run_otherwise_is_refused(
    family: str, changes: dict[str, Any], why: str
) -> None:
    exported.model(family, **changes).save("m")
    with pytest.raises(InputRefused, match=why):
        export_model("m", "gguf", Path("x.gguf"))
    assert [path.name for path in Path().iterdir() if "gguf" in path.name] == []


def test_a_window_as_long_as_the_text_is_no_window() -> None:
    exported.model("mistral", sliding_window=512).save("m")
    assert export("m", "--format", "gguf", "--out", "x.gguf").exit_code == 0


def test_a_tokenizer_without_a_name_is_refused() -> None:
    import tiny

    tiny.model().save("m")
    result = export("m", "--format", "gguf", "--out", "x.gguf")
    assert (result.exit_code, "has no name in llama.cpp" in result.stderr) == (9, True)


def test_values_beyond_f16_are_refused() -> None:
    made = exported.model()
    made.decoder.get_parameter("lm_head.weight")[3, 3] = 1e5
    made.save("m")
    assert "--type bf16" in export("m", "--format", "gguf", "--out", "x.gguf").stderr
    assert export("m", "--format", "gguf", "--out", "x.gguf", "--type", "bf16").exit_code == 0


def test_wrong_usage() -> None:
    exported.model().save("m")
    for arguments in (
        ("--format", "hf", "--out", "x", "--type", "q8_0"),
        ("--format", "gguf", "--out", "x"),
        ("--format", "gguf", "--out", "m"),
        ("--format", "hf", "--out", "m"),
    ):
        assert export("m", *arguments).exit_code == 2, arguments
    assert sorted(path.name for path in Path().iterdir() if path.name != "home") == ["m"]


# ---------------------------------------------------------------------------------------------------------- Ollama


def as_ollama(text: str, system: str, rounds: list[tuple[str, str | None]]) -> str:
    """What Ollama's documentation says of a template with .System, .Prompt and .Response, by other means than ours."""
    template = re.search(r'TEMPLATE """(.*?)"""', text, re.DOTALL)
    given = re.search(r'SYSTEM """(.*?)"""', text, re.DOTALL)
    assert template
    system = system or (given[1] if given else "")
    return "".join(a_round(template[1], "" if n else system, *each) for n, each in enumerate(rounds))


def a_round(template: str, system: str, prompt: str, response: str | None) -> str:
    block = r"\{\{ if \.System \}\}(.*?)\{\{ end \}\}"
    template = re.sub(block, lambda match: match[1] if system else "", template, flags=re.DOTALL)
    if response is None:
        template = template.partition("{{ .Response }}")[0]
    values = {".System": system, ".Prompt": prompt, ".Response": response or "", '"{{"': "{{"}
    return re.sub(r"\{\{ (.*?) \}\}", lambda match: values[match[1]], template)


def test_an_ollama_folder_renders_the_model_s_own_template() -> None:
    exported.model().save("m")
    assert export("m", "--format", "ollama", "--out", "x").exit_code == 0
    assert sorted(path.name for path in Path("x").iterdir()) == ["Modelfile", "README.md", "model.gguf"]
    text = Path("x/Modelfile").read_text()
    assert text.startswith("FROM ./model.gguf\n")
    assert 'PARAMETER stop "<|im_end|>"' in text
    assert 'PARAMETER stop "<|endoftext|>"' in text
    assert "PARAMETER num_ctx 512" in text
    chat = [("system", "Be brief."), ("user", "One?"), ("assistant", "1."), ("user", "{{ Two }}?")]
    messages = [{"role": role, "content": words} for role, words in chat]
    for begin in (0, 1):
        (own,) = ChatTemplate(CHATML).render([messages[begin:]], add_generation_prompt=True)
        assert as_ollama(text, "" if begin else "Be brief.", [("One?", "1."), ("{{ Two }}?", None)]) == own


TEMPLATES = Path(__file__).parent.parent / "data" / "templates"
TELLABLE = {"gemma-2", "gemma-1.1", "llama-3", "phi-3", "qwen2", "qwen2.5", "yi-1.5", "phi-3-small"}


@pytest.mark.parametrize("name", sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
def test_templates_are_told_as_they_are_or_not_at_all(name: str) -> None:
    template = ChatTemplate((TEMPLATES / f"{name}.jinja").read_text("utf-8"), "<s>", "</s>")
    default = "You are a helpful assistant." if name == "qwen2" else None
    if name == "qwen2.5":
        default = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    try:
        text = modelfile(template, "w", stops=["</s>"], context=99, default_system=default, bos="<s>")
    except InputRefused:
        assert name not in TELLABLE
        return
    rounds = [("One?", "1."), ("Two?", "2."), ("Three?", None)]
    turns = [
        {"role": role, "content": words}
        for pair in rounds
        for role, words in zip(("user", "assistant"), pair, strict=True)
        if words
    ]
    (own,) = template.render([turns], add_generation_prompt=True)
    assert as_ollama(text, "", rounds) == own.removeprefix("<s>")


def test_braces_of_a_template_do_not_act() -> None:
    braced = CHATML.replace("<|im_start|>", "<|im_start|>{{ '{{' }} .System }}")
    template = ChatTemplate(braced)
    text = modelfile(template, "w", stops=[], context=9, default_system=None, bos="")
    assert 'TEMPLATE """' in text
    (own,) = template.render([[{"role": "user", "content": "One?"}]], add_generation_prompt=True)
    assert "{{ .System }}" in own
    assert as_ollama(text, "", [("One?", None)]) == own


def test_a_template_of_another_form_is_refused() -> None:
    counting = CHATML.replace("<|im_start|>{{", "<|im_start|>{{ loop.index }}{{")
    with pytest.raises(InputRefused, match="Ollama's terms"):
        read_round(ChatTemplate(counting), None, "")
    exported.model(template=None).save("base")
    result = export("base", "--format", "ollama", "--out", "x")
    assert (result.exit_code, "no chat template" in result.stderr) == (9, True)


def test_hostile_names_do_not_act_in_a_card() -> None:
    made = exported.model()
    made.name = "x`\n# <script>alert(1)</script>"
    made.license = "a\nb: c"
    from ojak.export.model_card import card
    from ojak.export.stops import stops_of

    text = card(made, stops_of(made), "hf", "f32")
    assert "\n# <script>" not in text
    assert "\nb: c" not in text


def test_rows_beyond_the_tokens_are_named_apart() -> None:
    exported.model().save("m")
    export("m", "--format", "gguf", "--out", "x.gguf")
    assert load_model("x.gguf").tokenizer.backend.id_to_token(VOCAB + 3) == f"[PAD{VOCAB + 3}]"
