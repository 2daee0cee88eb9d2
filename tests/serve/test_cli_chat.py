"""`ojak chat`: one answer, a conversation from a pipe, one at a terminal, adapters, and models that have no turns."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
from serving import tiny_chat_model
from typer.testing import CliRunner, Result

from ojak.cli.app import app
from ojak.model.lora import apply_lora, save_adapter
from ojak.model.lora_config import LoraConfig

pytestmark = pytest.mark.usefixtures("folder")
FIXED = ("--seed", "1", "--temperature", "1", "--max-tokens", "12")


@pytest.fixture
def model(folder: Path) -> str:
    tiny_chat_model().save("m")
    return "m"


def chat(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, ["chat", *arguments], input=stdin)


def test_one_answer(model: str) -> None:
    shown = chat(model, "--prompt", "One?", *FIXED)
    assert shown.exit_code == 0, shown.stderr
    told = json.loads(chat(model, "--prompt", "One?", "--json", *FIXED).stdout)
    assert (told["model"], told["seed"], told["completion_tokens"]) == ("m", 1, 12)
    assert told["finish_reason"] == "length"
    assert "cut after 12 tokens" in shown.stderr
    assert shown.stdout == visible(told["answer"]) + "\n"


def visible(text: str) -> str:
    from ojak.cli.terminal import visible as shown

    return shown(text)


def test_hidden_characters_are_shown(model: str) -> None:
    """Random bytes: a few hundred of them hold control characters."""
    shown = chat(model, "--prompt", "One?", "--seed", "2", "--temperature", "3", "--max-tokens", "300").stdout
    assert any("\u2400" <= char <= "\u2421" for char in shown)
    assert not set(shown) & {chr(code) for code in range(32) if chr(code) not in "\t\n"}


def test_lines_of_a_pipe_are_a_conversation(model: str) -> None:
    both = chat(model, *FIXED, stdin="One?\n\nTwo?\n")
    assert both.exit_code == 0
    assert both.stderr.count("cut after") == 2
    alone = chat(model, *FIXED, stdin="One?\n").stdout
    assert both.stdout.startswith(alone)
    assert "> " not in both.stderr


def test_a_refused_question_does_not_end_it(model: str) -> None:
    shown = chat(model, *FIXED, stdin="</s>\nTwo?\n")
    assert (shown.exit_code, "1 of 2 questions got no answer" in shown.stderr) == (3, True)
    assert "forge a turn" in shown.stderr
    assert shown.stderr.count("cut after") == 1
    assert chat(model, "--prompt", "</s>").exit_code == 9


def test_a_base_model_is_refused(folder: Path) -> None:
    replace(tiny_chat_model(), chat_template=None).save("base")
    (folder / "base/model.safetensors").write_bytes(b"not weights")  # the reason comes first
    result = chat("base", "--prompt", "One?")
    assert result.exit_code == 9


def test_json_wants_a_prompt(model: str) -> None:
    result = chat(model, "--json")
    assert (result.exit_code, "--prompt" in result.stderr) == (2, True)
    assert chat("scripted", "--prompt", "x").exit_code == 2


def test_an_adapter_s_folder_is_taken(model: str) -> None:
    from ojak.model.load import load_model

    base = load_model(model, dtype="float32", device="cpu")
    with torch.no_grad():
        for parameter in apply_lora(base.decoder, LoraConfig(r=2), seed=0):
            parameter += 0.5
    save_adapter("adapter", base, LoraConfig(r=2), base=model)
    plain = json.loads(chat(model, "--prompt", "One?", "--json", *FIXED).stdout)
    adapted = json.loads(chat("adapter", "--prompt", "One?", "--json", *FIXED).stdout)
    assert adapted["model"] == "adapter"
    assert adapted["answer"] != plain["answer"]


# What is begun in a shell's background ignores Ctrl-C, these tests too, and ojak keeps to that.
AT_A_TERMINAL = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from ojak.cli import main
main()
"""


@pytest.mark.timeout(120)
def test_ctrl_c_ends_the_answer_and_then_the_program(folder: Path) -> None:
    endless = tiny_chat_model(max_position_embeddings=200_000)
    endless.decoder.get_parameter("lm_head.weight")[[tiny.BOS, tiny.EOS]] = 0  # it never stops
    endless.save("m")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", AT_A_TERMINAL, "chat", "m", "--temperature", "0", "--max-tokens", "190000"],
        stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, text=False, start_new_session=True,
        env={**os.environ, "TERM": "dumb"},
    )  # fmt: skip
    os.close(theirs)
    try:
        wait_for(ours, b"> ")
        os.write(ours, b"One?\n")
        wait_for(ours, b"\n", more=60)
        process.send_signal(signal.SIGINT)
        wait_for(ours, b"\n> ")
        time.sleep(0.5)  # the mark is written a moment before its line is read
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert process.stderr is not None
        said = process.stderr.read().decode()
        assert "stopped" in said
        assert "Traceback" not in said
    finally:
        process.kill()
        process.communicate()
        os.close(ours)


def wait_for(terminal: int, wanted: bytes, *, more: int = 0) -> None:
    """Reads until `wanted` has come, and so many bytes after it."""
    seen, end = b"", time.monotonic() + 60
    while wanted not in seen or len(seen.partition(wanted)[2]) < more:
        assert time.monotonic() < end, seen[-300:]
        seen += os.read(terminal, 4096)
