"""`ojak ablate`: from a grid to arms that read the same rows, and to a table that says what is decided."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ojak import recipe
from ojak.artifact import Artifact
from ojak.cli.app import app
from ojak.errors import InputRefused, UsageError, VerificationFailed
from ojak.formats import load
from ojak.model.load import read_source
from ojak.model.source import Source
from ojak.records import Document
from ojak.report.ablation import Ablation, read_ablation
from ojak.train.grid import GridConfig, arm_facts, make_grid

EXPERIMENT = Path(__file__).parent.parent.parent / "experiments" / "ablation.yaml"
GRID = """\
version: 1
name: tiny
stages:
  grid:
    data: [texts.jsonl]
    validation: 0.2
    tokens: 300
    max_len: 32
    base: {vocab_size: 270, hidden_size: 16, intermediate_size: 24, num_hidden_layers: 2, num_attention_heads: 2, num_key_value_heads: 1, sliding_window: 8}
    factors:
      norms: {pre: {norms: pre}}
      vocabulary: {more: {vocab_size: 290}}
      distillation: {kd: {train: {objective: distil, distil: {teacher: "@train/reference", texts: true}}}}
  train: {seeds: [0, 1], batch: 2, packing: true, dtype: float32, lr: 1.0e-2, peak_flops: 1.0e+12, checkpoint: {every_steps: 0}}
  evaluate: {measures: [likelihood], dtype: float32}
  report:
