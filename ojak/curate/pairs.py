"""Preference pairs from several answers to one instruction: the best against a worse one, where that means something.

For each instruction with k answers (`meta["answers"]`, as `ojak synthesize magpie --responses K` leaves them):

    usable      answers that no rule rejected; of those that say the same, the first
    score       a score that the answers carry, their length, or what an engine says (`SCORES`)
    chosen      the best
    rejected    of the others, within the cap on the ratio of lengths: the worst, or the one at a quantile from below
    kept        if the scores differ, by the margin at least

What makes no pair is rejected with the reason. The worst of many answers is often broken rather than less good, which
teaches little (arXiv 2502.16825): a quantile is the remedy.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ojak._settings import Settings
from ojak.artifact import Artifact, publish
from ojak.engines.base import Engine, Scored, require
from ojak.engines.open import EngineSpec, open_engine
from ojak.errors import InputRefused, UsageError
from ojak.records import Conversation, Message, Preference, Rejected
from ojak.similarity import normalize

BY_ENGINE = {
    "instruction_gain": "how much the instruction helps: log p(answer | instruction) - log p(answer), per token",
    "likelihood": "log p(answer | instruction), per token",
}
BY_LENGTH = {"response_chars": "characters", "response_tokens": "tokens, as the engine counted them"}
JUDGED = "judge_score"
BATCH = 64  # instructions whose answers an engine is shown at once


class PairsConfig(Settings):
    """How pairs are made.

    by: an engine's score (`BY_ENGINE`), "judge_score" (a model's grade, 0 to 100), a length (`BY_LENGTH`), or the name
    of a score that each answer has in its `scores`. margin: least difference of the two scores, in the score's own
    unit; equal scores never make a pair. rejected: "worst", or "quantile": the answer at `quantile` (0 the worst, 1
    the best) of those that are not chosen. length_ratio: the most by which the longer of the two may be longer, as a
    factor of characters; None for no cap. model: for a score that needs one; by default the model that made the
    answers. trust_anyway: let a judge decide that was never calibrated, or did not pass.
    """

    by: str = Field(default="instruction_gain", min_length=1)
    margin: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    rejected: Literal["worst", "quantile"] = "worst"
    quantile: float = Field(default=0.25, ge=0, le=1)
    length_ratio: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    model: str | None = Field(default=None, min_length=1)
    trust_anyway: bool = False
    accept_license: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """One of the answers to an instruction: its sample, its text, and what its row says of it."""

    sample: int
    text: str
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """An instruction with its answers: `turns` is the conversation up to it, `turn` counts a user's turns from 1."""

    record: Conversation
    turn: int
    turns: list[Message]
    answers: tuple[Answer, ...]

    @property
    def id(self) -> str:
        """The row's id, with the turn's number from the second on."""
        return self.record.id if self.turn == 1 else f"{self.record.id}-turn-{self.turn}"


Scores = Sequence[float | None]
Scorer = Callable[[Sequence[Asked]], Iterator[Scores]]


def make_pairs(
    source: Artifact | Path | str,
    out: Path | str,
    config: PairsConfig | None = None,
    *,
    engine: Engine | None = None,
    notify: Callable[[str], None] | None = None,
) -> Artifact:
    """Publish the pairs of the rows of `source` (all its splits) in `out`: an artifact of kind "pairs", of Preferences.

    `engine` gives the scores that need one; without it, the model is loaded into the embedded one. Counts are those
    of instructions: a conversation of several turns has several.

    Raises InputRefused if no row has several answers, UsageError for a score that nobody can give, and what `publish`
    raises.
    """
    config = config or PairsConfig()
    artifact = source if isinstance(source, Artifact) else Artifact.open(source)
    _refuse_single(artifact)
    if config.by in (*BY_ENGINE, JUDGED):
        engine = engine or _open(artifact, config, notify)
    scorer = _scorer(config, engine)
    turned_away: list[Rejected] = []
    return publish(
        Path(out),
        kind="pairs",
        records=_pairs(artifact, config, scorer, turned_away),
        rejected=_drain(turned_away),
        config=config.model_dump(mode="json", exclude={"accept_license"}),
        inputs=[artifact],
        stats={"engine": engine.identity if engine else None},
    )


def _refuse_single(artifact: Artifact) -> None:
    """Says before any work that there is nothing to pair."""
    looked_at = itertools.islice(artifact.records(), 10_000)
    if not any(isinstance(record, Conversation) and "answers" in record.meta for record in looked_at):
        raise InputRefused(
            f"{artifact.path} has one answer to each instruction",
            why="a pair is made of two answers to the same one",
            fix="make several: ojak synthesize magpie --responses 5",
        )


