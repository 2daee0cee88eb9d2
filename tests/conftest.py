"""What holds for every test: few threads, a count of the tests at the end, and for those that ask an empty folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported: processes side by side must not each take all cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with an empty cache, as if no licence was ever accepted."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OJAK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OJAK_OFFLINE", "1")
    for name in ("OJAK_ACCEPT_LICENSES", "OJAK_DEBUG", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts = {
        word: len(terminalreporter.getreports(word))
        for word in ("passed", "failed", "error", "skipped", "xfailed")
    }
    ran = counts["passed"] + counts["failed"] + counts["xfailed"]
    said = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    terminalreporter.write_line(f"tests run: {ran} ({said or 'none'})")
