"""A judge is measured before it has a vote: planted good and bad rows, and how well it tells them apart."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ojak._progress import Listener, silent
from ojak.engines.base import Engine
from ojak.engines.remembering import remembering
from ojak.errors import InputRefused
from ojak.judge.ask import Asker
from ojak.judge.corrupt import CORRUPTIONS, bad_instructions, corrupted, data, matched
from ojak.judge.kept import (
    Calibration,
    Estimate,
    is_usable,
    judge_code,
    keep_calibration,
    requests_path,
)
from ojak.judge.likelihood import Likelihood, likelihoods
from ojak.judge.prompts import (
    CATEGORY_QUESTION,
    DIFFICULTY_QUESTION,
    DIGIT_QUESTION,
    PAIR_QUESTION,
    QUALITY_QUESTION,
    SCORE_QUESTION,
    Question,
    Row,
)
from ojak.judge.published import Published
from ojak.judge.scores import Judge
from ojak.judge.statistics import auroc_interval, mean_auroc, pearson, share, spearman
from ojak.judge.work import Meter, Work, asking, reading

DEFAULT_ROWS = 60
LEAST_ROWS = 10
LEAST_PAIRS = 5  # of good and bad rows; a corruption with fewer is not measured
MOST_READ = 100_000  # rows of the user's data that the sample is drawn from

SAME_LENGTH = ("shuffled", "wrong_language", "off_topic", "contradicting")

Values = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Sample:
    """A good row; of the rows that come with ojak, its category and how hard it is are known."""

    row: Row
    category: str | None = None
    level: str | None = None


@dataclass(frozen=True, slots=True)
class Planted:
    """Good rows, and for each corruption the bad ones made of them, in one list; `source`: the good row of each."""

    rows: list[Row]
    source: list[int]
    places: dict[str, list[int]]
    good: list[int]


def bundled() -> list[Sample]:
    """The instructions and answers that come with ojak, written for it."""
    return [
        Sample(Row(row["instruction"], row["response"]), row["category"], row["level"])
        for row in data("pairs.jsonl")
    ]


def own(rows: Iterable[Row]) -> list[Sample]:
    """Samples of the user's rows: those with an instruction and an answer, each instruction once."""
    found = {
        row.instruction: row
        for row in islice(rows, MOST_READ)
        if row.instruction.strip() and row.response.strip()
    }
    return [Sample(row) for row in found.values()]  # fmt: skip


def calibrate(
    engine: Engine,
    samples: Sequence[Sample] | None = None,
    *,
    rows: int = DEFAULT_ROWS,
    seed: int = 0,
    source: str = "bundled",
    published: Published | None = None,
    reason_tokens: int | None = None,
    rate: float | None = None,
    meter: Meter | None = None,
    notify: Callable[[str], None] = silent,
) -> Calibration:
    """Measure the model behind `engine` as judge and tagger on `rows` of the samples (default: the bundled ones).

    Deterministic by `seed`, as far as the engine is. `rate`: tokens a second to be expected, for the estimate that
    `notify` hears first. `meter` is told what is being done; the engine tells it of requests (`remembering`).

    Raises InputRefused for fewer than LEAST_ROWS samples.
    """
    chosen = chosen_samples(bundled() if samples is None else samples, rows, seed)
    planted = plant([sample.row for sample in chosen], seed)
    judge, meter = Judge(engine, seed=seed, reason_tokens=reason_tokens), meter or Meter()
    work = _work(engine, judge, planted, chosen, seed, published)
    notify(_estimate(work, planted, rate))
    meter.begin("judging", work.requests)
    values = _values(engine, judge, planted)
    measures = {name: measured(planted, found, seed) for name, found in values.items()}
    meter.begin("comparing")
    position = _position(judge, planted)
    meter.begin("tagging")
    tags = _tags(judge.asker, chosen, seed)
    correlation: dict[str, Any] = {}
    if published is not None:
        meter.begin("grading")
        correlation = _correlation(engine, judge, published)
    first = measures.pop("judge")
    return Calibration(
        identity=dict(engine.identity),
        code=judge_code(),
        source=source,
        rows=len(chosen),
        seed=seed,
        auroc=first["auroc"],
        overall=first["overall"],
        usable=first["usable"],
        measures=measures,
        tags=tags,
        position=position,
        length_bias=first["length_bias"],
        agreement=_both(spearman, values["judge"], values["judge_digits"]),
        correlation=correlation,
        pairs={name: len(length_pairs(planted, name, seed)) for name in CORRUPTIONS},
        unparsed=sum(value is None for value in values["judge"]) / len(planted.rows),
        speed={} if meter.recalled else {k: float(v) for k, v in judge.asker.spent.to_dict().items()},
    )


