"""Distillation: caches against the whole predictions, looked up by rows; what is refused; the objective in a run."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_run
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from ojak import recipe
from ojak._recipe_run import plan as recipe_plan
from ojak._recipe_run import run as run_recipe
from ojak.artifact import Artifact, verify
from ojak.cli.app import app
from ojak.errors import InputRefused, ResumeRefused, Stopped, TargetExists, UsageError, VerificationFailed
from ojak.model.load import Model, load_model
from ojak.train import distil_make
from ojak.train.arms import ArmsConfig
from ojak.train.config import TrainConfig
from ojak.train.course import Course
from ojak.train.distil import distil_objective
from ojak.train.distil_cache import Cache, is_cache
from ojak.train.distil_config import DistilCacheConfig, DistilConfig
from ojak.train.distil_make import cache_teacher, most_likely
from ojak.train.objectives import Material, NextToken, objective
from ojak.train.plan import plan_run
from ojak.train.processes import ALONE
from ojak.train.rows import Rows
from ojak.train.run import train
from ojak.train.setup import rows_for, styled

RECIPE = Path(__file__).parents[2] / "recipes/distil.yaml"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a teacher of capped logits, a student, rows, and whole and short caches; read, never written to."""
    folder = tmp_path_factory.mktemp("distil")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OJAK_HOME", str(folder / "home"))
        tiny.model("gemma2", scale=0.3).save(folder / "teacher")
        tiny.model(scale=0.1).save(folder / "model")
        tiny_run.data(folder)
        cache_teacher(cache_config(folder, "whole", top_k=tiny.VOCAB, dtype="float32"))
        cache_teacher(cache_config(folder, "short", top_k=8))
    return folder


@pytest.fixture
def folder(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OJAK_HOME", str(made / "home"))
    return made


def cache_config(folder: Path, out: str, **changes: Any) -> DistilCacheConfig:
    settings: dict[str, Any] = {
        "teacher": str(folder / "teacher"), "data": (str(folder / "rows.json"),), "out": folder / out,
        "style": "alpaca", "max_len": 400, "compute": "float32",
    }  # fmt: skip
    return DistilCacheConfig(**(settings | changes))


def config(folder: Path, teacher: str = "teacher", out: Path | str = "out", **changes: Any) -> TrainConfig:
    own = {"teacher": str(folder / teacher), **changes.pop("distil", {})}
    return tiny_run.config(folder, out=str(out), objective="distil", distil=own, **changes)


def material(made: TrainConfig) -> Material:
    model = styled(made, load_model(made.model, dtype="float32"))
    rows, _ = rows_for(made, model, lambda line: None)
    return Material(model, rows, ALONE, lambda line: None)


def losses(made: TrainConfig, *, epoch: int = 0) -> tuple[float, torch.Tensor]:
    """(loss a token, gradient of the first layer) of a step."""
    stuff = material(made)
    decoder = stuff.model.decoder.requires_grad_(True)
    batch = Course(made, stuff.rows, ALONE).epoch(epoch).step(1)[0]
    loss = objective(made, stuff)(decoder, batch)
    loss.sum.backward()
    grad = decoder.get_parameter("model.layers.0.mlp.up_proj.weight").grad
    assert grad is not None and loss.supervised == batch.supervised
    return float(loss.sum.detach()) / loss.supervised, grad


def test_the_loss_is_the_divergence_from_the_teacher_row_by_row(folder: Path) -> None:
    """Against numpy in float64 over the plain logits of both models, a row at a time."""
    made = config(folder, distil={"temperature": 1.5, "ce_weight": 0.25})
    stuff, teacher = material(made), load_model(folder / "teacher", dtype="float32")
    (batch,) = Course(made, stuff.rows, ALONE).epoch(0).step(1)
    total = 0.0
    for number in batch.rows:
        ids, mask = stuff.rows[number]
        places = np.flatnonzero(mask) - 1
        both = [_log_probs(model, ids, places, 1.5) for model in (teacher, stuff.model)]
        p, q = both
        total += 0.75 * float((np.exp(p) * (p - q)).sum())
        plain = _log_probs(stuff.model, ids, places, 1.0)
        total -= 0.25 * float(plain[np.arange(len(places)), ids[places + 1]].sum())
    found, _ = losses(made)
    assert found == pytest.approx(total / batch.supervised, rel=1e-5)


def _log_probs(model: Model, ids: Any, places: Any, temperature: float) -> Any:
    with torch.no_grad():
        logits = model.decoder(torch.from_numpy(ids.astype(np.int64))[None])[0, places].double().numpy()
    scaled = logits / temperature
    return scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))


