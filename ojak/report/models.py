"""What a page tells of models: how they were trained, how they compare, what they answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ojak.report import text
from ojak.report.arms import BASE, Answer, Arms, Line, Table, answer, read_arms, tables
from ojak.report.curves import MAX_ARMS, CurveFigure, figures
from ojak.report.gaps import GapLine, gap_lines
from ojak.report.metrics import Metric
from ojak.report.side_by_side import SideBySide, read_answers
from ojak.report.training import Cost, Training, costs, differing_settings, read_training, total


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """One measure of the untrained model and of the trained one."""

    metric: Metric
    before: Line
    after: Line


@dataclass(frozen=True, slots=True)
class Models:
    """What the template of this part of the page is given."""

    training: Training
    arms: Arms
    answers: SideBySide
    figures: list[CurveFigure] = field(default_factory=list)
    cost_columns: list[str] = field(default_factory=list)
    cost_lines: list[Cost] = field(default_factory=list)
    most_colors: int = MAX_ARMS

    @property
    def names(self) -> list[str]:
        """The trained arms: those whose runs are there, then those that were only measured."""
        measured = [name for name in self.arms.names if name != BASE]
        return list(dict.fromkeys([*self.training.arms, *measured]))

    def mark(self, arm: str) -> str:
        """The class of an arm's lines: its colour, or grey for the untrained model and where colours have run out."""
        return f"s{self.names.index(arm)}" if arm in self.names[:MAX_ARMS] else "grey"

    @property
    def uncolored(self) -> bool:
        """Whether there are more arms than colours."""
        return len(self.training.arms) > MAX_ARMS

    @property
    def seeds(self) -> int:
        """The most runs of an arm."""
        return max((len(runs) for runs in self.training.arms.values()), default=0)

    @property
    def measured_seeds(self) -> int:
        """The most runs of an arm that were measured."""
        return self.arms.seeds

    @property
    def differing(self) -> list[tuple[str, list[str]]]:
        """The settings in which the arms are not alike."""
        return differing_settings(self.training)

    @property
    def gaps(self) -> list[GapLine]:
        """How the losses on held-out rows rose and fell, where they were measured before the first step."""
        return gap_lines(self.training)

    @property
    def tables(self) -> list[Table]:
        """A table for each measure."""
        return tables(self.arms)

    @property
    def before_after(self) -> list[BeforeAfter]:
        """What was measured of the untrained model and of the only trained one; empty where there are others."""
        pair = self.arms.pair
        if pair is None:
            return []
        lines = [(table.metric, {line.arm: line for line in table.lines}) for table in self.tables]
        return [BeforeAfter(metric, line[pair[0]], line[pair[1]]) for metric, line in lines if len(line) == 2]

    @property
    def quality(self) -> Answer:
        """Which differences in quality are more than noise."""
        return answer(self.arms, cost=False)

    @property
    def cost(self) -> Answer:
        """Which differences in time and memory are."""
        return answer(self.arms, cost=True)

    @property
    def model(self) -> str:
        """The model that was trained, as it was named; empty where no run records it, or several were."""
        named = {str(run.config.get("model", ""))[:400] for run in self.training.runs}
        return named.pop() if len(named) == 1 else ""

    @property
    def short_model(self) -> str:
        """Its name without the folders or the organisation before it; of a stage's `model` folder the stage's, too."""
        parts = self.model.rstrip("/").split("/")
        return "/".join(parts[-2:] if parts[-1] == "model" else parts[-1:])[:60]

    @property
    def story(self) -> str:
        """The page in a few words, to follow the model's name where it is known."""
        arms = len(self.names)
        if self.arms.pair:
            found = "before and after training"
        elif not self.training.runs:
            found = (
                f"{len(self.arms.names)} models compared"
                if self.arms.names
                else "answers to the same requests"
            )
        else:
            found = f"trained in {text.number(arms)} ways" if arms > 1 else "trained"
        return found if self.model else found[:1].upper() + found[1:]

    @property
    def headline(self) -> str:
        """The page's title."""
        return f"{self.short_model}, {self.story}" if self.model else self.story

    @property
    def facts(self) -> list[tuple[str, str]]:
        """(number, what it is) for the head of the page."""
        runs, found = len(self.training.runs), []
        if runs > 1:
            found.append((text.number(runs), "training runs"))
        for name, what, show in (
            ("supervised_tokens", "supervised tokens", text.number),
            ("seconds", "of training", text.duration),
        ):
            if (value := total(self.training, name)) is not None:
                found.append((show(value), what))
        return found


def read_models(trainings: Sequence[Path], comparison: Path | None, *, seed: int = 0) -> Models | None:
    """What the folders of training and of evaluation hold; None where there is nothing to tell."""
    training = read_training(trainings)
    arms = read_arms(comparison) if comparison else Arms([], {}, "", {})
    training = _named_alike(training, arms)
    answers = (
        read_answers(comparison, [*training.arms, *arms.names], seed=seed) if comparison else SideBySide()
    )
    if not (training.runs or arms.measured or answers.asked or answers.left_out):
        return None
    colors = {arm: place for place, arm in enumerate(list(training.arms)[:MAX_ARMS])}
    return Models(training, arms, answers, figures(training, colors), *costs(training))


def _named_alike(training: Training, arms: Arms) -> Training:
    """A single run has no name of its own: it gets the one under which it was measured."""
    trained = [name for name in arms.names if name != BASE]
    if len(training.arms) != 1 or len(trained) != 1:
        return training
    return replace(training, runs=[replace(run, arm=trained[0]) for run in training.runs])
