"""The stage `warp`: runs of `reinforce` from the same weights, merged, and begun again on the way to what they found.

    OUT/iteration-1/run-1, run-2    what `ojak train reinforce` leaves
    OUT/iteration-1/merged          their task vectors merged by SLERP, layer by layer, on the weights they began with
    OUT/iteration-1/next            from those a part of the way to `merged`: where iteration 2 begins
    OUT/model                       the model `final` of the way from the first model to the last `merged`
    OUT/warp.json                   the settings, and each point that was measured, while the work goes on
    OUT/manifest.json               settings and points; written last

WARP, arXiv 2406.16768, algorithm 1. Stopped or killed, it goes on with the run, merge or measure that it was at.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ojak._settings import Settings
from ojak.errors import ResumeRefused, VerificationFailed
from ojak.stages.base import Job, Outcome
from ojak.stages.training import path_of, stage_of

if TYPE_CHECKING:
    from ojak.merge.config import Method
    from ojak.model.load import Model
    from ojak.train.live import Prompt
    from ojak.train.warp_config import WarpConfig

STATE = "warp.json"


def warp_settings() -> type[Settings]:
    from ojak.train.warp_config import WarpConfig

    return WarpConfig


def picks_of_warp(settings: Settings, before: Sequence[str]) -> list[str]:
    """The stage that fetched the model, and those whose prompts are read."""
    from ojak.train.warp_config import WarpConfig

    assert isinstance(settings, WarpConfig)
    named = {stage_of(source, before) for source in settings.sources}
    return [name for name in before if name in {"pull", *named}]


def check_warp(job: Job) -> None:
    """Raise ResumeRefused where the folder holds the work of other settings."""
    if all((folder / "manifest.json").is_file() for folder in job.inputs.values()):
        Points(job)


def warp(job: Job) -> Outcome:
    """Runs by reward, merged and iterated; the points between the first model and the last merged one, measured."""
    from ojak.artifact import publish

    config = _config(job)
    points = Points(job)
    work = Warp(config, points, job)
    merged = work.iterations()
    front = work.front(merged)
    work.merged(config.out / "model", "liti", [merged], config.model, weights=(config.final,))
    stats = {"points": points.found, "front": front, "single_runs": work.single_runs()}
    publish(
        config.out,
        kind="warp",
        records=[],
        config=points.settings,
        inputs=list(job.inputs.values()),
        stats=stats,
        replace=True,
    )
    return Outcome({"model": str(config.out / "model"), **stats})


def _config(job: Job) -> WarpConfig:
    """The settings with paths in the place of stages."""
    from ojak.train.warp_config import WarpConfig

    assert isinstance(job.settings, WarpConfig)
    given = job.settings

    def located(source: str) -> str:
        return path_of(source, job.inputs, "")

    places = {
        "data": tuple(map(located, given.data or ("",))),
        "measure_data": given.measure_data and located(given.measure_data),
        "val_data": given.val_data and located(given.val_data),
    }
    return given.model_copy(update={"out": job.out, "accept_license": job.accept_license, **places})


class Points:
    """What was measured so far, by name, kept in a file with the hash of the settings.

    Raises ResumeRefused for a file of other settings, VerificationFailed for one that cannot be read.
    """

    def __init__(self, job: Job) -> None:
        self.path = job.out / STATE
        self.settings = job.settings.model_dump(mode="json", exclude={"out", "resume", "accept_license"})
        self.key = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()
        self.found: dict[str, dict[str, Any]] = self._read()

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self.path.is_file():
            return {}
        try:
            state = json.loads(self.path.read_bytes())
            key, points = state["settings_sha256"], dict(state["points"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise VerificationFailed(f"{self.path} is damaged", why=str(error)[:200]) from error
        if key != self.key:
            raise ResumeRefused(
                f"{self.path.parent} holds the work of other settings",
                fix="choose another folder, or remove it",
            )
        return points

    def put(self, name: str, figures: Mapping[str, Any]) -> None:
        """Keeps the figures of a point."""
        self.found[name] = dict(figures)
        self.save()

    def save(self) -> None:
        """Writes the file."""
        from ojak._files import write_atomic

        state = {"settings_sha256": self.key, "points": self.found}
        write_atomic(self.path, json.dumps(state, indent=1).encode() + b"\n")


class Warp:
    """The work in its folder; each part is skipped where it is done."""

    def __init__(self, config: WarpConfig, points: Points, job: Job) -> None:
        self.config, self.points, self.job = config, points, job
        config.out.mkdir(parents=True, exist_ok=True)
        points.save()
        self._measuring: tuple[Model, list[Prompt]] | None = None

    # -- the loop -----------------------------------------------------------------------------------------------------

    def iterations(self) -> Path:
        """All iterations; gives the folder of the last merged model."""
        config, start, merged = self.config, self.config.model, Path()
        for number in range(1, config.iterations + 1):
            place = f"iteration-{number}"
            folders = self._runs(start, place, number)
            merged = config.out / place / "merged"
            self.merged(merged, "slerp", folders, start)
            self.measured(f"{place}/merged", merged)
            if number < config.iterations:
                ahead = config.out / place / "next"
                self.merged(ahead, "slerp", folders, start, scale=config.eta)
                start = str(ahead)
        return merged

    def _runs(self, start: str, place: str, iteration: int) -> list[Path]:
        from ojak.model.memory import forget_peak
        from ojak.train.finished import result_folder
        from ojak.train.run import train

        folders: list[Path] = []
        for number in range(1, self.config.runs + 1):
            name = f"{place}/run-{number}"
            seed = self.config.seed + (iteration - 1) * self.config.runs + number - 1
            run = self.config.run_config(start, name, seed)
            self.job.notify(f"{name}, seed {seed}")
            forget_peak()
            train(run, notify=self.job.notify)
            folders.append(result_folder(run))
            self.measured(name, folders[-1])
        return folders

    def merged(
        self, out: Path, method: Method, models: Sequence[Path], base: str, *,
        weights: tuple[float, ...] | None = None, scale: float = 1.0,
    ) -> None:  # fmt: skip
        """Makes a merged model, unless it is there."""
        from ojak.merge.config import MergeConfig
        from ojak.merge.run import merge_models

        if (out / "manifest.json").is_file():
            return
        config = MergeConfig(
            models=tuple(map(str, models)), method=method, out=out, base=base, weights=weights, scale=scale,
            dtype="float32" if self.config.dtype == "float32" else None,
            accept_license=self.config.accept_license,
        )  # fmt: skip
        merge_models(config, notify=self.job.notify)

    # -- what is measured ---------------------------------------------------------------------------------------------

    def front(self, merged: Path) -> list[dict[str, Any]]:
        """The points on the way from the first model to the last merged one, measured; their models are not kept."""
        from ojak._files import remove

        found: list[dict[str, Any]] = []
        for eta in self.config.front:
            name, place = f"front/eta-{eta:g}", self.config.out / "front" / f"eta-{eta:g}"
            if name not in self.points.found:
                self.merged(place, "liti", [merged], self.config.model, weights=(eta,))
                self.measured(name, place)
            remove(place)
            found.append({"eta": eta, **self.points.found[name]})
        if (self.config.out / "front").is_dir():
            (self.config.out / "front").rmdir()
        return [{**point, "dominated": self._dominated(point)} for point in found]

    def single_runs(self) -> list[dict[str, Any]]:
        """The points of the runs by themselves."""
        return [{"run": name, **figures} for name, figures in self.points.found.items() if "/run-" in name]

    def _dominated(self, point: Mapping[str, Any]) -> bool:
        """Whether a single run earns as much or more, no farther from the first model, and is better in one of both."""
        return any(
            run["reward"] >= point["reward"]
            and run["kl"] <= point["kl"]
            and (run["reward"], -run["kl"]) != (point["reward"], -point["kl"])
            for run in self.single_runs()
        )

    def measured(self, name: str, folder: Path) -> None:
        """Measures the model in a folder, unless it was."""
        from ojak.model.load import load_model
        from ojak.train.rewarded import earned
        from ojak.train.rewards import parse_reward

        if name in self.points.found:
            return
        settings = self.config.reinforce
        assert settings is not None
        start, prompts = self._start()
        model = load_model(folder, dtype=self.config.dtype, device=self.config.device)
        found = earned(
            model, start.decoder, prompts, parse_reward(settings.reward),
            answer_tokens=settings.answer_tokens, seed=self.config.seed,
        )  # fmt: skip
        self.points.put(name, found.to_dict())
        self.job.notify(
            f"{name}: reward {found.reward:.3f} ± {found.reward_within:.3f}, KL {found.kl:.3f} ± {found.kl_within:.3f},"
            f" {found.answer_tokens:.0f} tokens, {found.stopped:.0%} stopped"
        )

    def _start(self) -> tuple[Model, list[Prompt]]:
        """The first model and the prompts to measure on; read once."""
        if self._measuring is None:
            from ojak.model.load import load_model
            from ojak.train.rewarded import prompts_in
            from ojak.train.rows import open_rows
            from ojak.train.setup import styled

            config = self.config
            model = load_model(
                config.model, dtype=config.dtype, device=config.device, accept_license=config.accept_license,
                notify=self.job.notify,
            )  # fmt: skip
            model = styled(config, model)
            data, split = (
                ((config.measure_data,), "validation") if config.measure_data else (config.data, "train")
            )
            rows = open_rows(
                data, model.tokenizer, template=model.chat_template, objective="reinforce",
                mask_roles=config.mask_roles, max_len=config.max_len, split=split, notify=self.job.notify,
            )  # fmt: skip
            self._measuring = model, prompts_in(rows, config.measure_prompts, config.seed)
        return self._measuring