@pytest.mark.parametrize("kind", ["forward-kl", "reverse-kl", "jsd"])
def test_a_cache_of_all_tokens_is_the_teacher_itself(folder: Path, kind: str) -> None:
    dense, dense_grad = losses(config(folder, distil={"loss": kind}))
    cached, cached_grad = losses(config(folder, "whole", distil={"loss": kind}))
    assert cached == pytest.approx(dense, rel=1e-4)
    torch.testing.assert_close(cached_grad, dense_grad, rtol=1e-3, atol=1e-6)
    short, _ = losses(config(folder, "short", distil={"loss": kind}))
    cut, _ = losses(config(folder, "whole", distil={"loss": kind, "top_k": 8}))
    assert short == pytest.approx(cut, rel=2e-3), "a bucket for the others, in float16"
    assert short < dense, "which is of less than what it gathers (data processing inequality)"


def test_rows_are_found_whatever_is_chosen_and_in_whatever_layout(folder: Path) -> None:
    """A part of the rows, two sources, another epoch, packed, padded, shared or not: the teacher's own loss each time."""
    more = folder / "more.json"
    more.write_text(json.dumps(tiny_run.rows(40)[24:]), "utf-8")
    data = (f"{folder / 'rows.json'}", f"{more}:2")
    if not (folder / "both").exists():
        cache_teacher(cache_config(folder, "both", data=(*data[:1], str(more)), top_k=tiny.VOCAB, dtype="float32"))  # fmt: skip
    layouts: tuple[dict[str, Any], ...] = (
        {"val_share": 0.25, "max_rows": 15},
        {"packing": True, "batch": 3},
        {"padded": True},
        {"share_prefixes": False},
    )
    for changes in layouts:
        both = [
            losses(config(folder, name, data=data, **changes), epoch=1)[0] for name in ("teacher", "both")
        ]
        assert both[0] == pytest.approx(both[1], rel=1e-4)


def test_what_a_cache_says_of_itself(folder: Path) -> None:
    artifact = verify(folder / "short")
    (entry,) = artifact.stats["shards"]
    with safe_open(folder / "short/shards" / entry["path"], framework="np") as file:
        header = json.loads(file.metadata()["ojak"])
        indices, logs, tail = (file.get_tensor(name) for name in ("indices", "log_probs", "tail"))
    assert (header["top_k"], header["temperature"], header["dtype"]) == (8, 1.0, "float16")
    assert header["teacher_sha256"] == load_model(folder / "teacher").sha256
    assert "### Response:" in header["template"] and header["mask_roles"] == ["system", "user"]
    assert (indices.dtype, logs.dtype) == (np.uint16, np.float16)
    assert indices.shape == (artifact.stats["tokens"], 8)
    assert (np.diff(logs.astype(float), axis=1) <= 0).all(), "the most likely first"
    mass = np.exp(logs.astype(float)).sum(1) + np.exp(tail.astype(float))
    assert np.abs(mass - 1).max() < 0.01
    assert artifact.stats["tail_mass"] == pytest.approx(np.exp(tail.astype(float)).mean(), rel=1e-3)
    assert is_cache(str(folder / "short")) and not is_cache(str(folder / "model"))


