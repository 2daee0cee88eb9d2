"""Carries a recipe out: which of its stages are up to date, why the others are not, and running those."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ojak
from ojak._code import code_sha256
from ojak._files import TargetLock, write_atomic
from ojak._progress import Listener, silent
from ojak.errors import OjakError, ResumeRefused, Stopped, TargetExists, VerificationFailed
from ojak.recipe import Chosen, Recipe
from ojak.stages import Job, Outcome

RECORD = "stage.json"
RESOLVED = "recipe.json"
ASIDE = ".aside"
MAX_RECORD_BYTES = 4 * 2**20
MAKE_ANEW = "pass --overwrite to move the earlier results aside, or name another folder with --out"


@dataclass(frozen=True, slots=True)
class Step:
    """A stage and where it stands: no `reasons` means that it is up to date.

    `has_result`: there is a result that running it would replace. `record` is what `stage.json` says of the
    last run. `refusal` is what the stage itself would raise for what its folder holds. `is_outdated`: a stage that
    shapes its result will have another one.
    """

    chosen: Chosen
    reasons: tuple[str, ...]
    has_result: bool
    record: Mapping[str, Any]
    refusal: OjakError | None = None
    is_outdated: bool = False

    @property
    def is_blocked(self) -> bool:
        """Whether it cannot run unless its result is moved aside."""
        keeps = not self.is_outdated and (self.chosen.stage.resumes or _keeps_result(self))
        return self.refusal is not None or (bool(self.reasons) and self.has_result and not keeps)

    def line(self) -> str:
        """Where the stage stands, in a line."""
        blocked = " (needs --overwrite)" if self.is_blocked else ""
        return f"{self.chosen.stage.name}: {'; '.join(self.reasons) or 'up to date'}{blocked}"

    def to_dict(self) -> dict[str, Any]:
        state = "runs" if self.reasons else "up to date"
        return {
            "name": self.chosen.stage.name,
            "state": state,
            "why": list(self.reasons),
            "needs_overwrite": self.is_blocked,
        }


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a stage: `reasons` are why it ran; none if it was up to date."""

    name: str
    folder: Path
    reasons: tuple[str, ...]
    facts: dict[str, Any]
    stopped: str | None

    def to_dict(self) -> dict[str, Any]:
        state = "stopped" if self.stopped else "done" if self.reasons else "up to date"
        return {
            "name": self.name,
            "state": state,
            "why": list(self.reasons),
            "out": str(self.folder),
            "stopped": self.stopped,
            "facts": self.facts,
        }


def plan(recipe: Recipe) -> list[Step]:
    """Where each stage stands before anything runs. One that reads a stage that will run again, will run, too."""
    steps: list[Step] = []
    again: set[str] = set()
    for chosen in recipe.chosen:
        step = look(recipe, chosen)
        sources = [name for name in chosen.reads if name in again]
        if sources and not step.reasons:
            step = replace(step, reasons=(f"{', '.join(sources)} runs first",))
        if again.intersection(chosen.stage.shaped_by):
            step = replace(step, is_outdated=True)
        if step.reasons and not _keeps_result(step):
            again.add(chosen.stage.name)
        steps.append(step)
    return steps


def run(
    recipe: Recipe,
    *,
    overwrite: bool = False,
    accept_license: tuple[str, ...] = (),
    notify: Callable[[str], None] = silent,
    progress: Listener | None = None,
    told: Callable[[Done], object] = lambda _done: None,
) -> list[Done]:
    """Bring every stage of the recipe up to date, in order; one that is, is left alone.

    A stage that a budget stopped is the last: those after it would be made from a part of the data. Run again, it goes
    on, with the same budget once more.

    A result that must be made anew is moved aside on `overwrite`. `told` hears of each stage as it ends, of one that a
    signal stopped, too. Raises TargetExists, before any work, if it
    may not be; Locked if another process works in the folder; and what the stages raise.
    """
    with TargetLock(recipe.out):
        refuse_blocked(plan(recipe), overwrite)
        write_atomic(recipe.out / RESOLVED, _json(recipe.resolved()))
        done: list[Done] = []
        for chosen in recipe.chosen:
            step = look(recipe, chosen)
            if step.reasons:
                refuse_blocked([step], overwrite)
                notify(f"{chosen.stage.name}: {'; '.join(step.reasons)}")
                job = _job(recipe, chosen, accept_license, notify, progress)
                try:
                    outcome = _run_stage(recipe, step, job, overwrite)
                except (Stopped, KeyboardInterrupt) as error:
                    facts = error.facts if isinstance(error, Stopped) else {}
                    told(Done(chosen.stage.name, chosen.folder, step.reasons, facts, "signal"))
                    raise
            else:
                outcome = Outcome(dict(step.record.get("facts") or {}))
                notify(f"{chosen.stage.name}: up to date")
            done.append(Done(chosen.stage.name, chosen.folder, step.reasons, outcome.facts, outcome.stopped))
            told(done[-1])
            if outcome.stopped:
                break
        return done


