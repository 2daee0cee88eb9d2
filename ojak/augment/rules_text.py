"""What the rule-made tasks see in a text: its title, its sentences and the terms in them. By rules, in any script.

Sentences are cut at the signs that end them in Latin, Greek, Cyrillic, Arabic, Indic and East Asian writing. Terms are
numbers, what stands in quotation marks, names (by capitals, where a script has them) and words that recur. All of it
takes time linear in the text, of which `MAX_CHARACTERS` are looked at.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

from ojak.rules.rule import MAX_CHARACTERS, WIDE, word_count

LONGEST_SENTENCE, LONGEST_TITLE, LONGEST_TERM = 400, 100, 60  # characters
LEAST_WORDS, MOST_TITLE_WORDS = 5, 16
HARD_WRAP = 120  # a paragraph with a longer line has one line for each paragraph

_BLANK_LINES = re.compile(r"\n(?:[ \t\r\f\v]*\n)+")
_ITEM = re.compile(r"\s*(?:[-*+\u2022\u00b7]|\d{1,3}[.)]|#{1,6}|=+)\s+\S")
_END = re.compile(
    r"(?<![.!?\u2026\u061f\u06d4\u0964\u0965])[.!?\u2026\u061f\u06d4\u0964\u0965]++"
    r"[\"'\u201d\u2019\u00bb)\]]*+(?:\s++|$)"
    r"|[\u3002\uff01\uff1f\uff61]++[\u300d\u300f\u201d\u2019\uff09]*+\s*+"
)  # possessive, and begun only where a run begins: linear in any text
_ENDS = re.compile(r"[.!?\u2026\u061f\u06d4\u0964\u0965\u3002\uff01\uff1f\uff61]")
# What is not prose: tags, grammars, prompts, addresses, and sentences that lost the blank between them.
_TAG = re.compile(
    r"<[^<>\s]{1,40}>|::=|>>>|@[.,-]@|https?://|[a-z\u00df-\u00ff][a-z\")\u201d][.!?][A-Z][a-z]{2}"
)
_UNDERLINE = re.compile(r"([=*\-~^#\"+_])\1{2,}\s*\Z")
_HEADING = re.compile(r"#{1,6}\s+(?P<hashes>\S.{0,200}?)\s*#*|=+\s*(?P<equals>\S.{0,200}?)\s*=+")
_NUMBER = re.compile(
    r"(?<![a-zA-Z\d_.,@])(?<!@ )[$\u20ac\u00a3\u00a5]?\d{1,15}(?:[.,]\d{1,9}){0,5}(?: ?%)?(?![a-zA-Z\d_@])(?! @)"
)
_QUOTED = re.compile(
    r"\"([^\"\n]{1,40})\"|\u201c([^\u201c\u201d\n]{1,40})\u201d|`{1,2}([^`\n]{1,40})`{1,2}"
    r"|\u00ab ?([^\u00ab\u00bb\n]{1,40}?) ?\u00bb|[\u300c\u300e]([^\u300c-\u300f\n]{1,30})[\u300d\u300f]"
)
_WORD = re.compile(r"[^\W\d_](?:[\w-]*\w)?")
_WIDE_TERM = re.compile(r"[\u30a1-\u30ff]{3,12}|(?<![\u3400-\u9fff])[\u3400-\u9fff]{2,6}(?![\u3400-\u9fff])")
_ACRONYM_DOT = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]\Z")
_JOINING = frozenset(
    ["of", "de", "da", "di", "du", "del", "der", "den", "la", "le", "van", "von", "al", "bin", "y"]
)
# Abbreviations that a sentence does not end with; those before a number; months and days, which are no names.
_SHORT_TEXT = """
    mr mrs ms dr prof st vs cf al approx inc ltd co corp jr sr gen col dept bzw ca nr vgl
"""
_SHORT = frozenset(_SHORT_TEXT.split())
_NUMBERED = frozenset(["no", "fig", "figs", "eq", "sec", "ch", "pp", "p", "vol", "art", "tab"])
_CALENDAR_TEXT = """
    january february march april may june july august september october november december monday tuesday
    wednesday thursday friday saturday sunday