def _open(artifact: Artifact, config: PairsConfig, notify: Callable[[str], None] | None) -> Engine:
    first = next(iter(artifact.records()), None)
    model = config.model or str(getattr(first, "meta", {}).get("model") or "")
    if not model:
        raise UsageError("no model is named", why="the rows do not say which made them", fix="give --model")
    return open_engine(EngineSpec(model=model, accept_license=config.accept_license), notify=notify)


def _drain(found: list[Rejected]) -> Iterator[Rejected]:
    """What was turned away while the pairs were written; read after them."""
    yield from found


# -- what there is ----------------------------------------------------------------------------------------------------


def asked_of(record: Conversation) -> Iterator[Asked]:
    """The instructions of a row, each with its usable answers. Raises InputRefused for answers of another form."""
    system = [turn for turn in record.messages[:1] if turn["role"] == "system"]
    turns = record.messages[len(system) :]
    listed = record.meta.get("answers") or [[] for _ in turns[::2]]
    for number, group in enumerate(listed, 1):
        before = turns[: 2 * number - 1]
        if not before or before[-1]["role"] != "user" or not isinstance(group, list):
            raise InputRefused(
                f"the answers of row {record.id!r} do not fit its turns",
                fix="make the rows with ojak synthesize magpie --responses K",
            )
        yield Asked(record, number, [*system, *before], tuple(_usable(record, group)))


def _usable(record: Conversation, group: list[Any]) -> Iterator[Answer]:
    """The answers that no rule rejected, each text once."""
    seen: set[str] = set()
    for sample, facts in enumerate(group):
        text = facts.get("text") if isinstance(facts, dict) else None
        if not isinstance(text, str):
            raise InputRefused(f"answer {sample} of row {record.id!r} is no text")
        said = normalize(text)
        if facts.get("reason") is None and said not in seen:
            seen.add(said)
            yield Answer(sample, text, facts)


# -- scores -----------------------------------------------------------------------------------------------------------


def _scorer(config: PairsConfig, engine: Engine | None) -> Scorer:
    """What scores the answers. Raises UsageError for an engine that cannot, or a judge that is not trusted."""
    by = config.by
    if engine is None:
        return lambda batch: iter([[_stated(each, by) for each in asked.answers] for asked in batch])
    if by == JUDGED:
        return _judge(engine, config.trust_anyway)
    require(engine, "pairs", "scores")
    return lambda batch: _by_engine(batch, engine, gain=by == "instruction_gain")


def _judge(engine: Engine, trust_anyway: bool) -> Scorer:
    """A model that grades each answer, if it has earned that."""
    from ojak.judge import Judge, load_calibration

    calibration = load_calibration(engine.identity)
    if not trust_anyway and (calibration is None or not calibration.usable):
        name = engine.identity.get("model")
        raise UsageError(
            f"the judge {name} may not decide which answer is better",
            why="it was never calibrated" if calibration is None else "it did not pass its calibration",
            fix=f"run `ojak judge calibrate --model {name}`, score by another one, or use --trust-anyway",
        )
    judge = Judge(engine)

    def graded(batch: Sequence[Asked]) -> Iterator[Scores]:
        grades = (score for _, score in judge.judge(_alone(each) for each in _flat(batch)))
        return _by_instruction(batch, grades)

    return graded


def _alone(found: tuple[Asked, Answer]) -> Conversation:
    """An answer as a judge reads it: after all that was said, as one message."""
    asked, answer = found
    said = "\n\n".join(turn["content"] for turn in asked.turns if turn["role"] != "system")
    turns: list[Message] = [
        {"role": "user", "content": said},
        {"role": "assistant", "content": answer.text},
    ]
    return Conversation(f"{asked.id}.{answer.sample}", turns)


def _flat(batch: Sequence[Asked]) -> list[tuple[Asked, Answer]]:
    return [(asked, answer) for asked in batch for answer in asked.answers]


def _by_instruction(batch: Sequence[Asked], scores: Iterable[float | None]) -> Iterator[Scores]:
    """Scores of all answers, one after another, as a list for each instruction."""
    left = iter(scores)
    for asked in batch:
        yield list(itertools.islice(left, len(asked.answers)))


def _stated(answer: Answer, by: str) -> float | None:
    """A length, or a score that the row has for this answer."""
    if by == "response_chars":
        return float(len(answer.text))
    if by == "response_tokens":
        return _number(answer.facts.get("tokens"))
    scores = answer.facts.get("scores")
    return _number(scores.get(by)) if isinstance(scores, dict) else None


def _number(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) else None


