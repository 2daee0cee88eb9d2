"""A disk that fills up while a checkpoint is saved: exit code 6, the earlier ones whole, nothing half-written left."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from full_disk import fail_at
from made_states import company, same, save, state

from ojak.errors import ResourceExhausted
from ojak.train.checkpoints import newest_valid, rehearse, save_checkpoint
from ojak.train.trackers import Metrics, Run


def _as_before(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir()}
    return names == {"step-0000001", "step-0000002"} and same(
        newest_valid(folder, like=state(0))[0], state(2)
    )


@pytest.mark.parametrize("act", [save_checkpoint, rehearse])
def test_a_limit_on_file_sizes(tmp_path: Path, act: Callable[..., Any]) -> None:
    save(tmp_path, 1, 2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    failed = 0
    for limit in (0, 100, 700, 1_000, 2_000, 1 << 30):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            act(tmp_path, state(3), company=company)
        except ResourceExhausted as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            failed += 1
            assert "no space left" in str(error)
            assert "fix: make room" in str(error)
            assert _as_before(tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert failed >= 3
    assert act is rehearse or same(newest_valid(tmp_path, like=state(0))[0], state(3))


def test_no_room_at_any_step_of_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, failed = 0, 0
    while True:
        folder = tmp_path / str(step)
        save(folder, 1, 2)
        with monkeypatch.context() as patch:
            done = fail_at(patch, step)
            try:
                save_checkpoint(folder, state(3), company=company)
            except ResourceExhausted as error:
                failed += 1
                assert error.exit_code == 6
                patch.undo()
                held, _ = newest_valid(folder, like=state(0))
                assert held is not None
                assert same(held, state(held.step))
                assert not list(folder.glob(".staging-*"))
        if len(done) <= step:  # the fault was never reached: every step had its turn
            break
        step += 1
    assert failed > 8


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB of its own; only root can make one."""
    made = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(tmp_path)]
    if subprocess.run(made, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a file system here")
    yield tmp_path
    subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    folder = small_disk / "checkpoints"
    save(folder, 1, 2)
    large = state(3, tensors={"model.norm.weight": torch.zeros(200_000)})
    for act in (save_checkpoint, rehearse):
        with pytest.raises(ResourceExhausted, match="no space left"):
            act(folder, large)
        assert _as_before(folder)
    medium = state(3, tensors={"model.norm.weight": torch.zeros(80_000)})
    with pytest.raises(ResourceExhausted, match="no room in"):  # one fits, three do not
        rehearse(small_disk / "others", medium)
    assert _as_before(folder)


def test_the_figures_say_so_too(small_disk: Path) -> None:
    with Metrics(Run("p", "r", small_disk, {}, 0)) as metrics:
        metrics.log(1, {"loss": 1.0})
        (small_disk / "fill").write_bytes(b"x" * (500 << 10))
        with pytest.raises(ResourceExhausted):
            for step in range(2, 2_000):
                metrics.log(step, {"loss": 1.0})
