"""Folders that killed drivers left are removed; those of the living, of others, and what links lead to stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ojak.engines.ray_leftovers import LOCK, PREFIX, RayFolder, sweep

HERE = Path(__file__).resolve().parent
DRIVER = """
import sys
from ojak.engines.ray_leftovers import RayFolder
print(RayFolder().path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files of its own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def driver(place: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER],
        env={**os.environ, "TMPDIR": str(place), "PYTHONPATH": str(HERE.parent.parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def test_a_killed_driver_s_folder_goes_and_a_living_one_s_stays(
    place: Path, driver: subprocess.Popen[str]
) -> None:
    assert driver.stdout
    path = Path(driver.stdout.readline().strip())
    (path / "session" / "logs").mkdir(parents=True)
    (path / "session" / "logs" / "a").write_text("b")
    assert path.parent == place
    assert path.name.startswith(PREFIX)
    assert sweep() == []
    assert path.is_dir()
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    assert path.is_dir(), "nobody was there to remove it"
    assert sweep() == [path]
    assert list(place.iterdir()) == []


def test_our_own_stays_until_it_is_removed(place: Path) -> None:
    own = RayFolder()
    assert sweep() == []
    own.remove()
    own.remove()
    assert list(place.iterdir()) == []


def test_a_folder_without_a_driver_s_lock_stays(place: Path) -> None:
    (place / f"{PREFIX}other").mkdir()
    (place / f"{PREFIX}file").write_text("no folder")
    assert sweep() == []
    assert len(list(place.iterdir())) == 2


def test_links_are_not_followed(place: Path) -> None:
    home = place / "home"
    home.mkdir()
    (home / LOCK).touch()
    (home / "thesis").touch()
    (place / f"{PREFIX}link").symlink_to(home, target_is_directory=True)
    stale = place / f"{PREFIX}lock"
    stale.mkdir()
    (stale / LOCK).symlink_to(home / LOCK)
    assert sweep() == []
    inner = place / f"{PREFIX}inner"
    inner.mkdir()
    (inner / LOCK).touch()
    (inner / "elsewhere").symlink_to(home, target_is_directory=True)
    assert sweep() == [inner]
    assert (home / "thesis").exists()


def test_other_users_folders_stay(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place / f"{PREFIX}theirs"
    folder.mkdir()
    (folder / LOCK).touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert sweep() == []
    assert sweep() == [folder]
