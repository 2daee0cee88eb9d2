"""What of a pair stands in its text: spans, words, numbers, and where. By rules, in any language; some hints English.

Texts are compared as `similarity.normalize` leaves them, words by their stems (English endings cut), numbers by their
value, whichever way they are written. A word weighs the more, the fewer sentences of the text have it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Sequence
from functools import cached_property, lru_cache

from ojak.augment.rules_text import cut_sentences, reading
from ojak.rules.rule import MAX_CHARACTERS, WIDE
from ojak.similarity import normalize

MOST_OCCURRENCES = 50  # places of an answer that are looked at
LEAST_STEM = 4  # letters
NEIGHBOUR = 0.5  # what a word in the next sentence counts

_NUMBER = re.compile(r"(?<![\w.,])\d{1,15}(?:[.,]\d{1,9}){0,5}")
_POSSESSIVE = re.compile(r"(?<=\w)['\u2019]s\b")
# Words that say nothing by themselves, those of scale ("million") among them: their numbers count. None of another
# language that is a word of some weight in English ("die", "war").
_FUNCTION_TEXT = """
    a an the of in on at by for with from to into as is are was were be been being am do does did has have had
    it its he she they we you i his her their our your my this that these those there here and or but nor so
    than then if who whom whose which what when where why how will would shall should can could may might must
    not no yes s t also thousand million billion percent cent der das den dem des ein eine einen einem einer
    eines und oder aber ist sind waren wird wurde im zu le les un une du de et ou est sont dans en aux y o es
    por se su que qui
"""
_FUNCTION = frozenset(_FUNCTION_TEXT.split())
_UNITS_TEXT = """
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty
"""
_TENS = ("thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_COUNTED = {word: str(number) for number, word in enumerate(_UNITS_TEXT.split())}
_COUNTED |= {word: str(10 * number) for number, word in enumerate(_TENS, 3)}
_ENDINGS = ("ically", "ations", "ation", "ingly", "edly", "ings", "ing", "ies", "ied", "ed", "es", "ly", "s")
_NEGATIONS_TEXT = """
    not no never none neither nor cannot without nt dont doesnt didnt isnt arent wasnt werent cant couldnt wont
    wouldnt shouldnt hasnt havent hadnt nicht kein keine keinen keiner nie ne pas jamais nunca ningún ninguna
