"""From settings to figures: one model on some rows, or two on the same."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from ojak._files import TargetLock, sha256_file, target_exists, write_atomic
from ojak._progress import Listener, silent
from ojak.artifact import Artifact, publish
from ojak.chat import ChatTemplate
from ojak.engines.base import Engine
from ojak.engines.native import NativeEngine
from ojak.engines.open import EngineSpec, open_engine
from ojak.engines.remembering import remembering
from ojak.errors import InputRefused, UsageError
from ojak.evaluate import answers as answering
from ojak.evaluate import instructions as checking
from ojak.evaluate import probe as probing
from ojak.evaluate.answers import Answer, Question
from ojak.evaluate.config import EvaluateConfig
from ojak.evaluate.harness import HarnessFigures, check_harness, run_harness
from ojak.evaluate.harness_tasks import Task
from ojak.evaluate.likelihood import Likelihood, likelihood, ratio_interval, reference_logprobs
from ojak.evaluate.rows import rows_at
from ojak.evaluate.window_config import WindowConfig
from ojak.judge import Judge, load_calibration
from ojak.judge.facts import Fact, Recalled, read_facts
from ojak.model.files import cached_sha256
from ojak.model.load import Model, load_model, read_source
from ojak.records import AnyRecord, Conversation
from ojak.sources import evenly

LIKELIHOOD_FILE = "likelihood.json"  # of each row that was scored: what the sums are made of
LIKELIHOOD = ("rows", "nats", "tokens", "bytes")
LEDGER = ".answers-{}.sqlite"  # of the first model, and of the second
SAMPLES = 2000  # of the paired bootstrap


@dataclass
class Measured:
    """All that was found of one model. `summary` is what `--json` prints; the rest is kept row by row."""

    model: str
    identity: dict[str, Any]
    summary: dict[str, Any] = field(default_factory=dict)
    likelihood: Likelihood | None = None
    answers: list[Answer] = field(default_factory=list)
    followed: dict[str, bool] = field(default_factory=dict)
    recalled: list[Recalled] = field(default_factory=list)
    harness: HarnessFigures | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """What is measured of each model, and who hears of it."""

    config: EvaluateConfig
    records: Sequence[AnyRecord]
    facts: Sequence[Fact]
    tasks: list[Task]
    keep: Keep
    judge: Engine | None
    notify: Callable[[str], None]
    progress: Listener | None


def evaluate_model(
    config: EvaluateConfig,
    out: Path | str | None = None,
    *,
    notify: Callable[[str], None] = silent,
    progress: Listener | None = None,
) -> dict[str, Any]:
    """Measures the model, and with `config.against` the other one too: {measure: figures, "difference": {...}}.

    With `out`, the answers are kept there: while they are made in a ledger, so that a run that was stopped goes on, and
    at the end as an artifact of kind "evaluate" whose rows are the conversations with the model's answers.

    Raises UsageError for settings that do not go together, InputRefused for data or models that cannot be used.
    """
    if not config.measures and not config.harness and not config.probe:
        raise UsageError("nothing is to be measured", fix="give --measure, --probe or --harness")
    records, tasks = _records(config), check_harness(config)
    facts = read_facts(config.probe) if config.probe else []
    keep = Keep(Path(out) if out is not None else None)
    with keep:
        work = Work(config, records, facts, tasks, keep, _others(config, notify), notify, progress)
        found = _measure(work, config.model)
        result: dict[str, Any] = {"model": found.model, "identity": found.identity, **found.summary}
        if config.against:
            other = _measure(work, config.against)
            result["against"] = {"model": other.model, "identity": other.identity, **other.summary}
            result["difference"] = differences(found, other, config.seed)
        if keep.folder is not None:
            result["out"] = str(_publish(keep.folder, config, found, result).path)
    return result


def _others(config: EvaluateConfig, notify: Callable[[str], None]) -> Engine | None:
    """The judge, if there are answers to grade. What it or a second model is refused for is told before any work."""
    if config.against:
        read_source(config.against, accept_license=config.accept_license, notify=notify)
    if config.judge and {"answers", "instructions"} & set(config.measures):
        return _fit_judge(config, notify)
    return None


class Keep(contextlib.ExitStack):
    """The folder of the result, held while the work is done; without one, nothing is kept.

    Raises TargetExists for a folder that holds a finished artifact, Locked if another process works in it.
    """

    def __init__(self, folder: Path | None) -> None:
        super().__init__()
        self.folder = folder
        self._engines = 0

    def __enter__(self) -> Self:
        if self.folder is not None:
            if (self.folder / "manifest.json").exists():
                raise target_exists(self.folder)
            self.enter_context(TargetLock(self.folder))
        return self

    def remembering(self, engine: Engine) -> Engine:
        """The engine, with what it finishes kept until the result is written."""
        if self.folder is None:
            return engine
        self._engines += 1
        return self.enter_context(remembering(engine, self.folder / LEDGER.format(self._engines)))


def _records(config: EvaluateConfig) -> list[AnyRecord]:
    """The rows that are measured, taken evenly where there are more than `limit`."""
    needs_rows = {"likelihood", "answers"} & set(config.measures)
    if config.data is None:
        if needs_rows:
            raise UsageError(f"{min(needs_rows)} is measured on rows", fix="give --data")
        return []
    rows = list(rows_at(config.data, config.split))
    rows = [rows[place] for place in evenly(len(rows), config.limit)]
    if not rows:
        raise InputRefused(
            f"{Path(config.data)} has no rows",
            why="there is nothing to measure by",
            fix="give --data a file or folder with rows",
        )
    return rows


def _measure(work: Work, name: str) -> Measured:
    config = work.config
    found = Measured(name, {})
    if work.tasks:  # first, as long as no model is in this process's memory
        found.harness = run_harness(name, work.tasks, config, work.notify)
        found.identity = found.harness.identity
    if config.measures or work.facts:
        _measure_here(work, found)
    if found.harness:
        found.summary["harness"] = found.harness.tasks
    return found


def _measure_here(work: Work, found: Measured) -> None:
    """What needs the model in this process."""
    config, records, notify = work.config, work.records, work.notify
    model = load_model(found.model, dtype=config.dtype, accept_license=config.accept_license, notify=notify)
    engine = NativeEngine(_with_template(model, config, notify))
    found.identity = engine.identity
    if "likelihood" in config.measures:
        notify(f"reading {len(records):,} rows with {model.name}")
        found.likelihood = likelihood(engine, records)
        if not found.likelihood.rows:
            raise InputRefused(
                f"none of the {len(records):,} rows can be scored by {model.name}",
                why=_why(model, found.likelihood),
                fix="give rows that it reads: plain text for a base model, conversations that its template takes",
            )
        found.summary |= found.likelihood.summary(config.seed)
    if work.facts:
        notify(f"asking {model.name} for {len(work.facts):,} facts")
        found.recalled = probing.probe(engine, work.facts)
        found.summary["probe"] = probing.summary(found.recalled, config.seed)
    questions = _questions(config, records)
    if questions:
        _write(found, engine, questions, work)
        if work.judge is not None:
            _grade(found, work.judge)
        _summarize(found, config)


def _with_template(model: Model, config: EvaluateConfig, notify: Callable[[str], None]) -> Model:
    """The model; if it has no chat template, with that of `config.template_of` and what ends an answer there."""
    if config.template_of is None or model.chat_template:
        return model
    other = read_source(config.template_of, accept_license=config.accept_license, notify=notify)
    stops = tuple(dict.fromkeys((*other.stop_ids, *model.stop_ids)))
    return replace(model, chat_template=other.chat_template, stop_ids=stops)


def _why(model: Model, found: Likelihood) -> str:
    base = "; it has no chat template (a base model): give it plain text" if not model.chat_template else ""
    return f"{found.why}{base}"


def _questions(config: EvaluateConfig, records: Sequence[AnyRecord]) -> list[Question]:
    """What the model is asked: the rows' own requests, and the built-in ones."""
    found: list[Question] = []
    if "answers" in config.measures:
        chats = (answering.question_of(row) for row in records if isinstance(row, Conversation))
        found = [question for question in chats if question]
        if not found:
            raise InputRefused(
                f"{config.data} holds no requests",
                why="none of its rows is a conversation with a user's turn",
                fix="leave out --measure answers, or give conversations",
            )
    if "instructions" in config.measures:
        asked = checking.instructions(config.checks, config.seed)
        found += [Question(each.id, each.messages) for each in asked]
    return found