"""
_CALENDAR = frozenset(_CALENDAR_TEXT.split())
# Words of at least five letters that say nothing by themselves. Other languages: see `_says_little`.
_FUNCTION_WORDS_TEXT = """
    able about above according across after again against almost along already although always among another
    around because become becomes before being below between beyond cannot could during either every everything
    example based called certain different first following further given having included includes including
    increased known large larger likely however instead itself later likewise might moreover neither never often
    other others otherwise outside perhaps possible rather result results second several shall should similar
    since something sometimes still such their theirs them themselves there therefore these thing things third
    those though three through throughout together toward towards under unless until using usually various well
    were where whereas whether which while whose within without would aber alle allem allen aller alles andere
    anderen beim damit dabei daher dann dass diese diesem diesen dieser dieses durch eine einem einen einer
    eines haben hatte hatten ihre ihrem ihren ihrer jedoch keine konnte kann nach nicht noch oder ohne schon
    sehr seine seinem seinen seiner sich sind sowie sein über unter viele waren wegen weil welche wenn werden
    wird wurde wurden zwischen ainsi alors après aussi autre autres avant avec cette ceux chaque comme depuis
    donc dont elle elles encore entre être leurs lors mais même moins notre nous parce pendant plus plusieurs
    pour quand sans selon sont tous toute toutes très vers algunos antes aunque como contra cuando desde donde
    durante ellos entre esta estaba estas este estos fueron había hasta mientras mismo mucho muchos otra otras
    otros para pero porque puede según sido sino sobre también tambien tiene todo todos
"""
_FUNCTION_WORDS = frozenset(_FUNCTION_WORDS_TEXT.split())


@dataclass(frozen=True, slots=True)
class Term:
    """`text` at sentence.text[start:end]. kind: "number", "year", "percent", "name", "quoted" or "word"."""

    text: str
    kind: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence, white space collapsed, and where it stands: its paragraph, and its place in it."""

    text: str
    paragraph: int
    place: int


class Reading:
    """A text as the tasks see it."""

    def __init__(self, text: str) -> None:
        self.text = text[:MAX_CHARACTERS]
        self.paragraphs = list(_paragraphs(self.text))
        self.sentences = [
            Sentence(sentence, number, place)
            for number, paragraph in enumerate(self.paragraphs)
            for place, sentence in enumerate(cut_sentences(paragraph))
        ]

    @cached_property
    def collapsed(self) -> str:
        """The text with every run of white space as one blank: what an answer stands in."""
        return " ".join(self.text.split())

    @cached_property
    def folded(self) -> str:
        """`collapsed`, case folded."""
        return self.collapsed.casefold()

    @cached_property
    def prose(self) -> list[Sentence]:
        """The sentences that a task can be made of, none twice."""
        seen: set[str] = set()
        found = []
        for sentence in self.sentences:
            key = sentence.text.casefold()
            if key not in seen and is_prose(sentence.text):
                seen.add(key)
                found.append(sentence)
        return found

    @cached_property
    def title(self) -> str:
        """The title at the head of the text; empty if there is none."""
        return _title(self.text)

    @cached_property
    def _words(self) -> Counter[str]:
        """How often each word stands in the text, as it is written."""
        return Counter(_WORD.findall(self.text))

    @cached_property
    def _capitals(self) -> set[str]:
        """The words that have a capital in the middle of a sentence."""
        return {
            word[0]
            for sentence in self.prose
            for word in _WORD.finditer(sentence.text)
            if word[0][0].isupper() and not _begins(sentence.text, word.start())
        }

    @cached_property
    def _recurring(self) -> dict[str, int]:
        """Words that say something and stand twice or more in the text, case folded, with their counts."""
        counts: Counter[str] = Counter()
        for word, count in self._words.items():
            counts[word.casefold()] += count
        for found in _WIDE_TERM.findall(self.text):
            counts[found] += 1
        often = max(8, 0.05 * sum(self._words.values()))  # more often, and it holds the language together
        return {word: n for word, n in counts.items() if 2 <= n <= often and not _says_little(word)}

    @cached_property
    def terms(self) -> list[list[Term]]:
        """The terms of each of `prose`, in the order of their places, none overlapping."""
        return [list(self._terms(sentence.text)) for sentence in self.prose]

    @cached_property
    def by_kind(self) -> dict[str, list[Term]]:
        """The terms of each kind, each text once, in the order of the text."""
        found: dict[str, dict[str, Term]] = {}
        for terms in self.terms:
            for term in terms:
                found.setdefault(term.kind, {}).setdefault(term.text, term)
        return {kind: list(terms.values()) for kind, terms in found.items()}

    @cached_property
    def _frames(self) -> Counter[tuple[str, str]]:
        """How often each sentence stands in the text but for one of its terms."""
        return Counter(
            _frame(sentence, term)
            for sentence, terms in zip(self.prose, self.terms, strict=True)
            for term in terms
        )

    def is_only(self, number: int, term: Term) -> bool:
        """Whether no other sentence of `prose` is the same but for another term in this place."""
        return self._frames[_frame(self.prose[number], term)] == 1

    @cached_property
    def weights(self) -> dict[str, float]:
        """How telling each term is, as first written: how often it stands there; names and quoted ones count more."""
        found: Counter[str] = Counter()
        written: dict[str, str] = {}
        for terms in self.terms:
            for term in terms:
                folded = term.text.casefold()
                written.setdefault(folded, term.text)
                found[folded] += {"name": 3, "quoted": 2, "word": 1}.get(term.kind, 0)
        return {written[key]: count * min(len(key), 20) ** 0.5 for key, count in found.items() if count}

    @cached_property
    def subject(self) -> str:
        """What the text is about: its title, else its most telling term, if one of the first two sentences has it."""
        if self.title or not self.weights:
            return self.title
        top = max(self.weights, key=lambda text: (self.weights[text], text))
        begins = " ".join(sentence.text for sentence in self.prose[:2]).casefold()
        return top if top.casefold() in begins and self.folded.count(top.casefold()) >= 3 else ""

    def _terms(self, sentence: str) -> Iterator[Term]:
        taken = [False] * len(sentence)
        found: list[Term] = []
        for term in (
            *_quoted(sentence),
            *_numbers(sentence),
            *self._names(sentence),
            *self._keywords(sentence),
        ):
            if not any(taken[term.start : term.end]) and 0 < len(term.text) <= LONGEST_TERM:
                taken[term.start : term.end] = [True] * (term.end - term.start)
                found.append(term)
        return iter(sorted(found, key=lambda term: term.start))

    def _names(self, sentence: str) -> Iterator[Term]:
        """Runs of capitalised words, joining words between two of them included."""
        run: list[re.Match[str]] = []
        for word in _WORD.finditer(sentence):
            adjoins = bool(run) and sentence[run[-1].end() : word.start()] in (" ", "-")
            if run and not adjoins:
                yield from _name(sentence, run)
                run = []
            if self._is_capital(word, sentence) or (run and word[0] in _JOINING):
                run.append(word)
            elif run:
                yield from _name(sentence, run)
                run = []
        yield from _name(sentence, run)

    def _is_capital(self, word: re.Match[str], sentence: str) -> bool:
        """Capitalised, and not only because a sentence begins: its form in small letters is nowhere in the text."""
        text = word[0]
        if not text[0].isupper() or text.casefold() in _CALENDAR or text.lower() in _FUNCTION_WORDS:
            return False
        begins = _begins(sentence, word.start())
        return self._words[text.lower()] == 0 and (not begins or text in self._capitals or text.isupper())

    def _keywords(self, sentence: str) -> Iterator[Term]:
        for pattern in (_WORD, _WIDE_TERM):
            for word in pattern.finditer(sentence):
                if word[0].casefold() in self._recurring:
                    yield Term(word[0], "word", word.start(), word.end())


