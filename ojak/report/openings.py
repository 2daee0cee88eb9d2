"""How an instruction opens: its verb and noun, or its question word and topic. A heuristic, not a parser.

The plot of opening verbs and their nouns comes from Self-Instruct (Wang et al. 2023, figure 2), which parsed each
sentence. Here a list of common verbs in the imperative, a list of function words and the place of a word decide: good
enough to see what a data set is about, in English alone. A verb is the first word of the list that no article or
preposition stands before; its noun is the last word of the run of content words that follows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


VERBS = _words(
    "act add advise analyse analyze answer apply argue arrange assess assign assume brainstorm break build calculate "
    "categorize change check choose cite clarify classify clean code combine come compare compile complete compose "
    "compute conduct consider construct contrast convert correct count craft create critique debate debug decide "
    "deduce define demonstrate derive describe design detail detect determine develop devise diagnose differentiate "
    "discuss distinguish draft draw edit elaborate estimate evaluate examine expand explain explore extract factor "
    "fill find finish fix form format formulate generate get give go guess highlight identify illustrate imagine "
    "implement improve include indicate infer insert interpret introduce invent investigate justify label learn list "
    "locate make map match measure modify name offer optimize order organize outline paraphrase perform pick plan play "
    "plot predict prepare present print produce proofread propose prove provide put rank rate read recall recommend "
    "reduce refactor remove reorder rephrase replace report research respond restate return reverse review revise "
    "rewrite roleplay run say search select separate set share show simplify simulate sketch solve sort specify speak "
    "split state structure study substitute suggest sum summarize summarise supply take talk teach tell test trace "
    "train transform translate turn understand update use validate verify visualize walk write"
)
QUESTIONS = _words("what how why which who whom whose when where is are was were do does did has have should")
_LEAD_IN = _words(
    "please kindly can could would will you i we me us my our your to need needs want like help now then first so just "
    "let lets let's hi hello hey dear also am i'm i'd i'll i've we're looking trying going with for some know "
    "have and ok"
)
_BLOCKS_VERB = _words(
    "a an the my your our his her their its this that these those of in on at by from no any each"
)
FUNCTION_WORDS = _BLOCKS_VERB | _words(
    "to for with as into onto about over under between through during than and or but nor so if then because while "
    "when where what which who whom whose how why i me you he she it we us they them is are was were be been being do "
    "does did has have had can could should would will shall may might must not some using used use such more most "
    "without within after before across around against among like only every last next "
    "very up out off per via both all one two three four five following there here s t"
)
_QUESTION_WORDS = _words("how why what which who whom whose when where")
_TOKEN = re.compile(r"[^\W\d_]+(?:['\u2019-][^\W\d_]+)*|[.,;:!?\n()\"]")
_LY_NOUNS = _words("family italy fly supply july assembly monopoly butterfly reply ally belly jelly anomaly")
_SINGULAR_AS_IS = ("ss", "us", "is", "series", "news", "species", "physics", "mathematics", "always")
MAX_WORDS, MAX_RUN = 40, 4


@dataclass(frozen=True, slots=True)
class Opening:
    """`kind` is verb, question or other; `noun` is empty where none was found."""

    kind: str
    word: str = ""
    noun: str = ""


def _singular(word: str) -> str:
    if len(word) < 4 or not word.endswith("s") or word.endswith(_SINGULAR_AS_IS):
        return word
    return word[:-3] + "y" if word.endswith("ies") else word[:-1]


def _noun(tokens: list[str]) -> str:
    """The last word of the first run of content words; the first one after `how`, `why`, ... ("how bread rises")."""
    run: list[str] = []
    after_question_word = False
    for token in tokens:
        adverb = token.endswith("ly") and token not in _LY_NOUNS
        content = token[0].isalpha() and token not in FUNCTION_WORDS and not adverb
        if content and len(run) < MAX_RUN:
            run.append(token)
        elif run or token in ".!?":
            break
        after_question_word |= token in _QUESTION_WORDS
    if not run:
        return ""
    return _singular(run[0] if after_question_word else run[-1])[:24]


def opening(instruction: str) -> Opening:
    """Sort an instruction by how it opens, from its first 40 words.

    >>> opening("Please write a short story about a fox.")
    Opening(kind='verb', word='write', noun='story')
    """
    tokens = [token.replace("\u2019", "'") for token in _TOKEN.findall(instruction[:600].lower())][:MAX_WORDS]
    words = [token for token in tokens if token[0].isalpha()]
    start = next((word for word in words if word not in _LEAD_IN), "")
    first = words[0].removesuffix("'s") if words else ""
    if first in QUESTIONS or start.removesuffix("'s") in _QUESTION_WORDS:
        word = first if first in QUESTIONS else start.removesuffix("'s")
        place = next(i for i, token in enumerate(tokens) if token.removesuffix("'s") == word)
        return Opening("question", word, _noun(tokens[place + 1 :]))
    for place, token in enumerate(tokens):
        if token in VERBS and (place == 0 or tokens[place - 1] not in _BLOCKS_VERB):
            return Opening("verb", token, _noun(tokens[place + 1 :]))
    return Opening("other")
