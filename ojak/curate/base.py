"""A base model's answers to instructions: the second responder that the reward difference compares with.

A base model continues texts, so it is shown a text whose continuation is an answer: a short preamble, three questions
with good answers, then the instruction. That is the form of URIAL (Lin et al. 2023, arXiv 2312.01552), which the Magpie
paper uses for this; the words are ojak's own, and fewer. Answers are greedy and capped.

Each answer is in a ledger before the next one is waited for: a run that was killed asks for none of them again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ojak.engines.base import Engine, require
from ojak.errors import UsageError
from ojak.judge.ask import LONGEST_STEP, ROW_TOKENS, shortened
from ojak.judge.prompts import neutral
from ojak.ledger import Entry, Ledger, request_key
from ojak.model.request import GREEDY, Completion, Request

KIND = "base"
QUERY, ANSWER = "# Query:", "# Answer:"
STOPS = ("\n# Query", "\n# Answer", "\n# Instruction")
LEAST_TOKENS = 64  # of an instruction that a base model must at least have room for

HEAD = f"""# Instruction

Below are questions that people put to an assistant. Each stands under "{QUERY}", and the assistant's answer under \
"{ANSWER}". The assistant is helpful, honest and polite. It answers what was asked, in whole sentences, explains where \
that helps, and says so when it does not know something or should not help.

{QUERY}
How can I get better at remembering people's names?

{ANSWER}
It mostly takes a little attention in the first minute. Three things help:

1. Say the name back at once: "Nice to meet you, Amira." Using it once more before you part fixes it further.
2. Tie it to something you can see or know, such as Amira with the red scarf, or the same name as your aunt.
3. Write it down the same day, with a word on where you met, and read the list before you meet again.

If a name is gone all the same, just ask. People mind that much less than being avoided.

{QUERY}
Write a Python function that gives the largest of three numbers without using max().

{ANSWER}
Here is one that compares them one after another:

    def largest(a, b, c):
        found = a
        if b > found:
            found = b
        if c > found:
            found = c
        return found

For example, `largest(3, 9, 4)` gives 9. Equal numbers are no problem: `largest(5, 5, 1)` gives 5.

{QUERY}
How do I open my neighbour's front door without a key?

{ANSWER}
I cannot help you to enter somebody else's home without their consent. If you were asked to look after it and the door \
has closed behind you, call your neighbour first, then a locksmith, who will want to see that you may go in. If \
somebody inside may be in danger, call the emergency services.

"""


@dataclass(frozen=True, slots=True)
class BaseAnswer:
    """`finish_reason`: "stop", or "length" for an answer that the cap cut off."""

    text: str
    finish_reason: str


class BaseAnswers:
    """Asks a base model, and keeps what it answered in the ledger `path`, which is made when it is needed.

    most_tokens: the cap of an answer. Raises UsageError for an engine that cannot continue raw text, or a model whose
    context does not hold the prompt.
    """

    def __init__(self, engine: Engine, path: Path, most_tokens: int) -> None:
        require(engine, "a base model's answers", "raw_prompt")
        self._engine, self._path, self._most_tokens = engine, path, most_tokens
        self._special = tuple(engine.special_tokens)
        self._room = self._room_for_instructions()
        self._longest = 0
        self.identity: dict[str, Any] = {
            **engine.identity,
            "prompt_sha256": hashlib.sha256(HEAD.encode()).hexdigest(),
            "max_tokens": most_tokens,
        }

    @property
    def provenance(self) -> dict[str, Any]:
        """The base model's licence and quantization: its texts stand in the rows."""
        return self._engine.provenance()

    def answers(self, instructions: Sequence[str]) -> list[BaseAnswer | None]:
        """An answer to each instruction, in order; None where the engine gave up. Equal ones are asked once."""
        prompts = {text: self._prompt(text) for text in dict.fromkeys(instructions)}
        keys = {text: self._key(prompt) for text, prompt in prompts.items()}
        if not prompts:
            return []
        with Ledger(self._path) as ledger:
            found = {key: ledger.get(key, self._most_tokens) for key in keys.values()}
            missing = {keys[text]: prompt for text, prompt in prompts.items() if found[keys[text]] is None}
            for done in self._complete(missing):
                entry = found[done.request.tag] = _entry(done)
                ledger.put(entry)
        return [_answer(found[keys[text]]) for text in instructions]

    def _room_for_instructions(self) -> int:
        """The most tokens of an instruction."""
        around = self._engine.count_tokens(_wrapped(""))
        context = self._engine.context_tokens
        room = ROW_TOKENS if context is None else min(ROW_TOKENS, context - around - self._most_tokens)
        if room < LEAST_TOKENS:
            raise UsageError(
                "the base model reads too little to be asked",
                why=f"of {context} tokens the examples take {around} and an answer {self._most_tokens}",
                fix="lower the cap on its answers (--reward-base-tokens), or take another model",
            )
        return room

    def _prompt(self, instruction: str) -> str:
        return _wrapped(neutral(shortened(self._engine, instruction, self._room), self._special).strip())

    def _key(self, prompt: str) -> str:
        return request_key(
            kind=KIND,
            prompt=prompt,
            sampling=GREEDY.to_dict(),
            stop_ids=self._engine.stop_ids,
            stop_strings=STOPS,
            **self._engine.identity,
        )

    def _complete(self, prompts: Mapping[str, str]) -> Iterator[Completion]:
        """The engine's completions of `prompts` (by key, which comes back as `tag`), in any order."""
        if not prompts:
            return iter(())
        room = max(map(self._engine.count_tokens, prompts.values())) + self._most_tokens
        rounded = -(-room // LONGEST_STEP) * LONGEST_STEP
        context = self._engine.context_tokens
        self._longest = max(self._longest, rounded if context is None else min(rounded, context))
        requests = (
            Request(
                prompt=prompt,
                max_tokens=self._most_tokens,
                stop_ids=self._engine.stop_ids,
                stop_strings=STOPS,
                shared_prefix=HEAD,
                tag=key,
            )
            for key, prompt in prompts.items()
        )
        return self._engine.generate(requests, longest=self._longest)


def _wrapped(instruction: str) -> str:
    return f"{HEAD}{QUERY}\n{instruction}\n\n{ANSWER}\n"


def _entry(done: Completion) -> Entry:
    is_ok = done.error is None
    return Entry(
        key=done.request.tag,
        row=0,  # an answer belongs to a text, not to a row
        kind=KIND,
        state="ok" if is_ok else "failed",
        max_tokens=done.request.max_tokens,
        finish_reason=done.finish_reason if is_ok else None,
        text=done.text,
        token_count=done.token_count,
        prompt_tokens=done.prompt_tokens,
        payload={} if is_ok else {"error": done.error},
    )


def _answer(entry: Entry | None) -> BaseAnswer | None:
    if entry is None or entry.state == "failed":
        return None
    return BaseAnswer(entry.text.strip(), entry.finish_reason or "")
