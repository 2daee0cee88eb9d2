"""Which annotators a recipe needs, opened as far as they are at hand; what cannot be had is named, with the reason."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec

from ojak.curate.config import CurateConfig
from ojak.curate.filters import EMBEDDED, LIBRARY_TAGS, NoContamination
from ojak.curate.recipe import FilterRecipe
from ojak.curate.scores import (
    GAIN,
    PERPLEXITY,
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
INSTALL = "pip install 'ojak[embed]'"
# Values that ojak does not compute: rows may bring them.
BROUGHT = {"scores.reward_difference": "it takes a base model's answers, too, which ojak does not ask for"}


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


def open_annotators(
    recipe: FilterRecipe, config: CurateConfig, engine_of: Callable[[], Engine | None]
) -> Annotators:
    """The annotators that the recipe's rules need. `engine_of` opens the model, if one was named; it is called only
    where a rule needs it. Raises what opening a model, a reward model or a test set that was named raises."""
    needs = recipe.needs
    found = Annotators([Texts(formats="found.format" in needs)])
    _open_tags(found, [need for need in needs if need.startswith("tags.")], engine_of)
    _open_engine_scores(found, needs, engine_of)
    _open_rewards(found, needs, config.reward_model)
    if "found.personal_data" in needs:
        found.open.append(PersonalData())
    for rule in recipe.rules:
        if isinstance(rule, NoContamination):
            found.open.append(TestSets(rule.against, rule.n))
    found.attempt([need for need in needs if need in EMBEDDED], Embeddings)
    return found


def _open_tags(found: Annotators, needs: Sequence[str], engine_of: Callable[[], Engine | None]) -> None:
    """Those of the library (language, safety), and those that a model judges."""
    names = [need.partition(".")[2] for need in needs]
    library = [name for name in names if name in LIBRARY_TAGS]
    judged = [name for name in names if name not in LIBRARY_TAGS]
    if "language" in library and find_spec("py3langid") is None:
        found.lack(["tags.language"], f"py3langid is not installed: {INSTALL}")
        library.remove("language")
    found.attempt(library, lambda: Tags(library))
    engine = engine_of() if judged else None
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


def _open_rewards(found: Annotators, needs: Sequence[str], name: str | None) -> None:
    found.absent |= {need: why for need, why in BROUGHT.items() if need in needs}
    if "scores.reward" not in needs:
        return
    if name is None:
        found.lack(["scores.reward"], "no reward model was named (--reward-model)")
        return
    from ojak.curate.reward import Rewards

    found.open.append(Rewards(name))