def test_the_most_likely_against_brute_force() -> None:
    random = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(5, 6, generator=random), torch.randn(11, 6, generator=random) * 3
    logits = 5.0 * np.tanh(hidden.double().numpy() @ weight.double().numpy().T / 5.0) / 0.7
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for k in (1, 4, 11):
        found = most_likely(hidden, weight, k, 0.7, 5.0)
        order = np.argsort(-logs, axis=1)
        assert (found.indices_NK.numpy() == order[:, :k]).all()
        np.testing.assert_allclose(found.log_probs_NK, np.take_along_axis(logs, order, 1)[:, :k], atol=1e-5)
        rest = np.exp(np.take_along_axis(logs, order, 1)[:, k:]).sum(-1)
        np.testing.assert_allclose(found.tail_N.exp(), rest, atol=1e-6)
    assert not most_likely(hidden[:0], weight, 4, 1.0, None).tail_N.numel()


def test_a_killed_cache_goes_on_with_the_same_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distil_make, "SHARD_TOKENS", 60)
    cache_teacher(cache_config(folder, "never"))
    written: list[Path] = []
    plain = distil_make.write_atomic

    def dying(path: Path, data: bytes) -> None:
        if len(written) == 2 and path.suffix == ".safetensors":
            raise SystemExit(137)
        plain(path, data)
        written.append(path)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(distil_make, "write_atomic", dying)
        cache_teacher(cache_config(folder, "killed"))
    assert not (folder / "killed/manifest.json").exists()
    before = [path.stat().st_mtime_ns for path in written]
    with pytest.raises(ResumeRefused, match="something else"):
        cache_teacher(cache_config(folder, "killed", top_k=9))
    again = cache_teacher(cache_config(folder, "killed"))
    assert [path.stat().st_mtime_ns for path in written] == before, "what was done is not done again"
    files = [sorted((folder / name / "shards").iterdir()) for name in ("never", "killed")]
    assert len(files[0]) == len(files[1]) > 3
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert cache_teacher(cache_config(folder, "killed")).to_dict() == again.to_dict()
    with pytest.raises(TargetExists, match="another teacher, other rows or settings"):
        cache_teacher(cache_config(folder, "killed", temperature=2.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_roles": ()}, "another mask_roles"),
        ({"style": "phi-3"}, "another template"),
        ({"distil": {"temperature": 2.0}}, "at temperature 1, not 2"),
        ({"distil": {"top_k": 9}}, "holds 8 tokens of each place, not 9"),
        ({"data": ("other.json",)}, "the teacher read other texts"),
    ],
)
def test_a_cache_of_something_else_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    (folder / "other.json").write_text(json.dumps(tiny_run.rows(9)), "utf-8")
    if "data" in changes:
        changes = {**changes, "data": (str(folder / "other.json"),)}
    made = config(folder, "short", **changes)
    with pytest.raises(InputRefused, match=message):
        distil_objective(made, material(made), NextToken())


