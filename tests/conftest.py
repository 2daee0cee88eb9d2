"""What holds for every test: few threads, and a line at the end that says how many tests ran."""

from __future__ import annotations

import os

import pytest

# Before torch is imported: processes side by side must not each take all cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts = {
        word: len(terminalreporter.getreports(word))
        for word in ("passed", "failed", "error", "skipped", "xfailed")
    }
    ran = counts["passed"] + counts["failed"] + counts["xfailed"]
    said = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    terminalreporter.write_line(f"tests run: {ran} ({said or 'none'})")
