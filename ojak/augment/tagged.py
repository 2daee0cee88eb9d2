r"""The format of the published instruction synthesizer, byte for byte (arXiv 2406.14491; LMOps, `read_compre.py`).

    <s> <CON> a text </CON>\n\n<QUE> a question <ANS> its answer </END>\n\n<QUE> another <ANS> ... </END></s>

The space before `<CON>` is part of it. The tags are ordinary text, no special tokens. Several examples follow each
other without anything between them; the last one, whose pairs are to be written, ends after the blank line.

Options stand in the question, each on a line after "Options:"; a question whose answer reasons first ends with the line
"Let's think step by step.", its answer with "Therefore, the answer is ...".

The same text comes from a chat template whose user says the context and whose assistant says the pairs: the style
`synthesizer` of `ojak train`. So a model trained with it is known by its template.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ojak.augment.pairs import SYNTHESIZER, Pair
from ojak.augment.parsed import (
    BAD_OPTIONS,
    CONTEXT_TAG,
    NO_ANSWER,
    NO_QUESTION,
    REPEATED_TAG,
    THOUGHT,
    TRUNCATED,
    Parsed,
    fault,
)
from ojak.chat import ChatPrefix

CONTEXT, CONTEXT_END, QUESTION, ANSWER, END = "<CON>", "</CON>", "<QUE>", "<ANS>", "</END>"
TAGS = (CONTEXT, CONTEXT_END, QUESTION, ANSWER, END)
GAP = "\n\n"
BOS, EOS = "<s>", "</s>"
BEFORE_CONTEXT, AFTER_CONTEXT = f" {CONTEXT} ", f" {CONTEXT_END}{GAP}"
HEADER = "\nOptions:"

TAGS_INSIDE, MANY_LINES = "tags_inside", "option_of_many_lines"
_OPTIONS = re.compile(r"\nOptions:((?:\n- [^\n]*)+)(?=\n|\Z)")


def prefix(turns: int, bos: str = BOS, eos: str = EOS, stop_ids: tuple[int, ...] = ()) -> ChatPrefix:
    """The text around contexts and pairs, of chains of up to `turns` examples, as that of a chat."""
    before, layouts = bos + BEFORE_CONTEXT, []
    for number in range(2, turns + 1):
        layouts.append((before, *(AFTER_CONTEXT, eos + before) * (number - 1), AFTER_CONTEXT))
    strings = () if stop_ids else (eos,)
    return ChatPrefix(before, AFTER_CONTEXT, stop_ids, strings, None, tuple(layouts))


def is_prefix(found: ChatPrefix) -> bool:
    """Whether a model's chat template writes this format: it was trained to be a synthesizer."""
    return found.pre_query.endswith(BEFORE_CONTEXT) and found.post_query == AFTER_CONTEXT


def write_pairs(pairs: Sequence[Pair]) -> str:
    """What the synthesizer would say to a text. `unwritable` says which pairs can be written."""
    return GAP.join(map(write_pair, pairs))


def write_pair(pair: Pair) -> str:
    """One pair between its tags."""
    return f"{QUESTION} {_question(pair)} {ANSWER} {pair.answer} {END}"


def _question(pair: Pair) -> str:
    if not pair.options:
        return pair.question
    asked, thought = pair.question, ""
    if asked.endswith(f"\n{THOUGHT}"):
        asked, thought = asked.removesuffix(f"\n{THOUGHT}"), f"\n{THOUGHT}"
    return asked + HEADER + "".join(f"\n- {option}" for option in pair.options) + thought


def unwritable(pair: Pair) -> str | None:
    """Why a pair cannot be written so that it would be read again; None if it can."""
    if any(tag in part for tag in TAGS for part in (pair.question, pair.answer, *pair.options)):
        return TAGS_INSIDE
    if not all(map(_is_line, pair.options)):
        return MANY_LINES
    if HEADER in f"\n{pair.question}":
        return BAD_OPTIONS
    return fault(pair)


def parse(text: str, cut: bool = False) -> Parsed:
    """The pairs in what a synthesizer wrote. `cut`: it was ended by the cap on its length, not by itself.

    Strict, as the published parser: each piece up to `</END>` must begin with `<QUE>` and hold one `<ANS>`, both with
    something after it; what stands after the last `</END>` is truncated. Anything may come in.
    """
    found = Parsed()
    *whole, rest = text.split(END)
    for piece in whole:
        _piece(piece.strip(), found)
    if rest.strip():
        reason = TRUNCATED if cut or rest.strip().startswith(QUESTION) else NO_QUESTION
        found.drop(reason, rest.strip())
    return found


def _piece(piece: str, found: Parsed) -> None:
    """One piece, without its end tag."""
    if not piece.startswith(QUESTION):
        found.drop(NO_QUESTION, piece)
    elif ANSWER not in piece:
        found.drop(NO_ANSWER, piece)
    elif piece.count(ANSWER) > 1 or piece.count(QUESTION) > 1:
        found.drop(REPEATED_TAG, piece)
    elif CONTEXT in piece or CONTEXT_END in piece:
        found.drop(CONTEXT_TAG, piece)
    else:
        asked, _, answer = piece.removeprefix(QUESTION).partition(ANSWER)
        question, options = _read_options(asked.strip())
        if question is None:
            found.drop(BAD_OPTIONS, piece)
        else:
            found.take(Pair(question, answer.strip(), options, SYNTHESIZER), piece)


def _read_options(asked: str) -> tuple[str | None, tuple[str, ...]]:
    """The question and its options; None for the first where there is a header of options that cannot be read."""
    if HEADER not in f"\n{asked}":
        return asked, ()
    match = _OPTIONS.search(f"\n{asked}")
    if match is None or f"\n{asked}".count(HEADER) > 1:
        return None, ()
    before, after = f"\n{asked}"[1 : match.start()], f"\n{asked}"[match.end() :]
    if after not in ("", f"\n{THOUGHT}"):
        return None, ()
    options = tuple(line.removeprefix("- ").strip() for line in match[1].strip("\n").split("\n"))
    return (before.strip() + after, options) if all(map(_is_line, options)) else (None, ())


def _is_line(option: str) -> bool:
    return len(option.splitlines()) == 1 and option == option.strip()
