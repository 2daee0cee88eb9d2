"""A process that dies while it saves a checkpoint, wherever that is: the one before, or the new one, is whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from made_states import company, same, save, state

from ojak.model import tensor_files
from ojak.train.checkpoints import newest_valid, rehearse, save_checkpoint

KILLED = 9
HOOKED = ("fsync", "rename", "mkdir", "unlink", "rmdir", "open")


def dies_at(moment: int, act: Callable[[], object]) -> bool:
    """Do `act` in a child that ends, with nothing tidied up, before its system call number `moment`; False if it
    came to its end first."""
    child = os.fork()
    if not child:
        done = 0

        def hooked(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **options: Any) -> Any:
                nonlocal done
                if done == moment:
                    os._exit(KILLED)
                done += 1
                return function(*args, **options)

            return call

        for name in HOOKED:
            setattr(os, name, hooked(getattr(os, name)))
        tensor_files._bytes = hooked(tensor_files._bytes)  # before the bytes of each tensor are written
        try:
            act()
            os._exit(0)
        finally:
            os._exit(1)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ended in (0, KILLED)
    return ended == KILLED


@pytest.mark.timeout(120)
def test_killed_between_any_two_writes_of_a_checkpoint(tmp_path: Path) -> None:
    """With two checkpoints there, the third lets the first go: its removal is killed, too."""
    moment, found = 0, []
    while True:
        folder = tmp_path / str(moment)
        save(folder, 1, 2)
        killed = dies_at(moment, partial(save_checkpoint, folder, state(3), company=company))
        held, reasons = newest_valid(folder, like=state(0))
        assert held is not None
        assert same(held, state(held.step)), moment
        assert "passed over" not in reasons[0], "a half-written folder was taken for a checkpoint"
        found.append(held.step)
        save(folder, 3, 4)  # the next run tidies up
        assert {path.name for path in folder.iterdir()} == {"step-0000003", "step-0000004"}
        if not killed:
            break
        moment += 1
    assert found == sorted(found), "a later death lost what an earlier one kept"
    assert set(found) == {2, 3}
    assert moment > 30, "there were fewer moments to die at than a checkpoint has writes"


@pytest.mark.timeout(60)
def test_killed_in_a_rehearsal(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    for moment in range(0, 60, 4):
        dies_at(moment, lambda: rehearse(tmp_path, state(0), company=company))
        assert same(newest_valid(tmp_path, like=state(0))[0], state(2))
    save(tmp_path, 3)
    assert {path.name for path in tmp_path.iterdir()} == {"step-0000002", "step-0000003"}