def _write(found: Measured, engine: NativeEngine, questions: Sequence[Question], work: Work) -> None:
    """The answers, and how likely the model finds the references."""
    answers, skipped = answering.ask(
        work.keep.remembering(engine), questions, max_tokens=work.config.max_tokens,
        render=_renderer(engine.model), listener=work.progress,
    )  # fmt: skip
    asked = [each.question for each in answers if each.question.reference]
    likely = iter(reference_logprobs(engine, [each.conversation(each.reference) for each in asked]))
    values = [next(likely) if each.question.reference else None for each in answers]
    found.answers = answering.with_scores(answers, "reference_logprob", values)
    found.summary["unasked"] = skipped


def _renderer(model: Model) -> answering.Render:
    """Prompts in which the model's own template sets an input apart."""

    def render(question: Question) -> str:
        turns: list[dict[str, str]] = [
            {"role": turn["role"], "content": turn["content"]} for turn in question.turns
        ]
        turns[-1]["input"] = question.given
        template = ChatTemplate.of(model.chat_template, model.tokenizer)
        return template.render([turns], add_generation_prompt=True)[0]

    return render


def _fit_judge(config: EvaluateConfig, notify: Callable[[str], None]) -> Engine:
    """The judge, if it passed its calibration or is trusted anyway; raises UsageError otherwise."""
    assert config.judge is not None
    judge = open_engine(EngineSpec(model=config.judge, accept_license=config.accept_license), notify=notify)
    calibration = load_calibration(judge.identity)
    if not config.trust_anyway and (calibration is None or not calibration.usable):
        raise UsageError(
            f"the judge {config.judge} may not grade",
            why="it was never calibrated" if calibration is None else "it did not pass its calibration",
            fix=f"run `ojak judge calibrate --model {config.judge}`, take another judge, or use --trust-anyway",
        )
    return judge


