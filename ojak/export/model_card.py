"""The README.md of an exported model: where it comes from, what it writes before and after a turn, how to run it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ojak._card import code
from ojak._code import version
from ojak._visible import plain
from ojak.chat import describe

if TYPE_CHECKING:
    from ojak.export.stops import Stops
    from ojak.model.load import Model

IN_PYTHON = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".")
tokenizer = AutoTokenizer.from_pretrained(".")"""
RUN = {
    "hf": (IN_PYTHON, "vllm serve .\nojak chat ."),
    "ollama": (
        None,
        "ollama create my-model -f Modelfile\nollama run my-model\nllama-server -m model.gguf --jinja",
    ),
}
LIMITS = (
    "A small language model can be wrong, one-sided or out of date, and repeats what it was trained on.",
    "The licence of the model that it comes from binds whoever uses it.",
)


def card(model: Model, stops: Stops, fmt: str, kind: str) -> str:
    """The card, in Markdown; what comes from the model stands where it cannot act."""
    parts = [
        _head(model, fmt),
        f"# {code(model.name)}\n",
        f"Exported with ojak {version()}. {_facts(model, kind)}\n",
        _chat(model),
        _stops(model, stops),
        _run(fmt),
        "## Limits\n\n" + "".join(f"- {text}\n" for text in LIMITS),
    ]
    return "\n".join(filter(None, parts))


def _head(model: Model, fmt: str) -> str:
    """The YAML; JSON is YAML, and needs no escaping rules of its own."""
    head = {
        "license": model.license or "unknown",
        "pipeline_tag": "text-generation",
        "library_name": "transformers" if fmt == "hf" else "gguf",
        "tags": ["ojak", *(["conversational"] if model.chat_template else [])],
    }
    return "\n".join(["---", *(f"{name}: {json.dumps(value)}" for name, value in head.items()), "---", ""])


def _facts(model: Model, kind: str) -> str:
    config = model.config
    parameters = sum(parameter.numel() for parameter in model.decoder.parameters())
    came = f" It was stored as {code(model.quantization)} before." if model.quantization else ""
    return (
        f"{parameters:,} parameters of the family {code(config.model_type)}, stored as {kind}; texts of up to "
        f"{config.max_position_embeddings:,} tokens; SHA-256 of the files it comes from {code(model.sha256)}.{came}"
    )


def _chat(model: Model) -> str:
    if not model.chat_template:
        return "## Prompts\n\nA base model: it continues text and has no chat template.\n"
    found = describe(model.chat_template, model.tokenizer, eos_ids=model.stop_ids)
    return "## Prompts\n\nWhat its chat template writes before and after a question:\n\n" + _block(
        [found["pre_query"], found["post_query"]]
    )


def _stops(model: Model, stops: Stops) -> str:
    names = {i: text for text, i in model.tokenizer.special_tokens.items()}
    texts = [f"{names.get(i, '')} (id {i})" for i in stops.needed] + list(stops.strings)
    return "## What ends an answer\n\n" + _block(texts)


def _block(texts: list[str]) -> str:
    """Texts as JSON, one a line: no line of it can end the block."""
    lines = (plain(json.dumps(text, ensure_ascii=False), keep="") for text in texts)
    return "```json\n" + "".join(f"{line}\n" for line in lines) + "```\n"


def _run(fmt: str) -> str:
    python, shell = RUN[fmt]
    block = f"```python\n{python}\n```\n\n" if python else ""
    return f"## How to run it\n\n{block}```bash\n{shell}\n```\n"
