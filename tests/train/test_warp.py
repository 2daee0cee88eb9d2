"""The stage `warp`: its runs, merges and points; killed and begun again; the shipped recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from safetensors.torch import load_file

from ojak import recipe
from ojak.artifact import Artifact
from ojak.errors import ResumeRefused, UsageError
from ojak.model.load import load_model
from ojak.stages import BY_NAME, Job
from ojak.train.warp_config import WarpConfig

RECIPE = Path(__file__).parents[2] / "recipes" / "warp.yaml"


def job(folder: Path, out: str = "out", **changes: Any) -> Job:
    settings: dict[str, Any] = {
        "model": str(tiny_run.model(folder)),
        "data": (str(tiny_run.data(folder)),),
        "out": Path("unused"),
        "style": "plain",
        "reinforce": {"reward": "rules:lower-case", "samples": 2, "answer_tokens": 4},
        "lr": 1e-2,
        "batch": 8,
        "max_rows": 16,
        "max_len": 400,
        "peak_flops": 1e12,
        "iterations": 2,
        "front": (0.3, 1.0),
        "measure_prompts": 6,
    }
    said: list[str] = []
    return Job(WarpConfig(**(settings | changes)), folder / out, notify=said.append)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: weight.double()
        for name, weight in load_model(folder, dtype="float32").decoder.named_parameters()
    }


def check_killed(folder: Path, wanted: dict[str, Any]) -> None:
    """Killed twice and begun again, it comes to the same points; other settings do not go on."""
    broken = job(folder, "broken")
    for at in ("iteration-1/run-2, seed", "front/eta-0.3: reward"):

        def fail(text: str, at: str = at) -> None:
            if text.startswith(at):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            BY_NAME["warp"].run(Job(broken.settings, broken.out, notify=fail))
    assert BY_NAME["warp"].run(broken).facts["points"] == wanted
    check = BY_NAME["warp"].check
    assert check is not None
    check(broken)
    with pytest.raises(ResumeRefused, match="other settings"):
        check(job(folder, "broken", eta=0.5))


def test_runs_are_merged_and_begun_again_even_where_killed(folder: Path) -> None:
    made = job(folder)
    facts = BY_NAME["warp"].run(made).facts
    start, first = weights(folder / "model"), made.out / "iteration-1"
    merged, ahead = weights(first / "merged"), weights(first / "next")
    for name, weight in start.items():
        expected = weight + 0.3 * (merged[name] - weight)
        assert torch.allclose(ahead[name], expected, atol=1e-6), "LITI"
    seeds = [
        json.loads((made.out / f"iteration-{i}/run-{m}/manifest.json").read_text("utf-8"))["config"]
        for i in (1, 2) for m in (1, 2)
    ]  # fmt: skip
    assert [run["seed"] for run in seeds] == [0, 1, 2, 3]
    assert [Path(run["model"]).name for run in seeds] == ["model", "model", "next", "next"]
    last = load_file(made.out / "model" / "model.safetensors")
    assert all(torch.allclose(last[n].double(), w, atol=1e-6) for n, w in weights(made.out / "iteration-2/merged").items())  # fmt: skip
    assert [point["eta"] for point in facts["front"]] == [0.3, 1.0] and not (made.out / "front").exists()
    assert len(facts["single_runs"]) == 4
    assert facts["points"]["front/eta-1"] == facts["points"]["iteration-2/merged"], (
        "the same model, the same draws"
    )
    assert Artifact.open(made.out).stats["front"] == facts["front"]
    assert all(point["kl"] != 0 and 0 <= point["reward"] <= 1 for point in facts["points"].values())
    check_killed(folder, facts["points"])


@pytest.mark.parametrize("sets", [[], ["scale=smoke"]])
def test_the_recipe_is_sound(sets: list[str]) -> None:
    chosen = recipe.load(RECIPE, sets=sets).chosen[-1]
    assert chosen.reads == ("pull", "split")
    assert isinstance(chosen.settings, WarpConfig)
    assert chosen.settings.model == "smollm2-135m-instruct"
    assert (chosen.settings.runs, chosen.settings.eta, chosen.settings.dtype) == (2, 0.3, "float32")


@pytest.mark.parametrize(("lora", "lr"), [(None, 1e-6), ({"r": 2}, 1e-5)])
def test_the_rate_is_that_of_reinforce(folder: Path, lora: Any, lr: float) -> None:
    settings = WarpConfig(model="m", data=("x",), out=folder, reinforce={"reward": "rules:stop"}, lora=lora)  # pyright: ignore[reportArgumentType]
    assert settings.lr == settings.run_config("m", "run", 0).lr == pytest.approx(lr)


def test_settings_that_are_wrong(folder: Path) -> None:
    with pytest.raises(
        UsageError, match="runs"
    ):  # SLERP has nothing to merge: told before the run, not after
        job(folder, runs=1)
    with pytest.raises(UsageError, match="reinforce is missing"):
        WarpConfig(model="m", out=folder)
    with pytest.raises(UsageError, match="from 0 to 1"):
        job(folder, front=(1.5,))
