"""What a model knows by heart: how probable the answer to a prompt is to it, beside wrong ones (a closed-book probe).

A file of facts is JSON lines: {"prompt", "answer"}, and as far as wanted "distractors" (wrong answers of the same
kind), "kind" (prompts are counted by it) and "id" (prompts that ask for one fact share it). A prompt ends where its
answer begins, as in "Quenby lies on the river" and in "Question: On which river lies Quenby? Answer:".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

from ojak._jsonl import Line, read_rows, refused
from ojak.errors import InputRefused, UsageError
from ojak.model.tokenizer import Tokenizer

KIND = re.compile(r"[a-z][a-z0-9_-]{0,39}")
BLOCK = 64  # facts whose candidates are read together

# (prompt ids, continuation ids) in; of each continuation its tokens' log-probabilities, and whether each is likeliest.
Pair: TypeAlias = tuple[Sequence[int], Sequence[int]]
Read: TypeAlias = Callable[[Iterable[Pair]], Iterator[tuple[tuple[float, bool], ...]]]


@dataclass(frozen=True, slots=True)
class Fact:
    """A prompt and the answer that it has; `id` names the fact, which several prompts may ask for."""

    id: str
    prompt: str
    answer: str
    distractors: tuple[str, ...] = ()
    kind: str = "fact"


@dataclass(frozen=True, slots=True)
class Recalled:
    """What a model made of a fact.

    logprob: natural, of the whole answer, which has `tokens` tokens. exact: each of them is the likeliest, so that
    greedy decoding writes the answer. rank: 1 where no distractor is more probable, 2 where one is; None without
    distractors.
    """

    fact: Fact
    logprob: float
    tokens: int
    exact: bool
    rank: int | None


def read_facts(path: Path | str) -> list[Fact]:
    """The facts in a file. Raises UsageError where there is none, InputRefused, naming the line, for a fact that cannot
    be asked for."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"{path} is not there", fix="give a file of facts, as JSON lines")
    facts = [_fact(path, line) for line in read_rows(path)]
    if not facts:
        raise InputRefused(f"{path} holds no facts")
    return facts


def _fact(path: Path, line: Line) -> Fact:
    row = line.row
    for name in ("prompt", "answer"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise refused(path, line, f"{name!r} is no text")
    wrong = row.get("distractors") or []
    if not isinstance(wrong, list) or not all(isinstance(text, str) and text.strip() for text in wrong):
        raise refused(path, line, "'distractors' is no list of texts")
    kind = row.get("kind", "fact")
    if not isinstance(kind, str) or not KIND.fullmatch(kind):
        raise refused(path, line, "'kind' is no name of lower-case letters, digits, - and _")
    answer = row["answer"].strip()
    others = tuple(dict.fromkeys(text.strip() for text in wrong if text.strip() != answer))
    return Fact(str(row.get("id", line.number)), row["prompt"].rstrip(), answer, others, kind)


def recall(facts: Iterable[Fact], tokenizer: Tokenizer, read: Read) -> Iterator[Recalled]:
    """What a model knows of each fact, in order. The answer, or a distractor, follows its prompt after a space."""
    stream = iter(facts)
    while block := list(islice(stream, BLOCK)):
        pairs = [(prompt, ids) for fact in block for prompt, ids in _candidates(fact, tokenizer)]
        found = read(pairs)
        for fact in block:
            scored = list(islice(found, 1 + len(fact.distractors)))
            totals = [math.fsum(value for value, _ in each) for each in scored]
            rank = 1 + sum(other > totals[0] for other in totals[1:]) if fact.distractors else None
            yield Recalled(fact, totals[0], len(scored[0]), all(best for _, best in scored[0]), rank)


def _candidates(fact: Fact, tokenizer: Tokenizer) -> Iterator[Pair]:
    """The prompt, as training has the beginning of a text, with the answer, and with each distractor."""
    bos = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    prompt = [*bos, *tokenizer.encode(fact.prompt, special=False)]
    for text in (fact.answer, *fact.distractors):
        yield prompt, tokenizer.encode(f" {text}", special=False)


def by_kind(found: Sequence[Recalled]) -> dict[str, list[Recalled]]:
    """What was found, by the facts' kinds, in the order in which they come."""
    kinds: dict[str, list[Recalled]] = {}
    for each in found:
        kinds.setdefault(each.fact.kind, []).append(each)
    return kinds


def figures(found: Sequence[Recalled]) -> Mapping[str, float]:
    """The means over some facts: logprob (of a token of an answer), exact; accuracy (rank 1) where there are ranks."""
    values: dict[str, Any] = {
        "logprob": math.fsum(each.logprob for each in found) / sum(each.tokens for each in found),
        "exact": sum(each.exact for each in found) / len(found),
    }
    ranked = [each.rank for each in found if each.rank is not None]
    return values | ({"accuracy": sum(rank == 1 for rank in ranked) / len(ranked)} if ranked else {})
