"""The models of a training, one after the other on the same rows, and the untrained one; then all of them compared.

    OUT/base/, OUT/<arm>-seed-<n>/    an artifact of kind "evaluate" each: the answers, and all figures of that model
    OUT/manifest.json                 kind "comparison": means, intervals, differences

A model that was measured is not measured again, whatever stops the work in between.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ojak._files import sha256_file
from ojak._progress import Listener, silent
from ojak.artifact import Artifact, Input, publish
from ojak.errors import InputRefused, TargetExists, VerificationFailed
from ojak.evaluate.arms import Figure, Rowwise, compare
from ojak.evaluate.config import CompareConfig, EvaluateConfig
from ojak.evaluate.run import LIKELIHOOD_FILE, evaluate_model, inputs_of
from ojak.model.checkpoint import read_object
from ojak.model.memory import forget_peak
from ojak.records import Conversation

BASE = "base"
MORE = "val_loss_"  # begins the names of losses on further held-out rows, before the name of the rows
PROBE = "probe_"  # begins the names of what was known by heart, before the kind of the facts
METRICS = (
    "bits_per_byte", "reference_logprob", "chrf", "stopped", "repetition", "instructions",
    "length_violations", "judge_score", "val_loss", "seconds", "peak_memory_mb",
)  # fmt: skip
OF_TRAINING = ("val_loss", "seconds", "peak_memory_mb")


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished training run: its arm, its seed, and its folder. `manifest` is what it says of itself."""

    arm: str
    seed: int
    folder: Path
    manifest: Mapping[str, Any] = field(repr=False)

    @classmethod
    def read(cls, arm: str, seed: int, folder: Path) -> Trained:
        return cls(arm, seed, folder, read_object(folder / "manifest.json"))

    @property
    def name(self) -> str:
        return f"{self.arm}-seed-{self.seed}"

    def setting(self, name: str) -> Any:
        config = self.manifest.get("config")
        return config.get(name) if isinstance(config, Mapping) else None


def measured_models(
    config: CompareConfig, runs: Sequence[Trained], accept_license: tuple[str, ...] = ()
) -> dict[str, EvaluateConfig]:
    """What is to be measured, under the name of its folder: the base model first, then the runs."""
    shared: dict[str, Any] = config.model_dump(exclude={"base", "accept_license", "data_sha256"})
    shared["accept_license"] = accept_license
    found: dict[str, EvaluateConfig] = {}
    base = runs[0].setting("model")
    if config.base and isinstance(base, str):
        # A base model has no template of its own: it is asked in the first arm's, as that was before its training.
        found[BASE] = EvaluateConfig(**shared, model=base, template_of=str(runs[0].folder))
    return found | {run.name: EvaluateConfig(**shared, model=str(run.folder)) for run in runs}


def check_measured(models: Mapping[str, EvaluateConfig], out: Path) -> None:
    """Raise TargetExists where a folder holds what was measured of something else, or with other settings."""
    for name, config in models.items():
        _is_measured(config, out / name)


def _is_measured(config: EvaluateConfig, folder: Path) -> bool:
    if not (folder / "manifest.json").is_file():
        return False
    there = Artifact.open(folder)
    wanted = config.model_dump(mode="json", exclude={"accept_license"})
    if (there.manifest["config"], there.manifest["inputs"]) != (wanted, inputs_of(config, folder)):
        raise TargetExists(
            f"{folder} holds what was measured of another model, on other rows or with other settings",
            fix="choose another folder",
        )
    return True


def compare_models(
    config: CompareConfig,
    runs: Sequence[Trained],
    out: Path,
    *,
    accept_license: tuple[str, ...] = (),
    inputs: Sequence[Input] = (),
    notify: Callable[[str], None] = silent,
    progress: Listener | None = None,
) -> Artifact:
    """Measure every model that is not measured yet, and publish what they show together in `out`.

    Raises TargetExists for a folder with something else, and what `evaluate_model` raises.
    """
    models = measured_models(config, runs, accept_license)
    for number, (name, model) in enumerate(models.items(), 1):
        if _is_measured(model, out / name):
            notify(f"{name}: measured before")
            continue
        notify(f"{name} ({number} of {len(models)})")
        forget_peak()  # what the model before held is free for this one
        evaluate_model(model, out / name, notify=notify, progress=progress)
    stats = _compared(runs, out, [*models], config.seed)
    settings = config.model_dump(mode="json", exclude={"accept_license"})
    return publish(
        out, kind="comparison", records=[], config=settings, inputs=inputs, stats=stats, replace=True
    )


def check_comparison(out: Path) -> None:
    """Raise VerificationFailed where a part of a comparison is damaged, as far as sizes tell."""
    folders = Artifact.open(out).stats.get("folders")
    names = [name for each in folders.values() for name in each] if isinstance(folders, dict) else []
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise VerificationFailed(f"{out / 'manifest.json'} is damaged", why=f"a folder named {name!r}")
        try:
            Artifact.open(out / name)
        except InputRefused as error:
            raise VerificationFailed(error.what, why=error.why) from error