def calibrate_and_keep(
    engine: Engine,
    samples: Sequence[Sample] | None = None,
    *,
    reason_tokens: int | None = None,
    progress: Listener | None = None,
    notify: Callable[[str], None] = silent,
    **options: Any,
) -> tuple[Calibration, Path]:
    """`calibrate` with these options, and the file in the cache where the result is kept.

    What is answered is kept from the first answer on: stopped at any time, the same call goes on after the last one.
    """
    from ojak.engines.native import NativeEngine

    rate = engine.expected_rate() if isinstance(engine, NativeEngine) else None
    meter = Meter(progress)
    with remembering(engine, requests_path(engine.identity, reason_tokens), meter.add) as asked:
        found = calibrate(
            asked, samples, reason_tokens=reason_tokens, rate=rate, meter=meter, notify=notify, **options
        )
        return found, keep_calibration(found, reason_tokens)


def chosen_samples(samples: Sequence[Sample], rows: int, seed: int) -> list[Sample]:
    """So many of the samples, drawn by the seed. Raises InputRefused for fewer than LEAST_ROWS."""
    if len(samples) < LEAST_ROWS or rows < LEAST_ROWS:
        raise InputRefused(
            f"{min(len(samples), rows)} rows are too few to calibrate with",
            why=f"from fewer than {LEAST_ROWS} nothing follows",
            fix="give more rows, each with an instruction and a good answer",
        )
    dice = random.Random(f"{seed} rows")
    return list(samples) if rows >= len(samples) else dice.sample(list(samples), rows)


def plant(rows: Sequence[Row], seed: int) -> Planted:
    """The good rows with everything that the corruptions make of them."""
    found = Planted(list(rows), list(range(len(rows))), {}, list(range(len(rows))))
    for name in CORRUPTIONS:
        places = found.places.setdefault(name, [])
        for i, row in enumerate(corrupted(name, rows, seed)):
            if row is not None:
                places.append(len(found.rows))
                found.rows.append(row)
                found.source.append(i)
    return found


def _work(
    engine: Engine,
    judge: Judge,
    planted: Planted,
    chosen: Sequence[Sample],
    seed: int,
    published: Published | None,
) -> Work:
    """What all of it takes."""
    good, graded = [sample.row for sample in chosen], published.rows if published else []
    asked: list[tuple[Question, Sequence[Row]]] = [
        (SCORE_QUESTION, [*planted.rows, *graded]),
        (DIGIT_QUESTION, planted.rows),
        (PAIR_QUESTION, 2 * _opposed(planted)),
        (QUALITY_QUESTION, [*good, *bad_instructions(good, seed)]),
        (DIFFICULTY_QUESTION, good if all(sample.level for sample in chosen) else []),
        (CATEGORY_QUESTION, good if all(sample.category for sample in chosen) else []),
    ]
    scores, free = engine.capabilities.scores, judge.asker.reason_tokens
    parts = [asking(question, rows, scores=scores, reason_tokens=free) for question, rows in asked]
    parts += [reading([*planted.rows, *graded])] if scores else []
    return Work(sum(part.requests for part in parts), sum(part.tokens for part in parts))


def _estimate(work: Work, planted: Planted, rate: float | None) -> str:
    time_ = f", about {math.ceil(work.tokens / rate / 60):,} min on this machine" if rate else ""
    return f"{work.requests:,} requests about {len(planted.rows):,} rows, {len(planted.good)} of them good{time_}"


# -------------------------------------------------------------------------------------------------------- the scores


def _values(engine: Engine, judge: Judge, planted: Planted) -> dict[str, Values]:
    """Every score of every row; larger is better in all of them, but for the length, which says nothing."""
    found: dict[str, Values] = {
        "judge": list(judge.scores(planted.rows)),
        "judge_digits": list(judge.scores(planted.rows, DIGIT_QUESTION)),
    }
    if engine.capabilities.scores:
        read = list(likelihoods(engine, planted.rows))
        found |= {name: [take(each) for each in read] for name, take in LIKELIHOODS.items()}
    return found | {"length": [float(len(row.response)) for row in planted.rows]}


LIKELIHOODS: dict[str, Callable[[Likelihood], float]] = {
    "instruction_gain": lambda found: found.gain,
    "log_likelihood": lambda found: found.per_token,
}


def length_pairs(planted: Planted, name: str, seed: int) -> list[tuple[int, int]]:
    """(good place, bad place) of rows whose answers are of the same length."""
    length = [len(row.response) for row in planted.rows]
    bad = planted.places[name]
    dice = random.Random(f"{seed} match {name}")
    found = matched([length[i] for i in planted.good], [length[i] for i in bad], dice)
    return [(planted.good[i], bad[j]) for i, j in found]


def measured(planted: Planted, values: Values, seed: int) -> dict[str, Any]:
    """AUROC for each corruption, their mean, and what length does to the score."""
    area: dict[str, Estimate] = {}
    groups = []
    for name in CORRUPTIONS:
        read = [(g, b) for g, b in length_pairs(planted, name, seed) if _is_read(values, g, b)]
        if len(read) < LEAST_PAIRS:
            continue
        good, bad = zip(*read, strict=True)
        left, right = [float(values[i] or 0) for i in good], [float(values[i] or 0) for i in bad]
        area[name] = auroc_interval(left, right)
        groups.append((left, [planted.source[i] for i in good], right, [planted.source[i] for i in bad]))
    overall = mean_auroc(groups, seed=seed)
    lengths = [float(len(planted.rows[i].response)) for i in planted.good]
    bias = _both(spearman, [values[i] for i in planted.good], lengths)
    return {"auroc": area, "overall": overall, "usable": is_usable(overall), "length_bias": bias}


