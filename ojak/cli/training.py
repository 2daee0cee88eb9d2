"""Calls behind `ojak train`: settings from flags, and what is shown while and after a run."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ojak.cli.exits import stopped_by
from ojak.cli.progress import DRAW_EVERY_S, LINE_EVERY_S, clock
from ojak.cli.terminal import console, is_live, one_line, say, visible
from ojak.errors import ResourceExhausted, Stopped, UsageError

if TYPE_CHECKING:
    from rich.live import Live

    from ojak._settings import Settings
    from ojak.train.config import TrainConfig
    from ojak.train.plan import Plan
    from ojak.train.preview import Preview

AnySettings = TypeVar("AnySettings", bound="Settings")
LEARNT, READ = "learnt", "read"


def train_config(verb: str, sets: Sequence[str], **flags: Any) -> TrainConfig:
    """The settings of a run: the flags that were given (not None), then each `--set a.b=value`.

    Raises UsageError that names the flag or the setting.
    """
    from ojak.train.config import TrainConfig

    return config_of(TrainConfig, sets, f"see `ojak train {verb} --help` and docs/train.md", **flags)


def config_of(settings: type[AnySettings], sets: Sequence[str], fix: str, **flags: Any) -> AnySettings:
    """The settings that flags (those that are not None) and then each `--set a.b=value` give.

    Raises UsageError that names the flag or the setting, and says `fix`.
    """
    from ojak._settings import problems

    given = {name: value for name, value in flags.items() if value is not None}
    values, changed = dict(given), set[str]()
    for text in sets:
        changed.add(put(values, text))
    wrong = list(problems(settings, values))
    if wrong:
        flags_alone = given.keys() - changed
        lines = [_said(item, fields, flags_alone) for item, fields in wrong]
        raise UsageError("\n".join(lines), fix=fix)
    return settings(**values)


def _said(item: Any, fields: Sequence[str], flags: Collection[str]) -> str:
    from ojak._settings import dotted, explain

    name = dotted(item["loc"])
    return explain(item, f"--{name.replace('_', '-')}" if name in flags else f"--set {name}", fields)


def put(values: dict[str, Any], text: str) -> str:
    """Put `a.b=value` into nested settings; gives the name at the top."""
    from ojak._recipe_yaml import value_of

    name, equals, value = text.partition("=")
    *parents, last = name.strip().split(".")
    if not equals or not all((*parents, last)):
        raise UsageError(
            f"--set {text!r} is not of the form name=value", fix="for example --set schedule.warmup=0.1"
        )
    node = values
    for parent in parents:
        below = node.get(parent)
        node[parent] = node = dict(below) if isinstance(below, dict) else {}
    node[last] = value_of(value)
    return (*parents, last)[0]


def run_training(config: TrainConfig) -> tuple[dict[str, Any], Stopped | None]:
    """Run it, its figures shown on stderr. Gives the object of `--json`, and the signal that ended it."""
    from ojak.train.run import train

    try:
        with Figures() as figures:
            return train(config, notify=figures.notify, progress=figures.update).to_dict(), None
    except Stopped as error:
        return {"out": str(config.out), **error.facts, "stopped": "signal"}, error
    except KeyboardInterrupt as error:
        return {"out": str(config.out), "stopped": "signal"}, stopped_by(error)


def sentence(facts: Mapping[str, Any]) -> str:
    """What a run gave."""
    loss = " to ".join(_number(facts[name]) for name in ("loss_first", "loss_last"))
    held_out = f", held out {_number(facts['val_loss'])}" if facts.get("val_loss") is not None else ""
    return (
        f"{facts['steps']:,} steps, {facts['tokens']:,} tokens ({facts['supervised_tokens']:,} learnt) in"
        f" {facts['seconds']:,.1f} s ({facts['tokens_per_s']:,.0f} tokens/s); loss {loss}{held_out};"
        f" {facts['peak_memory_mb']:,.0f} MB at most"
    )


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f}"


def plan_lines(plan: Plan) -> Iterator[str]:
    """What a run would take, for reading: terms of memory and disk in MiB, the largest first."""
    yield f"parameters     {plan.parameters:,}, of which {plan.learnt_parameters:,} are learnt"
    yield f"data           {plan.rows:,} rows"
    yield f"steps          {plan.steps:,}: {plan.tokens:,} tokens, {plan.supervised_tokens:,} learnt"
    yield f"time           {clock(plan.seconds)} ({plan.tokens_per_s:,.0f} tokens/s), without evaluation"
    for name, terms in (("memory", plan.memory_mb), ("disk", plan.disk_mb)):
        parts = {term: size for term, size in terms.items() if term not in {"total", "free"} and size}
        listed = ", ".join(
            f"{term} {size:,.0f}" for term, size in sorted(parts.items(), key=lambda item: -item[1])
        )
        yield f"{name:<14} {terms['total']:,.0f} MiB of {terms['free']:,.0f} free: {listed}"


def check_room(plan: Plan) -> None:
    """Raise ResourceExhausted where a run would not fit."""
    short = [
        name
        for name, terms in (("memory", plan.memory_mb), ("disk", plan.disk_mb))
        if terms["total"] > terms["free"]
    ]
    if short:
        raise ResourceExhausted(
            f"this run would not fit the {' and the '.join(short)}",
            fix="try --lora, a smaller --batch or --max-len, --set micro_batch=1, --set gradient_checkpointing=true",
        )


class Figures:
    """A context manager that shows a run's figures: one live line on a terminal, a line every few seconds elsewhere."""

    def __init__(self) -> None:
        self._live: Live | None = None
        self._due = 0.0
        self._last: Mapping[str, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def notify(self, text: str) -> None:
        """Say a line between the figures."""
        self._end()
        say(text)

    def update(self, figures: Mapping[str, Any]) -> None:
        """Show the figures of a step, unless others were shown a moment ago. Those of an evaluation are always said."""
        if "loss" not in figures:
            self.notify(line(figures))
            return
        self._last = figures
        now = time.monotonic()
        if now >= self._due:
            live = is_live()
            self._due = now + (DRAW_EVERY_S if live else LINE_EVERY_S)
            self._show(live)

    def _show(self, live: bool) -> None:
        if self._last is None:
            return
        text = line(self._last)
        if not live:
            self._last = None
            say(text)
            return
        from rich.live import Live
        from rich.text import Text

        if self._live is None:
            self._live = Live(console=console(), auto_refresh=False)
            self._live.start()
        self._live.update(Text(text), refresh=True)

    def _end(self) -> None:
        """Show the last figures and end the live line."""
        self._show(self._live is not None)
        if self._live is not None:
            self._live.stop()
        self._live, self._last, self._due = None, None, 0.0


def line(figures: Mapping[str, Any]) -> str:
    """A step's figures, or an evaluation's, on one line."""
    shown = [f"step {figures.get('step', '?'):,}" if isinstance(figures.get("step"), int) else "step ?"]
    forms = {
        "loss": "loss {:.3f}",
        "val_loss": "held-out loss {:.3f}",
        "reward": "reward {:.3f}",
        "kl": "KL {:.3f}",
        "answer_tokens": "answers of {:.0f} tokens",
        "stopped": "stopped {:.0%}",
        "lr": "lr {:.1e}",
        "tokens_per_s": "{:,.0f} tok/s",
        "supervised_share": "learnt {:.0%}",
        "mfu": "MFU {:.0%}",
    }
    for name, form in forms.items():
        if isinstance(figures.get(name), (int, float)):
            shown.append(form.format(figures[name]))
    for name, value in figures.items():
        if name.startswith(("probe_", "val_loss_")) and isinstance(value, (int, float)):
            shown.append(f"{name.removeprefix('probe_').replace('_', ' ')} {value:.3f}")
    if "eta_s" in figures:
        shown.append(f"ETA {clock(figures['eta_s'])}")
    return "  ".join(shown)


def preview_lines(found: Preview) -> Iterator[list[tuple[str, str]]]:
    """A preview as lines of (text, style): what is learnt is named so, and green where there are colours."""
    stops = ", ".join(map(one_line, found.stops)) or "none"
    yield [
        (
            f"{one_line(found.model)}, style {found.style or 'none (raw text)'}, an answer ends with {stops}",
            "",
        )
    ]
    for row in found.rows:
        share = row.supervised / row.tokens
        yield [("", "")]
        heading = f"── {one_line(row.source)}, record {row.record:,}"
        yield [(f"{heading}: {row.tokens:,} tokens, {row.supervised:,} learnt ({share:.0%})", "bold")]
        for run in row.runs:
            yield from _run_lines(run.text, run.learnt)
            if run.learnt and not run.ends:
                yield [("         (no end of turn is learnt here)", "yellow")]
    for reason, number in found.refused.items():
        yield [("", "")]
        yield [(f"{number:,} records give no row: {one_line(reason)}", "yellow")]


def _run_lines(text: str, learnt: bool) -> Iterator[list[tuple[str, str]]]:
    name, style = (LEARNT, "green") if learnt else (READ, "dim")
    for number, part in enumerate(visible(text).split("\n")):
        yield [(f"{'' if number else name:>7} │ ", ""), (part, style)]