def _compared(runs: Sequence[Trained], out: Path, names: Sequence[str], seed: int) -> dict[str, Any]:
    arms: dict[str, list[dict[str, Figure]]] = {}
    folders: dict[str, list[str]] = {}
    if BASE in names:
        arms[BASE], folders[BASE] = [figures_of(out / BASE)], [BASE]
    for run in runs:
        arms.setdefault(run.arm, []).append(figures_of(out / run.name) | _of_training(run))
        folders.setdefault(run.arm, []).append(run.name)
    trained = [arm for arm in arms if arm != BASE]
    against = BASE if len(trained) == 1 and BASE in arms else trained[0]
    learnt = {run.arm: [*_shaping(run), run.setting("val_data")] for run in runs}
    told = {run.arm: [*_shaping(run), run.setting("evaluate")] for run in runs}
    more = {name for figures in arms.values() for each in figures for name in each if name.startswith(MORE)}
    found = compare(arms, against, comparable={"val_loss": learnt, **dict.fromkeys(more, told)}, seed=seed)
    known = [name for name in found["metrics"] if name.startswith((MORE, PROBE))]
    found["metrics"] = [name for name in METRICS if name in found["metrics"]] + known
    return {**found, "folders": folders, "seeds": sorted({run.seed for run in runs})}


def _shaping(run: Trained) -> list[object]:
    """What a held-out loss counts follows from these: a student's is the cross-entropy that it is without a teacher."""
    objective, taught = run.setting("objective"), run.setting("distil")
    if objective == "distil":
        objective = "pretrain" if isinstance(taught, Mapping) and taught.get("texts") else "finetune"
    return [objective, *(run.setting(name) for name in ("prefer", "style", "mask_roles", "model"))]


def _of_training(run: Trained) -> dict[str, Figure]:
    result = run.manifest.get("result")
    values = result if isinstance(result, Mapping) else {}
    more = values.get("val_losses")
    held_out = {f"{MORE}{name}": loss for name, loss in more.items()} if isinstance(more, Mapping) else {}
    found = {**{name: values.get(name) for name in OF_TRAINING}, **held_out}
    return {name: float(value) for name, value in found.items() if isinstance(value, (int, float))}


def figures_of(folder: Path) -> dict[str, Figure]:
    """The figures in an artifact of kind "evaluate", as far as they were measured, row by row.

    reference_logprob: nats a token that the model gives the rows' own answers (the end of the turn included).
    stopped, repetition: of the answers to the rows' requests; to the built-in ones where there are no others.
    """
    figures: dict[str, Figure] = {}
    if (folder / LIKELIHOOD_FILE).is_file():
        found = _likelihood(folder)
        rows, nats = tuple(found["rows"]), found["nats"]
        figures["bits_per_byte"] = Rowwise(rows, tuple(x / math.log(2) for x in nats), tuple(found["bytes"]))
        figures["reference_logprob"] = Rowwise(rows, tuple(-x for x in nats), tuple(found["tokens"]))
    kept = [row for row in Artifact.open(folder).records() if isinstance(row, Conversation)]
    figures |= _known(row for row in kept if "fact" in row.meta)
    answers = [row for row in kept if "fact" not in row.meta]
    checked = [row for row in answers if "followed" in row.scores]
    own = [row for row in answers if "followed" not in row.scores]
    of_answers: dict[str, Callable[[Conversation], float | None]] = {
        "chrf": lambda row: row.scores.get("chrf"),
        "stopped": lambda row: float(row.meta.get("finish_reason") == "stop"),
        "repetition": lambda row: row.scores.get("repetition"),
        "judge_score": lambda row: row.scores.get("judge_score"),
        "length_violations": lambda row: row.scores.get("length_violation"),
    }
    for name, of in of_answers.items():
        figures |= _figure(name, own or checked, of)
    return figures | _figure("instructions", checked, lambda row: row.scores["followed"])


def _known(rows: Iterable[Conversation]) -> dict[str, Figure]:
    """Of each kind of facts, what the probe measured: sums over the prompts of each fact."""
    sums: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        values = {
            "logprob": (row.scores["logprob"], row.scores["tokens"]),
            "exact": (float(row.scores["exact"]), 1.0),
        }
        if "rank" in row.scores:
            values["accuracy"] = (float(row.scores["rank"] == 1), 1.0)
        for name, (above, below) in values.items():
            of_kind = sums.setdefault(f"{PROBE}{row.meta['kind']}_{name}", {})
            total = of_kind.setdefault(row.meta["fact"], [0.0, 0.0])
            total[0], total[1] = total[0] + above, total[1] + below
    return {
        name: Rowwise(tuple(facts), *(tuple(each[i] for each in facts.values()) for i in (0, 1)))
        for name, facts in sums.items()
    }


def _figure(
    name: str, rows: Sequence[Conversation], of: Callable[[Conversation], float | None]
) -> dict[str, Figure]:
    values = [(row.id, float(value)) for row in rows if (value := of(row)) is not None]
    if not values:
        return {}
    ids, above = zip(*values, strict=True)
    return {name: Rowwise(ids, above, (1.0,) * len(ids))}


def _likelihood(folder: Path) -> dict[str, Any]:
    """What `evaluate_model` kept of each scored row. Raises VerificationFailed where it was changed."""
    path = folder / LIKELIHOOD_FILE
    expected = Artifact.open(folder).stats.get("likelihood_sha256")
    if path.is_symlink() or sha256_file(path) != expected:
        raise VerificationFailed(
            f"{path} has changed",
            why="its SHA-256 is not the manifest's",
            fix=f"remove {folder}, and run again",
        )
    return json.loads(path.read_bytes())
