"""Merged folders against the same arithmetic over whole tensors, what is refused, and what faults leave."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import merging
import numpy as np
import pytest
import tiny
import torch
from full_disk import fail_at
from merging import Tensors, arc, close, exact, merge, minus, read, ties_of
from pydantic import ValidationError
from safetensors.torch import save_file

from ojak._settings import WrongSettings
from ojak.artifact import publish
from ojak.errors import InputRefused, ResourceExhausted, TargetExists, UsageError, VerificationFailed
from ojak.merge import run, stream, weights
from ojak.merge.config import MergeConfig, StageConfig
from ojak.merge.run import check_merge, merge_models
from ojak.model.load import load_model
from ojak.model.lora import LoraConfig, apply_lora, save_adapter
from ojak.stages import BY_NAME, Job
from ojak.stages.merging import merged_run


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the tensors of a tiny model have several blocks."""
    for module in (weights, stream):
        monkeypatch.setattr(module, "BLOCK", 700)


def plus(base: Tensors, *terms: tuple[float, Tensors]) -> Tensors:
    return {name: base[name] + sum(factor * each[name] for factor, each in terms) for name in base}


def expected(family: Path, method: str) -> Tensors:
    """What each case below must give, in float64."""
    base, a, b, c = (exact(family / name) for name in ("base", *merging.MODELS))
    da, db, dc = (minus(each, base) for each in (a, b, c))
    nothing = {name: np.zeros_like(each) for name, each in base.items()}
    if method == "linear":
        return plus(nothing, (0.25, a), (0.75, b))
    if method == "slerp":
        return plus(base, (0.3, arc(arc(da, db, 1 / 2), dc, 1 / 3)))
    if method == "task":
        return plus(base, (0.8, da), (-0.4, db))
    if method == "ties":
        chosen = {n: ties_of([da[n], db[n], dc[n]], [1.0, 2.0, 0.5], 0.3) for n in base}
        return plus(base, (1.5, chosen))
    if method == "ema":
        return plus(nothing, (0.49, base), (0.21, a), (0.3, b))
    return plus(nothing, (0.7, base), (0.3, c))


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("ab", {"weights": (1, 3)}),
    "slerp": ("abc", {"scale": 0.3}),
    "task": ("ab", {"weights": (0.4, -0.2), "scale": 2.0}),
    "ties": ("abc", {"weights": (1.0, 2.0, 0.5), "density": 0.3, "scale": 1.5}),
    "ema": ("ab", {"weights": (0.3,)}),
    "liti": ("c", {"weights": (0.3,)}),
}


@pytest.mark.parametrize("method", CASES)
def test_a_method_is_its_formula(family: Path, tmp_path: Path, method: str) -> None:
    names, asked = CASES[method]
    merge(family, tmp_path / "out", method, names, **asked)
    close(exact(tmp_path / "out"), expected(family, method))


def test_dare_is_seeded_by_place_and_keeps_what_it_does_not_drop(family: Path, tmp_path: Path) -> None:
    for out, seed in (("one", 5), ("again", 5), ("other", 6)):
        merge(family, tmp_path / out, "dare", "a", drop=0.5, seed=seed)
    one, again, other = (read(tmp_path / out) for out in ("one", "again", "other"))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    base, a = exact(family / "base"), exact(family / "a")
    for name, tensor in exact(tmp_path / "one").items():
        moved = np.abs(tensor - base[name]) > 1e-9
        assert tensor[moved] == pytest.approx((base[name] + 2 * (a[name] - base[name]))[moved], abs=1e-5)
    merge(family, tmp_path / "ab", "dare", "ab", drop=0.5, seed=5)
    merge(family, tmp_path / "ba", "dare", "ba", drop=0.5, seed=5)
    close(exact(tmp_path / "ab"), exact(tmp_path / "ba"))


@pytest.mark.parametrize(
    ("method", "settings", "same"),
    [
        ("liti", {"weights": (0.0,)}, "base"),
        ("liti", {"weights": (1.0,)}, "a"),
        ("slerp", {"weights": (1, 0)}, "a"),
        ("slerp", {"weights": (0, 1)}, "b"),
        ("slerp", {"scale": 0.0}, "base"),
        ("linear", {"weights": (0, 1)}, "b"),
        ("ema", {"weights": (1.0,)}, "b"),
        ("task", {"weights": (0, 1)}, "b"),
    ],
)
def test_identities_hold_to_the_bit(tmp_path: Path, method: str, settings: dict[str, Any], same: str) -> None:
    family = merging.make_family(tmp_path, "qwen2", torch.bfloat16)  # tied embeddings, biases
    merge(family, tmp_path / "out", method, "a" if method == "liti" else "ab", **settings)
    found, wanted = read(tmp_path / "out"), read(family / same)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in found)