def test_other_tokenizers_and_losses_are_refused_with_the_way_out(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "teacher", tmp_path / "teacher")
    path = tmp_path / "teacher/tokenizer.json"
    content = json.loads(path.read_text("utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary["!"], vocabulary["#"] = vocabulary["#"], vocabulary["!"]
    path.write_text(json.dumps(content), "utf-8")
    made = config(folder)
    stranger = made.model_copy(
        update={
            "distil": made.distil and made.distil.model_copy(update={"teacher": str(tmp_path / "teacher")})
        }
    )
    with pytest.raises(InputRefused, match="tokenizers differ: token 33 is '!' and '#'") as refused:
        distil_objective(stranger, material(made), NextToken())
    assert "ojak train finetune" in refused.value.fix
    made = config(folder, "short", distil={"loss": "minillm"})
    with pytest.raises(UsageError, match="minillm cannot learn from a cache"):
        distil_objective(made, material(made), NextToken())
    with pytest.raises(UsageError, match="distil is missing"):
        tiny_run.config(folder, objective="distil")


@pytest.mark.parametrize(
    ("own", "name"),
    [
        ({"loss": "forward-kl", "beta": 0.3}, "beta"),
        ({"loss": "minillm", "beta": 0.3}, "beta"),
        ({"loss": "minillm", "top_k": 8}, "top_k"),
        ({"loss": "jsd", "max_tokens": 4}, "max_tokens"),
        ({"loss": "dpkd", "form": "code", "max_tokens": 4}, "max_tokens"),
        ({"loss": "dpkd", "alpha": 0.3}, "alpha"),
        ({"loss": "reverse-kl", "alpha": 0.2}, "alpha"),  # the default, but somebody's own words
        ({"loss": "minillm", "form": "code"}, "form"),
        ({"loss": "minillm", "teacher_answers": "rows"}, "teacher_answers"),
        ({"loss": "dpkd", "form": "code", "teacher_answers": "rows"}, "teacher_answers"),
    ],
)
def test_what_the_loss_does_not_read_is_refused(own: dict[str, Any], name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} does nothing with .*{own['loss']}.*leave it out"):
        DistilConfig(teacher="t", **own)


@pytest.mark.parametrize(
    "own",
    [
        {"loss": "jsd", "beta": 0.3, "top_k": 8},
        {"loss": "minillm", "alpha": 0.3, "max_tokens": 4},
        {"loss": "dpkd", "beta": 0.3, "form": "paper", "teacher_answers": "rows", "max_tokens": 4},
        {"loss": "dpkd", "beta": 0.3, "form": "code"},
        {"loss": "forward-kl", "beta": None, "top_k": None},  # as if they were not there
    ],
)
def test_what_the_loss_reads_is_taken(own: dict[str, Any]) -> None:
    assert DistilConfig(teacher="t", **own).model_dump(include=set(own)) == own


def test_an_arm_that_inherits_what_its_loss_does_not_read_is_refused() -> None:
    shared: dict[str, Any] = {"distil": {"teacher": "t", "loss": "minillm", "alpha": 0.3}, "out": "out"}
    arms = {"sampled": {}, "told": {"distil": {"loss": "forward-kl"}}}
    with pytest.raises(UsageError, match=r"arms\.told\.distil: alpha does nothing with forward-kl"):
        ArmsConfig(objective="distil", model="m", arms=arms, **shared)


def test_the_likeliest_tokens_alone_are_those_of_a_cache(folder: Path) -> None:
    made = config(folder, distil={"top_k": 8})
    with pytest.raises(UsageError, match=r"distil\.top_k does nothing with a model as the teacher"):
        distil_objective(made, material(made), NextToken())
    words = ["train", "distil", "--teacher", made.distil and made.distil.teacher, "--student", made.model]
    words += ["--data", folder / "rows.json", "--style", "alpaca", "--out", folder / "refused", "--dry-run"]
    for setting, said in (
        ("top_k=8", "distil.top_k does nothing"),
        ("alpha=0.3", "distil: alpha does nothing"),
    ):
        done = CliRunner().invoke(app, [*map(str, words), "--set", f"distil.{setting}"])
        assert (done.exit_code, said in done.stderr) == (2, True), done.stderr


def test_a_damaged_cache_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "short", tmp_path / "short")
    (shard,) = (tmp_path / "short/shards").iterdir()
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(VerificationFailed, match="has changed"):
        Cache.open(tmp_path / "short")
    shard.unlink()
    with pytest.raises(VerificationFailed, match="is missing"):
        Cache.open(tmp_path / "short")


@pytest.mark.parametrize("teacher", ["teacher", "short"])
def test_a_run_learns_and_a_stopped_one_ends_with_the_same_weights(
    folder: Path, tmp_path: Path, teacher: str
) -> None:
    def made(name: str) -> TrainConfig:
        return config(
            folder, teacher, tmp_path / name, epochs=4, val_share=0.2, checkpoint={"every_steps": 2}
        )

    def stop(figures: Any) -> None:
        if figures["step"] == 4:
            raise Stopped(15)

    whole = train(made("whole"))
    assert whole.loss_last is not None and whole.loss_first is not None and whole.val_loss is not None
    assert whole.loss_last < 0.8 * whole.loss_first
    with pytest.raises(Stopped):
        train(made("stopped"), progress=stop)
    train(made("stopped"), progress=lambda figures: None)
    weights = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("loss", ["minillm", "dpkd"])
def test_losses_that_sample_run(folder: Path, tmp_path: Path, loss: str) -> None:
    own = {"loss": loss, "max_tokens": 4}
    found = train(config(folder, "teacher", tmp_path / loss, distil=own, max_rows=4, batch=2))
    assert found.steps == 2 and found.loss_last is not None and math.isfinite(found.loss_last)


@pytest.mark.parametrize(
    "own",
    [
        {"loss": "minillm"},
        {"loss": "minillm", "alpha": 0.0},
        {"loss": "dpkd"},
        {"loss": "dpkd", "form": "code"},
        {"loss": "jsd"},
    ],
)
def test_a_teacher_s_longer_padding_is_neither_compared_nor_drawn(
    folder: Path, tmp_path: Path, own: dict[str, Any]
) -> None:
    """Two sizes of one vocabulary, as the models of a family have them: the loss is that of the same rows alone."""
    if own["loss"] in ("minillm", "dpkd") and own.get("form") != "code":
        own = {**own, "max_tokens": 4}
    plain = load_model(folder / "teacher", dtype="float32")
    padded = tiny.model("gemma2", scale=0.3, vocab_size=tiny.VOCAB + 8)
    with torch.no_grad():  # the rows beyond would win every draw
        for name, weight in padded.decoder.named_parameters():
            theirs = plain.decoder.get_parameter(name)
            weight.copy_(theirs if theirs.shape == weight.shape else torch.cat([theirs, -9 * theirs[-9:-1]]))
    padded.save(tmp_path / "padded")
    wanted = losses(config(folder, distil=own, max_rows=4, batch=2))[0]
    found = losses(config(folder, str(tmp_path / "padded"), distil=own, max_rows=4, batch=2))[0]
    assert found == pytest.approx(wanted, rel=1e-5)


def test_texts_are_learnt_whole(folder: Path) -> None:
    (folder / "texts.jsonl").write_text('{"text": "the crow"}\n{"text": "a magpie builds"}\n', "utf-8")
    made = config(folder, data=(str(folder / "texts.jsonl"),), style=None, distil={"texts": True}, batch=2)
    stuff = material(made)
    assert int(stuff.rows.supervised.sum()) == int(stuff.rows.lengths.sum()) - 2
    loss, _ = losses(made.model_copy(update={"batch": 1}))
    assert loss > 0


def test_a_plan_counts_the_teacher(folder: Path) -> None:
    parameters = sum(weight.numel() for weight in load_model(folder / "teacher").decoder.parameters())
    found = plan_run(config(folder, dtype="float32"))
    assert found.memory_mb["teacher"] == round(parameters * 4 / 2**20, 1) > 0
    assert plan_run(config(folder, "short", dtype="float32")).memory_mb["teacher"] == 0


def test_the_commands(folder: Path, tmp_path: Path) -> None:
    """A student is made, a finished cache told of again, a run planned; what is wrong ends with the errors' codes."""

    def ojak(*words: object) -> tuple[int, str]:
        done = CliRunner().invoke(app, list(map(str, words)))
        return done.exit_code, done.stdout

    teacher, rows = folder / "teacher", folder / "rows.json"
    code, said = ojak("models", "shrink", teacher, "--layers", 1, "--out", tmp_path / "one", "--json")
    assert (code, json.loads(said)["layers"]) == (0, [0])
    assert ojak("models", "shrink", teacher, "--out", tmp_path / "two")[0] == 2
    (tmp_path / "texts.jsonl").write_text('{"text": "the cat sat on the mat"}\n', "utf-8")
    by_data = (
        "models",
        "shrink",
        teacher,
        "--data",
        tmp_path / "texts.jsonl",
        "--out",
        tmp_path / "two",
        "--json",
    )
    assert ojak(*by_data)[0] == ojak(*by_data, "--layers", 9)[0] == 2 and not (tmp_path / "two").exists()
    code, said = ojak(*by_data, "--layers", 1)
    assert code == 0 and json.loads(said)["layers"] in ([0], [1])
    same = ("--style", "alpaca", "--max-len", 400, "--top-k", 8, "--set", "compute=float32")
    cache = ("distil", "cache", "--teacher", teacher, "--data", rows, "--out", folder / "short")
    code, said = ojak(*cache, *same, "--json")
    assert (code, json.loads(said)["top_k"]) == (0, 8)
    assert ojak(*cache, *same, "--temperature", 2)[0] == 2
    wrong = CliRunner().invoke(app, list(map(str, (*cache, "--temperature", 0))))
    assert wrong.exit_code == 2 and "--temperature" in wrong.output  # the flag is named, as in `train`
    run = ("train", "distil", "--student", folder / "model", "--data", rows, "--out", tmp_path / "out")
    run = (*run, "--teacher", folder / "short", "--style", "alpaca", "--max-len", 400, "--dry-run", "--json")
    code, said = ojak(*run, "--loss", "jsd")
    assert code == 0 and json.loads(said)["steps"] == 3 and not (tmp_path / "out").exists()
    assert ojak(*run, "--loss", "dpkd")[0] == 2


def test_places_of_rows(folder: Path) -> None:
    rows: Rows = material(config(folder)).rows.drawn(7, 3)
    for number in range(len(rows)):
        part, place = rows.place(number)
        begin, end = part.store.table[place : place + 2, 0]
        assert (rows[number][0] == part.store.ids[begin:end]).all()


def test_the_recipe_s_smoke_scale_runs(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a teacher to the report, its models tiny; run again, nothing is left to do."""
    monkeypatch.setenv("OJAK_HOME", str(made / "home"))
    monkeypatch.chdir(tmp_path)
    tiny.model(scale=0.1, num_hidden_layers=4).save("teacher")
    data = tiny_run.data(tmp_path, 32)
    sets = [
        "scale=smoke",
        f"data={data}",
        "pull.model=teacher",
        "train.max_tokens=900",
        "train.peak_flops=1.0e+12",
        "evaluate.measures=[likelihood]",
    ]
    loaded = recipe.load(RECIPE, out=tmp_path / "run", sets=sets)
    assert [item.stage.name for item in loaded.chosen][-4:] == ["teacher", "train", "evaluate", "report"]
    reads = {item.stage.name: item.reads for item in loaded.chosen}
    assert reads["train"] == ("pull", "rows", "shrink", "teacher") and reads["teacher"] == ("pull", "rows")
    assert reads["shrink"] == ("pull", "rows")
    done = run_recipe(loaded)
    assert [each.name for each in done] == [item.stage.name for item in loaded.chosen]
    runs = Artifact.open(tmp_path / "run/train").stats["runs"]
    assert [each["arm"] for each in runs] == ["ce", "forward-kl"]
    assert runs[0]["result"]["tokens"] == runs[1]["result"]["tokens"], "arms learn from as many tokens"
    differences = Artifact.open(tmp_path / "run/evaluate").stats["differences"]
    assert differences.keys() == {"base", "forward-kl"}
    assert "val_loss" in differences["forward-kl"], "cross-entropy in both arms, whatever they learn by"
    assert (tmp_path / "run/report/index.html").is_file()
    assert not [step for step in recipe_plan(loaded) if step.reasons]
    kept = Artifact.open(tmp_path / "run/shrink").stats["layers"]
    assert kept in ([0, 1], [0, 3], [2, 3]), "one run of layers went"
    other = recipe.load(RECIPE, out=tmp_path / "run", sets=[*sets, "shrink.data=null"])
    outdated = [step.chosen.stage.name for step in recipe_plan(other) if step.reasons]
    assert "shrink" in outdated, "other layers are another student"