def _by_engine(batch: Sequence[Asked], engine: Engine, *, gain: bool) -> Iterator[Scores]:
    """The mean log-probability of each answer's tokens after the conversation; less that after an empty instruction."""
    flat = _flat(batch)
    given = _means(engine, [Scored(_prompt(engine, asked.turns), answer.text) for asked, answer in flat])
    if gain:
        empty = [Scored(_prompt(engine, _emptied(asked.turns)), answer.text) for asked, answer in flat]
        both = zip(given, _means(engine, empty), strict=True)
        given = [None if one is None or two is None else one - two for one, two in both]
    return _by_instruction(batch, given)


def _means(engine: Engine, texts: Sequence[Scored]) -> list[float | None]:
    """Mean log-probabilities; None for a text that the engine refuses, as one that is too long."""
    try:
        found: Iterable[tuple[float, ...]] = list(engine.score(texts))
    except UsageError:
        if len(texts) == 1:
            return [None]
        return [mean for text in texts for mean in _means(engine, [text])]
    return [math.fsum(logprobs) / len(logprobs) if logprobs else None for logprobs in found]


def _prompt(engine: Engine, turns: Sequence[Message]) -> str:
    system = turns[0]["content"] if turns[0]["role"] == "system" else None
    texts = [turn["content"] for turn in turns if turn["role"] != "system"]
    count = len(texts) // 2 + 1
    prefix = engine.chat_prefix(system, turns=count) if count > 1 else engine.chat_prefix(system)
    return prefix.text(texts)


def _emptied(turns: Sequence[Message]) -> list[Message]:
    """The conversation without what was asked last."""
    return [*turns[:-1], {"role": "user", "content": ""}]


# -- pairs ------------------------------------------------------------------------------------------------------------


def _pairs(
    artifact: Artifact, config: PairsConfig, scorer: Scorer, turned_away: list[Rejected]
) -> Iterator[Preference]:
    everything = itertools.chain.from_iterable(_asked(record) for record in artifact.records())
    found = Counter[str]()
    while batch := list(itertools.islice(everything, BATCH)):
        for asked, scores in zip(batch, scorer(batch), strict=True):
            made = pair(asked, scores, config)
            found["no_score"] += made == "no_score"
            found["pairs"] += 1
            if isinstance(made, str):
                turned_away.append(
                    Rejected(asked.id, made, "pairs", messages=asked.turns, source=asked.record.source)
                )
            else:
                yield made
    if found["pairs"] and found["no_score"] == found["pairs"]:
        raise UsageError(
            f"no answer has a score {config.by!r}",
            why="it is looked for in the `scores` of each answer",
            fix=f"use one of {', '.join([*BY_ENGINE, JUDGED, *BY_LENGTH])}, or a score that the answers have",
        )


def _asked(record: Any) -> Iterator[Asked]:
    if not isinstance(record, Conversation):
        raise InputRefused(f"record {record.id!r} is no conversation", fix="give a folder of conversations")
    return asked_of(record)


def pair(asked: Asked, scores: Scores, config: PairsConfig) -> Preference | str:
    """The pair, or the reason why there is none.

    Reasons: `one_answer` (fewer than two answers that differ and that no rule rejected), `no_score`, `length_ratio`
    (none within the cap), `tie`, `margin`.
    """
    if len(asked.answers) < 2:
        return "one_answer"
    scored = [(score, each) for score, each in zip(scores, asked.answers, strict=True) if score is not None]
    if len(scored) < 2:
        return "no_score"
    # From the worst to the best; of equals the earlier sample is the better one.
    scored.sort(key=lambda found: (found[0], -found[1].sample))
    *others, (best, chosen) = scored
    near = [found for found in others if _comparable(found[1], chosen, config.length_ratio)]
    if not near:
        return "length_ratio"
    worse, rejected = near[round(config.quantile * (len(near) - 1)) if config.rejected == "quantile" else 0]
    if worse == best:
        return "tie"
    if best - worse < config.margin:
        return "margin"
    meta = {"row": asked.record.id, "turn": asked.turn, "by": config.by, "answers": len(scored)}
    return Preference(
        id=asked.id,
        prompt=asked.turns,
        chosen=[{"role": "assistant", "content": chosen.text}],
        rejected=[{"role": "assistant", "content": rejected.text}],
        source=asked.record.source,
        meta={**meta, "chosen_sample": chosen.sample, "rejected_sample": rejected.sample},
        scores={"chosen": best, "rejected": worse, "margin": best - worse},
    )


def _comparable(one: Answer, other: Answer, most: float | None) -> bool:
    lengths = sorted((len(one.text), len(other.text)))
    return most is None or lengths[1] <= most * lengths[0]