def look(recipe: Recipe, chosen: Chosen) -> Step:
    """Where one stage stands, from what lies in its folder and in those that it reads."""
    result = chosen.folder / chosen.stage.result
    has_result = result.exists()
    record = _read_record(chosen.folder / RECORD)
    reasons = _reasons(recipe, chosen, record, has_result)
    refusal = _refusal(recipe, chosen) if reasons else None
    return Step(chosen, tuple(reasons), has_result, record, refusal)


def _refusal(recipe: Recipe, chosen: Chosen) -> OjakError | None:
    if chosen.stage.check is None:
        return None
    try:
        chosen.stage.check(_job(recipe, chosen))
    except (ResumeRefused, TargetExists, VerificationFailed) as error:
        return error
    return None


def _reasons(recipe: Recipe, chosen: Chosen, record: Mapping[str, Any], has_result: bool) -> list[str]:
    """Why a stage must run; empty if its result is what it would make."""
    if not has_result:
        return ["it was interrupted" if record else "it has not run yet"]
    if not record:
        return [f"its folder holds a {chosen.stage.result} that no recipe made"]
    if not record.get("complete"):
        return ["it was interrupted"]
    problem = _damage(chosen, record)
    if problem:
        return [problem]
    now = _made_with(recipe, chosen)
    reasons = [f"it stopped at {record['stopped']}"] if record.get("stopped") else []
    reasons += [f"{name} changed: {change}" for name, change in _changed_settings(chosen, record)]
    before = _dict(record.get("inputs"))
    reasons += [
        f"{name} has a new result" for name in now["inputs"] if before.get(name) != now["inputs"][name]
    ]
    reasons += [f"{name} is no longer read" for name in before if name not in now["inputs"]]
    files = _dict(record.get("files"))
    reasons += [f"{path} has changed" for path in now["files"] if files.get(path) != now["files"][path]]
    if record.get("ojak_version") != now["ojak_version"]:
        reasons.append(f"ojak changed: {record.get('ojak_version')} -> {now['ojak_version']}")
    elif record.get("code") != now["code"]:
        reasons.append("its code changed")
    return reasons


