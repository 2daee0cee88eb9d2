"""Calls behind the verbs of synthesis and of recipes: settings from flags, and what to say at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ojak.cli.exits import stopped_by
from ojak.cli.progress import Progress, top_reasons
from ojak.cli.terminal import say
from ojak.errors import PartialResult, Stopped, UsageError

if TYPE_CHECKING:
    from ojak._recipe_run import Done, Step
    from ojak._settings import Settings
    from ojak.artifact import Artifact
    from ojak.synthesize.config import MagpieConfig, PersonasConfig
    from ojak.synthesize.plan import Plan

AnySettings = TypeVar("AnySettings", bound="Settings")


@dataclass(frozen=True, slots=True)
class Result:
    """What a run gave: the object of `--json`, the signal that ended it, and what its rows are called."""

    facts: dict[str, Any]
    signal: Stopped | None = None
    made: str = "pairs"

    def sentence(self) -> str:
        facts = self.facts
        reasons = top_reasons(facts["rejected"])
        return (
            f"{facts['accepted']:,} {self.made} from {facts['rows']:,} rows; {facts['completion_tokens']:,} tokens in"
            f" {facts['seconds']:,.1f} s ({facts['tokens_per_s']:,.0f} tokens/s)"
            + (f"; rejected: {reasons}" if reasons else "")
        )

    def check(self) -> None:
        """Raise PartialResult if a budget stopped the run, requests failed for good or nothing came out, Stopped if a
        signal did."""
        if self.signal:
            raise self.signal
        stopped = self.facts.get("stopped")
        if stopped:
            raise PartialResult(
                f"stopped at --{stopped.replace('_', '-')} with {self.facts['accepted']:,} {self.made}",
                fix="run the same command again to go on",
            )
        if failed := self.facts.get("failed"):
            raise PartialResult(
                f"{failed:,} row{'s' * (failed > 1)} failed for good; {self.facts['accepted']:,} {self.made} are kept",
                why="the endpoint gave no usable answer to them; the ledger has the reasons",
                fix="run the same command again with --retry-failed",
            )
        if not self.facts["accepted"]:
            raise nothing_made(self.made, self.facts)


def nothing_made(made: str, facts: Mapping[str, Any]) -> PartialResult:
    """The error for a run that ended as it should, with nothing to show for it."""
    return PartialResult(
        f"no {made} came out of {facts['rows']:,} rows",
        why=f"rejected: {top_reasons(facts['rejected'])}"
        if facts["rejected"]
        else "there was nothing to make them of",
        fix=f"look at the reasons: `ojak show {facts['out']} --rejected`",
    )


def made_of(settings: type[AnySettings], verb: str, **flags: Any) -> AnySettings:
    """The settings that the flags of a verb give; raises UsageError that names the flag."""
    from ojak._settings import WrongSettings, explain

    try:
        return settings(**flags)
    except WrongSettings as error:
        lines = [explain(item, _flag(item["loc"]), list(flags)) for item in error.problems]
        raise UsageError("\n".join(lines), fix=f"see `ojak {verb} --help`") from error


def _flag(place: Sequence[str | int]) -> str:
    """The flag of a setting; empty where it is the settings together that are wrong."""
    from ojak._settings import dotted

    return f"--{dotted(place).replace('_', '-')}" if place else ""


def magpie_config(**flags: Any) -> MagpieConfig:
    """The settings of a Magpie run; raises UsageError that names the flag."""
    from ojak.synthesize.config import MagpieConfig

    return made_of(MagpieConfig, "synthesize magpie", **flags)


def personas_config(**flags: Any) -> PersonasConfig:
    """The settings of a run of personas; raises UsageError that names the flag."""
    from ojak.synthesize.config import PersonasConfig

    return made_of(PersonasConfig, "synthesize personas", **flags)


def run_plan(config: MagpieConfig | PersonasConfig) -> Plan:
    """What the run would do and cost."""
    from ojak.synthesize.plan import plan

    return plan(config)


def run_magpie(config: MagpieConfig) -> Result:
    """Run it, the progress shown on stderr."""
    from ojak.synthesize.run import synthesize_magpie

    return _run(config, synthesize_magpie, "pairs" if config.turns == 1 else "conversations")


def run_personas(config: PersonasConfig) -> Result:
    """Run it, the progress shown on stderr."""
    from ojak.synthesize.personas import synthesize_personas

    return _run(config, synthesize_personas, "personas")


def _run(config: Any, synthesize: Callable[..., Artifact], made: str) -> Result:
    from ojak.synthesize.run import summary

    try:
        with Progress() as progress:
            artifact = synthesize(config, progress=progress, notify=say)
    except (Stopped, KeyboardInterrupt) as error:
        signal = _stopped(error)
        return Result({"out": str(config.out), **signal.facts, "stopped": "signal"}, signal, made)
    return Result({**summary(artifact), "stopped": artifact.stats.get("stopped")}, made=made)


def _stopped(error: Stopped | KeyboardInterrupt) -> Stopped:
    return error if isinstance(error, Stopped) else stopped_by(error)


@dataclass(frozen=True, slots=True)
class RecipeResult:
    """What running a recipe gave."""

    name: str
    out: Path
    done: list[Done]
    waiting: tuple[str, ...] = ()  # stages after the one that stopped
    signal: Stopped | None = None

    @property
    def page(self) -> str | None:
        """The report, if the recipe writes one."""
        pages = [item.facts["page"] for item in self.done if isinstance(item.facts.get("page"), str)]
        return pages[-1] if pages else None

    @property
    def talks(self) -> str | None:
        """The folder of a trained model that `ojak chat` takes, if the recipe has made one."""
        folders = [item.facts["chat"] for item in self.done if isinstance(item.facts.get("chat"), str)]
        return folders[-1] if folders else None

    def to_dict(self) -> dict[str, Any]:
        stages = [item.to_dict() for item in self.done]
        stopped = "signal" if self.signal else self.done[-1].stopped if self.done else None
        found = {"recipe": self.name, "out": str(self.out), "report": self.page, "stopped": stopped}
        return {**found, "stages": stages}

    def check(self) -> None:
        """Raise PartialResult if a budget stopped a stage (the last one that ran) or a curation left rules out,
        Stopped if a signal did."""
        from ojak.cli.curate import check_applied

        if self.signal:
            raise self.signal
        last = self.done[-1] if self.done else None
        if last and last.stopped:
            raise PartialResult(
                f"{last.name} stopped at {last.stopped}",
                why=f"not run after it: {', '.join(self.waiting)}" if self.waiting else "",
                fix="run the same command again to go on; --set may give it a larger budget",
            )
        for item in self.done:
            check_applied(item.facts)


def run_recipe(
    path: Path, out: Path | None, sets: Sequence[str], accept_license: tuple[str, ...], overwrite: bool
) -> RecipeResult:
    """Run a recipe, each stage announced and its progress shown on stderr."""
    from ojak import _recipe_run, recipe

    loaded = recipe.load(path, out=out, sets=sets)
    done: list[Done] = []
    signal: Stopped | None = None
    with Progress() as progress:

        def notify(line: str) -> None:
            progress.stop()
            say(line)

        try:
            _recipe_run.run(
                loaded,
                overwrite=overwrite,
                accept_license=accept_license,
                notify=notify,
                progress=progress,
                told=done.append,
            )
        except (Stopped, KeyboardInterrupt) as error:
            signal = _stopped(error)
    waiting = tuple(item.stage.name for item in loaded.chosen[len(done) :])
    return RecipeResult(loaded.name, loaded.out, done, waiting, signal)


def check_plan(steps: Sequence[Step], overwrite: bool) -> None:
    """Raise what the run would raise before any work."""
    from ojak._recipe_run import refuse_blocked

    refuse_blocked(list(steps), overwrite)


def plan_recipe(path: Path, out: Path | None, sets: Sequence[str]) -> list[Step]:
    """Where each stage of a recipe stands; nothing is run or written."""
    from ojak import _recipe_run, recipe

    return _recipe_run.plan(recipe.load(path, out=out, sets=sets))