"""
ARMS = ["reference", "norms-pre", "vocabulary-more", "distillation-kd"]


def write(folder: Path) -> None:
    (folder / "grid.yaml").write_text(GRID, "utf-8")
    draw = random.Random(0)
    words = ["magpie", "crow", "bridge", "river", "sky", "seven", "night", "star", "wing", "stone"]
    rows = [{"id": f"t{i}", "text": " ".join(draw.choices(words, k=40))} for i in range(20)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def ojak(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["ablate", "grid.yaml", "--out", "run", "--json", *arguments])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_a_killed_grid_goes_on_and_its_table_is_that_of_its_parts(folder: Path) -> None:
    write(folder)
    command = [
        sys.executable,
        "-c",
        "from ojak.cli import main; main()",
        "ablate",
        "grid.yaml",
        "--out",
        "run",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(folder.glob("run/train/*/*/manifest.json"))) < 2 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path: os.stat(path).st_mtime_ns for path in folder.glob("run/train/*/*/manifest.json")}
    assert 2 <= len(finished) < 2 * len(ARMS)

    facts = ojak()
    assert {path: os.stat(path).st_mtime_ns for path in finished} == finished, (
        "a finished run is not made again"
    )
    assert list(facts["arms"]) == ARMS
    assert (facts["compared"], facts["seeds"], facts["by_chance"]) == (3, 2, pytest.approx(0.15))
    manifests = {
        (arm, seed): json.loads((folder / f"run/train/{arm}/seed-{seed}/manifest.json").read_bytes())
        for arm in ARMS for seed in (0, 1)
    }  # fmt: skip
    order = {key: (each["rows_sha256"], each["order_sha256"]) for key, each in manifests.items()}
    for arm, told in facts["arms"].items():
        alike = [order[arm, seed] == order["reference", seed] for seed in (0, 1)]
        assert told["same_rows"] == (None if arm == "vocabulary-more" else True)
        assert alike == [arm != "vocabulary-more"] * 2
    assert order["reference", 0] != order["reference", 1], "another seed has another order"
    weights = {arm: read_source(str(folder / f"run/train/{arm}/seed-0")) for arm in ARMS}
    for arm, source in weights.items():
        assert count(source) == facts["arms"][arm]["parameters"]
    means = {arm: told["bits_per_byte"]["values"] for arm, told in facts["arms"].items()}
    for arm in ARMS[1:]:
        pairs = [ours - theirs for ours, theirs in zip(means[arm], means["reference"], strict=True)]
        assert facts["arms"][arm]["difference"]["value"] == pytest.approx(sum(pairs) / 2)
    equal = [each["result"]["tokens"] for (arm, _), each in manifests.items() if arm != "vocabulary-more"]
    assert max(equal) - min(equal) <= 2 * 32, "equal budgets, to a step"
    assert (
        json.loads((folder / "run/train/norms-pre/seed-0/model/config.json").read_bytes())["model_type"]
        == "ojak"
    )
    page = (folder / "run/report/index.html").read_text("utf-8")
    assert "The ablation" in page and page.count('class="effect ') == 3 and "by chance" in page
    before = os.stat(folder / "run/evaluate/manifest.json").st_mtime_ns
    assert ojak() == facts
    assert os.stat(folder / "run/evaluate/manifest.json").st_mtime_ns == before


def count(source: Source) -> int:
    return sum(weight.numel() for _, weight in source.tensors())


def test_the_tables_order_check_bites(folder: Path) -> None:
    write(folder)
    told = {"reference": {"vocab_size": 9, "parameters": 1}, "other": {"vocab_size": 9, "parameters": 1}}
    manifest = {"kind": "grid", "stats": {"arms": told, "against": "reference"}}
    (folder / "grid").mkdir()
    (folder / "grid/manifest.json").write_text(json.dumps(manifest))
    runs = []
    for arm, digest in (("reference", "a"), ("other", "b")):
        (folder / f"train/{arm}/seed-0").mkdir(parents=True)
        (folder / f"train/{arm}/seed-0/manifest.json").write_text(
            json.dumps({"rows_sha256": "r", "order_sha256": digest})
        )
        runs.append({"arm": arm, "seed": 0, "folder": f"{arm}/seed-0", "result": {"tokens": 5}})
    (folder / "train/manifest.json").write_text(json.dumps({"kind": "train", "stats": {"runs": runs}}))
    found = read_ablation(folder / "grid", [folder / "train"], None)
    assert isinstance(found, Ablation)
    with pytest.raises(VerificationFailed, match="other read other rows"):
        found.check()
    replace(found, lines=found.lines[:1]).check()
    assert "OTHERS" in found.table()[2]


def test_equal_compute_and_equal_parameters() -> None:
    config = GridConfig(
        data=("x",), tokens=100_000, factors={
            "vocabulary": {"half": {"vocab_size": 1024}, "double": {"vocab_size": 8192}},
            "shape": {"wide": {"num_hidden_layers": 2, "same_parameters": True}},
            "window": {"none": {"local_layers": 0}},
        }, product=("shape", "window"),
    )  # fmt: skip
    facts = arm_facts(config)
    base = facts["reference"]
    spent = {arm: each["tokens"] * each["flops_per_token"] for arm, each in facts.items()}
    for arm in ("vocabulary-half", "vocabulary-double"):
        assert spent[arm] == pytest.approx(spent["reference"], rel=1e-4)
        assert facts[arm]["tokens"] != base["tokens"]
    assert facts["shape-wide"]["parameters"] == pytest.approx(base["parameters"], rel=2e-3)
    both = facts["shape-wide.window-none"]
    assert both["factors"] == ["shape", "window"]
    assert both["parameters"] == facts["shape-wide"]["parameters"]
    assert both["flops_per_token"] > facts["shape-wide"]["flops_per_token"], "more places are seen"
    assert config.arms()["shape-wide"] == {"model": "@grid/shape-wide"}
    assert config.arms()["vocabulary-half"]["max_tokens"] == facts["vocabulary-half"]["tokens"]


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"factors": {"norms": {"x": {"norms": "none"}}}}, "norms-x.norms"),
        ({"factors": {"a": {"x": {"window": 3}}}}, "no setting 'a-x.window'"),
        ({"factors": {"a": {"UP": {}}}}, "cannot be the name of an arm"),
        ({"factors": {"a": {"x": {"train": {"model": "m"}}}}}, "without model"),
        ({"product": ["a"]}, "two or more"),
        ({"product": ["a", "b"]}, "is no factor"),
    ],
)
def test_a_wrong_grid_is_told_by_its_place(values: dict[str, Any], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        GridConfig(**{"data": ("x",), "tokens": 10, **values})


def test_the_texts_are_divided_and_tokenizers_are_shared(folder: Path) -> None:
    write(folder)
    base = {"vocab_size": 270, "hidden_size": 16, "num_attention_heads": 2}
    factors = {"groups": {"mha": {"num_key_value_heads": 2}}, "vocabulary": {"more": {"vocab_size": 280}}}
    config = GridConfig(data=("texts.jsonl",), validation=0.2, tokens=100, base=base, factors=factors)  # type: ignore[arg-type]
    made = make_grid(["texts.jsonl"], folder / "grid", config)
    assert (made.stats["train"], made.stats["validation"]) == (16, 4)
    every = {record.text for record in load(folder / "texts.jsonl") if isinstance(record, Document)}
    parts = [{record.text for record in made.records(name)} for name in ("train", "validation")]  # type: ignore[union-attr]
    assert parts[0] | parts[1] == every and not parts[0] & parts[1]
    models = folder / "grid/models"
    sizes = {path.parent.name: path.read_bytes() for path in models.glob("*/tokenizer.json")}
    assert sizes["reference"] == sizes["groups-mha"] != sizes["vocabulary-more"]
    assert not (folder / "grid/tokenizers/texts.jsonl").exists()
    with pytest.raises(UsageError, match="too few for a vocabulary"):
        make_grid(["texts.jsonl"], folder / "big", config.model_copy(update={"base": config.base.model_copy(update={"vocab_size": 9999})}))  # fmt: skip
    with pytest.raises(InputRefused, match="cannot be divided"):
        make_grid(["texts.jsonl"], folder / "one", config.model_copy(update={"validation": 0.99}))
    Artifact.open(made.path)


@pytest.mark.parametrize("scale", ["smoke", "small"])
def test_the_experiment_is_sound(scale: str) -> None:
    found = recipe.load(EXPERIMENT, sets=[f"scale={scale}"])
    grid, train = (
        next(item for item in found.chosen if item.stage.name == name) for name in ("grid", "train")
    )
    assert isinstance(grid.settings, GridConfig)
    assert train.resolved()["arms"] == grid.settings.arms()
    assert train.reads == ("grid",)
    switches = {variant.factors[0] for variant in grid.settings.variants()[1:]}
    assert switches == {
        "window", "groups", "caps", "norms", "shape", "vocabulary", "embeddings", "teacher", "distillation",
    }  # fmt: skip


def test_a_recipe_without_a_grid_is_refused(folder: Path) -> None:
    write(folder)
    (folder / "other.yaml").write_text(GRID.replace("  grid:", "  rows:").split("    validation")[0])
    done = CliRunner().invoke(app, ["ablate", "other.yaml"])
    assert done.exit_code == 2
    assert "no stage grid" in done.stderr
