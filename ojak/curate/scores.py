"""Scores and findings, each by an annotator: something that gives values to a block of rows, and says which.

Most need no judge. What a judge says comes from `Tags` and `Grades`, and counts only where that judge is trusted
(`trust.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ojak.curate.filters import EMBEDDED
from ojak.curate.view import View
from ojak.errors import UsageError
from ojak.judge.scores import row_of

if TYPE_CHECKING:
    from ojak.engines.base import Engine
    from ojak.judge.likelihood import Likelihood
    from ojak.judge.prompts import Row

LENGTHS = tuple(
    f"scores.{side}_{unit}" for side in ("instruction", "response") for unit in ("chars", "words")
)
TOKENS = ("scores.instruction_tokens", "scores.response_tokens")
PERPLEXITY, GAIN = "scores.perplexity", "scores.instruction_gain"
REWARD, DIFFERENCE = "scores.reward", "scores.reward_difference"
# Keys of a row's `meta`: who set its tags, its grade and its reward, and who gave the answer that it is compared with.
# One each, as who gives one vouches for no other.
JUDGE, GRADER, REWARD_MODEL, BASE = "judge", "grader", "reward_model", "reward_base"


class Annotator(Protocol):
    """Sets values of rows. `gives` names them; `identity` holds all that shapes them, as JSON values."""

    @property
    def gives(self) -> tuple[str, ...]: ...

    @property
    def identity(self) -> dict[str, Any]: ...

    def annotate(self, views: Sequence[View]) -> None: ...


class Texts:
    """Lengths, repetition, refusals, boilerplate, and, where they are asked for, the checks of formats.

    Tokens are those that the row's maker counted; a row without such a count gets none here.
    """

    def __init__(self, *, formats: bool = True) -> None:
        self._formats = formats
        more = ("found.format",) if formats else ()
        self.gives = (*LENGTHS, "scores.repetition", "found.refusal", "found.boilerplate", *more)
        self.identity = {"texts": list(self.gives)}

    def annotate(self, views: Sequence[View]) -> None:
        for view in views:
            self._annotate(view)

    def _annotate(self, view: View) -> None:
        from ojak.rules import is_refusal
        from ojak.rules.responses import boilerplate, format_problems, repetition
        from ojak.rules.rule import word_count

        instruction, response = view.instruction, view.response
        view.scores |= {
            "instruction_chars": len(instruction),
            "response_chars": len(response),
            "instruction_words": word_count(instruction),
            "response_words": word_count(response),
            "repetition": round(repetition(response), 6),
        }
        view.found |= {"refusal": is_refusal(response), "boilerplate": boilerplate(response) or False}
        if self._formats:
            view.found["format"] = format_problems(response)
        counted = view.conversation.meta.get("tokens")
        for side in ("instruction", "response"):
            number = counted.get(side) if isinstance(counted, dict) else None
            if isinstance(number, int) and f"{side}_tokens" not in view.scores:
                view.scores[f"{side}_tokens"] = number


class PersonalData:
    """The kinds of personal data on either side (never the data themselves)."""

    gives = ("found.personal_data",)
    identity: dict[str, Any] = {"personal_data": 1}  # noqa: RUF012  (read only)

    def annotate(self, views: Sequence[View]) -> None:
        from ojak.rules.privacy import find_personal_data

        for view in views:
            found = [*find_personal_data(view.instruction), *find_personal_data(view.response)]
            view.found["personal_data"] = sorted({item.kind for item in found})


class TestSets:
    """Runs of words that a row shares with test sets."""

    gives = ("found.contamination",)

    def __init__(self, paths: Sequence[str], n: int) -> None:
        """Raises InputRefused for a file that cannot be read."""
        from ojak._files import sha256_file
        from ojak.rules.contamination import Contamination

        files = [Path(path) for path in paths]
        self._index = Contamination([text for path in files for text in _test_texts(path)], n=n)
        hashes = [sha256_file(path) for path in files]
        self.identity = {"test_sets": hashes, "n": n}

    def annotate(self, views: Sequence[View]) -> None:
        texts = [text for view in views for text in (view.instruction, view.response)]
        shared = self._index.find_all(texts)
        for view, asked, answered in zip(views, shared[::2], shared[1::2], strict=True):
            view.found["contamination"] = asked or answered or False


def _test_texts(path: Path) -> Iterator[str]:
    """Every text in the rows of a file, whatever their fields are called: answers count as much as questions."""
    from ojak._jsonl import read_rows
    from ojak._tables import is_parquet, read_table
    from ojak.errors import InputRefused

    if not path.is_file():
        raise InputRefused(f"the test set {path} is not there", fix="give a JSON, JSON lines or Parquet file")
    rows = read_table(path) if is_parquet(path) else (line.row for line in read_rows(path))
    for row in rows:
        yield from _strings(row)


def _strings(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict | list):
            waiting += item.values() if isinstance(item, dict) else item


class Tokens:
    """The tokens of each side, as the engine's tokenizer counts them."""

    gives = TOKENS

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.identity = {"tokens": engine.identity}

    def annotate(self, views: Sequence[View]) -> None:
        for view in views:
            for side in ("instruction", "response"):
                view.scores[f"{side}_tokens"] = self._engine.count_tokens(getattr(view, side))