def test_slerp_of_equals_is_that_model_and_of_full_weights_it_would_be_the_mean(
    family: Path, tmp_path: Path
) -> None:
    """The trap: around 0 instead of the base, the angle is small and the arc is the straight line."""
    merge(family, tmp_path / "same", "slerp", "aa")
    close(exact(tmp_path / "same"), exact(family / "a"))
    done = merge(family, tmp_path / "out", "slerp", "ab")
    assert all(60 < angle < 120 for found in list(done.angles.values())[:1] for angle in found)
    assert set(done.angles) == {merging.group(name) for name in read(family / "a")}
    one_each = merge(family, tmp_path / "tensors", "slerp", "ab", angle="tensor")
    assert set(one_each.angles) == set(read(family / "a"))


def test_the_folder_is_a_whole_model_that_says_what_it_is(family: Path, tmp_path: Path) -> None:
    merge(family, tmp_path / "out", "slerp", dtype="bfloat16")
    model = load_model(tmp_path / "out", dtype="float32")
    assert torch.isfinite(model.decoder(torch.arange(8)[None])).all()
    assert model.stop_ids == load_model(family / "a").stop_ids
    manifest = json.loads((tmp_path / "out/manifest.json").read_text("utf-8"))
    card = (tmp_path / "out/README.md").read_text("utf-8")
    for told in (*manifest["result"]["models"], manifest["result"]["base"]):
        assert told["sha256"] == load_model(family / told["name"]).sha256
        assert told["sha256"] in card
    assert str(tmp_path) not in card + json.dumps(manifest)
    assert {tensor.dtype for tensor in read(tmp_path / "out").values()} == {torch.bfloat16}
    check_merge(tmp_path / "out")
    (tmp_path / "out/model.safetensors").write_bytes(b"")
    with pytest.raises(VerificationFailed, match="missing or has changed"):
        check_merge(tmp_path / "out")


