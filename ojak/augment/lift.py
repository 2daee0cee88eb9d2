"""LIFT: length limits put into conversations and preferences, so that a model learns to keep them (arXiv 2406.17744).

    conversation    a limit that its answer keeps goes before the request
    preference      mostly a limit between the lengths of the two answers: whatever was better before, the one that
                    keeps it is better now. Sometimes (`both_fit`) one that both keep, which changes nothing: else every
                    limit would only say "be short", and a model had no reason to read the number.

The rows without a limit stay beside those with one, so that answers to plain requests do not become shorter. A row
carries its limit in `meta["lift"]`, where `ojak evaluate` finds it; lengths are counted in one place (`rules.lengths`).
How the paper draws its limits is not known to us: between the two lengths is the widest choice that decides a pair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field

from ojak._settings import Settings
from ojak.artifact import Artifact, publish
from ojak.augment.draws import Draws
from ojak.errors import InputRefused
from ojak.model.files import cached_sha256
from ojak.records import AnyRecord, Conversation, Message, Preference, Record, Rejected
from ojak.rules.lengths import FIELD, Limit
from ojak.sources import is_artifact, read_all

KIND = "lift"
# The first is the paper's. An Alpaca row's input ends its request, so that it only takes what stands before.
BEFORE = (
    "Answer the following instruction using {limit} or less.\n\n{request}",
    "Use at most {limit} in your answer.\n\n{request}",
)
WORDINGS = (
    *BEFORE,
    "{request}\n\nYour answer may have no more than {limit}.",
    "{request} (in at most {limit})",
)

Lifted: TypeAlias = Conversation | Preference


class LiftConfig(Settings):
    """How limits are drawn and said.

    unit: what is counted. wording: the paper's sentence, or one of several. slack: by how much of an answer's length a
    limit that it keeps may be larger, drawn evenly from 0 on. both_fit: the share of preferences whose limit both
    answers keep. originals: in which splits rows stay without a limit, too: "train" alone, so that the others measure
    limits and nothing else, "all", or "none". seed: draws everything, for each row by its id.
    """

    unit: Literal["words", "characters"] = "words"
    wording: Literal["paper", "varied"] = "paper"
    slack: float = Field(default=0.25, ge=0, le=10)
    both_fit: float = Field(default=0.25, ge=0, le=1)
    originals: Literal["train", "all", "none"] = "train"
    seed: int = 0

    def keeps(self, split: str) -> bool:
        """Whether the rows of a split stay in it as they are."""
        return self.originals == "all" or self.originals == split


def lift_data(source: Artifact | Path | str, out: Path | str, config: LiftConfig | None = None) -> Artifact:
    """Publish the rows of `source` (an artifact with all its splits, or files) with length limits in `out`.

    Rows are conversations or preferences. One that takes no limit stays as it is where originals stay, and is rejected
    elsewhere: `no_request` (it does not end with a request and its answer), `several_turns` (an answer of a preference
    has more than one), `empty_answer`, `same_length` (no limit lies between the two answers), `has_a_limit` (it was
    made so before: two limits would contradict each other).

    Raises InputRefused for rows of another kind and for what was lifted before, and what `publish` raises.
    """
    config, path = config or LiftConfig(), source.path if isinstance(source, Artifact) else Path(source)
    artifact = Artifact.open(path) if is_artifact(path) else None
    splits = list(artifact.splits) if artifact else [None]
    if artifact and artifact.kind == KIND:
        raise InputRefused(
            f"{path} was made by `ojak lift`",
            why="its rows have a limit already, and beside them stand those that they were made from",
            fix="give the data that it was made from",
        )
    cases = {split or "train": _cases(path, split, config) for split in splits}
    return publish(
        Path(out),
        kind=KIND,
        splits={split or "train": _rows(path, split, config) for split in splits},
        rejected=(row for split in splits for row in _turned_away(path, split, config)),
        config=config.model_dump(mode="json"),
        inputs=[path if path.is_dir() else {"path": path.name, "sha256": cached_sha256(path)}],
        stats={"cases": cases, "limited": sum(_limited(each) for each in cases.values())},
    )


def _limited(cases: Mapping[str, int]) -> int:
    return sum(number for case, number in cases.items() if case in CASES)


def _read(path: Path, split: str | None, config: LiftConfig) -> Iterator[tuple[Lifted, Lifted | str]]:
    """Each row, and what becomes of it: the row with a limit, or why there is none."""
    for record in read_all(path, split):
        yield _one_of_ours(path, record), lifted(record, config)


def _one_of_ours(path: Path, record: AnyRecord) -> Lifted:
    if not isinstance(record, Conversation | Preference):
        raise InputRefused(
            f"{path} holds {type(record).__name__.lower()}s",
            why="limits go into conversations and preferences",
            fix="give the folder of `ojak synthesize magpie`, `ojak pairs` or the like",
        )
    return record


def _cases(path: Path, split: str | None, config: LiftConfig) -> dict[str, int]:
    """How often each case, or reason against a limit, came up."""
    made = (made for _, made in _read(path, split, config))
    counts = Counter(each if isinstance(each, str) else each.meta[FIELD]["case"] for each in made)
    return dict(sorted(counts.items()))


def _rows(path: Path, split: str | None, config: LiftConfig) -> Iterator[Record]:
    for record, made in _read(path, split, config):
        if config.keeps(split or "train"):
            yield record
        if not isinstance(made, str):
            yield made


def _turned_away(path: Path, split: str | None, config: LiftConfig) -> Iterator[Rejected]:
    if config.keeps(split or "train"):
        return
    for record, made in _read(path, split, config):
        if isinstance(made, str):
            turns = record.messages if isinstance(record, Conversation) else record.prompt
            yield Rejected(record.id, made, KIND, messages=turns, source=record.source, meta=record.meta)


# ------------------------------------------------------------------------------------------------------------- one row

KEPT, BOTH_FIT, BETTER_FITS, FLIPPED = "kept", "both_fit", "better_fits", "flipped"
CASES = (KEPT, BOTH_FIT, BETTER_FITS, FLIPPED)


def lifted(record: AnyRecord, config: LiftConfig) -> Lifted | str:
    """The row with a limit, its id followed by "-lift", or the reason why it takes none."""
    if FIELD in record.meta:
        return "has_a_limit"
    draws = Draws("lift", config.seed, record.id)
    if isinstance(record, Conversation):
        return _conversation(record, config, draws)
    return _preference(record, config, draws) if isinstance(record, Preference) else "no_request"


def _conversation(record: Conversation, config: LiftConfig, draws: Draws) -> Conversation | str:
    if [turn["role"] for turn in record.messages[-2:]] != ["user", "assistant"]:
        return "no_request"
    *turns, answer = record.messages
    length = Limit(1, config.unit).length(answer["content"])
    if not length:
        return "empty_answer"
    limit = Limit(length + _slack(config, draws, length), config.unit)
    told = _told(turns, limit, config, draws, record.meta)
    meta = {
        name: value for name, value in record.meta.items() if name != "answers"
    }  # the other ones were not counted
    case = {"limit": limit.most, "unit": limit.unit, "case": KEPT, "length": length}
    return replace(record, id=f"{record.id}-lift", messages=[*told, answer], meta={**meta, FIELD: case})


def _preference(record: Preference, config: LiftConfig, draws: Draws) -> Preference | str:
    if [turn["role"] for turn in record.prompt[-1:]] != ["user"]:
        return "no_request"
    answers = record.chosen, record.rejected
    if any([turn["role"] for turn in answer] != ["assistant"] for answer in answers):
        return "several_turns"
    better, worse = (Limit(1, config.unit).length(answer[0]["content"]) for answer in answers)
    if not better or not worse:
        return "empty_answer"
    fits = draws.bits("both fit") < config.both_fit * 2**64
    if better == worse and not fits:
        return "same_length"
    short, long = sorted((better, worse))
    most = long + _slack(config, draws, long) if fits else draws.pick("limit", range(short, long))
    case = BOTH_FIT if fits else FLIPPED if better > worse else BETTER_FITS
    return _decided(record, Limit(most, config.unit), case, (better, worse), config, draws)


def _decided(
    record: Preference, limit: Limit, case: str, lengths: tuple[int, int], config: LiftConfig, draws: Draws
) -> Preference:
    """The preference under its limit; turned round, its scores say nothing about it any more."""
    flips = case == FLIPPED
    chosen, rejected = (record.rejected, record.chosen) if flips else (record.chosen, record.rejected)
    sizes = dict(zip(("chosen", "rejected"), reversed(lengths) if flips else lengths, strict=True))
    return replace(
        record,
        id=f"{record.id}-lift",
        prompt=_told(record.prompt, limit, config, draws, record.meta),
        chosen=chosen,
        rejected=rejected,
        meta={**record.meta, FIELD: {"limit": limit.most, "unit": limit.unit, "case": case, **sizes}},
        scores={} if flips else record.scores,
    )


def _slack(config: LiftConfig, draws: Draws, length: int) -> int:
    return draws.pick("slack", range(int(config.slack * length) + 1))


def _told(
    turns: list[Message], limit: Limit, config: LiftConfig, draws: Draws, meta: Mapping[str, Any]
) -> list[Message]:
    """The turns, the last request with the limit beside it."""
    forms = WORDINGS[:1] if config.wording == "paper" else BEFORE if "alpaca_input" in meta else WORDINGS
    named = f"{limit.most} {limit.unit if limit.most > 1 else limit.unit[:-1]}"
    *before, last = turns
    text = draws.pick("wording", forms).replace("{limit}", named).replace("{request}", last["content"])
    return [*before, Message(role=last["role"], content=text)]