"""
_NEGATIONS = frozenset(_NEGATIONS_TEXT.split())


def compared(text: str) -> str:
    """A text as it is compared: normalized, without the "'s" of a possessive."""
    return normalize(_POSSESSIVE.sub("", text))


def words_of(text: str) -> list[str]:
    """The words of a text that is normalized; each sign of kana and Han is one."""
    return WIDE.sub(r" \g<0> ", text).split()


@lru_cache(maxsize=2**16)
def stem(word: str) -> str:
    """A word without its English ending ("dammed" and "dam", "destroyed" and "destroy"), a number by its value."""
    word = _COUNTED.get(word, word)
    if (number := _NUMBER.search(word)) and not any(character.isalpha() for character in word):
        return _value(number[0])
    if not word.isascii() or not word.isalpha():
        return word
    ending = next((end for end in _ENDINGS if word.endswith(end) and len(word) - len(end) >= LEAST_STEM), "")
    word = word[: len(word) - len(ending)]
    if len(word) >= LEAST_STEM and word[-1] in "eiy":
        word = word[:-1]
    return word[:-1] if ending and len(word) > LEAST_STEM - 1 and word[-1] == word[-2] else word


def content(text: str) -> list[str]:
    """The stems of the words that say something, each once, in order."""
    found = (stem(word) for word in words_of(compared(text)) if word not in _FUNCTION)
    return list(dict.fromkeys(word for word in found if any(character.isalnum() for character in word)))


def numbers(text: str) -> set[str]:
    """The values of the numbers in a text, those of "1,234.50" and "1.234,50" alike; English words up to ninety, too
    (but for "one", which seldom counts)."""
    found = set(map(_value, _NUMBER.findall(text)))
    return found | {
        _COUNTED[word] for word in re.findall(r"[a-z]+", text.lower()) if word in _COUNTED and word != "one"
    }


def _value(written: str) -> str:
    """Without marks of thousands and zeros at the end; a mark before three digits, and no other, is of thousands."""
    last = max(written.rfind("."), written.rfind(","))
    grouped = last < 0 or (len(written) - last == 4 and (written[last] == "," or written.count(".") > 1))
    whole, part = (written, "") if grouped else (written[:last], written[last + 1 :])
    whole, part = re.sub("[.,]", "", whole).lstrip("0") or "0", part.rstrip("0")
    return f"{whole}.{part}" if part else whole


def holds(text: str, part: str) -> bool:
    """Whether words stand in a normalized text in a row; without blanks between words, whether the signs do."""
    return bool(part) and (f" {part} " in f" {text} " or (WIDE.search(part) is not None and part in text))


def negated(text: str) -> int:
    """How many words of a text negate."""
    return sum(word in _NEGATIONS for word in words_of(compared(text)))


class Ground:
    """A text, prepared for many pairs. Of long ones, the first `MAX_CHARACTERS` characters."""

    def __init__(self, text: str) -> None:
        self.text = text[:MAX_CHARACTERS]
        self.normal = compared(self.text)
        self.numbers = numbers(self.text)
        found = reading(self.text)
        self.collapsed = found.collapsed
        self.sentences = [sentence.text for sentence in found.sentences] or [self.text]
        self._stems = [set(content(sentence)) for sentence in self.sentences]
        self._where: dict[str, list[int]] = {}
        for place, stems in enumerate(self._stems):
            for each in stems:
                self._where.setdefault(each, []).append(place)

    def weight(self, word: str) -> float:
        """log(1 + sentences / sentences with it); a word that is nowhere weighs as one that is in a single sentence."""
        return math.log(1 + len(self.sentences) / (len(self._where.get(word, ())) or 1))

    def holds(self, answer: str) -> bool:
        """Whether an answer, or each item of a list of answers, stands in the text."""
        if holds(self.normal, compared(answer)) or self._has_signs(answer):
            return True
        items = [compared(item) for item in re.split(r"[;\n]|, (?:and )?| and ", answer) if item.strip()]
        return len(items) > 1 and all(holds(self.normal, item) for item in items)

    def _has_signs(self, answer: str) -> bool:
        """Whether an answer stands in the text sign by sign, white space aside: what is dropped of markup hangs on what
        is around it."""
        signs = re.escape(" ".join(answer.split()))
        return bool(signs) and re.search(rf"(?<!\w){signs}(?!\w)", self.collapsed) is not None

    def coverage(self, answer: str) -> float:
        """The share, by weight, of the answer's words that the text has; 1 for an answer without any."""
        return self._share(content(answer), self._where)

    def together(self, answer: str) -> float:
        """How much of each sentence of the answer stands in one sentence of the text, by weight: the mean over all; 1
        for an answer that stands in the text. Words that the text has, but far apart, say what the text does not."""
        if self.holds(answer):
            return 1.0
        found = [
            (words, self._best(words))
            for each in cut_sentences(" ".join(answer.split()))
            if (words := content(each))
        ]
        total = sum(len(words) for words, _ in found)
        return sum(len(words) * share for words, share in found) / total if total else 1.0

    def _best(self, words: Sequence[str]) -> float:
        """The largest share of the words, by weight, that one sentence has."""
        total = sum(map(self.weight, words))
        return max(self._scores(words).values(), default=0.0) / total if total else 1.0

    def _share(self, words: Sequence[str], known: Container[str]) -> float:
        total = sum(map(self.weight, words))
        return sum(self.weight(word) for word in words if word in known) / total if total else 1.0

    def strange_numbers(self, answer: str) -> set[str]:
        """The numbers in an answer that are not in the text."""
        return numbers(answer) - self.numbers

    def places(self, answer: str) -> list[int]:
        """The sentences that answer best: those that hold it, else those with most of its words, by weight."""
        normal = compared(answer)
        rare = min(content(answer), key=lambda word: len(self._where.get(word, ())), default="")
        holding = [i for i in self._where.get(rare, ()) if holds(self._normals[i], normal)]
        if holding:
            return holding[:MOST_OCCURRENCES]
        scores = self._scores(content(answer))
        best = max(scores.values(), default=0.0)
        return [i for i, score in sorted(scores.items()) if score >= best - 1e-9][:MOST_OCCURRENCES]

    @cached_property
    def _normals(self) -> list[str]:
        return [compared(sentence) for sentence in self.sentences]

    def _scores(self, words: Sequence[str]) -> dict[int, float]:
        """For each sentence that has any of the words: their weight."""
        scores: dict[int, float] = {}
        for word in words:
            weight = self.weight(word)
            for place in self._where.get(word, ()):
                scores[place] = scores.get(place, 0.0) + weight
        return scores

    def asks_of(self, question: str) -> float:
        """The share, by weight, of the question's words that the text has; 1 for a question without any."""
        return self._share(content(question), self._where)

    def nearness(self, question: str, answer: str) -> float:
        """How much of what the question speaks of stands around the answer: 1 where nothing in the text fits better.

        The weight of the question's words in the answer's sentence (half, in the ones beside it), over the most that
        any sentence of the text reaches.
        """
        own = set(content(answer))
        words = [word for word in content(question) if word not in own and word in self._where]
        around: dict[int, float] = {}
        for word in words:
            for place, share in self._near(word).items():
                around[place] = around.get(place, 0.0) + share * self.weight(word)
        here = max((around.get(place, 0.0) for place in self.places(answer)), default=0.0)
        return here / max(around.values()) if around else 1.0

    def _near(self, word: str) -> dict[int, float]:
        """The sentences that have the word, and those beside them."""
        last = len(self.sentences) - 1
        beside = {near for place in self._where[word] for near in (max(0, place - 1), min(last, place + 1))}
        return {**dict.fromkeys(beside, NEIGHBOUR), **dict.fromkeys(self._where[word], 1.0)}

    def same_sense(self, answer: str) -> bool:
        """False where the answer is nearly a sentence of the text, with a negation more or less."""
        words = content(answer)
        if len(words) < 3:
            return True
        close = [i for i in self.places(answer) if self._share(words, self._stems[i]) >= 0.8]
        return not close or any(negated(answer) % 2 == negated(self._part(i, words)) % 2 for i in close)

    def _part(self, place: int, words: Sequence[str]) -> str:
        """The clause of a sentence that has most of the words."""
        clauses = re.split(r"[,;:]| but | although | while | whereas ", self.sentences[place])
        wanted = set(words)
        found = [
            clause for clause in clauses if len(wanted.intersection(content(clause))) >= 0.7 * len(wanted)
        ]
        return found[0] if found else self.sentences[place]

    def states(self, statement: str) -> bool:
        """Whether `statement` holds, word for word, the sentence of the text that is most like it."""
        normal = compared(statement)
        return any(holds(normal, self._normals[i]) for i in self.places(statement))

    def passage(self, question: str, answer: str, most: int) -> str:
        """The part of the text, at most `most` characters, in whose middle the answer stands: whole sentences."""
        if len(self.text) <= most:
            return self.text
        place = next(iter(self.places(answer) or self.places(question)), 0)
        room = most - len(self.sentences[place])
        if room < 0:  # one sentence without an end
            begin = max(0, self.sentences[place].find(answer) - most // 2)
            return self.sentences[place][begin : begin + most]
        edge, growing = {1: place, -1: place}, [1, -1]
        while growing:
            way = growing.pop(0)
            beside = edge[way] + way
            if 0 <= beside < len(self.sentences) and len(self.sentences[beside]) < room:
                edge[way], room = beside, room - len(self.sentences[beside]) - 1
                growing.append(way)
        return " ".join(self.sentences[edge[-1] : edge[1] + 1])


@lru_cache(maxsize=8)
def ground(text: str) -> Ground:
    """The `Ground` of a text; those of the last few texts are kept."""
    return Ground(text)