def test_shards_go_in_and_come_out(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge(family, tmp_path / "one", "linear")
    monkeypatch.setattr(run, "SHARD_BYTES", 20_000)
    merge(family, tmp_path / "several", "linear")
    assert len(list((tmp_path / "several").glob("model-*-of-*.safetensors"))) > 2
    close(exact(tmp_path / "several"), exact(tmp_path / "one"), tolerance=0)
    assert load_model(tmp_path / "several").sha256
    models = (str(tmp_path / "several"), str(family / "b"))
    monkeypatch.setattr(run, "SHARD_BYTES", 1 << 40)
    merge_models(MergeConfig(models=models, method="linear", out=tmp_path / "several", overwrite=True))
    assert not list((tmp_path / "several").glob("model-*"))  # the earlier shards are gone
    mean = plus(exact(tmp_path / "one"), (0.0, exact(family / "b")))
    b = exact(family / "b")
    close(exact(tmp_path / "several"), {name: (mean[name] + b[name]) / 2 for name in b})


def test_an_adapter_is_merged_into_its_base_first(family: Path, tmp_path: Path) -> None:
    model = load_model(family / "a", dtype="float32")
    config = LoraConfig(r=2)
    for parameter in apply_lora(model.decoder, config, 0):
        torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(tmp_path / "adapter", model, config, base=str(family / "a"))
    models = (str(tmp_path / "adapter"), str(family / "b"))
    merge_models(MergeConfig(models=models, method="linear", weights=(1, 0), out=tmp_path / "out"))
    state = load_model(tmp_path / "adapter", dtype="float32").decoder.state_dict()
    close(exact(tmp_path / "out"), {n: state[n].double().numpy() for n in read(family / "a")}, tolerance=0)
    assert not (tmp_path / "out/inputs").exists()


# ------------------------------------------------------------------------------------------------------------ refusals


def changed(family: Path, out: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of model b with other tensors."""
    shutil.copytree(family / "b", out)
    tensors = read(out)
    change(tensors)
    save_file(tensors, out / "model.safetensors")
    return out


def spoil(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][-1, -1] = value

    return change


def cut_rows(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()


TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "nan": (spoil(float("nan")), "model 2 holds infinities"),
    "infinite": (spoil(float("inf")), "model 2 holds infinities"),
    "missing": (lambda tensors: tensors.pop("model.norm.weight"), "lacks 1 weights, the first model.norm"),
    "unknown": (lambda tensors: tensors.update(more=torch.ones(2)), "no place for, such as 'more'"),
    "shape": (cut_rows, "model.norm.weight has the shape"),
}


@pytest.mark.parametrize("method", ["linear", "ties", "slerp"])
@pytest.mark.parametrize("case", TENSORS)
def test_weights_that_do_not_fit_are_refused(family: Path, tmp_path: Path, case: str, method: str) -> None:
    change, reason = TENSORS[case]
    models = (str(family / "a"), str(changed(family, tmp_path / "b", change)))  # type: ignore[arg-type]
    with pytest.raises(InputRefused) as caught:
        merge_models(
            MergeConfig(models=models, base=str(family / "base"), method=method, out=tmp_path / "out")  # type: ignore[arg-type]
        )
    assert reason in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_other_architectures_and_vocabularies_are_refused(family: Path, tmp_path: Path) -> None:
    tiny.model("llama").save(tmp_path / "llama")
    with pytest.raises(InputRefused, match="built differently") as caught:
        merge_models(
            MergeConfig(
                models=(str(family / "a"), str(tmp_path / "llama")), method="linear", out=tmp_path / "out"
            )
        )
    assert "model_type is gemma3_text and llama" in str(caught.value)
    shutil.copytree(family / "b", tmp_path / "b")
    text = (tmp_path / "b/tokenizer.json").read_text("utf-8")
    vocabulary = json.loads(text)
    ids = vocabulary["model"]["vocab"]
    ids["a"], ids["b"] = ids["b"], ids["a"]
    (tmp_path / "b/tokenizer.json").write_text(json.dumps(vocabulary), "utf-8")
    with pytest.raises(InputRefused, match="tokenizers differ") as caught:
        merge_models(
            MergeConfig(
                models=(str(family / "a"), str(tmp_path / "b")), method="linear", out=tmp_path / "out"
            )
        )
    assert "the id 97 stands for 'a' in one and 'b' in the other" in str(caught.value)
    ids["a"], ids["b"] = ids["b"], ids["a"]  # other bytes, the same ids
    (tmp_path / "b/tokenizer.json").write_text(json.dumps(vocabulary), "utf-8")
    merge_models(
        MergeConfig(models=(str(family / "a"), str(tmp_path / "b")), method="linear", out=tmp_path / "out")
    )


def test_numbers_too_large_for_float16_are_refused(family: Path, tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="too large for what it is to be stored as"):
        merge(family, tmp_path / "out", "task", "a", weights=(1e6,), dtype="float16")


def overlap(header: dict[str, Any]) -> None:
    for entry in header.values():
        if "data_offsets" in entry:
            size = entry["data_offsets"][1] - entry["data_offsets"][0]
            entry["data_offsets"] = [0, size]


def beyond(header: dict[str, Any]) -> None:
    entry = header["model.norm.weight"]
    entry["data_offsets"] = [at + 10**9 for at in entry["data_offsets"]]


@pytest.mark.parametrize("hurt", [overlap, beyond], ids=lambda hurt: hurt.__name__)
def test_hostile_safetensors_are_refused(
    family: Path, tmp_path: Path, hurt: Callable[[dict[str, Any]], None]
) -> None:
    shutil.copytree(family / "b", tmp_path / "b")
    path = tmp_path / "b/model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    hurt(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(InputRefused, match="not a sound safetensors file"):
        merge_models(
            MergeConfig(
                models=(str(family / "a"), str(tmp_path / "b")), method="linear", out=tmp_path / "out"
            )
        )


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"method": "slerp"}, "give base"),
        ({"method": "linear", "models": ("a",)}, "at least 2 models"),
        ({"method": "linear", "weights": (1, -1)}, "sum of the weights, which is 0"),
        (
            {"method": "linear", "models": ("a", "b", "c"), "weights": (0.1, 0.2, -0.3)},
            "sum of the weights, which is 0",
        ),
        ({"method": "linear", "weights": (1,)}, "1 weights for 2 models"),
        ({"method": "linear", "scale": 2.0}, "has no scale"),
        ({"method": "liti", "base": "b", "weights": (0.3,)}, "merge several first"),
        ({"method": "ema"}, "one weight: mu"),
        ({"method": "slerp", "base": "b", "weights": (-1, 2)}, "none below 0"),
        ({"method": "ties", "base": "b", "density": 0}, "density"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises((WrongSettings, ValidationError), match=reason):
        MergeConfig(**{"models": ("a", "b"), "out": Path("out"), **settings})


# -------------------------------------------------------------------------------------------------------------- faults


def test_nothing_is_replaced_unasked(family: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(family, out, "linear")
    before = (out / "model.safetensors").read_bytes()
    with pytest.raises(TargetExists, match="finished merge"):
        merge(family, out, "slerp")
    assert (out / "model.safetensors").read_bytes() == before
    merge(family, out, "slerp", overwrite=True)
    assert (out / "model.safetensors").read_bytes() != before
    with pytest.raises(TargetExists, match="not part of a merge"):
        merge(family, family / "base", "slerp", overwrite=True)


def whole(out: Path) -> tuple[bytes, str]:
    check_merge(out)
    return (out / "model.safetensors").read_bytes(), json.loads((out / "manifest.json").read_bytes())[
        "config"
    ]["method"]


def test_no_room_at_any_step_leaves_the_earlier_merge(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, harmed, steps = tmp_path / "out", 0, 0
    merge(family, out, "linear")
    before = whole(out)
    while True:
        with monkeypatch.context() as patch:
            done = fail_at(patch, steps)
            try:
                merge(family, out, "slerp", overwrite=True)
            except ResourceExhausted:
                patch.undo()
                harmed += 1
                assert whole(out) == before or whole(out)[1] == "slerp"
                assert not list(out.glob(".staging-*"))
                if whole(out) != before:  # only the last sync failed
                    merge(family, out, "linear", overwrite=True)
        if len(done) <= steps:
            break
        steps += 3
    assert harmed > 5
    assert whole(out)[1] == "slerp"


@pytest.mark.parametrize("replaces", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("moment", ["writing", "placing"])
def test_a_killed_merge_leaves_no_half_model(
    family: Path, tmp_path: Path, replaces: bool, moment: str
) -> None:
    out = tmp_path / "out"
    if replaces:
        merge(family, out, "linear")
    child = os.fork()
    if not child:
        try:
            kill_at(moment)
            merge(family, out, "slerp", overwrite=replaces)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    if not replaces:
        assert not (out / "manifest.json").exists()
    merge(family, out, "slerp", overwrite=replaces)
    assert whole(out)[1] == "slerp"
    assert {path.name for path in out.iterdir()} - {".lock", ".lock.json"} == {
        *run.TEXTS, "model.safetensors", "manifest.json",
    } - {"chat_template.jinja"}  # fmt: skip


def kill_at(moment: str) -> None:
    """In a child: die in the middle of the weights, or when some of the files have their names."""
    inside: Any = run.write_tensors if moment == "writing" else os.replace
    calls: list[int] = []

    def dying(*args: Any, **options: Any) -> Any:
        calls.append(1)
        if moment == "writing":
            (args[0]).write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
        if str(args[1]).endswith("/out/config.json"):
            os.kill(os.getpid(), signal.SIGKILL)
        return inside(*args, **options)

    if moment == "writing":
        run.write_tensors = dying
    else:
        os.replace = dying


def test_the_stage_merges_the_runs_of_a_training(family: Path, tmp_path: Path) -> None:
    runs = [("x", 0, "a"), ("x", 1, "b"), ("y", 0, "c")]
    for arm, seed, name in runs:
        folder = tmp_path / "train" / arm / f"seed-{seed}"
        shutil.copytree(family / name, folder / "model")
        (folder / "metrics.jsonl").write_text("", "utf-8")
        made = {"kind": "training", "config": {"model": str(family / "base")}, "files": []}
        (folder / "manifest.json").write_text(json.dumps(made), "utf-8")
    told = [{"arm": arm, "seed": seed} for arm, seed, _ in runs]
    publish(tmp_path / "train", kind="train", records=[], config={}, stats={"runs": told})
    stage = BY_NAME["merge"]
    inputs = {"train": tmp_path / "train"}
    done = stage.run(Job(StageConfig(method="slerp", arms=("x",)), tmp_path / "merged", inputs))
    stage.sound(tmp_path / "merged")
    assert len(done.facts["models"]) == 2
    merge(family, tmp_path / "out", "slerp", "ab")
    close(exact(tmp_path / "merged"), exact(tmp_path / "out"), tolerance=0)
    (measured,) = merged_run({**inputs, "merge": tmp_path / "merged"})
    assert (measured.name, measured.setting("model")) == ("merged-seed-0", None)
    with pytest.raises(UsageError, match="takes: x, y"):
        stage.run(Job(StageConfig(method="slerp", arms=("z",)), tmp_path / "none", inputs))
