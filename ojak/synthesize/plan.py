"""What a Magpie run would do and cost, before it is begun: `--dry-run`. Nothing is written, fetched or generated."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ojak.chat import chat_prefix
from ojak.errors import OjakError, UsageError
from ojak.ledger import Ledger
from ojak.model import estimate, hub
from ojak.model.files import home
from ojak.synthesize.config import MagpieConfig
from ojak.synthesize.folder import (
    LEDGER,
    begun_caps,
    begun_settings,
    changes,
    check_folder,
    finished_artifact,
)

# Where the folder has no rows yet: SmolLM2-135M-Instruct's, on the default grid; others write longer answers.
TYPICAL_TOKENS = {"instruction": 60, "response": 250}
TYPICAL_ANSWERED = 0.7  # share of the instructions that rules and duplicates let through
EFFICIENCY = 0.35  # of the machine's matrix rate, reached by decoding on two cores
LEAST_FOR_MEANS = 16  # rows from which on the folder's own means are taken
CHARACTERS_PER_TOKEN = 4.2
LEDGER_REQUEST_BYTES = 450  # beside its text: key, settings, index
ARTIFACT_ROW_BYTES = 350  # beside its text: compressed metadata


@dataclass(frozen=True, slots=True)
class Known:
    """What the folder's ledger holds. Tokens are means per finished request; `seconds` and `tokens` sums over runs."""

    instructions: int = 0
    responses: int = 0
    instruction_tokens: float = 0.0
    response_tokens: float = 0.0
    seconds: float = 0.0
    tokens: int = 0
    bytes: int = 0
    settings: dict[str, Any] | None = None
    caps: dict[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Files:
    """The model as far as it is on this machine. `refused`: why Magpie cannot use it."""

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

    `rows_begun` and `rows_answered` are in the ledger; `rows_to_do` still need an instruction. Tokens, seconds and
    bytes are estimates of what is left to do, `..._from` says what they rest on.
    """

    model: str
    out: str
    verdict: str
    why: str
    rows: int
    rows_begun: int
    rows_answered: int
    rows_to_do: int
    instruction_tokens: int
    response_tokens: int
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
        """All of it as JSON values."""
        return asdict(self)

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
        return [
            f"folder      {self.out}: {verdict}",
            f"model       {self.model}, licence {licence}",
            f"rows        {self.rows:,}: {self.rows_begun:,} begun, {self.rows_answered:,} of them answered;"
            f" {self.rows_to_do:,} to do",
            f"tokens      about {self.instruction_tokens:,} of instructions, {self.response_tokens:,} of responses"
            f" (from {self.tokens_from})",
            f"time        {time} ({self.seconds_from})",
            f"disk        about {_size(self.ledger_bytes)} of ledger, {_size(self.artifact_bytes)} of artifact;"
            f" {_download(self.download_bytes)}; {_size(self.free_disk_bytes)} free",
            f"memory      {_size(self.weights_bytes)} of weights, then rows as they fit;"
            f" {_size(self.free_memory_bytes)} free",
        ]


def plan(config: MagpieConfig) -> Plan:
    """Looks at the folder, the model's files and the machine. Raises UsageError for a model that nobody knows."""
    out, files, machine = Path(config.out), look_at_model(config), estimate.machine()
    known, trouble = _known(config, out)
    verdict, why = _verdict(config, out, known, files)
    tokens, tokens_from = _tokens(config, known)
    to_do = 0 if verdict == "finished" else max(0, config.rows - known.instructions)
    # A run that was stopped has rows that wait for their answer: its own share is then too low.
    share = max(TYPICAL_ANSWERED, known.responses / known.instructions if known.instructions else 0.0)
    answers = 0 if verdict == "finished" else max(0, round(config.rows * share) - known.responses)
    left = {
        "instruction": round(to_do * tokens["instruction"] * config.turns),
        "response": round(answers * tokens["response"] * config.turns * config.responses),
    }
    seconds, seconds_from = _seconds(files, known, sum(left.values()), machine)
    text_bytes = round(sum(left.values()) * CHARACTERS_PER_TOKEN)
    return Plan(
        model=config.model,
        out=str(out),
        verdict="refused" if trouble else verdict,
        why=trouble or why,
        rows=config.rows,
        rows_begun=min(known.instructions, config.rows),
        rows_answered=known.responses,
        rows_to_do=to_do,
        instruction_tokens=left["instruction"],
        response_tokens=left["response"],
        tokens_from=tokens_from,
        seconds=seconds,
        seconds_from=seconds_from,
        ledger_bytes=text_bytes + (to_do + answers) * LEDGER_REQUEST_BYTES,
        artifact_bytes=text_bytes + config.rows * ARTIFACT_ROW_BYTES,
        download_bytes=files.download_bytes,
        free_disk_bytes=_free_disk(out),
        weights_bytes=None
        if files.weights is None
        else files.weights * (2 if machine.dtype != "float32" else 4),
        free_memory_bytes=machine.free_bytes,
        license=files.license,
        license_accepted=files.license_accepted,
    )


# -- the folder -------------------------------------------------------------------------------------------------------


def _known(config: MagpieConfig, out: Path) -> tuple[Known, str]:
    """The ledger's contents, and what is wrong with it."""
    path = out / LEDGER
    if not path.exists():
        return Known(), ""
    try:
        return _read_ledger(path, config), ""
    except OjakError as error:
        return Known(), _sentence(error)


def _read_ledger(path: Path, config: MagpieConfig) -> Known:
    """Sums over the ledger."""
    with Ledger(path, read_only=True) as ledger:
        settings, caps, totals = ledger.get_meta("settings"), ledger.get_meta("caps"), ledger.totals()
        sides = [ledger.finished(kind, rows=config.rows, max_tokens=cap) for kind, cap in _sides(config)]
    (instructions, mean_asked), (responses, mean_answered) = sides
    return Known(
        instructions, responses, mean_asked, mean_answered, totals.seconds, totals.tokens, path.stat().st_size,
        settings, caps,
    )  # fmt: skip


def _sides(config: MagpieConfig) -> tuple[tuple[str, int], ...]:
    return ("instruction", config.max_instruction_tokens), ("response", config.max_response_tokens)


def _verdict(config: MagpieConfig, out: Path, known: Known, files: Files) -> tuple[str, str]:
    try:
        check_folder(config, out)
        if finished_artifact(config, out):
            return "finished", ""
    except OjakError as error:
        return "refused", _sentence(error)
    if files.refused:
        return "refused", files.refused
    if known.instructions and known.settings is not None:
        changed = _changes(config, known.settings, known.caps or {}, files.identity)
        if changed:
            return "refused", f"begun with other settings: {'; '.join(changed)}"
    return ("resume" if (out / LEDGER).exists() else "start"), ""


def _changes(
    config: MagpieConfig, before: dict[str, Any], caps: dict[str, int], identity: dict[str, Any] | None
) -> list[str]:
    """What differs from the settings of before; the engine's are compared only where the model's files are here."""
    if identity is None:
        before = {name: value for name, value in before.items() if not name.startswith("engine.")}
    return changes(before, begun_settings(config, identity or {}), caps, begun_caps(config))


def _sentence(error: OjakError) -> str:
    return "; ".join(part for part in (error.what, error.why, error.fix) if part)


# -- the model --------------------------------------------------------------------------------------------------------


def look_at_model(config: MagpieConfig) -> Files:
    """What can be said of the model from this machine alone. Raises UsageError for a name that nobody knows."""
    if config.model == "scripted" or config.engine == "scripted":
        return Files(_scripted_identity(), weights=0, multiplied=0, download_bytes=0)
    if config.engine == "endpoint" or config.url:  # a server is not asked before the run
        return Files(download_bytes=0)
    path, files = _find(config)
    if path is None or files.refused:
        return files
    try:
        source = estimate.read_source(path)
        weights, multiplied = estimate.parameters(source.config)
        files = replace(
            files, weights=weights, multiplied=multiplied, license=files.license or source.license
        )
        chat_prefix(
            source.chat_template,
            source.tokenizer,
            eos_ids=source.stop_ids,
            system=config.system_text,
            turns=config.turns,
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


def _find(config: MagpieConfig) -> tuple[Path | None, Files]:
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


def _find_known(config: MagpieConfig) -> tuple[Path | None, Files]:
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
    return known.instructions >= LEAST_FOR_MEANS and known.responses > 0


def _tokens(config: MagpieConfig, known: Known) -> tuple[dict[str, float], str]:
    """Mean tokens of a request of each kind, and where the numbers come from."""
    if _enough(known):
        means = {"instruction": known.instruction_tokens, "response": known.response_tokens}
        return means, f"the means of the {known.instructions:,} rows in the ledger"
    typical = {kind: float(min(TYPICAL_TOKENS[kind], cap)) for kind, cap in _sides(config)}
    return typical, (
        f"typical lengths: {typical['instruction']:.0f} and {typical['response']:.0f} tokens,"
        f" {TYPICAL_ANSWERED:.0%} of the rows answered"
    )


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
    flops = estimate.matrix_rate()
    rate = flops * EFFICIENCY / (2 * files.multiplied)
    return tokens / rate, (
        f"{files.multiplied / 1e6:,.0f}M weights a token, {flops / 1e9:,.0f} GFLOP/s measured just now in"
        f" {machine.dtype} on {machine.device}, {EFFICIENCY:.0%} of it taken to be reached: {rate:,.0f} tokens/s"
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
