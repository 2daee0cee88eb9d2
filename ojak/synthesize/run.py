"""A Magpie run in its folder: resumed or refused, stopped cleanly, published as an artifact.

The folder holds `ledger.sqlite` (every finished request), and once something is done the artifact itself: `data/`,
`rejected/`, `README.md`, `manifest.json`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from ojak.artifact import Artifact, TargetLock, publish
from ojak.chat import chat_prefix
from ojak.engines.base import Engine
from ojak.errors import ResumeRefused, Stopped, TargetExists
from ojak.ledger import Ledger
from ojak.synthesize.config import GROWING, MagpieConfig
from ojak.synthesize.magpie import Listener, MagpieRun

LEDGER = "ledger.sqlite"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def synthesize_magpie(
    config: MagpieConfig,
    *,
    engine: Engine | None = None,
    progress: Listener | None = None,
    notify: Callable[[str], None] | None = None,
) -> Artifact:
    """Makes an instruction data set from an aligned model, or continues one, in the folder `config.out`.

    Without `engine`, `config.model` is loaded into the embedded one ("scripted" names the engine without a model).
    A run stopped by a budget publishes what it has (`stats["stopped"]` says which). One stopped by Ctrl-C or SIGTERM
    does so, too, and raises Stopped. `progress` is told after each request, `notify` what is about to be downloaded.

    Raises ResumeRefused if the folder holds a run with other settings, TargetExists if nothing may be resumed there,
    Locked if another process works in it, InputRefused for a model that cannot do this, ResourceExhausted.
    """
    out = Path(config.out)
    check_folder(config, out)  # before the lock, which makes the folder
    with TargetLock(out):
        check_folder(config, out)
        if finished := finished_artifact(config, out):
            return finished
        begin = time.perf_counter()
        engine = engine or load_engine(config, notify)
        with Ledger(out / LEDGER) as ledger:
            compare_settings(config, engine.identity, ledger)
            ledger.set_meta("settings", begun_settings(config, engine.identity))
            ledger.set_meta("caps", begun_caps(config))
            run = MagpieRun(config, engine, ledger, progress)
            with _signals(run) as received:
                try:
                    run.run()
                except KeyboardInterrupt:
                    run.stopped = run.stopped or "signal"
                run.settle()
            artifact = _publish(run, out, loading_s=run.started - begin)
    if received:
        raise Stopped(
            received[0],
            f"stopped; {artifact.counts['rows']} rows are kept in {out}",
            fix="run it again to go on",
            facts=summary(artifact),
        )
    return artifact


def load_engine(config: MagpieConfig, notify: Callable[[str], None] | None = None) -> Engine:
    """The engine for `config.model`: the scripted one by its name, otherwise the model in the embedded one."""
    if config.model == "scripted":
        from ojak.engines.scripted import ScriptedEngine

        return ScriptedEngine()
    from ojak.engines.native import NativeEngine
    from ojak.model.load import from_source, read_source

    source = read_source(config.model, accept_license=config.accept_license, notify=notify)
    chat_prefix(
        source.chat_template, source.tokenizer, system=config.system_text
    )  # refuses before weights are read
    return NativeEngine(from_source(source))


def check_folder(config: MagpieConfig, out: Path) -> None:
    """Raises TargetExists or ResumeRefused where `config.resume` and what is in the folder do not go together."""
    has_run = (out / LEDGER).exists()
    if has_run and config.resume == "never":
        raise TargetExists(
            f"{out} holds a run already",
            why="--resume never",
            fix="choose another folder, or allow it to be resumed",
        )
    if not has_run and config.resume == "always":
        raise ResumeRefused(
            f"{out} holds no run to resume", why="--resume always", fix="check the folder's name"
        )
    if not has_run and (out / "manifest.json").exists():
        raise TargetExists(f"{out} holds another artifact", fix="choose another folder")
    taken = [name for name in ("data", "rejected", "README.md") if (out / name).exists()]
    if taken and not has_run:  # said now, not when hours of generation are to be published
        raise TargetExists(
            f"{out} holds {', '.join(taken)}", why="it is not ours to replace", fix="choose another folder"
        )


def check_resumable(config: MagpieConfig) -> None:
    """Raises, before a model is looked at and without writing, what a run would raise for what its folder holds.

    Only whether a model's files changed under the same name is left for the run to find.
    """
    out = Path(config.out)
    check_folder(config, out)
    if finished_artifact(config, out) or not (out / LEDGER).exists():
        return
    with Ledger(out / LEDGER, read_only=True) as ledger:
        begun = ledger.get_meta("settings") or {}
        identity = {
            name.removeprefix("engine."): value for name, value in begun.items() if name.startswith("engine.")
        }
        compare_settings(config, identity, ledger)


def finished_artifact(config: MagpieConfig, out: Path) -> Artifact | None:
    """The artifact, if it is there, whole, and what this very configuration makes."""
    if not (out / "manifest.json").exists():
        return None
    artifact = Artifact.open(out)
    same = artifact.manifest["config"] == _recorded(config) and not artifact.stats.get("stopped")
    return artifact.verify() if same else None


def _recorded(config: MagpieConfig) -> dict[str, Any]:
    """The configuration as the manifest keeps it: without where it lies and how far one run went."""
    kept = config.model_dump(
        mode="json", exclude={"out", "resume", "limit_tokens", "limit_minutes", "accept_license"}
    )
    cells = [list(cell) for cell in config.cells]
    return kept | {"system_text": config.system_text, "cells": cells, "code_sha256": _code_sha256()}


def _code_sha256() -> str:
    """One hash for the code that judges rows: after a change to it, rows are judged again, from the ledger."""
    root = Path(__file__).parents[1]
    files = [
        root / "similarity.py",
        Path(__file__).with_name("magpie.py"),
        *sorted((root / "rules").glob("*.py")),
    ]
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def compare_settings(config: MagpieConfig, identity: dict[str, Any], ledger: Ledger) -> None:
    """Raises ResumeRefused where the folder was begun with other settings than these, or another engine."""
    if not ledger.counts():  # a folder in which nothing was done yet takes any settings
        return
    before, caps_before = ledger.get_meta("settings") or {}, ledger.get_meta("caps") or {}
    if changed := changes(before, begun_settings(config, identity), caps_before, begun_caps(config)):
        raise ResumeRefused(
            f"{config.out} was begun with other settings",
            why="; ".join(changed),
            fix="use the settings of before, or another folder",
        )


def begun_settings(config: MagpieConfig, identity: dict[str, Any]) -> dict[str, Any]:
    """What a run remembers of how it was begun: all that shapes a row."""
    return {**config.shaping(), **{f"engine.{name}": value for name, value in identity.items()}}


def begun_caps(config: MagpieConfig) -> dict[str, int]:
    """The settings that may grow."""
    return {name: getattr(config, name) for name in (*sorted(GROWING), "rows")}


def changes(
    before: dict[str, Any], now: dict[str, Any], caps_before: dict[str, int], caps: dict[str, int]
) -> list[str]:
    """What keeps a run from being continued: each changed setting, each cap that shrank."""
    changed = [
        f"{k}: {before.get(k)!r} -> {now.get(k)!r}" for k in {**before, **now} if before.get(k) != now.get(k)
    ]
    shrunk = [
        f"{k}: {caps_before[k]} -> {caps[k]} (may only grow)" for k in caps_before if caps[k] < caps_before[k]
    ]
    return changed + shrunk


@contextlib.contextmanager
def _signals(run: MagpieRun) -> Iterator[list[int]]:
    """Turns the first Ctrl-C or SIGTERM into KeyboardInterrupt, and notes which it was; a second one acts as usual.

    While the run does its books (`run.busy`) it is only told to stop, so that no row is left half judged.
    """
    received: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        for which, handler in previous.items():
            signal.signal(which, handler)
        run.stopped = run.stopped or "signal"
        if not run.busy:
            raise KeyboardInterrupt

    previous: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        previous = {which: signal.signal(which, stop) for which in SIGNALS}
    try:
        yield received
    finally:
        for which, handler in previous.items():
            signal.signal(which, handler)


def _publish(run: MagpieRun, out: Path, loading_s: float) -> Artifact:
    seconds = run.ledger.totals().seconds
    sides = {
        kind: sum(e.token_count for e in run.ledger.entries(kind)) for kind in ("instruction", "response")
    }
    tokens = sum(sides.values())
    stats = {
        "completion_tokens": tokens,
        "instruction_tokens": sides["instruction"],
        "response_tokens": sides["response"],
        "seconds": round(seconds, 3),
        "tokens_per_s": round(tokens / seconds, 1) if seconds else 0.0,
        "loading_seconds": round(loading_s, 3),
        "ledger_seconds": round(run.ledger_seconds, 4),
        "stopped": run.stopped,
        "pending": sum(not row.finished for row in run.rows),
        "grid": [list(cell) for cell in run.config.cells],
        "engine": {**run.engine.identity, **run.engine.stats()},
        "pre_query": run.prefix.pre_query,
        "post_query": run.prefix.post_query,
        "hardware": hardware(),
        **run.engine.provenance(),
    }
    return publish(
        out,
        kind="magpie",
        records=run.accepted(),
        rejected=run.rejected(),
        config=_recorded(run.config),
        counts={"failed": sum(row.reason == "failed" for row in run.rows)},
        stats=stats,
        replace=True,
    )


def hardware() -> dict[str, Any]:
    """The machine, in words."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version()}


def summary(artifact: Artifact) -> dict[str, Any]:
    """What `--json` prints; totals over all runs of a resumed folder."""
    stats, counts = artifact.stats, artifact.counts
    names = (
        "completion_tokens",
        "instruction_tokens",
        "response_tokens",
        "seconds",
        "tokens_per_s",
        "pending",
        "stopped",
    )
    engine = stats.get("engine", {})
    return {
        "rows": counts["rows"],
        "accepted": counts["accepted"],
        "rejected": counts["rejected"],
        "failed": counts["failed"],
        **{name: stats.get(name) for name in names},
        "ledger_seconds": stats.get("ledger_seconds"),
        "planned_bytes": engine.get("planned_bytes"),
        "peak_rss_bytes": engine.get("peak_rss_bytes"),
        "out": str(artifact.path),
    }
