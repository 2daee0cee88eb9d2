"""Pairs by a synthesizer in rounds: a text is asked about after the texts of its group that were asked about before.

As published (LMOps, `utils/read_compre.py`): what round k makes of a group's text is an example in the prompt of round
k + 1. A text without a sound pair is no example, and cuts the chain; so does a prompt that would not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ojak.augment.config import AugmentConfig
from ojak.augment.dialects import speak
from ojak.augment.draws import Draws
from ojak.augment.pairs import Pair
from ojak.augment.parsed import DUPLICATE, Discarded, same_question
from ojak.augment.pieces import cut
from ojak.augment.verify import VerifyConfig, check_all
from ojak.engines.base import Engine, require
from ojak.errors import UsageError
from ojak.model.request import Completion, Request, Sampling
from ojak.records import Document

WINDOW = 4096  # tokens, where nobody knows how many a model takes
SLACK = 8  # tokens that may come about where two texts meet
FEWEST = 16  # tokens of a piece

TAGS_IN_TEXT, SPECIAL_IN_TEXT, SPECIAL_IN_PAIR, FAILED = (
    "tags_in_text", "special_token_in_text", "special_token_in_pair", "request_failed",
)  # fmt: skip


class Example(NamedTuple):
    """A text and its pairs, as a later text of the group is shown them."""

    text: str
    pairs: Sequence[Pair]


@dataclass(slots=True)
class Work:
    """A document while its pairs are made. shot: its place in its group. left_out: characters not asked about."""

    document: Document
    group: str
    shot: int
    pairs: list[Pair] = field(default_factory=list)
    discarded: list[Discarded] = field(default_factory=list)
    pieces: int = 0
    left_out: int = 0
    in_chain: bool = False

    def take(self, pairs: Iterable[Pair]) -> None:
        """Keep pairs, but none that repeats an earlier question."""
        for pair in pairs:
            if any(same_question(pair, other) for other in self.pairs):
                self.discarded.append(Discarded(DUPLICATE, f"{pair.question}\n{pair.answer}"))
            else:
                self.pairs.append(pair)


Check = Callable[[Sequence[Work]], None]


def check_works(reader: Engine | None, works: Sequence[Work], thresholds: VerifyConfig) -> None:
    """Drops the pairs that fail the check against their text, by rules and where there is one by a `reader`; notes of
    the others what was found."""
    items = [(work.document.text, pair) for work in works for pair in work.pairs]
    verdicts = check_all(reader, items, thresholds)
    for work in works:
        made, work.pairs = work.pairs, []
        for pair in made:
            verdict = next(verdicts)
            if verdict.ok is False:
                text = "\n".join((pair.question, *pair.options, pair.answer))
                work.discarded.append(Discarded(verdict.reason, text))
            else:
                scores = {**pair.scores, **verdict.scores}
                work.pairs.append(replace(pair, verified=verdict.ok, scores=scores))


class Synthesizer:
    """A model that writes pairs. Raises InputRefused or UsageError for one that cannot."""

    def __init__(self, engine: Engine, config: AugmentConfig) -> None:
        require(engine, "augment", "raw_prompt")
        self.engine, self.config = engine, config
        self.dialect, self.prefix = speak(engine, config.shots, config.format)
        self.room = (engine.context_tokens or WINDOW) - config.max_tokens
        empty = engine.count_tokens(self.prefix.text([self.dialect.ask("")]))
        self.piece_tokens = min(config.piece_tokens, self.room - empty - 2 * SLACK)
        if self.piece_tokens < FEWEST:
            raise UsageError(
                f"{config.max_tokens} tokens of pairs leave no room for a text",
                why=f"the model takes {engine.context_tokens or WINDOW} tokens, and the request takes {empty}",
                fix="lower --max-tokens",
            )

    def work(self, works: Sequence[Work], check: Check, told: Callable[[int, int], None]) -> None:
        """Makes the pairs of whole groups. `check` drops unsound ones after each round; `told` hears of each answer:
        documents that are done with, tokens."""
        chains: dict[str, list[Example]] = {}
        for shot in range(max((work.shot for work in works), default=-1) + 1):
            now = [work for work in works if work.shot == shot]
            firsts = self._round(now, chains, told)
            check(now)
            for work in now:
                before = chains.get(work.group, []) if work.in_chain else []
                first = firsts.get(work.document.id)
                chains[work.group] = [*before, Example(first, work.pairs)] if first and work.pairs else []

    def _round(
        self, works: Sequence[Work], chains: dict[str, list[Example]], told: Callable[[int, int], None]
    ) -> dict[str, str]:
        """Asks about each text once; gives what was shown of each, the first piece."""
        requests: list[Request] = []
        firsts: dict[str, str] = {}
        longest = 0
        for place, work in enumerate(works):
            pieces, work.left_out = cut(
                work.document.text, self.piece_tokens, self.config.most_pieces, self.engine.count_tokens
            )
            work.pieces = len(pieces)
            for number, piece in enumerate(pieces):
                if reason := self._unfit(piece):
                    work.discarded.append(Discarded(reason, ""))
                    continue
                prompt, tokens, chained = self._prompt(piece, chains.get(work.group, []))
                if number == 0:
                    firsts[work.document.id], work.in_chain = piece, chained
                longest = max(longest, tokens)
                requests.append(self._request(prompt, work, (place, number)))
        told(sum(work.document.id not in firsts for work in works), 0)  # of whose beginning nothing is asked
        answers: dict[tuple[int, int], Completion] = {}
        for completion in self.engine.generate(iter(requests), longest=longest + self.config.max_tokens):
            answers[completion.request.tag] = completion
            told(int(completion.request.tag[1] == 0), completion.token_count)
        for (place, _), completion in sorted(answers.items()):
            self._read(works[place], completion)
        return firsts

    def _unfit(self, piece: str) -> str | None:
        """Why nothing is asked about a piece: it holds what would end it, or begin something else."""
        if any(mark in piece for mark in self.dialect.marks):
            return TAGS_IN_TEXT
        if any(token in piece for token in self.engine.special_tokens if token.strip()):
            return SPECIAL_IN_TEXT
        return None

    def _prompt(self, piece: str, chain: Sequence[Example]) -> tuple[str, int, bool]:
        """The prompt of a piece, its tokens, and whether the examples before it are in it."""
        shown: list[str] = []
        for example in chain:
            shown += [self.dialect.ask(example.text), self.dialect.write(example.pairs)]
        prompt = self.prefix.text([*shown, self.dialect.ask(piece)]) + self.dialect.begin
        tokens = self.engine.count_tokens(prompt)
        if not shown or tokens + SLACK <= self.room:
            return prompt, tokens + SLACK, bool(shown)
        alone = self.prefix.text([self.dialect.ask(piece)]) + self.dialect.begin
        return alone, self.engine.count_tokens(alone) + SLACK, False

    def _request(self, prompt: str, work: Work, tag: tuple[int, int]) -> Request:
        return Request(
            prompt=prompt,
            shared_prefix=self.prefix.pre_query,
            max_tokens=self.config.max_tokens,
            sampling=Sampling(temperature=self.config.temperature),
            seed=Draws(self.config.seed, work.document.id, tag[1]).bits("answer") >> 1,
            stop_ids=self.prefix.stop_ids,
            stop_strings=self.prefix.stop_strings,
            tag=tag,
        )

    def _read(self, work: Work, completion: Completion) -> None:
        if completion.error is not None:
            work.discarded.append(Discarded(FAILED, completion.error))
            return
        said = self.dialect.begin + completion.text
        found = self.dialect.parse(said, completion.finish_reason == "length")
        work.discarded += found.discarded
        work.take(pair for pair in found.pairs if not self._is_special(pair, work))

    def _is_special(self, pair: Pair, work: Work) -> bool:
        """Whether a pair spells out a special token, which would act as one where the pair is shown; drops it then."""
        text = "\n".join((pair.question, *pair.options, pair.answer))
        found = any(token in text for token in self.engine.special_tokens if token.strip())
        if found:
            work.discarded.append(Discarded(SPECIAL_IN_PAIR, text))
        return found
