"""The profile `web` decides as plain datatrove does, with the filters of FineWeb's script, document by document."""

from __future__ import annotations

import pydoc_data.topics
from types import TracebackType
from typing import Any, Self

import pytest
from raw_files import web_texts

from ojak.corpus.filters import Filters
from ojak.corpus.profiles import FILTERS
from ojak.judge.language import identify


class Excluded:
    """What datatrove writes dropped documents to: keeps the reasons."""

    def __init__(self, stage: str, reasons: dict[str, str]) -> None:
        self.stage, self.reasons = stage, reasons

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def write(self, document: Any, rank: int) -> None:
        self.reasons[document.id] = f"{self.stage}.{document.metadata['filter_reason']}"


def plainly(texts: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """(the text that is left, why dropped) by number, of FineWeb's steps as its script has them."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    reasons: dict[str, str] = {}
    writers: list[Any] = [Excluded(stage, reasons) for stage in FILTERS]
    steps = [
        GopherRepetitionFilter(exclusion_writer=writers[0], language="en"),
        GopherQualityFilter(exclusion_writer=writers[1], language="en"),
        C4QualityFilter(filter_no_terminal_punct=False, exclusion_writer=writers[2], language="en"),
        FineWebQualityFilter(exclusion_writer=writers[3], language="en"),
    ]
    data: Any = (Document(text=text, id=str(number)) for number, text in enumerate(texts))
    for step in steps:
        data = step.run(data)
    return {document.id: document.text for document in data}, reasons


def test_every_decision_is_datatrove_s() -> None:
    texts = [*web_texts(220), *pydoc_data.topics.topics.values()]
    texts = [text for text in texts if identify(text)[0] == "en" and identify(text)[1] > 0.65]
    assert len(texts) > 250
    kept, reasons = plainly(texts)
    ours = Filters("web", ("en",), 10**7)
    for number, text in enumerate(texts):
        found = ours.decide(text)
        assert found.reason == reasons.get(str(number), ""), text[:300]
        if not found.reason:
            assert found.text == kept[str(number)]
    assert len(kept) > 30
    assert len(set(reasons.values())) > 12, "too few of the rules were asked"


def test_the_table_is_datatrove_s_own() -> None:
    """The thresholds of `web` are the defaults of datatrove's classes, but for what FineWeb's script sets."""
    import inspect

    from datatrove.pipeline import filters

    from ojak.corpus.profiles import values

    kinds = zip(
        FILTERS,
        (filters.GopherRepetitionFilter, filters.GopherQualityFilter, filters.C4QualityFilter, filters.FineWebQualityFilter),
        strict=True,
    )  # fmt: skip
    for stage, kind in kinds:
        defaults = {name: each.default for name, each in inspect.signature(kind).parameters.items()}
        ours = values("web", stage)
        assert ours == {name: defaults[name] for name in ours} | (
            {"filter_no_terminal_punct": False} if stage == "c4" else {}
        )


@pytest.mark.parametrize("text", ["", " ", "\n", ".", "…", "1 2 3", "a", "\x00", "漢字"])
@pytest.mark.parametrize("profile", ["web", "docs"])
def test_odd_texts_get_a_decision(profile: Any, text: str) -> None:
    assert Filters(profile, (), 10**6).decide(text).reason


def test_the_language_reference_stays_in_docs() -> None:
    docs, web = (Filters(name, (), 10**7) for name in ("docs", "web"))
    topics = list(pydoc_data.topics.topics.values())
    stay = sum(not docs.decide(text).reason for text in topics)
    assert stay > 0.8 * len(topics)
    assert sum(not web.decide(text).reason for text in topics) < stay
    kept = next(text for text in topics if "    def " in text and not docs.decide(text).reason)
    assert docs.decide(kept).text == kept, "the blanks in front of a line are Python's syntax"


def test_other_languages_are_turned_away_from_web_alone() -> None:
    text = (
        "Der alte Fluss fließt durch das stille Dorf, und niemand weiß, wie lange die Brücke noch steht. " * 8
    )
    assert Filters("web", ("en",), 10**6).decide(text).reason == "language"
    assert Filters("docs", (), 10**6).decide(text).language == "de"


def test_a_text_that_is_too_long() -> None:
    assert Filters("none", (), 100).decide("a" * 101).reason == "too_long"
    assert Filters("none", (), 101).decide("a" * 101).reason == ""
