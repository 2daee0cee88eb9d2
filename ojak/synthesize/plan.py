"""What a run would do and cost, before it is begun: `--dry-run`. Nothing is written, fetched or generated."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from ojak.chat import chat_prefix
from ojak.errors import OjakError, UsageError
from ojak.ledger import Ledger
from ojak.model import estimate, hub
from ojak.model.files import home
from ojak.model.load import read_source
from ojak.synthesize.config import MagpieConfig, PersonasConfig, RunConfig
from ojak.synthesize.folder import (
    LEDGER,
    begun_caps,
    begun_settings,
    changes,
    check_folder,
    finished_artifact,
)

# Where the folder has no rows yet: SmolLM2-135M-Instruct's, on the default grid; others write longer answers.
TYPICAL_TOKENS = {"instruction": 60, "response": 250, "persona": 60}
TYPICAL_ANSWERED = 0.7  # share of the instructions that rules and duplicates let through
LEAST_FOR_MEANS = 16  # rows from which on the folder's own means are taken
CHARACTERS_PER_TOKEN = 4.2
LEDGER_REQUEST_BYTES = 450  # beside its text: key, settings, index
ARTIFACT_ROW_BYTES = 350  # beside its text: compressed metadata

Config: TypeAlias = MagpieConfig | PersonasConfig


class Finished(NamedTuple):
    """Requests of one side that are in the ledger, and their mean tokens."""

    requests: int = 0
    mean_tokens: float = 0.0


@dataclass(frozen=True, slots=True)
class Known:
    """What the folder's ledger holds, by side. `seconds` and `tokens` are sums over runs."""

    sides: Mapping[str, Finished] = field(default_factory=dict)
    seconds: float = 0.0
    tokens: int = 0
    settings: dict[str, Any] | None = None
    caps: dict[str, int] | None = None

    def requests(self, side: str) -> int:
        """Finished ones of this side."""
        return self.sides.get(side, Finished()).requests


@dataclass(frozen=True, slots=True)
class Work:
    """What a run asks for. `rows`, of which `begun` and `answered` are in the ledger; `left`: the rows that still need
    a request of a side; `times`: how many requests of that side a row takes.
    """

    rows: int
    begun: int
    answered: int
    left: Mapping[str, int]
    times: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Files:
    """The model as far as it is on this machine. `refused`: why it cannot be used here."""

    identity: dict[str, Any] | None = None
    weights: int | None = None
    multiplied: int | None = None
    license: str | None = None
    license_accepted: bool | None = None
    download_bytes: int | None = None
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """`verdict`: "start", "resume", "finished" or "refused" (then `why`). Unknown numbers are None.

    `rows_begun` and `rows_answered` are in the ledger; `rows_to_do` still need their first request. `rows` is exact, or
    with `at_most` the most that there may be. Tokens (by side), seconds and bytes are estimates of what is left to do,
    `..._from` says what they rest on.
    """

    model: str
    out: str
    verdict: str
    why: str
    rows: int
    at_most: bool
    rows_begun: int
    rows_answered: int
    rows_to_do: int
    tokens: dict[str, int]
    tokens_from: str
    seconds: float | None
    seconds_from: str
    ledger_bytes: int
    artifact_bytes: int
    download_bytes: int | None
    free_disk_bytes: int
    weights_bytes: int | None
    free_memory_bytes: int
    license: str | None
    license_accepted: bool | None

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values; the tokens of each side under a name of their own, as in a manifest."""
        found = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "tokens"}
        return {**found, **{f"{side}_tokens": count for side, count in self.tokens.items()}}

    def lines(self) -> list[str]:
        """The plan for a person."""
        verdict = {
            "start": "would start a new run",
            "resume": "would resume the run that is there",
            "finished": "nothing to do: all of it is there",
            "refused": f"would be refused: {self.why}",
        }[self.verdict]
        accepted = {True: "accepted", False: "not accepted yet", None: "no consent asked for"}
        licence = f"{self.license} ({accepted[self.license_accepted]})" if self.license else "unknown"
        time = "unknown" if self.seconds is None else _clock(self.seconds)
        tokens = ", ".join(f"{count:,} of {side}s" for side, count in self.tokens.items())
        return [
            f"folder      {self.out}: {verdict}",
            f"model       {self.model}, licence {licence}",
            f"rows        {'at most ' * self.at_most}{self.rows:,}: {self.rows_begun:,} begun,"
            f" {self.rows_answered:,} of them answered; {self.rows_to_do:,} to do",
            f"tokens      about {tokens} (from {self.tokens_from})",
            f"time        {time} ({self.seconds_from})",
            f"disk        about {_size(self.ledger_bytes)} of ledger, {_size(self.artifact_bytes)} of artifact;"
            f" {_download(self.download_bytes)}; {_size(self.free_disk_bytes)} free",
            f"memory      {_size(self.weights_bytes)} of weights, then rows as they fit;"
            f" {_size(self.free_memory_bytes)} free",
        ]


def plan(config: Config) -> Plan:
    """Looks at the folder, the model's files and the machine. Raises UsageError for a model that nobody knows,
    InputRefused for a source of personas that cannot be read."""
    out, files, machine = Path(config.out), look_at_model(config), estimate.machine()
    known, trouble = _known(config, out)
    verdict, why = _verdict(config, out, known, files)
    work = _work(config, known, finished=verdict == "finished")
    tokens, tokens_from = _tokens(config, known)
    left = {side: round(rows * tokens[side] * work.times[side]) for side, rows in work.left.items()}
    seconds, seconds_from = _seconds(files, known, sum(left.values()), machine)
    text_bytes = round(sum(left.values()) * CHARACTERS_PER_TOKEN)
    return Plan(
        model=config.model,
        out=str(out),
        verdict="refused" if trouble else verdict,
        why=trouble or why,
        rows=work.rows,
        at_most=isinstance(config, PersonasConfig),
        rows_begun=work.begun,
        rows_answered=work.answered,
        rows_to_do=next(iter(work.left.values())),
        tokens=left,
        tokens_from=tokens_from,
        seconds=seconds,
        seconds_from=seconds_from,
        ledger_bytes=text_bytes + sum(work.left.values()) * LEDGER_REQUEST_BYTES,
        artifact_bytes=text_bytes + work.rows * ARTIFACT_ROW_BYTES,
        download_bytes=files.download_bytes,
        free_disk_bytes=_free_disk(out),
        weights_bytes=None
        if files.weights is None
        else files.weights * (2 if machine.dtype != "float32" else 4),
        free_memory_bytes=machine.free_bytes,
        license=files.license,
        license_accepted=files.license_accepted,
    )


def _work(config: Config, known: Known, *, finished: bool) -> Work:
    if isinstance(config, PersonasConfig):
        return _work_of_personas(config, known, finished=finished)
    begun, answered = known.requests("instruction"), known.requests("response")
    # A run that was stopped has rows that wait for their answer: its own share is then too low.
    share = max(TYPICAL_ANSWERED, answered / begun if begun else 0.0)
    left = {
        "instruction": 0 if finished else max(0, config.rows - begun),
        "response": 0 if finished else max(0, round(config.rows * share) - answered),
    }
    times = {"instruction": config.turns, "response": config.turns * config.responses}
    return Work(config.rows, min(begun, config.rows), answered, left, times)


def _work_of_personas(config: PersonasConfig, known: Known, *, finished: bool) -> Work:
    """A row is one request. How many there will be depends on how many personas are kept: the most is said."""
    done = known.requests("persona")
    most = done if finished else config.most_rows
    return Work(most, done, done, {"persona": most - done}, {"persona": 1})


# -- the folder -------------------------------------------------------------------------------------------------------


def _known(config: Config, out: Path) -> tuple[Known, str]:
    """The ledger's contents, and what is wrong with it."""
    path = out / LEDGER
    if not path.exists():
        return Known(), ""
    try:
        return _read_ledger(path, config), ""
    except OjakError as error:
        return Known(), _sentence(error)


