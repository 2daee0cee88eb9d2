"""A run in its folder (`folder.py`): begun or resumed, stopped cleanly, published as an artifact."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from ojak._progress import Listener
from ojak.artifact import Artifact, TargetLock, publish
from ojak.engines.base import Engine
from ojak.engines.open import EngineSpec, open_engine
from ojak.errors import OjakError, Stopped
from ojak.ledger import Ledger
from ojak.synthesize.asking import Asking, Step
from ojak.synthesize.config import MagpieConfig, RunConfig
from ojak.synthesize.folder import (
    LEDGER,
    WORKERS,
    begun_caps,
    begun_settings,
    check_folder,
    compare_settings,
    finished_artifact,
    recorded,
)
from ojak.synthesize.magpie import MagpieRun

SIGNALS = (signal.SIGINT, signal.SIGTERM)
Begin = Callable[[Engine, Ledger], Asking]


def synthesize_magpie(
    config: MagpieConfig,
    *,
    engine: Engine | None = None,
    progress: Listener | None = None,
    notify: Callable[[str], None] | None = None,
) -> Artifact:
    """Makes an instruction data set from an aligned model, or continues one, in the folder `config.out`.

    Without `engine`, `config.engine` is opened (`load_engine`).
    A run stopped by a budget publishes what it has (`stats["stopped"]` says which). One stopped by Ctrl-C or SIGTERM
    does so, too, and raises Stopped. `progress` is told after each request, `notify` what is about to be downloaded.

    Raises ResumeRefused if the folder holds a run with other settings, TargetExists if nothing may be resumed there,
    Locked if another process works in it, InputRefused for a model that cannot do this, ResourceExhausted,
    EngineUnavailable where an endpoint is gone (what it answered is in the ledger; the next run goes on).
    """

    def begin(engine: Engine, ledger: Ledger) -> Asking:
        return MagpieRun(config, engine, ledger, progress)

    return run_in_folder(config, "magpie", begin, engine, notify)


def run_in_folder(
    config: RunConfig,
    kind: str,
    begin: Begin,
    engine: Engine | None = None,
    notify: Callable[[str], None] | None = None,
) -> Artifact:
    """Runs what `begin` makes of an engine and the folder's ledger, and publishes it as an artifact of this kind.

    Raises what `synthesize_magpie` does.
    """
    out = Path(config.out)
    check_folder(config, out)  # before the lock, which makes the folder
    with TargetLock(out):
        check_folder(config, out)
        if finished := finished_artifact(config, out):
            return finished
        started = time.perf_counter()
        engine = engine or load_engine(config, notify)
        with _ledger(out) as ledger:
            compare_settings(config, engine.identity, ledger)
            ledger.set_meta("settings", begun_settings(config, engine.identity))
            ledger.set_meta("caps", begun_caps(config))
            run = begin(engine, ledger)
            with _signals(run) as received:
                try:
                    run.run()
                except (KeyboardInterrupt, RuntimeError) as error:
                    # A signal may find a lock of Python's own half taken: then that is a RuntimeError.
                    if isinstance(error, RuntimeError) and not received:
                        raise
                    run.stopped = run.stopped or "signal"
                run.settle()
            artifact = _publish(run, kind, out, loading_s=run.started - started)
    if received:
        raise Stopped(
            received[0],
            f"stopped; {artifact.counts['rows']} rows are kept in {out}",
            fix="run it again to go on",
            facts=summary(artifact),
        )
    return artifact


@contextlib.contextmanager
def _ledger(out: Path) -> Iterator[Ledger]:
    """The run's ledger; if an error comes before the first request is in it, it goes again."""
    with Ledger(out / LEDGER) as ledger:
        try:
            yield ledger
        except BaseException:
            with contextlib.suppress(OjakError):
                ledger.discard_empty()
            raise


def load_engine(config: RunConfig, notify: Callable[[str], None] | None = None) -> Engine:
    """The engine that the settings name; "scripted" as the model is the one without a model."""
    spec = EngineSpec(
        model=config.model,
        engine=config.engine,
        url=config.url,
        tokenizer=config.tokenizer,
        key_env=config.key_env,
        workers=config.workers,
        ray_address=config.ray_address,
        folder=Path(config.out) / WORKERS,
        accept_license=config.accept_license,
    )
    return open_engine(spec, system=config.system_text, turns=config.most_turns, notify=notify)


@contextlib.contextmanager
def _signals(run: Asking) -> Iterator[list[int]]:
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


def _publish(run: Asking, kind: str, out: Path, loading_s: float) -> Artifact:
    seconds = run.ledger.totals().seconds
    sides: Counter[str] = Counter()
    for entry in run.ledger.entries():
        sides[Step.of(entry.kind).side] += entry.token_count
    tokens = sides.total()
    stats = {
        "completion_tokens": tokens,
        **{f"{side}_tokens": sides[side] for side in run.sides},
        "seconds": round(seconds, 3),
        "tokens_per_s": round(tokens / seconds, 1) if seconds else 0.0,
        "loading_seconds": round(loading_s, 3),
        "ledger_seconds": round(run.ledger_seconds, 4),
        "stopped": run.stopped,
        "pending": run.pending(),
        "engine": {**run.engine.identity, **run.engine.stats()},
        **run.facts(),
        "hardware": hardware(),
        **run.engine.provenance(),
    }
    return publish(
        out,
        kind=kind,
        records=run.accepted(),
        rejected=run.rejected(),
        config=recorded(run.settings),
        counts={"failed": run.failed()},
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
        **{name: stats[name] for name in ("turns", "turn_ends") if name in stats},
        "ledger_seconds": stats.get("ledger_seconds"),
        "planned_bytes": engine.get("planned_bytes"),
        "peak_rss_bytes": engine.get("peak_rss_bytes"),
        "out": str(artifact.path),
    }
