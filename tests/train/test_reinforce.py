"""REINFORCE against the expectation over all answers, the anchor by hand, and whole runs."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import tiny
import tiny_run
import torch
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from ojak.chat import ChatTemplate, encode_prompt
from ojak.cli.app import app
from ojak.errors import Stopped, UsageError
from ojak.model.decoder import Decoder
from ojak.model.load import load_model
from ojak.train.config import CheckpointConfig, TrainConfig
from ojak.train.live import Answer, LiveSampler, Prompt
from ojak.train.plan import plan_run
from ojak.train.reinforce import Reinforce, advantages
from ojak.train.reinforce_config import ReinforceConfig
from ojak.train.rewards import parse_reward
from ojak.train.rows import open_rows
from ojak.train.run import train

STOP, V, T, BETA = 0, 3, 0.9, 0.3
PROMPT = Prompt(0, (1, 2))
ANSWERS = [(STOP,), *((a, b) for a in (1, 2) for b in range(V))]  # all there are of up to two tokens
REWARDS = dict(zip(map(str, ANSWERS), (0.3, 1.0, -0.5, 2.0, 0.0, 0.7, -1.2), strict=True))


def small(family: str, seed: int) -> Decoder:
    made = tiny.decoder(family, vocab_size=V, seed=seed, dtype=torch.float64)
    return made.requires_grad_(True)


def objective(anchor: Decoder, samples: int = 2) -> Reinforce:
    settings = ReinforceConfig(reward="rules:stop", samples=samples, beta=BETA, temperature=T)
    means = {name: weight.detach() for name, weight in anchor.named_parameters()}
    return Reinforce(
        settings, cast("Any", lambda text, stopped: REWARDS[text]), cast("LiveSampler", None),
        cast("Any", SimpleNamespace(means=means)),
    )  # fmt: skip


def log_prob(decoder: Decoder, ids: tuple[int, ...]) -> Tensor:
    """log q(y) at the temperature, by the plain forward pass."""
    logits = decoder(torch.tensor([[*PROMPT.ids, *ids]]))[0]
    logprobs = (logits / T).log_softmax(-1)[len(PROMPT.ids) - 1 : -1]
    return logprobs.gather(1, torch.tensor(ids)[:, None]).sum()


def gradients(decoder: Decoder, loss: Tensor) -> dict[str, Tensor]:
    decoder.zero_grad(set_to_none=True)
    loss.backward()
    return {name: weight.grad for name, weight in decoder.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen2"])  # capped logits; one table for both ends
def test_the_gradient_is_that_of_the_expectation(family: str) -> None:
    decoder, anchor = small(family, 0), small(family, 1)
    log_q = torch.stack([log_prob(decoder, ids) for ids in ANSWERS])
    log_a = torch.stack([log_prob(anchor, ids) for ids in ANSWERS]).detach()
    assert float(log_q.detach().exp().sum()) == pytest.approx(1)
    rewards = torch.tensor(list(REWARDS.values()), dtype=torch.float64)
    wanted = gradients(decoder, -(log_q.exp() * (rewards - BETA * (log_q - log_a))).sum())
    chances, learn = log_q.detach().exp(), objective(anchor)
    found = {name: torch.zeros_like(grad) for name, grad in wanted.items()}
    for i, j in itertools.product(range(len(ANSWERS)), repeat=2):
        pair = [
            Answer(PROMPT, n, ANSWERS[k], str(ANSWERS[k]), STOP in ANSWERS[k]) for n, k in enumerate((i, j))
        ]
        loss = learn.learn(decoder, pair)
        assert loss.supervised == 1
        assert loss.extras["kl"][0] == pytest.approx(float((log_q - log_a)[[i, j]].sum().detach()), abs=1e-4)
        for name, grad in gradients(decoder, loss.sum).items():
            found[name] += chances[i] * chances[j] * grad
    size = max(float(grad.abs().max()) for grad in wanted.values())
    assert size > 1e-3
    for name, grad in wanted.items():
        assert float((found[name] - grad).abs().max()) < 2e-5 * max(1.0, size), name


def test_advantages_leave_one_out() -> None:
    returns = torch.tensor([1.0, 2.0, 6.0, 5.0, 5.0, 5.0])
    assert advantages(returns, 3).tolist() == [1 - 4, 2 - 3.5, 6 - 1.5, 0, 0, 0]


# -- whole runs --------------------------------------------------------------------------------------------------------


def config(folder: Path, out: str = "out", **changes: Any) -> TrainConfig:
    settings = {
        "objective": "reinforce",
        "style": "plain",
        "reinforce": {"reward": "rules:lower-case + 0.5*stop", "samples": 4, "answer_tokens": 5, "mu": 0.2},
    }
    return tiny_run.config(folder, out, **(settings | changes))


def figures(config: TrainConfig) -> list[dict[str, Any]]:
    lines = (config.out / "metrics.jsonl").read_text("utf-8").splitlines()
    return [line for line in map(json.loads, lines) if "loss" in line]


def stop_after(step: int) -> Any:
    def progress(told: Mapping[str, Any]) -> None:
        if told["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return progress


def test_the_anchor_is_the_moving_mean_of_the_run(folder: Path) -> None:
    run = config(folder, checkpoint=CheckpointConfig(every_steps=1, keep=9), epochs=2)
    train(run)
    first = load_model(run.model, dtype="float32").decoder
    mean = {name: weight.double() for name, weight in first.named_parameters()}
    for step in range(1, 6):
        place = run.out / "checkpoints" / f"step-{step:07d}"
        weights, kept = (
            load_file(place / "model.safetensors"),
            load_file(place / "anchor-rank0of1.safetensors"),
        )
        mean = {name: 0.8 * each + 0.2 * weights[name].double() for name, each in mean.items()}
        assert kept.keys() == {f"anchor.{name}" for name in mean}
        for name, each in mean.items():
            assert torch.allclose(kept[f"anchor.{name}"].double(), each, atol=1e-6), (step, name)


@pytest.mark.parametrize(
    "changes", [{"dtype": "bfloat16"}, {"lora": {"r": 2}, "lr": 1e-2}], ids=["all", "lora"]
)
def test_a_stopped_run_goes_on_to_the_same_weights(folder: Path, changes: dict[str, Any]) -> None:
    straight, broken = (
        config(folder, out, epochs=2, micro_batch=3, **changes) for out in ("straight", "broken")
    )
    train(straight)
    with pytest.raises(Stopped):
        train(broken, progress=stop_after(4))
    train(broken)
    name = "adapter/adapter_model.safetensors" if "lora" in changes else "model/model.safetensors"
    one, two = (load_file(run.out / name) for run in (straight, broken))
    assert all(torch.equal(one[key], two[key]) for key in one)
    told = ("loss", "reward", "kl", "answer_tokens", "stopped")
    a, b = ([{key: line[key] for key in told} for line in figures(run)] for run in (straight, broken))
    assert a == b and len(a) == 6
    assert a[0]["kl"] == pytest.approx(0, abs=0.05 if "dtype" in changes else 1e-4), (
        "the anchor is the first model"
    )
    assert any(abs(line["kl"]) > 1e-3 for line in a[1:])


def test_the_reward_rises(folder: Path) -> None:
    settings = {"reward": "rules:lower-case", "samples": 8, "answer_tokens": 5, "beta": 0.01}
    run = config(folder, reinforce=settings, epochs=6, lr=5e-3, schedule={"warmup": 0.0})
    train(run)
    rewards = [line["reward"] for line in figures(run)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1


def test_rows_are_prompts(folder: Path) -> None:
    model = load_model(tiny_run.model(folder))
    chats = [
        [{"role": "user", "content": "say it"}, {"role": "assistant", "content": "it is said"}],
        [{"role": "user", "content": "say it"}],
        [
            {"role": "user", "content": "say it"},
            {"role": "assistant", "content": "x"},
            {"role": "user", "content": "y"},
        ],
    ]
    path = folder / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats), "utf-8")
    template = "{% for m in messages %}{{ m.role + ':' + m.content + (eos_token if m.role == 'assistant' else ';') }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    rows = open_rows([str(path)], model.tokenizer, template=template, objective="reinforce", mask_roles=())
    rendered = ChatTemplate.of(template, model.tokenizer).render([chats[1]], add_generation_prompt=True)[0]
    wanted = encode_prompt(model.tokenizer, rendered)
    assert len(rows) == 3
    for number in range(3):
        ids, mask = rows[number]
        assert ids[:-1].tolist() == wanted
        assert mask.tolist() == [False] * len(wanted) + [True]


def test_what_does_not_fit(folder: Path) -> None:
    with pytest.raises(UsageError, match="reinforce is missing"):
        tiny_run.config(folder, objective="reinforce")
    with pytest.raises(UsageError, match="reinforce is for the objective"):
        tiny_run.config(folder, reinforce={"reward": "rules:stop"})
    with pytest.raises(UsageError, match="did you mean"):
        config(folder, reinforce={"reward": "rules:stops"})
    with pytest.raises(UsageError, match="cannot be planned"):
        plan_run(config(folder))
    with pytest.raises(UsageError, match="val-data"):
        train(config(folder, "held-out", val_share=0.2))
    with pytest.raises(UsageError, match="without dropout"):
        train(config(folder, "dropout", lora={"r": 2, "dropout": 0.1}))
    foreign: tuple[dict[str, Any], ...] = ({"mask_roles": ()}, {"long_rows": "split"}, {"z_loss": 1e-4})
    for wrong in foreign:
        with pytest.raises(UsageError, match=r"prompts|z_loss"):
            config(folder, **wrong)
    assert tiny_run.config(folder).shaping().keys().isdisjoint({"reinforce"}), "older runs are still known"
    assert config(folder, lr=1e-3).lr == 1e-3
    paper = TrainConfig(
        model="m",
        data=("d",),
        out=folder,
        objective="reinforce",
        reinforce=ReinforceConfig(reward="rules:stop"),
    )
    assert paper.lr == 1e-6 and paper.reinforce is not None
    assert (paper.reinforce.beta, paper.reinforce.mu, paper.reinforce.temperature) == (0.1, 0.01, 0.9)


def test_a_wrong_reward_is_named_and_nothing_else(folder: Path) -> None:
    words = ["train", "reinforce", "--model", "m", "--data", "d", "--out", str(folder / "out")]
    done = CliRunner().invoke(app, [*words, "--reward", "rulez:stop"])
    assert done.exit_code == 2 and "is no reward" in str(done.output) and "missing" not in done.output


def test_the_command(folder: Path) -> None:
    words = [
        "train", "reinforce", "--reward", "rules:words=-3 + 0.5*stop", "--model", str(tiny_run.model(folder)),
        "--data", str(tiny_run.data(folder)), "--out", str(folder / "out"), "--samples", "2", "--answer-tokens", "4",
        "--batch", "8", "--style", "plain", "--set", "reinforce.mu=0.5", "--set", "dtype=float32",
        "--set", "peak_flops=1e12", "--val-data", str(tiny_run.data(folder)), "--json",
    ]  # fmt: skip
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["steps"] == 3 and told["val_loss"] > 0
    manifest = json.loads((folder / "out" / "manifest.json").read_text("utf-8"))
    assert manifest["config"]["reinforce"]["mu"] == 0.5 and manifest["config"]["reinforce"]["samples"] == 2
    assert parse_reward(manifest["config"]["reinforce"]["reward"])("a b", True) == 1.5
    words[3] = "rules:word=3"
    refused = CliRunner().invoke(app, [*words[:9], str(folder / "other"), *words[10:]])
    assert refused.exit_code == 2
