"""An ablation: what each arm of a grid is and costs, how it compares with the reference, and whether all learnt alike.

Read from three folders: the grid (kind "grid"), the comparison, and the training runs, whose manifests say by hashes
which rows they read and in which order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ojak.errors import VerificationFailed
from ojak.report import text
from ojak.report.arms import Arms, Difference, Estimate, read_arms
from ojak.report.charts import Mark, nice_step
from ojak.report.folders import peek
from ojak.report.measures import as_number, dig
from ojak.report.training import Training, TrainingRun, read_training

MEASURE = "bits_per_byte"
KIND = "grid"
BY_CHANCE = 0.05  # of the differences that are none, 95 % intervals decide so many
ORDER = ("rows_sha256", "order_sha256")
WIDTH, ROW, TOP, FOOT, LABELS = 640, 22, 14, 34, 190  # of the picture, in its units


@dataclass(frozen=True, slots=True)
class ArmLine:
    """An arm in the table. flops_per_token, total_flops: of training. same_rows: it read what the reference did, in the
    same order, with every seed; None where it has another vocabulary, whose rows are others, or where nothing says so.
    """

    arm: str
    factors: list[str]
    changes: str
    model_type: str
    vocab_size: int
    parameters: int
    flops_per_token: float
    tokens: int
    same_rows: bool | None
    found: Estimate | None
    difference: Difference | None

    @property
    def total_flops(self) -> float:
        return self.flops_per_token * self.tokens

    @property
    def cells(self) -> list[str]:
        """What stands in the table after the arm's name."""
        size, cost, spent = self.parameters / 1e6, self.flops_per_token / 1e6, self.total_flops / 1e12
        read = {True: "the same", None: "its own", False: "OTHERS"}[self.same_rows]
        return [
            f"{size:.2f}", f"{cost:.1f}", text.number(self.tokens), f"{spent:.2f}", read, _shown(self.found),
            _shown(self.difference), _verdict(self.difference),
        ]  # fmt: skip


COLUMNS = (
    "M parameters", "MFLOP a token", "tokens", "TFLOP in all", "rows", "bits per byte", "difference", "verdict",
)  # fmt: skip


def _shown(value: Estimate | Difference | None) -> str:
    if value is None:
        return "–"
    is_difference = isinstance(value, Difference)
    size = f"{value.value:+.4f}" if is_difference else f"{value.mean:.4f}"
    ends = value.interval
    sign = "+" if is_difference else ""
    return size if ends is None else f"{size} [{ends[0]:{sign}.4f}, {ends[1]:{sign}.4f}]"


def _verdict(difference: Difference | None) -> str:
    if difference is None:
        return ""
    if not difference.decided:
        return "not decided"
    return "better" if difference.value < 0 else "worse"


@dataclass(frozen=True, slots=True)
class Bar:
    """An arm in the picture: its difference and the ends of its interval, as places; `kind` as in the table."""

    arm: str
    y: int
    at: float
    ends: tuple[float, float] | None
    kind: str


@dataclass(frozen=True, slots=True)
class Picture:
    """The differences in bits per byte, one below the other, in a box of `width` x `height`; `zero`: where none is."""

    bars: list[Bar]
    ticks: list[Mark]
    zero: float
    height: int
    summary: str
    width: int = WIDTH
    left: int = LABELS


@dataclass(frozen=True, slots=True)
class Ablation:
    """The arms in their order, the reference first. seeds: runs of an arm."""

    against: str
    seeds: int
    lines: list[ArmLine] = field(default_factory=list)

    @property
    def differences(self) -> list[ArmLine]:
        """The arms that are compared with the reference."""
        return [line for line in self.lines if line.difference is not None]

    @property
    def decided(self) -> int:
        return sum(line.difference is not None and line.difference.decided for line in self.lines)

    @property
    def chance(self) -> float:
        """How many of the differences would be called decided if there were none at all."""
        return BY_CHANCE * len(self.differences)

    @property
    def remark(self) -> str:
        """What the number of comparisons means for those that are decided."""
        total = len(self.differences)
        if self.seeds < 2:
            return (
                f"One seed: the intervals of the {total} differences are over the texts alone, and say nothing of"
                " what another seed would give."
            )
        return (
            f"{self.decided} of {total} differences are decided. Were there no difference at all, about"
            f" {text.fixed(self.chance, 1)} of {total} would be called decided by chance."
        )

    @property
    def picture(self) -> Picture | None:
        return _picture(self.differences)

    def to_dict(self) -> dict[str, Any]:
        """The object of `--json`."""
        arms = {
            line.arm: {
                "factors": line.factors, "changes": line.changes, "model_type": line.model_type,
                "vocab_size": line.vocab_size, "parameters": line.parameters,
                "flops_per_token": line.flops_per_token, "tokens": line.tokens, "total_flops": line.total_flops,
                "same_rows": line.same_rows, "bits_per_byte": _numbers(line.found),
                "difference": _numbers(line.difference),
            }
            for line in self.lines
        }  # fmt: skip
        told = {"compared": len(self.differences), "decided": self.decided, "by_chance": self.chance}
        return {"against": self.against, "seeds": self.seeds, **told, "arms": arms}

    def table(self) -> list[str]:
        """The table as lines of text."""
        rows = [["arm", *COLUMNS], *([line.arm, *line.cells] for line in self.lines)]
        widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
        return [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]

    def check(self) -> None:
        """Raise VerificationFailed unless all arms with the reference's tokenizer read its rows in its order."""
        others = [line.arm for line in self.lines if line.same_rows is False]
        if others:
            raise VerificationFailed(
                f"{', '.join(others)} read other rows than {self.against}, or in another order",
                why="their runs' manifests record other hashes", fix="compare nothing of these runs; report this",
            )  # fmt: skip