@lru_cache(maxsize=4)
def reading(text: str) -> Reading:
    """The `Reading` of a text; those of the last few texts are kept: pairs are made of one, and then checked."""
    return Reading(text)


def _frame(sentence: Sentence, term: Term) -> tuple[str, str]:
    return sentence.text[: term.start].casefold(), sentence.text[term.end :].casefold()


def _begins(sentence: str, place: int) -> bool:
    """Whether a word begins a sentence, or what follows a colon or stands in quotation marks or brackets."""
    before = sentence[:place].rstrip()[-1:]
    return not before or before in ":\"'(\u201c\u2018\u00ab"


def _says_little(word: str) -> bool:
    """Too short to be telling, or a function word. Short is a matter of the script: letters, syllables, signs."""
    if WIDE.match(word):
        return len(word) < 2
    least = 2 if "\uac00" <= word[0] <= "\ud7af" else 5 if word.upper() != word else 4
    return len(word) < least or word in _FUNCTION_WORDS


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs with white space collapsed: cut at blank lines, at items and headings, and where lines are long."""
    for block in _BLANK_LINES.split(text):
        lines = [line.strip() for line in block.split("\n") if line.strip()]
        wrapped = max(map(len, lines), default=0) <= HARD_WRAP
        begins = [0, *(i for i in range(1, len(lines)) if not wrapped or _opens(lines, i)), len(lines)]
        for begin, end in pairwise(begins):
            if paragraph := " ".join(" ".join(lines[begin:end]).split()):
                yield paragraph


def _opens(lines: Sequence[str], number: int) -> bool:
    """Whether a line of a wrapped paragraph begins another one: an item, a heading, or what follows one of those."""
    before, line = lines[number - 1], lines[number]
    ruled = any(_UNDERLINE.match(each[:200]) for each in (before, line))
    headed = len(before) <= 2 * LONGEST_TITLE and _HEADING.fullmatch(before) is not None
    return ruled or headed or _ITEM.match(line) is not None


def cut_sentences(paragraph: str) -> Iterator[str]:
    """The sentences of a text without line breaks, each with the sign that ends it; the last may lack one."""
    begin = 0
    for end in _END.finditer(paragraph):
        if end.start() > begin and not _goes_on(paragraph, begin, end):
            yield paragraph[begin : end.end()].strip()
            begin = end.end()
    if rest := paragraph[begin:].strip():
        yield rest


def _goes_on(paragraph: str, begin: int, end: re.Match[str]) -> bool:
    """Whether the sign belongs to an abbreviation, or what follows begins no sentence."""
    after = paragraph[end.end() : end.end() + 1]
    if after.islower():
        return True
    if end[0].strip() != ".":
        return False
    word = paragraph[max(begin, end.start() - 30) : end.start()].rpartition(" ")[2].lstrip("(\"'\u201c[")
    folded = word.casefold()
    if folded in _NUMBERED:
        return after.isdigit()
    ordinal = (
        word.isdigit() and len(word) <= 2 and end.start() - len(word) > begin
    )  # not the number of an item
    initial = len(word) == 1 and word.isupper() and word != "I"
    return ordinal or initial or folded in _SHORT or _ACRONYM_DOT.match(word) is not None


def is_prose(sentence: str) -> bool:
    """Whether a sentence is whole and of words: no heading, no code, no row of a table."""
    if (
        not 12 <= len(sentence) <= LONGEST_SENTENCE
        or _TAG.search(sentence)
        or not _ENDS.search(sentence[-3:])
    ):
        return False
    spoken = sum(character.isalpha() or character == " " for character in sentence)
    pairs = ("()", "[]", "{}", "\u201c\u201d", "\u300c\u300d")
    balanced = all(sentence.count(a) == sentence.count(b) for a, b in pairs) and sentence.count('"') % 2 == 0
    first = sentence.lstrip("\"'\u201c\u2018(\u00ab\u300c`\u00bf\u00a1")[:1]
    begins = first.isalnum() and not first.islower()
    return spoken >= 0.75 * len(sentence) and balanced and begins and word_count(sentence) >= LEAST_WORDS


def _title(text: str) -> str:
    """The first line, if it is marked as a heading, or short, without an end, and set apart from what follows."""
    lines = text.lstrip("\ufeff \t\r\n").split("\n", 3)
    first = " ".join(lines[0][: 3 * LONGEST_TITLE].split())
    below = lines[1] if len(lines) > 1 else ""
    if heading := _HEADING.fullmatch(first):
        return _fit_title(heading["hashes"] or heading["equals"])
    apart = _UNDERLINE.match(below[:200]) or (
        not _ENDS.search(first[-1:]) and (not below.strip() or len(below) > HARD_WRAP) and len(lines) > 2
    )
    return _fit_title(first) if apart and first[-1:] not in ",;:" else ""


def _fit_title(title: str) -> str:
    title = title.strip("*_ \t")
    fits = len(title) <= LONGEST_TITLE and len(title.split()) <= MOST_TITLE_WORDS
    return title if fits and any(character.isalpha() for character in title) else ""


def _numbers(sentence: str) -> Iterator[Term]:
    for found in _NUMBER.finditer(sentence):
        text = found[0]
        year = len(text) == 4 and text.isdigit() and text[:2] in {"16", "17", "18", "19", "20"}
        kind = "year" if year else "percent" if text.endswith("%") else "number"
        if (
            len(text) > 1 or kind != "number"
        ):  # a single digit numbers items more often than it tells something
            yield Term(text, kind, found.start(), found.end())


def _quoted(sentence: str) -> Iterator[Term]:
    for found in _QUOTED.finditer(sentence):
        group = next(i for i, inner in enumerate(found.groups(), 1) if inner is not None)
        text = found[group]
        speaks = text[-1:] in ",.;:!?" or len(text.split()) > 3
        if text == text.strip() and not speaks and any(character.isalnum() for character in text):
            yield Term(text, "quoted", found.start(group), found.end(group))


def _name(sentence: str, run: list[re.Match[str]]) -> Iterator[Term]:
    while run and run[-1][0] in _JOINING:
        run = run[:-1]
    if run:
        start, end = run[0].start(), run[-1].end()
        if end - start > 1:
            yield Term(sentence[start:end], "name", start, end)