def _grade(found: Measured, judge: Engine) -> None:
    """The judge's grade for each answer."""
    graded = Judge(judge).judge(conversation(each) for each in found.answers)
    grades = [None if grade is None else round(grade, 3) for _, grade in graded]
    found.answers = answering.with_scores(found.answers, "judge_score", grades)


def _summarize(found: Measured, config: EvaluateConfig) -> None:
    asked = checking.instructions(config.checks, config.seed) if "instructions" in config.measures else []
    built_in = {each.id for each in asked}
    own = [each for each in found.answers if each.question.id not in built_in]
    if "answers" in config.measures:
        found.summary["answers"] = answering.summary(own, found.summary["unasked"])
    if asked:
        texts = {each.question.id: each.text for each in found.answers if each.question.id in built_in}
        found.summary["instructions"] = checking.summary(asked, texts)
        found.followed = {
            each.id: checking.follows(each.demand, texts[each.id]) for each in asked if each.id in texts
        }
        found.answers = [_with_verdict(answer, found.followed) for answer in found.answers]


def _with_verdict(answer: Answer, followed: Mapping[str, bool]) -> Answer:
    """The answer, to a built-in instruction with 1 or 0 for whether it followed it."""
    verdict = followed.get(answer.question.id)
    if verdict is None:
        return answer
    return replace(answer, scores={**answer.scores, "followed": float(verdict)})


def differences(found: Measured, other: Measured, seed: int) -> dict[str, list[float]]:
    """The first model's figure minus the second's, [value, low, high]: 95 % of a paired bootstrap over common rows.

    Of likelihood, bits per byte; an interval without 0 is a difference that the rows can tell from chance.
    """
    random = np.random.default_rng(seed)
    result = {}
    for name, (left, right, weight) in _paired(found, other).items():
        a, b, w = (np.asarray(x, dtype=np.float64) for x in (left, right, weight))
        if len(a):
            result[name] = ratio_interval(a - b, w, random, SAMPLES)
    return result | probing.differences(found.recalled, other.recalled, seed)