def _changed_settings(chosen: Chosen, record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, "old -> new") of each setting that shapes the result; a limit does not."""
    before, now = _dict(record.get("settings")), chosen.resolved()
    limits = chosen.stage.limits
    names = [name for name in {**before, **now} if name not in limits and before.get(name) != now.get(name)]
    return [(name, f"{_short(before.get(name))} -> {_short(now.get(name))}") for name in names]


def _keeps_result(step: Step) -> bool:
    """Whether the stage, run again, would leave the result that is there: finished, with the settings of now."""
    if step.is_outdated:
        return False
    finished = step.has_result and bool(step.record.get("complete")) and not step.record.get("stopped")
    return step.chosen.stage.stable and finished and not _changed_settings(step.chosen, step.record)


def _short(value: Any) -> str:
    return json.dumps(value)[:60]


def _made_with(recipe: Recipe, chosen: Chosen) -> dict[str, Any]:
    """All that shapes the result of a stage, as far as the run knows it."""
    inputs = {item.stage.name: _result_sha256(item) for item in _inputs(recipe, chosen)}
    return {
        "settings": chosen.resolved(),
        "inputs": inputs,
        "files": dict(chosen.stage.files(chosen.settings)),
        "ojak_version": ojak.__version__,
        "code": code_sha256(chosen.stage.code),
    }


def _inputs(recipe: Recipe, chosen: Chosen) -> list[Chosen]:
    return [item for item in recipe.chosen if item.stage.name in chosen.reads]


def _result_sha256(chosen: Chosen) -> str | None:
    try:
        return hashlib.sha256((chosen.folder / chosen.stage.result).read_bytes()).hexdigest()
    except OSError:
        return None


def _damage(chosen: Chosen, record: Mapping[str, Any]) -> str:
    """What is wrong with a result that was finished; empty if nothing is. Files are checked by size, not by hash."""
    if record.get("output") != _result_sha256(chosen):
        return f"its {chosen.stage.result} was changed after it was made"
    if chosen.stage.result != "manifest.json":
        return ""
    try:
        chosen.stage.sound(chosen.folder)
    except VerificationFailed as error:
        return f"its result is damaged: {error.what}"
    return ""


def _job(
    recipe: Recipe,
    chosen: Chosen,
    accept_license: tuple[str, ...] = (),
    notify: Callable[[str], None] = silent,
    progress: Listener | None = None,
) -> Job:
    inputs = {item.stage.name: item.folder for item in _inputs(recipe, chosen)}
    return Job(chosen.settings, chosen.folder, inputs, accept_license, notify, progress)


def _run_stage(recipe: Recipe, step: Step, job: Job, overwrite: bool) -> Outcome:
    """Run one stage and record what its result was made with, before and after."""
    chosen = step.chosen
    made_with = {"stage": chosen.stage.name, **_made_with(recipe, chosen)}
    begun = {**made_with, "complete": False}
    if step.is_blocked:
        _move_aside(recipe, chosen, job.notify)
    if step.is_blocked or not step.has_result:
        _write_record(chosen, begun)
    try:
        outcome = chosen.stage.run(job)
    except (ResumeRefused, TargetExists, VerificationFailed) as error:
        if not overwrite:
            raise
        job.notify(f"{chosen.stage.name}: {error.what}")
        _move_aside(recipe, chosen, job.notify)
        _write_record(chosen, begun)
        outcome = chosen.stage.run(job)
    finished = {"complete": True, "output": _result_sha256(chosen), "stopped": outcome.stopped}
    _write_record(chosen, {**made_with, **finished, "facts": outcome.facts})
    return outcome


def refuse_blocked(steps: list[Step], overwrite: bool) -> None:
    """Raise what keeps these stages from running: what one of them says itself, or TargetExists."""
    blocked = [step for step in steps if step.is_blocked]
    if not blocked or overwrite:
        return
    refusal = next((step.refusal for step in blocked if step.refusal), None)
    if refusal:
        raise type(refusal)(refusal.what, why=refusal.why, fix=MAKE_ANEW) from refusal
    why = "; ".join(f"{step.chosen.stage.name}: {', '.join(step.reasons)}" for step in blocked)
    raise TargetExists(
        f"{', '.join(str(step.chosen.folder) for step in blocked)} would have to be made anew",
        why=why,
        fix=MAKE_ANEW,
    )


def _move_aside(recipe: Recipe, chosen: Chosen, notify: Callable[[str], None]) -> None:
    aside = recipe.out / ASIDE
    aside.mkdir(exist_ok=True)
    number = 1
    while os.path.lexists(target := aside / f"{chosen.stage.name}-{number}"):
        number += 1
    chosen.folder.rename(target)
    notify(f"{chosen.stage.name}: the earlier result is now {target}")


def _write_record(chosen: Chosen, record: Mapping[str, Any]) -> None:
    write_atomic(chosen.folder / RECORD, _json(record))


def _read_record(path: Path) -> dict[str, Any]:
    """What `stage.json` says; empty where there is none or it says nothing that can be read."""
    try:
        if path.is_symlink() or path.stat().st_size > MAX_RECORD_BYTES:
            return {}
        return _dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return {}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
