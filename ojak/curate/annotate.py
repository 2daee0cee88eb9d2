"""Which annotators a recipe needs, opened as far as they are at hand; what cannot be had is named, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ojak.curate.config import CurateConfig
from ojak.curate.filters import EMBEDDED, LIBRARY_TAGS, NoContamination
from ojak.curate.models import Models
from ojak.curate.recipe import FilterRecipe
from ojak.curate.scores import (
    DIFFERENCE,
    GAIN,
    PERPLEXITY,
    REWARD,
    TOKENS,
    Annotator,
    Embeddings,
    Grades,
    Likelihoods,
    PersonalData,
    Tags,
    TestSets,
    Texts,
    Tokens,
)
from ojak.engines.base import Engine
from ojak.errors import OjakError, UsageError

NO_MODEL = "no model was named for it (--model)"
NO_REWARD_MODEL = "no reward model was named for it (--reward-model)"
NO_BASE = "no base model was named for it (--reward-base)"
INSTALL = "pip install 'ojak[embed]'"


@dataclass
class Annotators:
    """Those that are open, and `absent`: the values that nobody gives here, each with the reason."""

    open: list[Annotator] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    def lack(self, needs: Sequence[str], why: str) -> None:
        """Note that nobody gives these values."""
        self.absent |= {need: why for need in needs}

    def attempt(self, needs: Sequence[str], make: Callable[[], Annotator]) -> None:
        """Open an annotator that may not be at hand on this machine."""
        if not needs:
            return
        try:
            self.open.append(make())
        except ImportError as error:
            self.lack(needs, f"{error.name or error} is not installed: {INSTALL}")
        except OjakError as error:
            self.lack(needs, " ".join(filter(None, (f"{error.what};", error.why or error.fix))).rstrip(";"))


def open_annotators(recipe: FilterRecipe, config: CurateConfig, models: Models) -> Annotators:
    """The annotators that the recipe's rules need. `models` are opened only where a rule needs them.

    Raises what opening a model, a reward model or a test set that was named raises; what was not named is `absent`.
    """
    needs = recipe.needs
    found = Annotators([Texts(formats="found.format" in needs)])
    _open_tags(found, [need for need in needs if need.startswith("tags.")], models)
    _open_engine_scores(found, needs, models.judge)
    _open_rewards(found, needs, config.reward_model, models)
    if "found.personal_data" in needs:
        found.open.append(PersonalData())
    for rule in recipe.rules:
        if isinstance(rule, NoContamination):
            found.open.append(TestSets(rule.against, rule.n))
    found.attempt([need for need in needs if need in EMBEDDED], Embeddings)
    return found


def _open_tags(found: Annotators, needs: Sequence[str], models: Models) -> None:
    """Those of the library and of rules or a guard model (language, safety), and those that a model judges."""
    names = [need.partition(".")[2] for need in needs]
    library = [name for name in names if name in LIBRARY_TAGS]
    judged = [name for name in names if name not in LIBRARY_TAGS]
    if library:
        found.open.append(Tags(library, guard=models.guard() if "safety" in library else None))
    engine = models.judge() if judged else None
    if not judged or engine is None:
        found.lack([f"tags.{name}" for name in judged], NO_MODEL)
        return
    from ojak.judge import TAG_FIELDS

    found.lack([f"tags.{name}" for name in judged if name not in TAG_FIELDS], "ojak's judge has no such tag")
    known = [name for name in judged if name in TAG_FIELDS]
    if known:
        found.open.append(Tags(known, engine))


def _open_engine_scores(
    found: Annotators, needs: Sequence[str], engine_of: Callable[[], Engine | None]
) -> None:
    read = [need for need in needs if need in (PERPLEXITY, GAIN)]
    counted = [need for need in needs if need in TOKENS]
    graded = [need for need in needs if need in Grades.gives]
    engine = engine_of() if read or counted or graded else None
    if engine is None:
        found.lack([*read, *counted, *graded], NO_MODEL)
        return
    if counted:
        found.open.append(Tokens(engine))
    if graded:
        found.open.append(Grades(engine))
    if read:
        try:
            found.open.append(Likelihoods(engine))
        except UsageError as error:
            found.lack(read, f"{error.what}: {error.why}")


def _open_rewards(found: Annotators, needs: Sequence[str], name: str | None, models: Models) -> None:
    """Rewards, and the differences to a base model's, as far as models were named for them."""
    wanted = [need for need in needs if need in (REWARD, DIFFERENCE)]
    if wanted and name is None:
        found.lack(wanted, NO_REWARD_MODEL)
    base = models.base() if DIFFERENCE in wanted and name is not None else None
    if DIFFERENCE in wanted and name is not None and base is None:
        found.lack([DIFFERENCE], NO_BASE)
    if name is None or not (REWARD in wanted or base):
        return
    from ojak.curate.reward import Differences, Rewards
    from ojak.judge.reward import RewardModel

    model = RewardModel(name)
    found.open += [Rewards(model), *([Differences(model, base)] if base else [])]