Paired = tuple[Sequence[float], Sequence[float], Sequence[float]]


def _paired(found: Measured, other: Measured) -> Mapping[str, Paired]:
    """Values of both models on common rows, and the rows' weights."""
    pairs: dict[str, Paired] = {}
    if found.likelihood and other.likelihood:
        pairs["bits_per_byte"] = _bits(found.likelihood, other.likelihood)
    theirs = {each.question.id: each for each in other.answers}
    for name in (*answering.COMPARED, "repetition", answering.VIOLATION):
        both = [
            (each.scores[name], theirs[each.question.id].scores[name])
            for each in found.answers
            if name in each.scores and name in getattr(theirs.get(each.question.id), "scores", {})
        ]
        pairs[name] = _columns(both)
    both = [(each, theirs[each.question.id]) for each in found.answers if each.question.id in theirs]
    pairs["stopped"] = _columns([(a.finish_reason == "stop", b.finish_reason == "stop") for a, b in both])
    common = found.followed.keys() & other.followed.keys()
    pairs["instructions"] = _columns([(found.followed[i], other.followed[i]) for i in sorted(common)])
    if found.harness and other.harness:
        for place, values in found.harness.values.items():
            both = list(zip(values, other.harness.values[place], strict=True))
            pairs[": ".join(("harness", *place))] = _columns(both)
    return pairs


def _columns(both: Sequence[tuple[float, float]]) -> Paired:
    return [a for a, _ in both], [b for _, b in both], [1.0] * len(both)


def _bits(ours: Likelihood, theirs: Likelihood) -> Paired:
    """Bits of each row that both scored, and its bytes as the first one counts them."""
    other = dict(zip(theirs.rows, theirs.nats, strict=True))
    both = [
        (nats / np.log(2), other[row] / np.log(2), size)
        for row, nats, size in zip(ours.rows, ours.nats, ours.bytes, strict=True)
        if row in other
    ]
    return [a for a, _, _ in both], [b for _, b, _ in both], [w for _, _, w in both]


def conversation(answer: Answer) -> Conversation:
    """The request with the model's answer, its scores, and how it ended."""
    row = answer.question.conversation(answer.text)
    row.meta.update(finish_reason=answer.finish_reason, tokens=answer.tokens)
    if answer.question.reference:
        row.meta["reference"] = answer.question.reference
    row.scores.update(answer.scores)
    return row


def _publish(folder: Path, config: EvaluateConfig, found: Measured, result: dict[str, Any]) -> Artifact:
    settings = config.model_dump(mode="json", exclude={"accept_license"})
    stats = dict(result)
    if found.likelihood is not None:
        rows = json.dumps({name: getattr(found.likelihood, name) for name in LIKELIHOOD}).encode() + b"\n"
        write_atomic(folder / LIKELIHOOD_FILE, rows)
        stats["likelihood_sha256"] = hashlib.sha256(rows).hexdigest()
    return publish(
        folder,
        kind="evaluate",
        records=itertools.chain(map(conversation, found.answers), probing.rows(found.recalled)),
        config=settings,
        inputs=inputs_of(config, folder),
        stats=stats,
    )


def inputs_of(config: EvaluateConfig | WindowConfig, folder: Path) -> list[dict[str, Any]]:
    """What a result in `folder` was made from, for its manifest: the data, and the run that made the model."""
    inputs: list[dict[str, Any]] = []
    for name in ("data", "probe", "model"):
        text = getattr(config, name, None)
        path = Path(text) if text else None
        if path is None or not path.exists():
            continue
        manifest = path / "manifest.json" if path.is_dir() else None
        entry: dict[str, Any] = {"what": name, "path": os.path.relpath(path, folder)}
        if manifest is None:
            inputs.append(entry | {"sha256": cached_sha256(path)})
        elif manifest.is_file():
            inputs.append(entry | {"manifest_sha256": sha256_file(manifest)})
    return inputs