def _read_ledger(path: Path, config: Config) -> Known:
    """Sums over the ledger."""
    rows = config.most_rows if isinstance(config, PersonasConfig) else config.rows
    with Ledger(path, read_only=True) as ledger:
        settings, caps, totals = ledger.get_meta("settings"), ledger.get_meta("caps"), ledger.totals()
        sides = {
            side: Finished(*ledger.finished(side, rows=rows, max_tokens=cap))
            for side, cap in _sides(config).items()
        }
    return Known(sides, totals.seconds, totals.tokens, settings, caps)


def _sides(config: Config) -> dict[str, int]:
    """The kinds of requests, with their caps in tokens; every row has one of the first kind."""
    if isinstance(config, PersonasConfig):
        return {"persona": config.max_tokens}
    return {"instruction": config.max_instruction_tokens, "response": config.max_response_tokens}


def _verdict(config: RunConfig, out: Path, known: Known, files: Files) -> tuple[str, str]:
    try:
        check_folder(config, out)
        if finished_artifact(config, out):
            return "finished", ""
    except OjakError as error:
        return "refused", _sentence(error)
    if files.refused:
        return "refused", files.refused
    if any(side.requests for side in known.sides.values()) and known.settings is not None:
        changed = _changes(config, known.settings, known.caps or {}, files.identity)
        if changed:
            return "refused", f"begun with other settings: {'; '.join(changed)}"
    return ("resume" if (out / LEDGER).exists() else "start"), ""


def _changes(
    config: RunConfig, before: dict[str, Any], caps: dict[str, int], identity: dict[str, Any] | None
) -> list[str]:
    """What differs from the settings of before; the engine's are compared only where the model's files are here."""
    if identity is None:
        before = {name: value for name, value in before.items() if not name.startswith("engine.")}
    return changes(before, begun_settings(config, identity or {}), caps, begun_caps(config))


def _sentence(error: OjakError) -> str:
    return "; ".join(part for part in (error.what, error.why, error.fix) if part)


# -- the model --------------------------------------------------------------------------------------------------------


