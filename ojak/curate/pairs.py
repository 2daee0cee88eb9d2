"""Preference pairs from several answers to one instruction: the best against a worse one, where that means something.

For each instruction with k answers (`answers.py`):

    score       a score that the answers carry, their length, or what an engine says of them
    chosen      the best
    rejected    of the others, within the cap on the ratio of lengths: the worst, or the one at a quantile from below
    kept        if the scores differ, by the margin at least

What makes no pair is rejected with the reason. The worst of many answers is often broken rather than less good, which
teaches little (arXiv 2502.16825): a quantile is the remedy.

An engine's scores are written into shards (`shards.py`), as everything is that curation pays for; then the rows stream
by twice, for the pairs and for the rest.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ojak._code import code_sha256, version
from ojak._files import TargetLock, target_exists
from ojak._progress import Listener, silent
from ojak._settings import Settings
from ojak.artifact import Artifact, publish, refuse_within
from ojak.curate.answers import BY_ENGINE, JUDGED, Answer, AnswerScores, Asked, asked_of
from ojak.curate.shards import Shards
from ojak.curate.trust import doubt
from ojak.engines.base import Engine
from ojak.engines.open import EngineName, EngineSpec, EngineUrl, open_engine
from ojak.errors import InputRefused, UsageError
from ojak.records import AnyRecord, Conversation, Preference, Rejected

KIND = "pairs"
BY_LENGTH = {"response_chars": "characters", "response_tokens": "tokens, as the engine counted them"}
BATCH = 32  # rows whose answers an engine is shown at once: what a kill may cost
LOOK_AHEAD_ROWS = 10_000
CODE = ("curate/answers.py", "judge", "similarity/text.py")  # what shapes a score

Scores = Sequence[float | None]
Rows = Callable[[], Iterator[AnyRecord]]


class PairsConfig(Settings):
    """How pairs are made.

    by: an engine's score (`BY_ENGINE`), "judge_score" (a model's grade, 0 to 100), a length (`BY_LENGTH`), or the name
    of a score that each answer has in its `scores`. margin: least difference of the two scores, in the score's own
    unit; equal scores never make a pair. rejected: "worst", or "quantile": the answer at `quantile` (0 the worst, 1
    the best) of those that are not chosen. length_ratio: the most by which the longer of the two may be longer, as a
    factor of characters; None for no cap. model, engine, url: who gives a score that needs one; by default the model
    that made the answers. trust_anyway: let a judge decide that was never calibrated, or did not pass.
    """

    by: str = Field(default="instruction_gain", min_length=1)
    margin: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    rejected: Literal["worst", "quantile"] = "worst"
    quantile: float = Field(default=0.25, ge=0, le=1)
    length_ratio: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    model: str | None = Field(default=None, min_length=1)
    engine: EngineName = "native"
    url: EngineUrl = None
    trust_anyway: bool = False
    accept_license: tuple[str, ...] = ()

    @property
    def asks_engine(self) -> bool:
        """Whether the score is one that an engine gives."""
        return self.by in (*BY_ENGINE, JUDGED)


def make_pairs(
    source: Artifact | Path | str,
    out: Path | str,
    config: PairsConfig | None = None,
    *,
    engine: Engine | None = None,
    notify: Callable[[str], None] | None = None,
    progress: Listener | None = None,
) -> Artifact:
    """Publish the pairs of the rows of `source` (all its splits) in `out`: an artifact of kind "pairs", of Preferences.

    `engine` gives the scores that need one; without it, the one that the settings name is opened. Counts are those of
    instructions: a conversation of several turns has several. Killed at any time, the same call goes on with the
    scores that are there.

    Raises TargetExists; InputRefused if no row has several answers; UsageError for a score that nobody can give, or a
    judge that is not trusted; EngineUnavailable, Locked and ResourceExhausted, after which it can go on.
    """
    config, out, tell = config or PairsConfig(), Path(out), notify or silent
    refuse_within(out)
    if (out / "manifest.json").exists():
        raise target_exists(out / "manifest.json", why="the folder holds a finished artifact")
    artifact = source if isinstance(source, Artifact) else Artifact.open(source)
    _refuse_single(artifact)
    with TargetLock(out):
        if not config.asks_engine:
            return _publish(artifact, out, config, artifact.records, {"engine": None})
        engine = engine or _open(artifact, config, tell)
        shards = _scored(artifact, out, config, engine, tell, progress)
        stats = {"engine": engine.identity, "calibrations": _calibrations(config, engine)}
        made = _publish(artifact, out, config, lambda: (view.conversation for view in shards.views()), stats)
        shards.remove()
    return made


def summary(artifact: Artifact) -> dict[str, Any]:
    """What `--json` says of pairs; rows are instructions, rows = accepted + the sum of rejected."""
    return {**artifact.counts, "by": artifact.manifest["config"]["by"], "out": str(artifact.path)}


def _refuse_single(artifact: Artifact) -> None:
    """Says before any work that there is nothing to pair."""
    looked_at = itertools.islice(artifact.records(), LOOK_AHEAD_ROWS)
    if not any(isinstance(record, Conversation) and "answers" in record.meta for record in looked_at):
        raise InputRefused(
            f"{artifact.path} has one answer to each instruction",
            why="a pair is made of two answers to the same one",
            fix="make several: ojak synthesize magpie --responses 5",
        )


def _publish(source: Artifact, out: Path, config: PairsConfig, rows: Rows, stats: dict[str, Any]) -> Artifact:
    settings = config.model_dump(mode="json", exclude={"accept_license", "url"})
    if config.model and Path(config.model).exists():
        settings["model"] = Path(config.model).name
    return publish(
        out,
        kind=KIND,
        records=_pairs(rows, config),
        rejected=_turned_away(rows, config),
        config=settings,
        inputs=[source],
        stats=stats,
    )


# -- an engine's scores -----------------------------------------------------------------------------------------------


def _open(artifact: Artifact, config: PairsConfig, notify: Callable[[str], None]) -> Engine:
    first = next(iter(artifact.records()), None)
    model = config.model or str(getattr(first, "meta", {}).get("model") or "")
    if not model:
        raise UsageError("no model is named", why="the rows do not say which made them", fix="give --model")
    spec = EngineSpec(model=model, engine=config.engine, url=config.url, accept_license=config.accept_license)
    return open_engine(spec, notify=notify)


def _scored(
    artifact: Artifact,
    out: Path,
    config: PairsConfig,
    engine: Engine,
    tell: Callable[[str], None],
    progress: Listener | None,
) -> Shards:
    """The rows with the scores of their answers; what an interrupted run left is taken up.

    A shard is what the engine is shown at once. Its rows follow from the source alone, so that a score, whose last
    digits may depend on the texts beside it, is that of a run without a stop.
    """
    _refuse_untrusted(config, engine)
    annotator = AnswerScores(engine, config.by)
    code = [version(), code_sha256(CODE)]
    key = {"input": artifact.manifest_sha256, "annotators": [annotator.identity], "code": code}
    shards = Shards(out, key, (), kind=KIND, rows=BATCH)
    shards.complete(
        artifact.records(),
        [annotator],
        rows_total=sum(artifact.splits.values()),
        tell=tell,
        progress=progress,
    )
    return shards


def _refuse_untrusted(config: PairsConfig, engine: Engine) -> None:
    why = doubt(engine.identity, JUDGED) if config.by == JUDGED and not config.trust_anyway else ""
    if why:
        name = engine.identity.get("model")
        raise UsageError(
            f"the judge {name} may not decide which answer is better",
            why=why,
            fix=f"run `ojak judge calibrate --model {name}`, score by another one, or use --trust-anyway",
        )


def _calibrations(config: PairsConfig, engine: Engine) -> list[dict[str, Any]]:
    """What is known of the judge that decided, as JSON values."""
    if config.by != JUDGED:
        return []
    from ojak.judge import load_calibration

    found = load_calibration(engine.identity)
    return [found.to_dict()] if found else []


# -- pairs ------------------------------------------------------------------------------------------------------------


def _made(rows: Rows, config: PairsConfig) -> Iterator[tuple[Asked, Scores, Preference | str]]:
    """Each instruction with the scores of its answers, and the pair or the reason why there is none."""
    for record in rows():
        if not isinstance(record, Conversation):
            raise InputRefused(
                f"record {record.id!r} is no conversation", fix="give a folder of conversations"
            )
        for asked in asked_of(record):
            scores = [stated(each, config.by) for each in asked.answers]
            yield asked, scores, pair(asked, scores, config)


def _pairs(rows: Rows, config: PairsConfig) -> Iterator[Preference]:
    found = Counter[bool]()
    for _, _, made in _made(rows, config):
        found[made == "no_score"] += 1
        if isinstance(made, Preference):
            yield made
    if found[True] and not found[False]:
        raise UsageError(
            f"no answer has a score {config.by!r}",
            why="the engine could read none of them"
            if config.asks_engine
            else "it is looked for in the `scores` of each answer",
            fix=f"use one of {', '.join([*BY_ENGINE, JUDGED, *BY_LENGTH])}, or a score that the answers have",
        )


def _turned_away(rows: Rows, config: PairsConfig) -> Iterator[Rejected]:
    for asked, scores, made in _made(rows, config):
        if isinstance(made, str):
            meta = _meta(asked, scores, config)
            yield Rejected(asked.id, made, KIND, messages=asked.turns, source=asked.record.source, meta=meta)


def stated(answer: Answer, by: str) -> float | None:
    """A length, or a score that the row has for this answer; None where there is none."""
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
    samples = {"chosen_sample": chosen.sample, "rejected_sample": rejected.sample}
    return Preference(
        id=asked.id,
        prompt=asked.turns,
        chosen=[{"role": "assistant", "content": chosen.text}],
        rejected=[{"role": "assistant", "content": rejected.text}],
        source=asked.record.source,
        meta={**_meta(asked, scores, config), "answers": len(scored), **samples},
        scores={"chosen": best, "rejected": worse, "margin": best - worse},
    )


def _meta(asked: Asked, scores: Scores, config: PairsConfig) -> dict[str, Any]:
    """Where a pair, or none, comes from: `answer_scores` has each usable answer's score by its sample."""
    by_sample = {str(each.sample): score for each, score in zip(asked.answers, scores, strict=True)}
    return {"row": asked.record.id, "turn": asked.turn, "by": config.by, "answer_scores": by_sample}


def _comparable(one: Answer, other: Answer, most: float | None) -> bool:
    lengths = sorted((len(one.text), len(other.text)))
    return most is None or lengths[1] <= most * lengths[0]
