"""docs/serve.md: its program runs, its lists are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from serving import Running

from ojak.serve import guard, worker
from ojak.serve import server as server_module
from ojak.serve.parameters import HARMLESS, MOST_CHOICES, MOST_LOGPROBS, MOST_STOPS, NEUTRAL

PAGE = (Path(__file__).parents[2] / "docs/serve.md").read_text("utf-8")


def test_the_program_runs(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = re.findall(r"^```\n(from openai.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    here = program.replace("http://127.0.0.1:8000/v1", server.service.url)
    small = here.replace("smollm2-135m-instruct", "tiny").replace("stream=True", "stream=True, max_tokens=20")
    assert small.count("tiny") == 1
    exec(compile(small, "docs/serve.md", "exec"), {})
    assert capsys.readouterr().out


def names(sentence: str) -> set[str]:
    """The names listed after the words of a sentence, up to its full stop."""
    (listed,) = re.findall(
        re.escape(sentence) + r"(.*?)\.\s",
        PAGE.replace("stream_options.inc", "stream_options-inc"),
        re.DOTALL,
    )
    return set(re.findall(r"`(\w+)`", listed))


def test_the_lists_are_whole() -> None:
    assert names("because they change no answer: ") - {"name"} == HARMLESS
    assert names("unless their value asks for nothing: ") == {*NEUTRAL, "best_of"}


def test_the_numbers_are_those_of_the_code() -> None:
    assert (MOST_CHOICES, MOST_STOPS, MOST_LOGPROBS, worker.MOST_WAITING) == (128, 16, 20, 256)
    assert (guard.MOST_BODY_BYTES, guard.MOST_DEPTH, guard.BODY_SECONDS) == (1 << 20, 32, 10)
    assert (guard.MOST_HEADER_BYTES, server_module.HEADER_SECONDS) == (16 << 10, 15)
    assert (server_module.MOST_CONNECTIONS, server_module.STALLED_SECONDS, server_module.GRACE_SECONDS) == (
        512,
        60,
        10,
    )
    for said in ("up to 128 texts", "up to 16 texts", "up to 20 alternatives", "up to 256 more", "1 MiB", "32 levels",
                 "within 10 s", "16 KiB and 15 seconds", "512 connections", "a minute", "ten seconds"):  # fmt: skip
        assert said in PAGE, said
