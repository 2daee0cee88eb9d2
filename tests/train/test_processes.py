"""Two real processes: they learn what one learns, and checkpoints go from two to one and back to two."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import split_training
import torch
from safetensors.torch import load_file

import ojak.errors
from ojak.errors import OjakError, UsageError
from ojak.train.checkpoints import newest_valid
from ojak.train.processes import ALONE, joined, part_rows

SCRIPT = Path(split_training.__file__)
LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo"}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def forked(task: dict[str, Any], said: Path, **variables: str) -> int:
    """A process that does the task; the imports, which take longer than the task, are paid for once."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ.update(variables)
        split_training.run(task)
        status = 0
    except BaseException:  # noqa: BLE001 (told in the parent)
        said.write_text(traceback.format_exc(), "utf-8")
    os._exit(status)


def train(folder: Path, steps: int, size: int, **more: Any) -> dict[str, Any]:
    """What the first process had to say; all of them must have seen the same."""
    result, said = folder.parent / "result.json", folder.parent / "said"
    task = {"folder": str(folder), "steps": steps, "result": str(result), **more}
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(size),
        **LOOPBACK,
    }
    children = [forked(task, said, RANK=str(rank), LOCAL_RANK=str(rank), **common) for rank in range(size)]
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert ends == [0] * size, said.read_text("utf-8")
    told = json.loads(result.read_text("utf-8"))
    assert len(told) == size
    assert all(each == told[0] for each in told)
    return told[0]


def near(left: list[float], right: list[float]) -> float:
    assert len(left) == len(right) > 0
    return max(abs(a - b) / abs(b) for a, b in zip(left, right, strict=True))


@pytest.mark.timeout(240)
def test_two_processes_learn_what_one_does_and_take_up_each_others_checkpoints(tmp_path: Path) -> None:
    """The losses of nine steps to 1e-5: by one process, by two, and by 2 -> 1 -> 2."""
    one = train(tmp_path / "one", 9, 1)
    two = train(tmp_path / "two", 9, 2)
    assert one["size"] == 1
    assert two["size"] == 2
    assert near(two["losses"], one["losses"]) < 1e-5
    assert near(two["norms"], one["norms"]) < 1e-4  # Adam would not notice gradients of half the size
    assert near(two["checked"], one["checked"]) < 1e-5
    assert one["losses"][-1] < 0.97 * one["losses"][0], "nothing was learnt, so nothing was compared"

    parts = [train(tmp_path / "parts", steps, size, resume=True) for steps, size in ((3, 2), (6, 1), (9, 2))]
    assert [part["reasons"][0].split(",")[0] for part in parts] == [
        f"there is no whole checkpoint in {tmp_path / 'parts'}",
        "going on from step-0000003",
        "going on from step-0000006",
    ]
    losses = [loss for part in parts for loss in part["losses"]]
    assert near(losses, one["losses"]) < 1e-5
    held, _ = newest_valid(tmp_path / "parts")
    whole, _ = newest_valid(tmp_path / "one")
    assert held is not None
    assert whole is not None
    assert held.tensors.keys() == whole.tensors.keys()
    assert all(torch.allclose(held.tensors[name], whole.tensors[name], atol=2e-3) for name in held.tensors)


@pytest.mark.timeout(120)
def test_the_parts_of_two_processes_are_the_whole(tmp_path: Path) -> None:
    """Oracle: torch.chunk's own parts, out of files that the library reads. And nothing is pickled."""
    train(tmp_path / "two", 1, 2, tied=False)
    place = tmp_path / "two" / "step-0000001"
    files = {path.name for path in place.iterdir()}
    assert files == {
        "model.safetensors", "optimizer-rank0of2.safetensors", "optimizer-rank1of2.safetensors", "state.json",
        "manifest.json",
    }  # fmt: skip
    found, _ = newest_valid(tmp_path / "two")
    assert found is not None
    for rank in range(2):
        for name, part in load_file(place / f"optimizer-rank{rank}of2.safetensors").items():
            chunks = found.tensors[name].chunk(2)
            assert torch.equal(part, chunks[rank] if rank < len(chunks) else part[:0])


@pytest.mark.timeout(120)
def test_in_bfloat16_under_torchrun(tmp_path: Path) -> None:
    """Masters stay float32 and are what is saved; the losses are those of float32 within bfloat16's precision."""
    task = {"folder": str(tmp_path / "c"), "steps": 3, "result": str(tmp_path / "r"), "dtype": "bfloat16"}
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(SCRIPT),
        json.dumps(task),
    ]
    root = str(Path(ojak.errors.__file__).parents[1])
    variables = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1", **LOOPBACK}
    done = subprocess.run(
        [sys.executable, *command], env=variables, capture_output=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    told = json.loads((tmp_path / "r").read_text("utf-8"))
    exact = train(tmp_path / "exact", 3, 1)
    assert near(told[0]["losses"], exact["losses"]) < 0.03
    found, _ = newest_valid(tmp_path / "c")
    assert found is not None
    assert {tensor.dtype for tensor in found.tensors.values()} == {torch.float32}


@pytest.mark.timeout(60)
def test_what_fails_in_one_process_fails_in_all(tmp_path: Path) -> None:
    """The one says what it was, the other that it was another; neither waits for ever."""
    port = str(free_port())
    children = []
    for rank in range(2):
        child = os.fork()
        if not child:
            os.environ.update(
                RANK=str(rank),
                LOCAL_RANK=str(rank),
                WORLD_SIZE="2",
                MASTER_ADDR="127.0.0.1",
                MASTER_PORT=port,
                **LOOPBACK,
            )
            os._exit(_fail_in_the_second())
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [4, 3]


def _fail_in_the_second() -> int:
    try:
        with joined(torch.device("cpu")) as processes, processes.together("saving"):
            if processes.rank == 1:
                raise KeyError("x")
    except KeyError:
        return 3
    except OjakError as error:
        return 4 if error.what == "saving failed in another process" else 1
    return 0


@pytest.mark.parametrize(("rows", "size"), [(10, 1), (10, 2), (11, 2), (11, 4), (3, 8), (1, 2)])
def test_parts_are_those_of_chunk(rows: int, size: int) -> None:
    chunks = torch.arange(rows).chunk(size)
    for rank in range(size):
        wanted = chunks[rank].tolist() if rank < len(chunks) else []
        assert list(range(*part_rows(rows, rank, size))) == wanted


def test_alone_every_question_is_answered_at_once() -> None:
    assert ALONE.total(3, 2.5) == [3.0, 2.5]
    assert ALONE.any(True)
    assert not ALONE.any(False)
    assert ALONE.texts("é") == ["é"]
    assert ALONE.from_first(7) == 7
    with pytest.raises(KeyError), ALONE.together("x"):
        raise KeyError("y")


def test_without_torchrun_a_run_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with joined(torch.device("cpu")) as processes:
        assert processes == ALONE
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(UsageError, match="RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set"),
        joined(torch.device("cpu")),
    ):
        pass
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(UsageError, match="WORLD_SIZE is 'two'"), joined(torch.device("cpu")):
        pass
