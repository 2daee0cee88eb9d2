"""What is decided about a text: its language, then datatrove's filters in FineWeb's order, the first reason counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ojak.corpus.profiles import FILTERS, Profile, values
from ojak.errors import UsageError
from ojak.judge.language import LEAST_SURE, UNKNOWN, identify

if TYPE_CHECKING:
    from datatrove.pipeline.filters.base_filter import BaseFilter

ENGLISH = "en"
LANGUAGE_CHARACTERS = 1_500  # that the language is told by: all of a page would cost more than the filters
WITHOUT_SPACES = frozenset(
    {"ja", "km", "lo", "my", "th", "zh"}
)  # nothing that counts words can be asked of these


@dataclass(frozen=True, slots=True)
class Verdict:
    """text: as the filters leave it (C4's drops lines). reason: "" for a document that stays."""

    text: str
    language: str
    reason: str = ""
    detail: str = ""


class Filters:
    """The rules of a profile.

    languages: that may stay, () for all. most_characters: of a text. Raises UsageError where a library is missing.
    """

    def __init__(self, profile: Profile, languages: tuple[str, ...], most_characters: int) -> None:
        self._profile: Profile = profile
        self._languages, self._most = languages, most_characters
        self._least_sure = values(profile, "language").get("least_sure", 0.0)
        self._chains: dict[str, list[tuple[str, BaseFilter]]] = {}
        self._chain(ENGLISH)

    def decide(self, text: str) -> Verdict:
        """Whether a text stays, and what is left of it."""
        if len(text) > self._most:
            return Verdict("", "", "too_long", f"{len(text):,} characters; {self._most:,} are read")
        code, sure = identify(text[:LANGUAGE_CHARACTERS])
        language = code if sure >= LEAST_SURE else UNKNOWN
        if self._languages and not (code in self._languages and sure > self._least_sure):
            return Verdict(text, language, "language", f"{code} ({sure:.2f})")
        return self.filtered(text, language)

    def filtered(self, text: str, language: str) -> Verdict:
        """What the filters say of a text whose language is known."""
        from datatrove.data import Document

        document = Document(text=text, id="")
        for stage, rule in self._chain(language):
            reason = _reason(rule, document)
            if reason:
                return Verdict(text, language, f"{stage}.{reason}")
        left = document.text
        return (
            Verdict(left, language) if left.strip() else Verdict(text, language, "no_text", "no line is left")
        )

    def _chain(self, language: str) -> list[tuple[str, BaseFilter]]:
        """(stage, filter) for texts of a language."""
        if language not in self._chains:
            skips = self._profile == "none" or language in WITHOUT_SPACES
            self._chains[language] = [] if skips else _filters(self._profile, language)
        return self._chains[language]


def _reason(rule: BaseFilter, document: Any) -> str:
    """Why datatrove's filter drops a document; "" if it does not."""
    try:
        found = rule.filter(document)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  # a text without a word divides by zero in some of the filters
        return f"error_{type(error).__name__}"
    stays, reason = found if isinstance(found, tuple) else (found, "dropped")
    return "" if stays else str(reason)


def _filters(profile: Profile, language: str) -> list[tuple[str, BaseFilter]]:
    """The filters that run in a profile, with its thresholds."""
    try:
        from datatrove.pipeline.filters.c4_filters import C4QualityFilter
        from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
        from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
        from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

        from ojak.corpus.words import Words

        words: Any = Words(language)
    except ImportError as error:
        raise UsageError(
            f"the profile {profile!r} needs {error.name or 'a library'}, which is not installed",
            why=str(error),
            fix='pip install "ojak[corpus]"',
        ) from error
    kinds = (GopherRepetitionFilter, GopherQualityFilter, C4QualityFilter, FineWebQualityFilter)
    chain: list[tuple[str, BaseFilter]] = []
    for stage, kind in zip(FILTERS, kinds, strict=True):
        given = values(profile, stage)
        if given and stage == "gopher_quality" and language != ENGLISH:
            given["min_stop_words"] = None  # its stop words are English
        if given:
            chain.append((stage, kind(**given, language=words)))
    return chain
