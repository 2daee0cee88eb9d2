"""The data card of an artifact: its README.md, made from its manifest alone and from those that it was made from.

The head is YAML as the Hugging Face hub wants it for a data set; the rest says what a reader has to know before using
the rows. Names, settings and reasons come from models, files and manifests, so that each stands in a code span or a
fenced block where no Markdown, no HTML and no link can act, its hidden characters shown as signs.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ojak._manifest import parse_manifest, read_manifest
from ojak._visible import plain
from ojak.errors import OjakError

Manifest = Mapping[str, Any]

MOST_ANCESTORS, MOST_ROWS, MOST_SETTINGS_CHARS = 16, 60, 20_000
SIZES = (
    (10**3, "n<1K"),
    (10**4, "1K<n<10K"),
    (10**5, "10K<n<100K"),
    (10**6, "100K<n<1M"),
    (10**7, "1M<n<10M"),
)
LANGUAGE = re.compile(r"[a-z]{2,3}")
LIMITS = (
    "A language model wrote the text. It can be wrong, one-sided or out of date, and can repeat what the model read.",
    "Only what the tables above name was checked. What they do not name (facts, personal data, test sets of a "
    "benchmark) was not looked for.",
    "No licence is given for the rows. The licences of the models above may bind whoever uses what they wrote.",
)

FOUND = "corpus"  # the kind of an artifact of texts that were found, not written by a model
LIMITS_OF_FOUND = (
    "The texts were found in files and pages. They can be wrong, one-sided or out of date; the rights in them belong to"
    " whoever wrote them, and no licence is given here.",
    "Only what the settings above name was checked. What they do not name (facts, names of people, test sets of a "
    "benchmark) was not looked for.",
)


def ancestors(folder: Path, manifest: Manifest) -> list[dict[str, Any]]:
    """The manifests that `manifest`, of an artifact in `folder`, was made from: the nearest first, each once.

    Only those that still lie where they were, with the same bytes; the others are missing from the card.
    """
    found: dict[str, dict[str, Any]] = {}
    waiting = [(folder, entry) for entry in manifest["inputs"]]
    while waiting and len(found) < MOST_ANCESTORS:
        home, entry = waiting.pop(0)
        digest, path = entry.get("manifest_sha256"), entry.get("path")
        if not isinstance(digest, str) or not isinstance(path, str) or digest in found:
            continue
        with suppress(OjakError, OSError, ValueError):
            raw = read_manifest(home / path)
            if hashlib.sha256(raw).hexdigest() == digest:
                found[digest] = parse_manifest(home / path, raw)
                waiting += [(home / path, below) for below in found[digest]["inputs"]]
    return list(found.values())


def render(manifest: Manifest, splits: Mapping[str, int], sources: Sequence[Manifest] = ()) -> str:
    """The card. `splits`: rows of each split; `sources`: the manifests that the artifact was made from."""
    rows, line = sum(splits.values()), [manifest, *sources]
    parts = [
        _head(manifest, splits, line),
        f"# {rows:,} {'row' if rows == 1 else 'rows'} ({manifest['kind']})\n",
        f"Made with ojak {code(manifest['ojak_version'])} on "
        f"{code(manifest['created'])}. `ojak verify` checks this folder against its `manifest.json`.\n",
        _rows(manifest["counts"]),
        _splits(splits),
        *_curation(line),
        *_judges(line),
        _stages(line),
        _models(line),
        _settings(line),
        _files(manifest["files"]),
        "## Limits\n\n" + "".join(f"- {text}\n" for text in (LIMITS_OF_FOUND if _is_found(line) else LIMITS)),
    ]
    return "\n".join(filter(None, parts))


def _is_found(line: Sequence[Manifest]) -> bool:
    """Whether no model wrote any of it."""
    return all(each["kind"] == FOUND for each in line)


def code(value: object, length: int = 120) -> str:
    """`value` on one line as a code span that is also safe in a table."""
    text = plain(value, keep="").replace("`", "'").replace("|", "\u00a6").replace("\\", "/")
    text = " ".join(text[: 4 * length].split())[:length]
    return f"`{text}`" if text else "-"


def _head(manifest: Manifest, splits: Mapping[str, int], line: Sequence[Manifest]) -> str:
    """The YAML. It lists no empty splits: `datasets` refuses the whole folder for one."""
    listed = [split for split, rows in splits.items() if rows] or list(splits)
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in listed]
    rows = sum(splits.values())
    language = next(
        (_dig(each, "config", "language") for each in line if _dig(each, "config", "language")), None
    )
    head = {
        "pretty_name": f"{rows:,} rows made with ojak ({manifest['kind']})",
        "size_categories": [next((name for most, name in SIZES if rows < most), "n>10M")],
        "task_categories": ["text-generation"],
        "tags": list(
            dict.fromkeys([*([] if _is_found(line) else ["synthetic"]), "ojak", *(e["kind"] for e in line)])
        ),
        "configs": [{"config_name": "default", "data_files": files}],
    }
    if isinstance(language, str) and LANGUAGE.fullmatch(language):
        head = {"language": [language], **head}
    # JSON is YAML, and needs no escaping rules of its own.
    return "\n".join(["---", *(f"{name}: {json.dumps(value)}" for name, value in head.items()), "---", ""])


def _rows(counts: Manifest) -> str:
    reasons = sorted(counts["rejected"].items(), key=lambda item: -item[1])
    lines = [("in", counts["rows"]), ("kept", counts["accepted"])]
    lines += [(f"rejected: {code(reason)}", number) for reason, number in reasons[:MOST_ROWS]]
    return _table(("rows", "number"), [*lines, ("failed", counts["failed"])])


def _splits(splits: Mapping[str, int]) -> str:
    return _table(("split", "rows"), splits.items()) if len(splits) > 1 else ""


def _curation(line: Sequence[Manifest]) -> Iterator[str]:
    """The funnel of each stage that has one, and the rules that it could not apply."""
    for manifest in line:
        funnel = [step for step in _list(_dig(manifest, "stats", "funnel")) if isinstance(step, dict)]
        if funnel:
            steps = [
                (code(step.get("rule")), _number(step.get("in")), _number(step.get("rejected")))
                for step in funnel
            ]
            yield f"## Filters ({manifest['kind']})\n\n" + _table(("rule", "rows in", "rejected"), steps)
        missing = _dig(manifest, "stats", "not_applied")
        if isinstance(missing, dict) and missing:
            rules = [(code(rule), code(reason, 300)) for rule, reason in missing.items()]
            yield "Not applied:\n\n" + _table(("rule", "why"), rules)


def _judges(line: Sequence[Manifest]) -> Iterator[str]:
    """What a calibration says of each judge whose labels were used: `stats["calibrations"]`, as they are kept."""
    for manifest in line:
        for found in _list(_dig(manifest, "stats", "calibrations")):
            if isinstance(_dig(found, "auroc"), dict):
                yield _judge(found)


def _judge(found: Manifest) -> str:
    usable = "It may filter." if found.get("usable") is True else "It may tag, not filter."
    who = code(_dig(found, "identity", "model") or "judge")
    rows = [(code(name), *_interval(value)) for name, value in found["auroc"].items()]
    text = f"How well {who} tells good rows from corrupted ones (0.5 is chance). {usable}"
    return f"## Judge\n\n{text}\n\n" + _table(("corruption", "AUROC", "low", "high"), rows)


def _interval(value: Any) -> list[str]:
    numbers = [_number(each) for each in _list(value)[:3]]
    return [*numbers, "-", "-", "-"][:3]


def _stages(line: Sequence[Manifest]) -> str:
    rows = [
        (code(each["kind"]), code(each["created"]), code(each["ojak_version"]), each["counts"]["rows"],
         each["counts"]["accepted"])
        for each in reversed(line)
    ]  # fmt: skip
    return "## Stages\n\n" + _table(("stage", "made", "ojak", "rows in", "kept"), rows)


def _models(line: Sequence[Manifest]) -> str:
    found: dict[tuple[str, ...], None] = {}
    for name, *facts in (model for manifest in reversed(line) for model in _used(manifest)):
        if isinstance(name, str) and name:
            known = [code(fact) if isinstance(fact, str) and fact else "not recorded" for fact in facts]
            found[(code(name), *known)] = None
    table = _table(("model", "SHA-256", "licence", "quantised as"), found)
    return f"## Models\n\n{table}" if found else ""


def _used(manifest: Manifest) -> Iterator[tuple[Any, Any, Any, Any]]:
    """(name, hash, licence, quantisation) of each model that a stage used: the writer's, and those that judged."""
    stats = manifest["stats"]
    name = _dig(stats, "engine", "model") or manifest["config"].get("model") or stats.get("name")
    digest = _dig(stats, "engine", "model_sha256") or stats.get("model_sha256") or stats.get("sha256")
    yield name, digest, stats.get("license"), stats.get("quantization")
    for annotator in _list(stats.get("annotators")):
        named = annotator.values() if isinstance(annotator, dict) else ()
        for model in (annotator, *named):  # an annotator is a model, or names those that it asks
            yield (
                _dig(model, "model"),
                _dig(model, "model_sha256"),
                _dig(model, "license"),
                _dig(model, "quantization"),
            )


def _settings(line: Sequence[Manifest]) -> str:
    """The settings of every stage, seeds included, as JSON: no line of it can end the block."""
    settings = [{"stage": each["kind"], "settings": each["config"]} for each in reversed(line)]
    text = "\n".join(
        plain(part, keep="") for part in json.dumps(settings, ensure_ascii=False, indent=2).split("\n")
    )
    more = "\n... the rest is in manifest.json" if len(text) > MOST_SETTINGS_CHARS else ""
    return f"## Settings and seeds\n\n```json\n{text[:MOST_SETTINGS_CHARS]}{more}\n```\n"


def _files(files: Iterable[Manifest]) -> str:
    rows = [
        (code(each["path"]), each["rows"], f"{each['bytes']:,}", code(each["sha256"]))
        for each in list(files)[:MOST_ROWS]
    ]
    return "## Files\n\n" + _table(("file", "rows", "bytes", "SHA-256"), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)


def _dig(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
