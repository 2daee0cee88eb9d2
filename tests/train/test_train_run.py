"""A whole run: what it writes, how it resumes, what stops it."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
from safetensors.torch import load_file

from ojak.errors import Diverged, ResumeRefused, Stopped, TargetExists, UsageError
from ojak.model.load import load_model
from ojak.train.config import CheckpointConfig, OptimizerConfig, TrainConfig
from ojak.train.run import train

EVERY_STEP = CheckpointConfig(every_steps=1)


def weights(config: TrainConfig) -> dict[str, torch.Tensor]:
    return load_file(config.out / "model" / "model.safetensors")


def stop_after(step: int, number: int = signal.SIGTERM) -> Any:
    def progress(figures: Mapping[str, Any]) -> None:
        if figures["step"] == step:
            os.kill(os.getpid(), number)

    return progress


def same(a: TrainConfig, b: TrainConfig) -> bool:
    one, two = weights(a), weights(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_learns_and_leaves_a_model(folder: Path) -> None:
    config = tiny_run.config(folder, epochs=4, val_share=0.2)
    result = train(config)
    lines = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text("utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert result.steps == len(steps) == 4 * 3
    assert all(0 < line["cpu_s"] <= line["seconds"] + 0.05 for line in steps)
    assert result.loss_last is not None and result.loss_first is not None
    assert result.loss_last < 0.8 * result.loss_first
    assert result.val_loss == lines[-1]["val_loss"] < result.loss_first
    assert sum(line["supervised_tokens"] for line in steps[-1:]) == result.supervised_tokens < result.tokens
    trained = load_model(config.out / "model", dtype="float32")
    assert "### Response:" in (trained.chat_template or "") and trained.tokenizer.eos_id in trained.stop_ids
    assert json.loads((config.out / "manifest.json").read_text("utf-8"))["result"]["steps"] == 12
    assert train(config) == result  # it is finished: nothing is done again


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stop", [2, 3])  # within an epoch, and at its end
def test_a_stopped_run_goes_on_to_the_same_weights(folder: Path, dtype: str, stop: int) -> None:
    changes = {"dtype": dtype, "epochs": 2, "ema": 0.9, "micro_batch": 3}
    straight, broken = (tiny_run.config(folder, out, **changes) for out in ("straight", "broken"))
    train(straight)
    with pytest.raises(Stopped) as stopped:
        train(broken, progress=stop_after(stop))
    assert stopped.value.exit_code == 143 and stopped.value.facts["steps"] == stop
    lines: list[str] = []
    train(broken, notify=lines.append)
    assert same(straight, broken)
    assert any("going on from step-" in line for line in lines)
    figures = (config.out / "metrics.jsonl" for config in (straight, broken))
    a, b = ([json.loads(line)["loss"] for line in path.read_text("utf-8").splitlines()] for path in figures)
    assert a == b


def test_a_signal_with_the_last_step_finishes_the_run_and_is_not_forgotten(folder: Path) -> None:
    config = tiny_run.config(folder)
    with pytest.raises(Stopped, match="is finished") as stopped:
        train(config, progress=stop_after(3))
    assert stopped.value.exit_code == 143 and stopped.value.facts["steps"] == 3
    assert (config.out / "manifest.json").is_file()
    assert train(config).to_dict() == stopped.value.facts


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_the_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ojak.train.objectives import NextToken

    config = tiny_run.config(folder, checkpoint=EVERY_STEP)
    plain, calls = NextToken.__call__, []

    def poisoned(self: NextToken, decoder: Any, batch: Any) -> Any:
        calls.append(1)
        loss = plain(self, decoder, batch)
        return loss if len(calls) < 3 else type(loss)(loss.sum * float("nan"), loss.supervised, loss.computed)

    monkeypatch.setattr(NextToken, "__call__", poisoned)
    with pytest.raises(Diverged) as diverged:
        train(config)
    assert diverged.value.exit_code == 10 and "step 3" in str(diverged.value)
    assert sorted(path.name for path in (config.out / "checkpoints").iterdir()) == [
        "step-0000001",
        "step-0000002",
    ]
    assert not (config.out / "model").exists() and not (config.out / "manifest.json").exists()
    monkeypatch.undo()
    straight = tiny_run.config(folder, "straight")
    train(straight)
    assert train(config).steps == 3
    assert same(straight, config)


def test_other_settings_do_not_resume(folder: Path) -> None:
    with pytest.raises(Stopped):
        train(tiny_run.config(folder), progress=stop_after(1, signal.SIGINT))
    with pytest.raises(ResumeRefused, match="lr"):
        train(tiny_run.config(folder, lr=0.5))
    with pytest.raises(TargetExists):
        train(tiny_run.config(folder, resume="never"))
    with pytest.raises(UsageError, match="nothing to resume"):
        train(tiny_run.config(folder, "elsewhere", resume="always"))
    train(tiny_run.config(folder))
    with pytest.raises(ResumeRefused):
        train(tiny_run.config(folder, lr=0.5))


def test_tokens_and_epochs_bound_a_run(folder: Path) -> None:
    whole = train(tiny_run.config(folder, "a"))
    part = train(tiny_run.config(folder, "b", max_tokens=whole.tokens // 2))
    more = train(tiny_run.config(folder, "c", max_tokens=whole.tokens + 1))
    third = train(tiny_run.config(folder, "d", epochs=1 / 3))
    assert (whole.steps, part.steps, more.steps, third.steps) == (3, 2, 4, 1)
    assert part.tokens >= whole.tokens // 2 and more.tokens > whole.tokens


def test_the_plain_layout_packs_and_micro_batches_teach_the_same(folder: Path) -> None:
    first = train(tiny_run.config(folder, "a")).loss_last
    for number, changes in enumerate(({"padded": True}, {"micro_batch": 1}, {"share_prefixes": False})):
        other = train(tiny_run.config(folder, f"b{number}", **changes)).loss_last
        assert other == pytest.approx(first, rel=1e-4)
    packed = train(tiny_run.config(folder, "packed", packing=True, batch=2, max_len=400))
    assert packed.steps > 3 and packed.loss_last is not None


def test_pretraining_learns_every_token_of_texts(folder: Path) -> None:
    texts = folder / "texts.jsonl"
    texts.write_text(
        "".join(json.dumps({"text": f"the bird number {i} sings"}) + "\n" for i in range(40)), "utf-8"
    )
    config = tiny_run.config(
        folder, data=(str(texts),), objective="pretrain", style=None, packing=True, max_len=64
    )
    result = train(config)
    assert result.supervised_tokens > 0.9 * result.tokens


def test_a_configuration_without_weights_is_trained_from_nothing(folder: Path) -> None:
    source = tiny_run.model(folder)
    (source / "model.safetensors").unlink()
    config = tiny_run.config(folder, epochs=2, dtype="bfloat16")
    result = train(config)
    assert result.loss_first is not None and result.loss_last is not None
    assert result.loss_first == pytest.approx(math.log(264), rel=0.02)  # it knows nothing of 264 tokens
    assert result.loss_last < result.loss_first
    again = train(
        tiny_run.config(folder, "again", epochs=2, dtype="bfloat16", model=str(source / "config.json"))
    )
    assert again.loss_last == result.loss_last
    other = train(tiny_run.config(folder, "other", epochs=2, dtype="bfloat16", seed=1))
    assert other.loss_last != result.loss_last


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("state", ["float32", "bfloat16"])
def test_optimizers_learn(folder: Path, name: Any, state: Any) -> None:
    config = tiny_run.config(
        folder, epochs=3, dtype="bfloat16", optimizer=OptimizerConfig(name=name, state_dtype=state)
    )
    result = train(config)
    assert result.loss_last is not None and result.loss_first is not None
    assert result.loss_last < 0.9 * result.loss_first


def test_an_adapter_is_all_that_is_learnt(folder: Path) -> None:
    from ojak.model.lora_config import LoraConfig

    lora = LoraConfig(r=4, dropout=0.1)
    config = tiny_run.config(folder, lora=lora, epochs=3, dtype="bfloat16")
    result = train(config)
    assert result.loss_last is not None and result.loss_first is not None
    assert result.loss_last < result.loss_first
    assert (config.out / "adapter" / "adapter_model.safetensors").is_file()
    broken = tiny_run.config(folder, "broken", lora=lora, epochs=3, dtype="bfloat16")
    with pytest.raises(Stopped):
        train(broken, progress=stop_after(4))
    train(broken)
    one, two = (load_file(each.out / "adapter" / "adapter_model.safetensors") for each in (config, broken))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_checkpoints_of_which_none_is_whole_are_not_overwritten(folder: Path) -> None:
    config = tiny_run.config(folder)
    with pytest.raises(Stopped):
        train(config, progress=stop_after(1))
    weights = config.out / "checkpoints" / "step-0000001" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(ResumeRefused, match="none of the checkpoints") as refused:
        train(config)
    assert "step-0000001 is passed over" in str(refused.value.why)
    assert weights.is_file()


def test_an_adapter_has_a_rate_of_its_own_unless_one_is_given(folder: Path) -> None:
    plain: dict[str, Any] = {"model": "m", "data": ("d",), "out": folder / "x"}
    adapter = {**plain, "lora": {}}
    assert TrainConfig(**plain).lr == 2e-5
    assert TrainConfig(**adapter).lr == 2e-4
    assert TrainConfig(**adapter, lr=1e-3).lr == 1e-3
