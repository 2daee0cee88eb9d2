"""The README.md of a merged model: what it was made of and how, and how to run it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from ojak._card import code
from ojak._code import version

if TYPE_CHECKING:
    from ojak.merge.config import MergeConfig
    from ojak.merge.run import MergeResult
    from ojak.model.source import Source

WHAT = {
    "linear": "the weighted mean of the models",
    "slerp": "the arc between the models' task vectors",
    "task": "the base and the weighted sum of the models' task vectors",
    "ties": "the base and what the models' task vectors agree on (TIES)",
    "dare": "the base and the models' task vectors, thinned out at random (DARE)",
    "ema": "the running mean of the models in their order",
    "liti": "a point between the base and the model",
}
SETTINGS = {
    "slerp": ("scale", "angle"),
    "task": ("scale",),
    "ties": ("scale", "density"),
    "dare": ("scale", "drop", "seed"),
}
LIMITS = (
    "What the models can and cannot do was not measured here: `ojak evaluate` measures the merged one.",
    "A small language model can be wrong, one-sided or out of date, and repeats what it was trained on.",
    "The licences of all models that it was made of bind whoever uses it.",
)


def card(config: MergeConfig, result: MergeResult, source: Source) -> str:
    """The card, in Markdown; names stand where they cannot act."""
    parts = [
        _head(result, source),
        f"# A merge of {len(result.models)} model{'s' * (len(result.models) > 1)}\n",
        f"Made with ojak {version()}: {WHAT[result.method]}. {result.parameters:,} parameters, stored as "
        f"{', '.join(result.dtypes)}. Tokenizer, chat template and configuration are those of "
        f"{code(result.models[0]['name'])}.\n",
        "## What it was made of\n",
        _table(config, result),
        _settings(config),
        "## How to run it\n\n```bash\nojak chat .\nvllm serve .\n```\n",
        "## Limits\n\n" + "".join(f"- {text}\n" for text in LIMITS),
    ]
    return "\n".join(filter(None, parts))


def _head(result: MergeResult, source: Source) -> str:
    """The YAML; JSON is YAML. A licence stands there if it is that of all models."""
    licenses = {model["license"] for model in _all(result)}
    head = {
        "license": licenses.pop() or "unknown" if len(licenses) == 1 else "unknown",
        "pipeline_tag": "text-generation",
        "library_name": "transformers",
        "tags": ["ojak", "merge", *(["conversational"] if source.chat_template else [])],
    }
    return "\n".join(["---", *(f"{name}: {json.dumps(value)}" for name, value in head.items()), "---", ""])


def _all(result: MergeResult) -> list[dict[str, Any]]:
    return [*result.models, *([result.base] if result.base else [])]


def _table(config: MergeConfig, result: MergeResult) -> str:
    weights = config.weights or (1 / len(result.models),) * len(result.models)
    given = weights if len(weights) == len(result.models) else (f"mu = {weights[0]:g}",) * len(result.models)
    shown = [f"{weight:.6g}" if isinstance(weight, float) else weight for weight in given]
    rows = [*zip(result.models, shown, strict=True), *([(result.base, "base")] if result.base else [])]
    lines = [("model", "weight", "licence", "SHA-256 of its files"), ("---",) * 4]
    lines += [(code(m["name"]), weight, code(m["license"] or ""), code(m["sha256"])) for m, weight in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _settings(config: MergeConfig) -> str:
    settings = [f"{name} {getattr(config, name)}" for name in SETTINGS.get(config.method, ())]
    return f"Settings: {', '.join(settings)}.\n" if settings else ""
