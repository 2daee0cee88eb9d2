"""`ojak evaluate --window-sweep`: figures against whole sequences, going on after a stop, what is refused, the page."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from typer.testing import CliRunner, Result

from ojak.artifact import publish, verify
from ojak.cli.app import app
from ojak.errors import ResumeRefused
from ojak.evaluate import window as module
from ojak.evaluate.window import cells_of, pieces_of, sweep_windows
from ojak.evaluate.window_config import WindowConfig
from ojak.model.load import load_model
from ojak.report.window import NUMBERS, write_window_page

TEXT = "".join(f"The {n}th magpie carries {n * n} twigs to the bridge.\n" for n in range(20))
FLAGS = ["--contexts", "64,128", "--windows", "16,64,500", "--tokens", "256", "--dtype", "float32"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    families = ("gemma2", "gemma3", "llama")
    return {family: str(tiny.model(family).save(root / family)) for family in families}


@pytest.fixture
def text(tmp_path: Path) -> str:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, "utf-8")
    return str(path)


def ojak(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["evaluate", *arguments])


def perplexity(folder: str, context: int, window: int, tokens: int) -> float:
    """From whole pieces, by the decoder with its masks in full. Saved, the tokenizer adds no BOS."""
    model = load_model(folder, dtype="float32")
    decoder = tiny.Decoder(replace(model.config, sliding_window=window)).eval()
    decoder.load_state_dict(model.decoder.state_dict())
    ids = model.tokenizer.encode(TEXT)
    total = 0.0
    for begin in range(0, tokens, context):
        piece, after = ids[begin : begin + context], ids[begin + 1 : begin + context + 1]
        with torch.no_grad():
            logits = decoder(torch.tensor([piece]))[0].double()
        total -= logits.log_softmax(-1)[range(context), after].sum().item()
    return math.exp(total / tokens)


def test_every_cell_and_the_artifact(models: dict[str, str], text: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = ojak(
        models["gemma2"], "--data", text, "--window-sweep", "--softcaps", *FLAGS, "--out", str(out), "--json"
    )
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    cells = told["cells"]
    named = [(cell["context"], cell["window"], cell["softcaps"]) for cell in cells]
    of_64 = [(64, 9, True), (64, 16, True), (64, None, True), (64, 9, False)]
    of_128 = [(128, 9, True), (128, 16, True), (128, 64, True), (128, None, True), (128, 9, False)]
    assert named == of_64 + of_128
    assert told["tokens"] == 256
    for cell in cells:
        low, high = cell["perplexity_interval"]
        assert low <= cell["perplexity"] <= high
        if cell["softcaps"]:
            wanted = perplexity(models["gemma2"], cell["context"], cell["window"] or 1000, 256)
            assert cell["perplexity"] == pytest.approx(wanted, rel=1e-3)
        if cell["trained"]:
            assert cell["difference"] == 0
        assert cell["decode_tokens_s"] > 0
    assert cells[3]["perplexity"] != pytest.approx(cells[0]["perplexity"], rel=1e-3), "the caps bite"
    artifact = verify(out)
    assert artifact.kind == "window-sweep"
    assert artifact.stats["cells"] == cells
    assert artifact.manifest["inputs"][0]["what"] == "data"
    again = ojak(models["gemma2"], "--data", text, "--window-sweep", *FLAGS, "--out", str(out))
    assert again.exit_code == 2, "nothing is overwritten"


def test_a_page_shows_it_and_a_hostile_manifest_does_not_act(
    models: dict[str, str], text: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = ojak(models["gemma3"], "--data", text, "--window-sweep", *FLAGS, "--out", str(out))
    assert result.exit_code == 0, result.stderr
    assert "128" in result.stdout
    page = (out / "index.html").read_text("utf-8")
    assert page.count('<figure class="chart">') == 4
    assert page.count('class="line s1" d="M') == 8, "a line and its key, for each figure"
    other = CliRunner().invoke(app, ["report", str(out), "--out", str(tmp_path / "page")])
    assert other.exit_code == 0, other.stderr
    assert (tmp_path / "page" / "index.html").read_text("utf-8") == page
    manifest = json.loads((out / "manifest.json").read_text("utf-8"))
    manifest["stats"]["model"] = "<script>alert(1)</script>"
    manifest["stats"]["cells"] += [
        {"context": "<b>"},
        7,
        {**manifest["stats"]["cells"][0], "perplexity_interval": 3},
    ]
    (out / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    hostile = write_window_page(out, replace=True).read_text("utf-8")
    assert "<script" not in hostile
    assert hostile.count("<tr>") == page.count("<tr>")


@pytest.mark.parametrize("capped", [True, False])
def test_a_page_without_cells_of_one_kind_draws_the_others(tmp_path: Path, capped: bool) -> None:
    cell = dict.fromkeys(NUMBERS, 2.0) | {"context": 64, "window": 16, "softcaps": capped}
    stats = {"model": "m", "cells": [cell | {"perplexity_interval": [1.0, 3.0]}]}
    publish(tmp_path / "out", kind="window-sweep", records=[], config={}, stats=stats)
    page = write_window_page(tmp_path / "out").read_text("utf-8")
    assert page.count('class="line s0" d="M') == 8, "a line and its key, for each figure"
    assert ("The lines are without the soft caps" in page) != capped


def test_a_run_that_was_stopped_goes_on_cell_by_cell(
    models: dict[str, str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values: dict[str, Any] = {"contexts": (64, 128), "windows": (16,), "tokens": 256, "dtype": "float32"}
    config = WindowConfig(model=models["gemma2"], data=text, **values)
    wanted = sweep_windows(config)
    read: list[int | None] = []
    kept = module.read_texts

    def counted(*arguments: Any, **named: Any) -> Any:
        read.append(arguments[2].window)
        if len(read) == 3:
            raise KeyboardInterrupt
        return kept(*arguments, **named)

    monkeypatch.setattr(module, "read_texts", counted)
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        sweep_windows(config, out)
    read.append(-1)
    got = sweep_windows(config, out)
    assert read == [9, 16, None, -1, None, 9, 16, None], "two cells were there, the third is read again"
    assert [cell["perplexity"] for cell in got["cells"]] == [cell["perplexity"] for cell in wanted["cells"]]
    (tmp_path / "text.txt").write_text(TEXT[::-1], "utf-8")
    (out / "manifest.json").unlink()
    with pytest.raises(ResumeRefused, match="another model or text"):
        sweep_windows(config, out)


@pytest.mark.parametrize(
    ("family", "flags", "code", "said"),
    [
        ("llama", [], 9, "has no window to vary"),
        ("gemma3", ["--softcaps"], 9, "has no soft caps"),
        ("gemma2", ["--contexts", "1024"], 2, "up to 512"),
        ("gemma2", ["--contexts", "512", "--tokens", "100"], 2, "at least the largest context"),
        ("gemma2", ["--contexts", "100,128"], 2, "does not divide"),
        ("gemma2", ["--windows", "0"], 2, "greater than or equal to 1"),
        ("gemma2", ["--windows", "a"], 2, "no list of whole numbers"),
        ("gemma2", ["--measure", "answers"], 2, "a measurement of its own"),
        ("gemma2", ["--max-tokens", "256"], 2, "--template-of, --max-tokens and --checks"),
        ("gemma2", ["--checks", "5"], 2, "a measurement of its own"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    models: dict[str, str], text: str, family: str, flags: list[str], code: int, said: str
) -> None:
    result = ojak(models[family], "--data", text, "--window-sweep", "--contexts", "64", *flags)
    assert (result.exit_code, said in result.stderr) == (code, True), result.stderr


def test_too_little_text_and_conversations_are_refused(models: dict[str, str], tmp_path: Path) -> None:
    chats = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": TEXT}]
    chats.write_text(json.dumps({"messages": turns}) + "\n", "utf-8")
    result = ojak(models["gemma2"], "--data", str(chats), "--window-sweep", "--contexts", "64")
    assert (result.exit_code, "too little text" in result.stderr) == (9, True)
    result = ojak(models["gemma2"], "--data", str(chats), "--windows", "64")
    assert (result.exit_code, "belongs to --window-sweep" in result.stderr) == (2, True)


def test_a_model_without_a_bos_predicts_the_same_tokens() -> None:
    ids = list(range(9))
    assert list(pieces_of(ids, 4, None)) == [([0, 1, 2, 3], [1, 2, 3, 4]), ([4, 5, 6, 7], [5, 6, 7, 8])]
    assert list(pieces_of(ids, 4, 99))[1] == ([99, 5, 6, 7], [5, 6, 7, 8])


def test_one_cell_is_the_models_own_whatever_its_window() -> None:
    config = WindowConfig(model="m", data="d", contexts=(16, 32), windows=(8,), decoded=4)
    for trained in (4, 8, 16, 24, 100):
        for context in config.contexts:
            own = [cell for cell in cells_of(config, trained) if cell.trained and cell.context == context]
            assert len(own) == 1
            assert (own[0].window or context) == min(trained, context)