def _is_read(values: Values, *places: int) -> bool:
    return all(values[place] is not None for place in places)


def _both(correlate: Callable[..., Estimate], x: Values, y: Values) -> Estimate:
    """A correlation over the rows that have both values."""
    read = [(a, b) for a, b in zip(x, y, strict=True) if a is not None and b is not None]
    return correlate([a for a, _ in read], [b for _, b in read])


def _opposed(planted: Planted) -> list[Row]:
    """Each good answer with a bad one to the same request, about as long, as its `other`."""
    bad = {
        (name, planted.source[at]): planted.rows[at] for name in SAME_LENGTH for at in planted.places[name]
    }
    found = []
    for i in planted.good:
        name = SAME_LENGTH[i % len(SAME_LENGTH)]
        if (name, i) in bad:
            found.append(planted.rows[i]._replace(other=bad[name, i].response))
    return found


def _position(judge: Judge, planted: Planted) -> dict[str, Estimate]:
    """Each good answer against a bad one, in both orders."""
    ahead = _opposed(planted)
    behind = [row._replace(response=row.other, other=row.response) for row in ahead]
    read = zip(list(judge.prefers_first(ahead)), list(judge.prefers_first(behind)), strict=True)
    both = [(a, b) for a, b in read if a is not None and b is not None]
    firsts = sum(_won(a) + _won(b) for a, b in both)
    return {
        "first_preferred": share(firsts, 2 * len(both)),
        "consistent": share(sum((a - 0.5) * (b - 0.5) < 0 for a, b in both), len(both)),
        "accuracy": share(sum(_won(a) + 1 - _won(b) for a, b in both), 2 * len(both)),
        "accuracy_both_orders": share(sum(_won((a + 1 - b) / 2) for a, b in both), len(both)),
    }


def _won(probability: float) -> float:
    """A verdict for the first; an even one counts as a half."""
    return 0.5 if probability == 0.5 else float(probability > 0.5)


# ---------------------------------------------------------------------------------------------------------- the tags


def _tags(asker: Asker, samples: Sequence[Sample], seed: int) -> dict[str, dict[str, Any]]:
    rows = [sample.row for sample in samples]
    found: dict[str, Estimate] = {"input_quality": _quality(asker, rows, seed)}
    if all(sample.level for sample in samples):
        found["difficulty"] = _difficulty(asker, samples)
    if all(sample.category for sample in samples):
        found["task_category"] = _category(asker, samples)
    return {name: {"auroc": value, "usable": is_usable(value)} for name, value in found.items()}


def _quality(asker: Asker, rows: Sequence[Row], seed: int) -> Estimate:
    """Good instructions against spoilt ones of the same words, letters or length."""
    answers = asker.ask(QUALITY_QUESTION, [*rows, *bad_instructions(rows, seed)])
    levels = [answer.level for answer in answers]
    good, bad = levels[: len(rows)], levels[len(rows) :]
    return auroc_interval(
        [level for level in good if level is not None], [level for level in bad if level is not None]
    )


def _difficulty(asker: Asker, samples: Sequence[Sample]) -> Estimate:
    """Hard instructions against easy ones, by the bundled labels."""
    answers = asker.ask(DIFFICULTY_QUESTION, [sample.row for sample in samples])
    read = [(sample.level, answer.level) for sample, answer in zip(samples, answers, strict=True)]
    return auroc_interval(
        [level for known, level in read if known == "hard" and level is not None],
        [level for known, level in read if known == "easy" and level is not None],
    )


def _category(asker: Asker, samples: Sequence[Sample]) -> Estimate:
    """The probability of the right label against those of all wrong ones, over all rows."""
    answers = asker.ask(CATEGORY_QUESTION, [sample.row for sample in samples])
    right, wrong = [], []
    for sample, answer in zip(samples, answers, strict=True):
        for label, probability in answer.probabilities.items():
            (right if label == sample.category else wrong).append(probability)
    return auroc_interval(right, wrong)


# --------------------------------------------------------------------------------------------------------- published


def _correlation(engine: Engine, judge: Judge, published: Published) -> dict[str, Any]:
    """With the published scores of the same answers; the judge sees the reference, as those judges did."""
    ours: dict[str, Values] = {"judge": list(judge.scores(published.rows))}
    if engine.capabilities.scores:
        read = list(likelihoods(engine, published.rows))
        ours |= {name: [take(each) for each in read] for name, take in LIKELIHOODS.items()}
    found = {name: against(values, published.scores) for name, values in ours.items()}
    names = list(published.scores)
    between = against(published.scores[names[0]], {names[1]: published.scores[names[1]]})
    return {**found, names[0]: between}


def against(values: Values, others: dict[str, list[float]]) -> dict[str, dict[str, Estimate]]:
    """The correlations of scores with those of others for the same rows."""
    return {
        name: {"pearson": _both(pearson, values, scores), "spearman": _both(spearman, values, scores)}
        for name, scores in others.items()
    }
