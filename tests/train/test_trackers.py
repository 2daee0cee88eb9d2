"""Figures: the file in the run's folder reads as if the run had never stopped; trackers are told, and cost no run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ojak.errors import UsageError
from ojak.train.trackers import METRICS, TRACKERS, Metrics, Run, load_trackers, read_metrics

Calls = list[tuple[Any, ...]]


def run(folder: Path, step: int = 0) -> Run:
    return Run("ojak", "first", folder, {"lr": 1e-3}, step)


def test_each_step_is_a_line(tmp_path: Path) -> None:
    with Metrics(run(tmp_path / "out")) as metrics:
        metrics.log(1, {"loss": 2.5, "note": "x"})
        metrics.log(2, {"loss": float("nan")})
    path = tmp_path / "out" / METRICS
    assert path.read_text("utf-8") == '{"step":1,"loss":2.5,"note":"x"}\n{"step":2,"loss":null}\n'


def test_a_resume_drops_what_came_after_its_checkpoint_and_a_torn_line(tmp_path: Path) -> None:
    with Metrics(run(tmp_path)) as metrics:
        for step in range(1, 6):
            metrics.log(step, {"loss": step})
    path = tmp_path / METRICS
    path.write_bytes(path.read_bytes()[:-4])  # killed while it wrote the fifth
    assert [item["step"] for item in read_metrics(path)] == [1, 2, 3, 4]
    with Metrics(run(tmp_path, step=3)) as metrics:
        metrics.log(4, {"loss": 40})
    assert [item["loss"] for item in read_metrics(path)] == [1, 2, 3, 40]
    with Metrics(run(tmp_path)):  # begun anew
        pass
    assert path.read_bytes() == b""


def recorded(name: str, calls: Calls) -> Any:
    def call(*args: Any, **options: Any) -> Any:
        calls.append((name, *args, options))
        return SimpleNamespace(
            log=recorded(f"{name}.log", calls), finish=recorded(f"{name}.finish", calls),
            add_scalar=recorded(f"{name}.add_scalar", calls), close=recorded(f"{name}.close", calls),
            info=SimpleNamespace(run_id="m-17"),
        )  # fmt: skip

    return call


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Stand-ins for the trackers' packages, with the functions that their documentation names."""
    calls: Calls = []
    functions: dict[str, tuple[str, ...]] = {
        "trackio": ("init", "log", "finish"),
        "torch.utils.tensorboard": ("SummaryWriter",),
        "wandb": ("init",),
        "mlflow": (
            "is_tracking_uri_set",
            "set_experiment",
            "start_run",
            "log_params",
            "log_metrics",
            "end_run",
        ),
    }
    for package, names in functions.items():
        module = ModuleType(package)
        for name in names:
            setattr(module, name, recorded(f"{package}.{name}", calls))
        monkeypatch.setitem(sys.modules, package, module)
    return calls


def said(calls: Calls, name: str) -> list[tuple[Any, ...]]:
    return [call[1:] for call in calls if call[0] == name]


def test_every_tracker_is_told_of_the_run_and_of_each_step(tmp_path: Path, packages: Calls) -> None:
    with Metrics(run(tmp_path), tuple(TRACKERS)) as metrics:
        metrics.log(1, {"loss": 2.5, "note": "x", "mfu": float("nan")})
    assert said(packages, "trackio.init")[0][0]["project"] == "ojak"
    assert said(packages, "trackio.log") == [({"loss": 2.5}, {"step": 1})]
    assert said(packages, "trackio.finish") == [({},)]
    assert said(packages, "wandb.init")[0][0]["config"] == {"lr": 1e-3}
    assert said(packages, "wandb.init.log") == [({"loss": 2.5}, {"step": 1})]
    assert said(packages, "wandb.init.finish") == [({},)]
    assert said(packages, "torch.utils.tensorboard.SummaryWriter.add_scalar") == [("loss", 2.5, 1, {})]
    assert said(packages, "torch.utils.tensorboard.SummaryWriter.close") == [({},)]
    assert said(packages, "mlflow.log_metrics") == [({"loss": 2.5}, {"step": 1})]
    assert said(packages, "mlflow.log_params") == [({"lr": "0.001"}, {})]
    assert said(packages, "mlflow.end_run") == [({},)]


def test_a_resumed_run_goes_on_in_the_same_place(tmp_path: Path, packages: Calls) -> None:
    for step in (0, 3):
        with Metrics(run(tmp_path, step), tuple(TRACKERS)):
            pass
    first, second = said(packages, "wandb.init")
    assert first[0]["id"] == second[0]["id"]
    assert second[0]["resume"] == "allow"
    assert [options["run_id"] for (options,) in said(packages, "mlflow.start_run")] == [None, "m-17"]
    assert len(said(packages, "mlflow.log_params")) == 1
    assert [call[-1]["purge_step"] for call in said(packages, "torch.utils.tensorboard.SummaryWriter")] == [
        1,
        4,
    ]


def test_a_tracker_that_fails_is_left_out_and_the_file_goes_on(
    tmp_path: Path, packages: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(sys.modules["trackio"], "log", broken)
    monkeypatch.setattr(sys.modules["wandb"], "init", broken)
    lines: list[str] = []
    with Metrics(run(tmp_path), ("trackio", "wandb"), notify=lines.append) as metrics:
        for step in (1, 2, 3):
            metrics.log(step, {"loss": 1.0})
    assert lines == [
        "wandb is left out from here on: ConnectionError: no network",
        "trackio is left out from here on: ConnectionError: no network",
    ]
    assert len(read_metrics(tmp_path / METRICS)) == 3


def test_a_tracker_that_is_not_there_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match="the tracker wandb is not installed") as caught:
        Metrics(run(tmp_path / "out"), ("wandb",))
    assert caught.value.fix == 'pip install "ojak[track]", or leave out --track wandb'
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="there is no tracker 'wandp'"):
        load_trackers(["wandp"])


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACKERS)
def test_the_real_package_holds_the_figures_of_a_resumed_run(name: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(TRACKERS[name][0].split(".")[-1]) is None:
        pytest.skip(f"{name} is not installed (extra `track`)")
    out = tmp_path / "out"
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "TRACKIO", "WANDB"))},
        "HOME": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("tracked.py")), name, str(out)],
        cwd=tmp_path, env=environment, capture_output=True, timeout=200, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert json.loads(lines[-1]) == [[1, 2.5], [2, 2.0], [3, 1.5], [4, 1.0]]
    assert lines[:-1] == []  # trackers talk to stderr