def look_at_model(config: RunConfig) -> Files:
    """What can be said of the model from this machine alone. Raises UsageError for a name that nobody knows."""
    if config.model == "scripted" or config.engine == "scripted":
        return Files(_scripted_identity(), weights=0, multiplied=0, download_bytes=0)
    if config.engine == "endpoint" or config.url:  # a server is not asked before the run
        return Files(download_bytes=0)
    path, files = _find(config)
    if path is None or files.refused:
        return files
    try:
        source = read_source(path, offline=True)
        weights, multiplied = estimate.parameters(source.config)
        files = replace(
            files, weights=weights, multiplied=multiplied, license=files.license or source.license
        )
        chat_prefix(
            source.chat_template,
            source.tokenizer,
            eos_ids=source.stop_ids,
            system=config.system_text,
            turns=config.most_turns,
        )
    except OjakError as error:
        return replace(files, refused=_sentence(error))
    name = config.model if config.model in hub.KNOWN else source.name
    dtype = estimate.machine().dtype
    identity = {"engine": "native", "model": name, "model_sha256": source.sha256, "dtype": dtype}
    return replace(files, identity=identity)


def _scripted_identity() -> dict[str, Any]:
    from ojak.engines.scripted import ScriptedEngine

    return ScriptedEngine().identity


def _find(config: RunConfig) -> tuple[Path | None, Files]:
    """The model's path if it is on this machine, and what is known without its files."""
    place = os.path.expanduser(config.model)
    if config.model and os.path.exists(place):
        return Path(place).absolute(), Files(download_bytes=0)
    if config.model in hub.KNOWN:
        return _find_known(config)
    if not hub.HUB_NAME.fullmatch(config.model):
        raise UsageError(
            f"there is no model {config.model[:200]!r}",
            why="it is neither a file or folder nor a known name",
            fix=f"give a path, a hub name (org/name), or one of: {', '.join(hub.KNOWN)}",
        )
    if not (home() / "huggingface").exists():
        return None, Files()
    try:
        return hub.find(config.model, offline=True), Files(download_bytes=0)
    except OjakError:  # not fetched yet: nothing is known about it
        return None, Files()


def _find_known(config: RunConfig) -> tuple[Path | None, Files]:
    facts, model = hub.info(config.model), hub.KNOWN[config.model]
    asked = model.needs_acceptance
    accepted = facts["license_accepted"] or facts["license"] in config.accept_license
    files = Files(
        license=facts["license"],
        license_accepted=accepted if asked else None,
        download_bytes=0 if facts["path"] else facts["bytes"],
        refused="" if accepted else f"its licence is not accepted: --accept-license {facts['license']}",
    )
    return (Path(facts["path"]) if facts["path"] else None), files


# -- estimates --------------------------------------------------------------------------------------------------------


def _enough(known: Known) -> bool:
    """Whether the ledger has rows enough for means, and answers at all."""
    counts = [side.requests for side in known.sides.values()]
    return bool(counts) and counts[0] >= LEAST_FOR_MEANS and all(counts)


def _tokens(config: Config, known: Known) -> tuple[dict[str, float], str]:
    """Mean tokens of a request of each side, and where the numbers come from."""
    sides = _sides(config)
    if _enough(known):
        means = {side: known.sides[side].mean_tokens for side in sides}
        return means, f"the means of the {known.requests(next(iter(sides))):,} rows in the ledger"
    typical = {side: float(min(TYPICAL_TOKENS[side], cap)) for side, cap in sides.items()}
    told = f"typical lengths: {' and '.join(f'{tokens:.0f}' for tokens in typical.values())} tokens"
    return typical, told + (f", {TYPICAL_ANSWERED:.0%} of the rows answered" if "response" in sides else "")


def _seconds(files: Files, known: Known, tokens: int, machine: estimate.Machine) -> tuple[float | None, str]:
    """Seconds for so many tokens, and what they rest on."""
    if tokens == 0 or files.multiplied == 0:
        return 0.0, "nothing to generate" if tokens == 0 else "the scripted engine needs next to none"
    if _enough(known) and known.seconds > 1 and known.tokens:
        rate = known.tokens / known.seconds
        return tokens / rate, f"at {rate:,.0f} tokens/s, this folder's rate so far"
    if files.multiplied is None:
        return (
            None,
            "the model's files are not on this machine" if not files.refused else "the model is refused",
        )
    flops, share = estimate.matrix_rate(), estimate.EFFICIENCY
    rate = estimate.token_rate(files.multiplied, flops)
    return tokens / rate, (
        f"{files.multiplied / 1e6:,.0f}M weights a token, {flops / 1e9:,.0f} GFLOP/s measured just now in"
        f" {machine.dtype} on {machine.device}, {share:.0%} of it taken to be reached: {rate:,.0f} tokens/s"
    )


def _free_disk(out: Path) -> int:
    """Bytes free where the folder is or will be."""
    folder = next(place for place in (out.absolute(), *out.absolute().parents) if place.exists())
    return shutil.disk_usage(folder).free


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"about {hours}:{minute:02}:{second:02}"


def _size(count: int | None) -> str:
    if count is None:
        return "an unknown size"
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def _download(count: int | None) -> str:
    if count is None:
        return "a download of unknown size"
    return f"{_size(count)} to download" if count else "nothing to download"
