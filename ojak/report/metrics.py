"""The measures that models are compared by: their names in words, which way is better, how a value is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ojak.report import text

Show = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Metric:
    """better: 1 where more is better, -1 where less is, 0 where nobody says. cost: it says nothing of quality.

    most: no value of it is more than that, or less than 0; intervals may be.
    """

    name: str
    title: str
    what: str
    better: int
    show: Show
    unit: str = ""  # of a difference
    cost: bool = False
    most: float | None = None

    @property
    def direction(self) -> str:
        """`lower is better`, or nothing."""
        return {1: "higher is better", -1: "lower is better"}.get(self.better, "")

    def within(self, interval: tuple[float, float] | None) -> tuple[float, float] | None:
        """The part of an interval of a mean that its values can reach."""
        if interval is None or self.most is None:
            return interval
        low, high = (min(max(end, 0.0), self.most) for end in interval)
        return low, high

    def difference(self, value: float) -> str:
        """A difference with its sign; a share's in points, whose name is left to `unit`."""
        return text.signed(self.show(abs(value)).removesuffix("\u00a0%"), value)

    def verdict(self, value: float) -> str:
        """What a decided difference says: better or worse; higher or lower where neither is known to be better."""
        words = ("lower", "higher") if not self.better else ("worse", "better")
        if self.cost:
            words = ("more", "less")
        return words[(value if not self.better else value * self.better) > 0]


def _digits(digits: int) -> Show:
    return lambda value: text.fixed(value, digits)


def _share(value: float) -> str:
    return f"{text.fixed(100 * value, 1)}\u00a0%"


def _duration(value: float) -> str:
    return text.duration(value) if value >= 0 else f"\u2212{text.duration(-value)}"


def _memory(value: float) -> str:
    return text.size(value * 2**20) if value >= 0 else f"\u2212{text.size(-value * 2**20)}"


HELD_OUT = "val_loss_"  # begins the names of losses on further held-out rows
PROBE = "probe_"  # begins the names of what was known by heart; the kind of facts and the measure follow
POINTS = "\u00a0points"
KNOWN = {
    metric.name: metric
    for metric in (
        Metric("bits_per_byte", "Bits per byte", "of held-out answers", -1, _digits(3)),
        Metric("val_loss", "Validation loss", "nats per supervised token", -1, _digits(3)),
        Metric("reference_logprob", "Log-probability of the reference", "nats per token", 1, _digits(3)),
        Metric("chrf", "chrF", "likeness to the reference, 0 to 100", 1, _digits(1), most=100),
        Metric("instructions", "Instructions followed", "as rules check them", 1, _share, POINTS, most=1),
        Metric(
            "stopped", "Answers that end by themselves", "before the token limit", 1, _share, POINTS, most=1
        ),
        Metric("repetition", "Repetition", "share of repeated runs of words", -1, _share, POINTS, most=1),
        Metric("length_violations", "Answers over their limit", "of length", -1, _share, POINTS, most=1),
        Metric("judge_score", "Grade by a judge", "0 to 100", 1, _digits(1), most=100),
        Metric("seconds", "Training time", "of a run", -1, _duration, cost=True),
        Metric("peak_memory_mb", "Peak memory", "of a training run", -1, _memory, cost=True),
    )
}


# The measures of facts: (name, what, how a value is written, unit of a difference, most).
OF_FACTS: dict[str, tuple[str, str, Show, str, float | None]] = {
    "logprob": ("log-probability", "of the right answers, nats per token", _digits(3), "", None),
    "exact": ("written", "right answers that greedy decoding writes", _share, POINTS, 1),
    "accuracy": ("chosen", "right answers likelier than the wrong ones beside them", _share, POINTS, 1),
}


def metric(name: str) -> Metric:
    """The measure of that name; one that nobody knows is shown as it is, and neither way of it is better."""
    kind, _, measure = name.removeprefix(PROBE).rpartition("_")
    if name.startswith(PROBE) and kind and measure in OF_FACTS:
        word, what, show, unit, most = OF_FACTS[measure]
        return Metric(name, f"Facts, {text.humanize(kind)}: {word}", what, 1, show, unit, most=most)
    if name.startswith(HELD_OUT):
        rows = text.humanize(name.removeprefix(HELD_OUT))
        return Metric(name, f"Loss on the held-out rows {rows}", "nats per supervised token", -1, _digits(3))
    title = text.humanize(name)
    return KNOWN.get(name) or Metric(name, title[:1].upper() + title[1:], "", 0, lambda value: f"{value:.4g}")
