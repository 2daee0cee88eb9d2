"""A user's later turns: what is sent to sample them, and what makes one fit to stay (Magpie, appendix G).

A follow-up is sampled after the whole conversation and the header of the user's next turn, under a system turn that
reminds the model that it plays a user who goes on asking: small models forget it. The answer is then written without
that system turn. A follow-up is judged by the rules for instructions, except that it may point back at what was said,
and must not say again what an earlier turn has said.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence

from ojak.chat import ChatPrefix
from ojak.engines.base import Engine
from ojak.errors import InputRefused
from ojak.ledger import Entry
from ojak.rules import MAGPIE_RULES, Sanitized, sanitize
from ojak.similarity import DuplicateIndex

FOLLOW_UP = (
    "You are a helpful assistant in a conversation of several rounds. The user opens it with a question, and in each "
    "later round asks a follow-up question that builds on the answers so far: for more depth, an example, a doubt, or "
    "a next step. You want every answer to be thorough, relevant and insightful."
)
# A follow-up may point at "the text above": it is there.
FOLLOW_UP_RULES = tuple(rule for rule in MAGPIE_RULES if rule.name != "instruction_content_missing")
MOST_CACHED = 1024  # prefixes: one for each system turn in use

REPEATS = "turn_repeats"
NO_ROOM = "turn_no_room"


class Prefixes:
    """The texts around turns under each system turn of a run: for answers as it is, for follow-ups with `FOLLOW_UP`.

    Made, it has asked the template for all that will be needed of it. `reminds`: the template takes a system turn, so
    that follow-ups get theirs; of one that takes none they are sampled without it.

    Raises InputRefused if the template cannot hold conversations of so many turns, or not this system turn.
    """

    def __init__(self, engine: Engine, turns: int, system: str | None) -> None:
        # An engine made before there were several turns is asked as it was then.
        more = {"turns": turns} if turns > 1 else {}
        self.answers: Callable[[str | None], ChatPrefix] = functools.lru_cache(MOST_CACHED)(
            lambda text: engine.chat_prefix(text, **more)
        )
        self.first = self.answers(system)
        self.reminds = turns > 1 and self._takes_reminder(system)

    def follow_ups(self, system: str | None) -> ChatPrefix:
        """What stands around turns where the next one is a user's follow-up."""
        if not self.reminds:
            return self.answers(system)
        return self.answers(f"{system} {FOLLOW_UP}" if system else FOLLOW_UP)

    def _takes_reminder(self, system: str | None) -> bool:
        try:
            self.answers(f"{system} {FOLLOW_UP}" if system else FOLLOW_UP)
        except InputRefused:
            return False
        return True


def judge_follow_up(asked: Entry, before: Sequence[str], special_tokens: Collection[str]) -> Sanitized:
    """A follow-up after the rules. `before`: all earlier turns; saying one of them again is `turn_repeats`."""
    clean = sanitize(
        asked.text, asked.finish_reason or "", rules=FOLLOW_UP_RULES, special_tokens=special_tokens
    )
    if clean.reason is None and _repeats(clean.text, before):
        return Sanitized(clean.text, clean.edits, REPEATS)
    return clean


def _repeats(text: str, before: Sequence[str]) -> bool:
    said = DuplicateIndex()
    for number, earlier in enumerate(before):
        said.add(number, earlier)
    return said.add(len(before), text) is not None