def _numbers(value: Estimate | Difference | None) -> dict[str, Any] | None:
    if value is None:
        return None
    low, high = value.interval or (None, None)
    if isinstance(value, Difference):
        return {"value": value.value, "low": low, "high": high, "decided": value.decided}
    return {"mean": value.mean, "low": low, "high": high, "values": list(value.values)}


def read_ablation(grid: Path, trainings: Sequence[Path], comparison: Path | None) -> Ablation | None:
    """What the folders hold together; None where `grid` is no grid. Manifests are read leniently."""
    manifest = peek(grid)
    told = dig(manifest, "stats", "arms")
    if manifest.get("kind") != KIND or not isinstance(told, dict):
        return None
    training = read_training(trainings)
    arms = read_arms(comparison) if comparison else Arms([], {}, "", {})
    against = str(dig(manifest, "stats", "against"))
    size = dig(told, against, "vocab_size")
    lines = [_line(name, facts, training, arms, (against, size)) for name, facts in told.items()]
    return Ablation(against, max((len(runs) for runs in training.arms.values()), default=0), lines)


def _line(
    name: str, facts: Mapping[str, Any], training: Training, arms: Arms, reference: tuple[str, Any]
) -> ArmLine:
    def count(what: str) -> float:
        return as_number(dig(facts, what)) or 0.0

    runs = training.arms.get(name, [])
    read = [as_number(run.result.get("tokens")) for run in runs]
    told = dig(facts, "changes")
    changes = [f"{key} = {value}" for key, value in (text.flatten(told) if told else ())]
    alike = dig(facts, "vocab_size") == reference[1]
    factors = dig(facts, "factors")
    return ArmLine(
        name, [str(each) for each in factors] if isinstance(factors, list) else [], ", ".join(changes),
        str(dig(facts, "model_type")), int(count("vocab_size")), int(count("parameters")), count("flops_per_token"),
        int(read[0] if read and read[0] is not None else count("tokens")),
        _same(runs, training.arms.get(reference[0], [])) if alike else None,
        arms.measured.get(name, {}).get(MEASURE), arms.differences.get(name, {}).get(MEASURE),
    )  # fmt: skip


def _same(runs: Sequence[TrainingRun], reference: Sequence[TrainingRun]) -> bool | None:
    """Whether runs of the same seeds read the same rows in the same order; None where that is not recorded."""
    ours, theirs = (
        {run.seed: tuple(run.manifest.get(name) for name in ORDER) for run in each}
        for each in (runs, reference)
    )
    if not ours or None in (value for each in (*ours.values(), *theirs.values()) for value in each):
        return None
    return ours == theirs


def _picture(lines: Sequence[ArmLine]) -> Picture | None:
    known = [(line.arm, line.difference, _verdict(line.difference)) for line in lines if line.difference]
    if not known:
        return None
    ends = [end for _, found, _ in known for end in (found.value, *(found.interval or ()))]
    low, high = min(0.0, *ends), max(0.0, *ends)
    step = nice_step(max(1.0, 10_000 * (high - low)), 5)
    first, last = int(10_000 * low // step), int(-(-10_000 * high // step))
    low, high = first * step / 10_000, max(last, first + 1) * step / 10_000

    def at(value: float) -> float:
        return round(LABELS + (value - low) / (high - low) * (WIDTH - LABELS - 16), 1)

    def bar(place: int, arm: str, found: Difference, verdict: str) -> Bar:
        ends = (at(found.interval[0]), at(found.interval[1])) if found.interval else None
        return Bar(arm, TOP + ROW * place, at(found.value), ends, verdict)

    bars = [bar(place, *each) for place, each in enumerate(known)]
    ticks = [
        Mark(at(each * step / 10_000), text.signed(text.fixed(abs(each * step / 10_000), 4), each))
        for each in range(first, max(last, first + 1) + 1)
    ]
    summary = "; ".join(f"{arm}: {_shown(found)}, {verdict}" for arm, found, verdict in known)
    return Picture(bars, ticks, at(0.0), TOP + ROW * len(known) + FOOT, summary)
