"""Magpie: an aligned model, given only the left side of its own chat template, writes a user's turn, and answers it.

(arXiv 2406.08464, section 2 and appendix G.) Each row goes through the same steps; rows run side by side on one engine:

    ask       pre-query text -> instruction, at the temperature and top-p of the row's grid cell
    judge     in row order: rules clean or reject it, duplicates of earlier rows are dropped
    answer    pre-query + instruction + post-query -> response, greedy by default
    check     rules reject responses that are empty, cut or broken
    more      other answers to the same instruction, if they are wanted
    go on     the conversation so far + the user's header -> a follow-up, judged and answered in its turn;
              where it is no good, the conversation ends before it

Nothing is paid for twice: every finished request is in the ledger before its slot is used again, and each request's
seed is a function of the run's seed, the row, the turn and the sample. So a run that was killed continues where it
stopped and ends with the same data as one that was not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from ojak._progress import Listener
from ojak.chat import ChatPrefix
from ojak.engines.base import Engine, require
from ojak.errors import InputRefused
from ojak.ledger import Entry, Ledger
from ojak.model.request import Request, Sampling
from ojak.records import Conversation, Rejected, record_id
from ojak.rules import check_response, sanitize
from ojak.similarity import DuplicateIndex
from ojak.synthesize.asking import Asking, Step
from ojak.synthesize.config import MagpieConfig
from ojak.synthesize.rows import End, Recorder, Row, Turn
from ojak.synthesize.turns import NO_ROOM, Prefixes, judge_follow_up

PROBE_ROWS = 16  # the first rows show whether the model writes a user's turns at all
SLACK_TOKENS = 64  # cleaning an instruction can only shorten it, but shorter text may be more tokens
PROBE_REFUSED = 0.8  # share of them that rules reject, from which on the model is refused


class MagpieRun(Asking):
    """The rows of one run and the requests they need, over one engine and one ledger."""

    def __init__(
        self, config: MagpieConfig, engine: Engine, ledger: Ledger, listener: Listener | None = None
    ) -> None:
        require(engine, "magpie", "raw_prompt")
        super().__init__(config, engine, ledger, listener, config.rows)
        self.config = config
        if config.persona_list:
            config.persona_list.check(engine.special_tokens)
        self.prefixes = Prefixes(engine, config.turns, config.system_of(config.persona(0)))
        self.prefix: ChatPrefix = self.prefixes.first
        self.rows = [Row(n, self._sampling(n), config.persona(n)) for n in range(config.rows)]
        self.duplicates = DuplicateIndex()
        self.judged = 0  # rows up to here are judged
        self.asking = 0  # rows up to here are asked
        self.room = self._room()
        self.recorder = Recorder(self._id, self._system, self._check, engine.identity, config.responses)

    # -- the method -------------------------------------------------------------------------------------------------

    def _open(self) -> bool:
        if self.asking == len(self.rows):
            return False
        row = self.rows[self.asking]
        self.asking += 1
        self._send(self._ask(row))
        return True

    def _take(self, row: int, step: Step, entry: Entry) -> None:
        found = self.rows[row]
        if step == ("instruction", 1, 0):
            found.turns.append(Turn(entry))
            self._judge()
            return
        found.waiting -= 1
        if step.side == "instruction":
            self._need(found, self._follow(found, entry))
        else:
            found.turns[step.turn - 1].answers[step.sample] = entry
            self._need(found, [] if step.sample else self._go_on(found))

    def _need(self, row: Row, requests: list[Request]) -> None:
        """Sends what a row needs next; without anything to wait for, it is finished."""
        row.waiting += len(requests)  # all of them first: the ledger may have the answer to any of them
        for request in requests:
            self._send(request)
        if not row.waiting and not row.finished:
            row.finished = True
            self._finished(row.reason)

    def _judge(self) -> None:
        """Judges instructions in row order, as far as they are there; what passes is asked back."""
        while self.judged < len(self.rows) and (row := self.rows[self.judged]).turns:
            self.judged += 1
            row.reason = self._verdict(row)
            if row.reason is None:
                row.stage = "response"
            self._need(row, [] if row.reason else [self._answer(row)])
            if self.judged == PROBE_ROWS:
                self._probe()

    def _verdict(self, row: Row) -> str | None:
        """Why an instruction is rejected, or None; sets its cleaned text."""
        turn = row.turns[0]
        if turn.asked.state == "failed":
            return "failed"
        clean = sanitize(
            turn.asked.text, turn.asked.finish_reason or "", special_tokens=self.engine.special_tokens
        )
        turn.instruction, turn.edits = clean.text, clean.edits
        if clean.reason:
            return clean.reason
        duplicate = self.duplicates.add(row.number, clean.text)
        return f"duplicate_{duplicate.kind}" if duplicate else None

    def _go_on(self, row: Row) -> list[Request]:
        """After the answer to the last turn: other answers to it, and the user's next turn."""
        turn, number = row.turns[-1], len(row.turns)
        assert turn.answered is not None
        reason = self._check(turn.instruction, turn.answered)
        if reason and number == 1:
            row.reason = reason
        elif reason:
            row.drop_turn("response", reason, turn.answered.text)
        if reason:
            return []
        others = [self._answer(row, sample) for sample in range(1, self.config.responses)]
        return others + self._ask_on(row) if number < self.config.turns else others

    def _ask_on(self, row: Row) -> list[Request]:
        """The request for the next follow-up, if the conversation has room for it and for its answer."""
        prefix, config = self.prefixes.follow_ups(self._system(row)), self.config
        prompt = prefix.text(row.texts())
        caps = config.max_instruction_tokens + config.max_response_tokens
        around = self.engine.count_tokens(prompt) + self.engine.count_tokens(prefix.post_query)
        if around + caps + SLACK_TOKENS > self.room:
            row.end = End(len(row.turns) + 1, "instruction", NO_ROOM)
            return []
        return [self._instruction(row, prefix, prompt, Step("instruction", len(row.turns) + 1))]

    def _follow(self, row: Row, entry: Entry) -> list[Request]:
        """Judges a follow-up; if it may stay, it is asked back."""
        before = row.texts()
        row.turns.append(Turn(entry))
        if entry.state == "failed":
            row.drop_turn("instruction", "failed", "")
            return []
        clean = judge_follow_up(entry, before, self.engine.special_tokens)
        if clean.reason:
            row.drop_turn("instruction", clean.reason, entry.text)
            return []
        row.turns[-1].instruction, row.turns[-1].edits = clean.text, clean.edits
        return [self._answer(row)]

    def _check(self, instruction: str, answer: Entry) -> str | None:
        """Why an answer is no good, or None."""
        if answer.state == "failed":
            return "failed"
        text, reason = answer.text.strip(), answer.finish_reason or ""
        return check_response(
            text, reason, instruction=instruction, special_tokens=self.engine.special_tokens
        )

    def _probe(self) -> None:
        """Refuses a model whose first rows are fragments, before more is spent on it."""
        first = self.rows[: self.judged]
        reasons_found = (row.reason for row in first if row.stage == "instruction" and row.reason)
        bad = Counter(reason for reason in reasons_found if not reason.startswith(("duplicate", "failed")))
        if sum(bad.values()) < PROBE_REFUSED * len(first):
            return
        reasons = ", ".join(f"{reason}: {count}" for reason, count in bad.most_common(3))
        examples = [repr(row.turns[0].asked.text[:60]) for row in first if row.reason][:3]
        raise InputRefused(
            "this model does not write a user's turns from its chat template",
            why=f"of its first {len(first)} instructions {sum(bad.values())} are unusable "
            f"({reasons}), such as {', '.join(examples)}",
            fix="use an instruction-tuned model with its own chat template, a lower temperature (--grid 0.7:1.0), "
            "or a larger --max-instruction-tokens if they are cut",
        )

    # -- the requests -----------------------------------------------------------------------------------------------

    def _ask(self, row: Row) -> Request:
        prefix = self.prefixes.answers(self._system(row))
        return self._instruction(row, prefix, prefix.pre_query, Step("instruction"))

    def _instruction(self, row: Row, prefix: ChatPrefix, prompt: str, step: Step) -> Request:
        # A follow-up's prompt begins with a system turn of its own: what answers left behind is of no use to it.
        apart = step.turn > 1 and self.prefixes.reminds
        pre_query = prefix.pre_query if step.turn == 1 else prefix.layouts[step.turn - 2][0]
        return Request(
            prompt=prompt,
            shared_prefix=self._shared(row, pre_query),
            max_tokens=self.config.max_instruction_tokens,
            sampling=row.sampling,
            seed=self.seed(row.number, step),
            stop_ids=prefix.stop_ids,
            stop_strings=prefix.stop_strings,
            keep=None if apart else row.number,
            reuse=row.number if step.turn > 1 and not apart else None,
            tag=(row.number, step.kind),
        )

    def _answer(self, row: Row, sample: int = 0) -> Request:
        """An answer to the row's last instruction; the other samples do not see the first one."""
        prefix, turns = self.prefixes.answers(self._system(row)), len(row.turns)
        step = Step("response", turns, sample)
        pre_query = prefix.pre_query if turns == 1 else prefix.layouts[turns - 2][0]
        goes_on = turns < self.config.turns and not sample
        return Request(
            prompt=prefix.text(row.texts()[: 2 * turns - 1]),
            shared_prefix=self._shared(row, pre_query),
            max_tokens=self.config.max_response_tokens,
            sampling=self.config.response_sampling,
            seed=self.seed(row.number, step),
            stop_ids=prefix.stop_ids,
            stop_strings=prefix.stop_strings,
            keep=row.number if goes_on else None,
            reuse=None if sample else row.number,
            tag=(row.number, step.kind),
        )

    def _shared(self, row: Row, pre_query: str) -> str | None:
        """The text before the first turn, where many rows begin with it."""
        return pre_query if row.persona is None else None

    def _sampling(self, number: int) -> Sampling:
        temperature, top_p = self.config.cells[number % len(self.config.cells)]
        return Sampling(
            temperature=temperature,
            top_p=top_p,
            first_temperature=self.config.first_temperature,
            banned_first=self.engine.first_tokens(self.config.ban_first) if self.config.ban_first else (),
        )

    def _system(self, row: Row) -> str | None:
        return self.config.system_of(row.persona)

    def _longest(self) -> int:
        """The most tokens of prompt and completion together, of any request; cleaning adds a few at most."""
        config, count = self.config, self.engine.count_tokens
        caps = config.max_instruction_tokens + config.max_response_tokens
        one = count(self.prefix.pre_query) + count(self.prefix.post_query) + SLACK_TOKENS + caps
        personas = {row.persona for row in self.rows if row.persona}
        one += max(map(count, personas), default=0)
        if config.turns == 1:
            return one
        layout = self.prefixes.follow_ups(self._system(self.rows[0])).layouts[-1]
        whole = sum(map(count, layout)) + config.turns * (caps + SLACK_TOKENS)
        return max(one, min(self.room, whole + one - caps))

    def _row_tokens(self) -> int:
        config = self.config
        return config.turns * (config.max_instruction_tokens + config.responses * config.max_response_tokens)

    def _room(self) -> int:
        """The most tokens of a conversation with several turns: the setting, or less if the model takes less."""
        context = self.engine.context_tokens
        most = self.config.max_total_tokens
        return min(most, context) if context else most

    # -- what comes out -----------------------------------------------------------------------------------------------

    def _phase(self) -> str:
        return "sampling" if self.judged < len(self.rows) else "answering"

    def _id(self, number: int) -> str:
        return record_id(self.config.run_key(self.engine.identity), number)

    def accepted(self) -> Iterator[Conversation]:
        return (self.recorder.conversation(row) for row in self.rows if row.finished and row.reason is None)

    def rejected(self) -> Iterator[Rejected]:
        return (self.recorder.rejected(row) for row in self.rows if row.reason not in (None, "failed"))

    def failed(self) -> int:
        return sum(row.reason == "failed" for row in self.rows)

    def pending(self) -> int:
        return sum(not row.finished for row in self.rows)

    def facts(self) -> dict[str, Any]:
        config = self.config
        found: dict[str, Any] = {}
        if config.turns > 1:
            kept = [row for row in self.rows if row.finished and row.reason is None]
            found["turns"] = dict(sorted(Counter(str(len(row.turns)) for row in kept).items()))
            found["turn_ends"] = dict(Counter(row.end.reason for row in kept if row.end))
            found["follow_up_prefix"] = self.prefixes.follow_ups(config.system_text).pre_query
        if config.responses > 1:
            found["responses"] = config.responses
        if config.persona_list:
            found["personas"] = len(config.persona_list.texts)
        return {
            "grid": [list(cell) for cell in config.cells],
            "pre_query": self.prefix.pre_query,
            "post_query": self.prefix.post_query,
            **found,
        }