class Likelihoods:
    """`perplexity` of the response, and `instruction_gain`: how much the instruction helps, in nats a token.

    They are what `judge.likelihood` reads, the same that is calibrated. (The exponential of the gain is the inverse of
    IFD, Li et al. 2024, arXiv:2308.12032.) A row that does not fit the model, or has no response, gets neither.
    """

    gives = (PERPLEXITY, GAIN)

    def __init__(self, engine: Engine) -> None:
        """Raises UsageError for an engine that cannot read probabilities."""
        from ojak.engines.base import require

        require(engine, "curate", "raw_prompt", "scores")
        self._engine = engine
        self.identity = {"likelihoods": engine.identity}

    def annotate(self, views: Sequence[View]) -> None:
        answered = [view for view in views if view.response.strip()]
        for view, found in zip(answered, self._read([row_of(v.conversation) for v in answered]), strict=True):
            if found is not None and found.tokens and math.isfinite(found.given - found.alone):
                view.put(PERPLEXITY, round(found.perplexity, 4))
                view.put(GAIN, round(found.gain, 6))

    def _read(self, rows: Sequence[Row]) -> list[Likelihood | None]:
        """The likelihoods in the order of `rows`; None for one that the engine refuses."""
        from ojak.judge.likelihood import likelihoods

        try:
            return list(likelihoods(self._engine, rows))
        except UsageError:  # halved until the row that it refuses is alone
            half = len(rows) // 2
            return [*self._read(rows[:half]), *self._read(rows[half:])] if half else [None]


class Tags:
    """Tags by a judge, or (without an engine) by a library and rules; rows that have them all are left alone.

    guard: a model that gives the tag `safety` instead of the rules.
    """

    def __init__(
        self, fields: Sequence[str], engine: Engine | None = None, *, guard: Engine | None = None
    ) -> None:
        """Raises UsageError for a tag that nobody gives."""
        from ojak.judge import Tagger

        self._fields = tuple(fields)
        self._tagger = Tagger(engine, fields=self._fields, guard=guard)
        self._judge = engine.identity if engine is not None else None
        self.gives = tuple(f"tags.{name}" for name in fields)
        self.identity = {"tags": list(fields), "judge": self._judge}
        if guard is not None:
            self.identity["guard"] = guard.identity

    def annotate(self, views: Sequence[View]) -> None:
        bare = [view for view in views if not all(name in view.tags for name in self._fields)]
        tagged = self._tagger.tag([view.conversation for view in bare])
        for view, (_, tags) in zip(bare, tagged, strict=True):
            view.tags |= tags
            if self._judge is not None:
                view.makers[JUDGE] = self._judge


class Grades:
    """`judge_score`: a judge's grade of the answer, 0 to 100."""

    gives = ("scores.judge_score",)

    def __init__(self, engine: Engine) -> None:
        """Raises UsageError for an engine that only takes chats, InputRefused for a model without a chat template."""
        from ojak.judge import Judge

        self._judge, self._maker = Judge(engine), engine.identity
        self.identity = {"grades": self._maker}

    def annotate(self, views: Sequence[View]) -> None:
        scores = self._judge.scores(row_of(view.conversation) for view in views)
        for view, score in zip(views, scores, strict=True):
            if score is not None:
                view.scores["judge_score"] = round(score, 3)
                view.makers[GRADER] = self._maker


class Embeddings:
    """The instruction's embedding as `vector` of the row: what `columns.py` compares."""

    gives = EMBEDDED

    def __init__(self) -> None:
        """Raises what opening the embedder raises: ImportError or an error of ojak's."""
        from ojak.similarity.embedding import Embedder

        self._embedder = Embedder.open()
        self.identity = {"embedder": self._embedder.name, "embedder_sha256": self._embedder.sha256}

    def annotate(self, views: Sequence[View]) -> None:
        vectors = self._embedder.encode([view.instruction for view in views])
        for view, vector in zip(views, vectors, strict=True):
            view.vector = vector
