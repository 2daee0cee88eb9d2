"""Personas: who would write, read, like or dislike a text, and who is close to them (Persona Hub, arXiv 2406.20094).

    text-to-persona      an excerpt of the source -> somebody who would write, read, like or dislike it
    persona-to-persona   a persona that was kept -> somebody close to it; in up to `rounds` rounds

A row is one request by chat. The answer must begin with a fixed label: what does not is not what was asked for. Rows
are judged in their order, duplicates (Jaccard of the sets of words, 0.9) dropped; each one that is kept adds rows for
its relatives at the end. So the rows and their numbers are a function of the source and the answers, and a run that
was stopped goes on with the same ones.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from ojak._progress import Listener
from ojak.artifact import Artifact
from ojak.engines.base import Engine, require
from ojak.ledger import Entry, Ledger
from ojak.model.request import Request
from ojak.records import Document, Rejected, record_id
from ojak.rules import check_response, is_refusal
from ojak.similarity import DuplicateIndex
from ojak.synthesize.asking import Asking, Step
from ojak.synthesize.config import PersonasConfig
from ojak.synthesize.run import run_in_folder
from ojak.synthesize.texts import Excerpt

LABEL = "Persona:"
ALIKE = 0.9  # Jaccard similarity of the sets of words from which on two personas are the same
FEWEST_WORDS, MOST_CHARACTERS = 4, 1_000
SLACK_TOKENS = 64

RELATIONS = ("be likely to write", "be likely to read", "like", "dislike")
KINDS = (
    "in their family",
    "at their work",
    "in their neighbourhood",
    "as somebody who serves them or whom they serve",
    "as a critic or a rival",
    "behind the scenes, seldom seen",
)
_ORDER = (
    "Describe one such person in one or two sentences: who they are, what they do, what they know and care about. "
    "Be as specific as you can, and give no name. "
    f'Begin your answer with "{LABEL}" and write nothing after the description.'
)
FROM_TEXT = f"Below is a text. Who would {{relation}} it? {_ORDER}\n\nThe text:\n\n{{text}}"
FROM_PERSONA = (
    f"Here is a person: {{persona}}\n\nWho is in a close relationship with this person, {{kind}}? {_ORDER}"
)

_LABEL = re.compile(r"\A[\s*_#]{0,8}persona[\s*_]{0,4}:[\s*_]{0,8}", re.IGNORECASE)
_QUOTES = "\"'*_\u201c\u201d\u2018\u2019 "


@dataclass(slots=True)
class PersonaRow:
    """One request: `prompt` is what is asked, `of` the text or the row that it is about, `round` 0 for texts."""

    number: int
    prompt: str
    round: int
    relation: str
    of: str
    asked: Entry | None = None
    persona: str = ""
    reason: str | None = None
    finished: bool = False

    @property
    def here(self) -> bool:
        """Whether it can be judged."""
        return self.asked is not None or self.reason is not None


class PersonaRun(Asking):
    """The rows of one run of personas."""

    sides: ClassVar[tuple[str, ...]] = ("persona",)

    def __init__(
        self, config: PersonasConfig, engine: Engine, ledger: Ledger, listener: Listener | None = None
    ) -> None:
        require(engine, "personas", "raw_prompt")
        super().__init__(config, engine, ledger, listener, len(config.excerpts))
        self.config, self.prefix = config, engine.chat_prefix()
        self.rows = [self._from_text(number, excerpt) for number, excerpt in enumerate(config.excerpts)]
        self.duplicates = DuplicateIndex(ALIKE, words=True)
        self.judged = self.asking = 0

    def _from_text(self, number: int, excerpt: Excerpt) -> PersonaRow:
        relation = RELATIONS[number % len(RELATIONS)]
        prompt = FROM_TEXT.format(relation=relation, text=excerpt.text)
        row = PersonaRow(number, prompt, 0, relation, excerpt.source)
        if any(token in excerpt.text for token in self.engine.special_tokens if token.strip()):
            row.reason = "source_special_token"  # it would end the turn in which it stands
        return row

    def _relatives(self, row: PersonaRow) -> Iterator[PersonaRow]:
        """The rows that a persona adds, if there is a round left."""
        for place in range(self.config.relatives if row.round < self.config.rounds else 0):
            kind = KINDS[(row.number + place) % len(KINDS)]
            prompt = FROM_PERSONA.format(persona=row.persona, kind=kind)
            yield PersonaRow(len(self.rows) + place, prompt, row.round + 1, kind, self._id(row.number))

    # -- the requests -------------------------------------------------------------------------------------------------

    def _open(self) -> bool:
        if self.asking == len(self.rows):
            return False
        row = self.rows[self.asking]
        self.asking += 1
        if row.reason is None:
            self._send(self._request(row))
        else:
            self._judge()
        return True

    def _request(self, row: PersonaRow) -> Request:
        step, prefix = Step("persona"), self.prefix
        return Request(
            prompt=prefix.text([row.prompt]),
            shared_prefix=prefix.pre_query,
            max_tokens=self.config.max_tokens,
            sampling=self.config.sampling,
            seed=self.seed(row.number, step),
            stop_ids=prefix.stop_ids,
            stop_strings=prefix.stop_strings,
            tag=(row.number, step.kind),
        )

    def _take(self, row: int, step: Step, entry: Entry) -> None:
        self.rows[row].asked = entry
        self._judge()

    def _judge(self) -> None:
        """Judges rows in their order, as far as they are there; those that stay add rows for their relatives."""
        while self.judged < len(self.rows) and (row := self.rows[self.judged]).here:
            self.judged += 1
            row.reason = row.reason or self._verdict(row)
            if row.reason is None:
                self.rows.extend(list(self._relatives(row)))
                self.progress.rows_total = len(self.rows)
            row.finished = True
            self._finished(row.reason)

    def _verdict(self, row: PersonaRow) -> str | None:
        assert row.asked is not None
        if row.asked.state == "failed":
            return "failed"
        row.persona, reason = parse_persona(
            row.asked.text, row.asked.finish_reason or "", self.engine.special_tokens
        )
        if reason:
            return reason
        duplicate = self.duplicates.add(row.number, row.persona)
        return f"duplicate_{duplicate.kind}" if duplicate else None

    def _longest(self) -> int:
        """Of a request about an excerpt, or about a persona as long as one may be."""
        count, prefix, most = self.engine.count_tokens, self.prefix, self.config.max_tokens
        relative = most + max(count(FROM_PERSONA.format(persona="", kind=kind)) for kind in KINDS)
        asked = max([relative, *(count(row.prompt) for row in self.rows)])
        return count(prefix.pre_query) + asked + count(prefix.post_query) + SLACK_TOKENS + most

    def _row_tokens(self) -> int:
        return self.config.max_tokens

    # -- what comes out -----------------------------------------------------------------------------------------------

    def _id(self, number: int) -> str:
        return record_id(self.config.run_key(self.engine.identity), number)

    def accepted(self) -> Iterator[Document]:
        for row in self.rows:
            if row.finished and row.reason is None:
                yield Document(self._id(row.number), row.persona, "personas", self._meta(row))

    def rejected(self) -> Iterator[Rejected]:
        for row in self.rows:
            if row.finished and row.reason not in (None, "failed"):
                text = row.asked.text if row.asked else ""
                stage = "persona" if row.asked else "source"
                yield Rejected(
                    self._id(row.number), row.reason, stage, text, source="personas", meta=self._meta(row)
                )

    def failed(self) -> int:
        return sum(row.reason == "failed" for row in self.rows)

    def pending(self) -> int:
        return sum(not row.finished for row in self.rows)

    def facts(self) -> dict[str, Any]:
        kept = Counter(str(row.round) for row in self.rows if row.finished and row.reason is None)
        return {
            "rounds": dict(sorted(kept.items())),
            "pre_query": self.prefix.pre_query,
            "post_query": self.prefix.post_query,
        }

    def _meta(self, row: PersonaRow) -> dict[str, Any]:
        method = "persona-to-persona" if row.round else "text-to-persona"
        meta: dict[str, Any] = {"method": method, "row": row.number, **self.engine.identity}
        meta |= {"round": row.round, "relation": row.relation, "of": row.of}
        if row.asked:
            meta |= row.asked.payload
            meta |= {"finish_reason": row.asked.finish_reason, "tokens": row.asked.token_count}
            meta["prompt_tokens"] = row.asked.prompt_tokens
        return meta


def parse_persona(
    text: str, finish_reason: str = "stop", special_tokens: Collection[str] = ()
) -> tuple[str, str | None]:
    """(the persona in an answer, None), or (what there was, the reason why it is none).

    It stands after the label, in one paragraph; an answer that was cut within it holds none.
    """
    label = _LABEL.match(text)
    if label is None:
        return "", "persona_label_missing"
    first, _, rest = text[label.end() :].strip().partition("\n")
    persona = " ".join(first.split()).strip(_QUOTES)
    if finish_reason == "length" and not rest:
        return persona, "persona_cut"
    if len(persona.split()) < FEWEST_WORDS:
        return persona, "persona_too_short"
    if len(persona) > MOST_CHARACTERS:
        return persona, "persona_too_long"
    if is_refusal(persona):
        return persona, "persona_refused"
    reason = check_response(persona, special_tokens=special_tokens)
    return persona, reason and reason.replace("response_", "persona_", 1)


def synthesize_personas(
    config: PersonasConfig,
    *,
    engine: Engine | None = None,
    progress: Listener | None = None,
    notify: Callable[[str], None] | None = None,
) -> Artifact:
    """Makes personas out of texts, or continues such a run, in the folder `config.out`: Documents, one persona each.

    It stops, resumes, publishes and raises as `synthesize_magpie` does.
    """

    def begin(engine: Engine, ledger: Ledger) -> Asking:
        return PersonaRun(config, engine, ledger, progress)

    return run_in_folder(config, "personas", begin, engine, notify)
