"""Preference training: losses against formulas and a padded brute force, pairs as rows, and whole runs."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_run
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_train_processes import figures, losses, run_in
from test_train_run import EVERY_STEP, same, stop_after
from torch import Tensor
from typer.testing import CliRunner

from ojak.artifact import Artifact
from ojak.cli.app import app
from ojak.errors import InputRefused, Stopped, UsageError
from ojak.model.decoder import Decoder
from ojak.model.files import home
from ojak.model.lora import apply_lora
from ojak.model.lora_config import LoraConfig
from ojak.model.lora_layer import without_adapters
from ojak.train.batches import Batch, packed_batch
from ojak.train.config import TrainConfig
from ojak.train.log_probs import chunked_log_probs
from ojak.train.prefer import Prefer, pair_losses
from ojak.train.prefer_config import PreferConfig
from ojak.train.rows import open_rows
from ojak.train.run import train
from ojak.train.styles import style_template
from ojak.train.trackers import read_metrics

NAN = math.nan


def pairs(count: int = 24) -> list[dict[str, Any]]:
    """Prompts that share their beginning; the better answer is the polite one."""
    return [
        {
            "prompt": [{"role": "user", "content": f"say {i} " + "now " * (i % 3)}],
            "chosen": [{"role": "assistant", "content": f"please {i}" + "!" * (i % 4)}],
            "rejected": [{"role": "assistant", "content": f"no {i * 3}" + " never" * (i % 2)}],
            "scores": {"chosen": i % 5, "rejected": 1.5} if i % 2 else {},
        }
        for i in range(count)
    ]


def write(folder: Path, rows: list[dict[str, Any]], name: str = "pairs.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def config(folder: Path, out: str = "out", loss: str = "dpo", **changes: Any) -> TrainConfig:
    settings = {
        "data": (str(write(folder, pairs())),),
        "objective": "prefer",
        "prefer": {"loss": loss},
        "lr": 3e-3,
    }
    return tiny_run.config(folder, out, **(settings | changes))


# ------------------------------------------------------------------------------------------------------ log-probabilities


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("frozen", [False, True])
def test_log_probs_and_gradients_are_those_of_whole_logits(
    cap: float | None, rows: int, frozen: bool
) -> None:
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=random, dtype=torch.float64)
    weight = torch.randn(11, 5, generator=random, dtype=torch.float64)
    factors = torch.randn(7, generator=random, dtype=torch.float64)
    targets = torch.randint(0, 11, (7,), generator=random)
    found: list[tuple[Tensor, ...]] = []
    for chunked in (True, False):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_(not frozen)
        if chunked:
            values = chunked_log_probs(h, w, targets, softcap=cap, chunk=rows * 11 * 8)
        else:
            logits = h @ w.t() if cap is None else cap * torch.tanh(h @ w.t() / cap)
            values = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        (values * factors).sum().backward()
        found.append((values.detach(), *(x.grad for x in (h, w) if x.grad is not None)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


# --------------------------------------------------------------------------------------------------------------- losses


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def by_formula(loss: str, sums: Any, sizes: Any, known: Any, gap: float, how: PreferConfig) -> float:
    """Each loss as it is published, a pair at a time; TRL's `sigmoid` (with smoothing), `ipo`, `simpo`, NeMo's RPO."""
    beta, smooth = how.beta or {"simpo": 2.0}.get(loss, 0.1), how.label_smoothing
    ratio = (sums[0] - sums[1]) - (known[0] - known[1])
    nll = {"rpo": 1.0}.get(loss, 0.0) * -sums[0] / sizes[0]
    if loss == "ipo":
        return nll + (ratio - 1 / (2 * beta)) ** 2
    if loss == "simpo":
        z = beta * (sums[0] / sizes[0] - sums[1] / sizes[1] - how.gamma / beta)
        return nll - log_sigmoid(z) * (1 - smooth) - log_sigmoid(-z) * smooth
    z = beta * ratio
    if loss == "rpo" and not math.isnan(gap):
        p = 1 / (1 + math.exp(-gap))
        return nll + p * (math.log(p) - log_sigmoid(z)) + (1 - p) * (math.log(1 - p) - log_sigmoid(-z))
    return nll - log_sigmoid(z) * (1 - smooth) - log_sigmoid(-z) * smooth


number = st.floats(-60, -0.1)


@settings(max_examples=60, deadline=None)
@given(
    loss=st.sampled_from(["dpo", "ipo", "simpo", "rpo"]),
    sums=st.tuples(number, number),
    known=st.tuples(number, number),
    sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    gap=st.sampled_from([NAN, -1.5, 0.0, 3.0]),
    smooth=st.sampled_from([0.0, 0.1]),
    beta=st.sampled_from([None, 0.5]),
)
def test_losses_are_the_published_formulas(
    loss: Any, sums: Any, known: Any, sizes: Any, gap: float, smooth: float, beta: float | None
) -> None:
    how = PreferConfig(loss=loss, label_smoothing=0.0 if loss == "ipo" else smooth, beta=beta)
    a, b, c, d = (torch.tensor([x], dtype=torch.float64) for x in (sums, sizes, known, gap))
    found = pair_losses(how, a, b, c, d)
    assert float(found.loss_P) == pytest.approx(
        by_formula(loss, sums, sizes, known, gap, how), rel=1e-6, abs=1e-7
    )


def loss_of(how: PreferConfig, ahead: float, gap: float = NAN, tokens: float = 1.0) -> tuple[float, float]:
    """(loss, slope) of a pair whose better answer is `ahead` of the reference's -5, -5."""
    sums = torch.tensor([[ahead - 5.0, -5.0]], dtype=torch.float64, requires_grad=True)
    rest = torch.full((1, 2), tokens, dtype=torch.float64), torch.full((1, 2), -5.0, dtype=torch.float64)
    loss = pair_losses(how, sums, *rest, torch.tensor([gap], dtype=torch.float64)).loss_P.sum()
    (grad,) = torch.autograd.grad(loss, sums)
    return float(loss.detach()), float(grad[0, 0])


def test_the_limits_of_the_losses() -> None:
    assert loss_of(PreferConfig(), 0.0)[0] == pytest.approx(math.log(2))  # the policy is the reference
    for beta in (1e-3, 1e-6):  # -log sigmoid(beta d) falls with beta / 2 everywhere
        assert loss_of(PreferConfig(beta=beta), 7.0)[1] == pytest.approx(-beta / 2, rel=1e-2)
    loss, slope = loss_of(PreferConfig(loss="ipo", beta=0.2), 1 / 0.4)
    assert (loss, slope) == pytest.approx((0, 0), abs=1e-9)
    assert loss_of(PreferConfig(loss="ipo", beta=0.2), 3.0)[1] > 0  # further is too far
    aware = PreferConfig(loss="rpo", beta=0.5, eta=2.0, nll=0.0)
    assert loss_of(aware, 4.0, gap=1.0) == pytest.approx((0, 0), abs=1e-9)  # 0.5 * 4 = 2 * 1
    dpo = loss_of(PreferConfig(beta=0.5), 4.0)
    assert loss_of(aware, 4.0, gap=30.0) == pytest.approx(dpo, rel=1e-6)
    assert loss_of(PreferConfig(loss="rpo", beta=0.5, eta=None, nll=0.0), 4.0, gap=1.0) == pytest.approx(dpo)
    assert loss_of(PreferConfig(per_token=True), 4.0, tokens=2.0)[0] == pytest.approx(
        loss_of(PreferConfig(), 2.0)[0]
    )


# ------------------------------------------------------------------------------------------- against a padded brute force

Document = tuple[list[int], list[bool]]


def made(count: int = 5) -> list[Document]:
    """Documents of pairs, one after the other: a common prompt, then answers of ragged lengths."""
    random = torch.Generator().manual_seed(1)

    def draw(size: int) -> list[int]:
        return torch.randint(0, 250, (size,), generator=random).tolist()

    found: list[Document] = []
    for i in range(count):
        prompt = [5, 6, 7, *draw(2 + i)]
        for size in (3 + 2 * i, 9 - i):
            found.append(([*prompt, *draw(size)], [False] * len(prompt) + [True] * size))
    return found


def batch_of(documents: list[Document], first: int = 0) -> Batch:
    ready = [(np.array(ids, np.uint32), np.array(mask, np.bool_)) for ids, mask in documents]
    count = len(documents) // 2
    return replace(packed_batch(ready), rows=tuple(range(first, first + count)), pairs=count)


def padded_sums(decoder: Decoder, documents: list[Document]) -> Tensor:
    """log p of each answer, from whole logits of a padded batch, as transformers and TRL do it."""
    width = max(len(ids) for ids, _ in documents)
    ids = torch.tensor([[*ids, *[9] * (width - len(ids))] for ids, _ in documents])
    mask = torch.tensor([[*mask, *[False] * (width - len(mask))] for _, mask in documents])
    log_probs = decoder(ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    return (log_probs * mask[:, 1:]).double().sum(1).view(-1, 2)


def gradients(decoder: Decoder, loss: Tensor) -> dict[str, Tensor]:
    decoder.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in decoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("loss", ["dpo", "simpo", "rpo"])
def test_the_objective_is_the_padded_brute_force(family: str, loss: Any) -> None:
    decoder = tiny.decoder(family, scale=0.2).requires_grad_(True)
    documents, how = made(), PreferConfig(loss=loss)
    with torch.no_grad():
        known = padded_sums(tiny.decoder(family, scale=0.2, seed=3), documents)
    gaps, sizes = [NAN, 0.5, -1.0, NAN, 2.0], [sum(mask) for _, mask in documents]
    sums = padded_sums(decoder, documents)
    lengths = torch.tensor(sizes).view(-1, 2)
    wanted = pair_losses(how, sums, lengths, known, torch.tensor(gaps, dtype=torch.float64)).loss_P.sum()
    theirs = gradients(decoder, wanted)
    find = Prefer(how, known.numpy(), np.array(gaps))
    found = find(decoder, batch_of(documents))
    ours = gradients(decoder, found.sum)
    assert float(found.sum.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    assert ours.keys() == theirs.keys()
    for name, grad in theirs.items():
        torch.testing.assert_close(
            ours[name], grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max().clamp_min(1))
        )
    assert found.supervised == 5 and found.computed < sum(len(ids) for ids, _ in documents)  # prompts once
    assert found.extras["chosen_log_prob"] == pytest.approx((float(sums[:, 0].detach().sum()), 5))
    sums = sums.detach()
    ahead = sums - known if loss != "simpo" else sums / torch.tensor(sizes).view(-1, 2)
    assert found.extras["accuracy"][0] == int((ahead[:, 0] > ahead[:, 1]).sum())


def test_n_by_one_is_one_by_n() -> None:
    decoder = tiny.decoder("gemma2", scale=0.2).requires_grad_(True)
    documents, known = made(), np.linspace(-90, -20, 10).reshape(5, 2)
    find = Prefer(PreferConfig(), known)
    whole = find(decoder, batch_of(documents))
    grads = gradients(decoder, whole.sum / 5)
    parts = [find(decoder, batch_of(documents[2 * i : 2 * i + 2], i)) for i in range(5)]
    total = torch.stack([part.sum for part in parts]).sum()
    assert float(total.detach()) == pytest.approx(float(whole.sum.detach()), rel=1e-6)
    apart = gradients(decoder, total / 5)
    for name, grad in grads.items():
        assert float((apart[name] - grad).abs().max()) <= 1e-6 * max(1.0, float(grad.abs().max())), name


def test_a_decoder_without_its_adapters_is_its_base() -> None:
    decoder, ids = tiny.decoder("llama"), torch.arange(12)[None]
    base = decoder(ids)
    apply_lora(decoder, LoraConfig(r=4, variant="dora"), 0)
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    assert not torch.allclose(decoder(ids), base)
    with without_adapters(decoder):
        assert torch.equal(decoder(ids), base)
    assert not torch.allclose(decoder(ids), base)


# ---------------------------------------------------------------------------------------------------------- pairs as rows


def opened(folder: Path, rows: list[dict[str, Any]], **options: Any) -> Any:
    tokenizer = tiny.tokenizer()
    template = style_template("plain", tokenizer, None)
    data = (str(write(folder, rows)),)
    return open_rows(data, tokenizer, **{"template": template, "objective": "prefer", **options})


def test_a_pair_is_one_row_of_two_documents(folder: Path) -> None:
    turn = {"role": "assistant", "content": "before"}
    rows = pairs(3)
    rows[1]["prompt"] = [*rows[1]["prompt"], turn, {"role": "user", "content": "and?"}]
    rows.append(rows[0] | {"rejected": rows[0]["chosen"]})
    rows.append({"messages": [*rows[0]["prompt"], *rows[0]["chosen"]]})
    rows.append(rows[1] | {"chosen": [{"role": "user", "content": "what?"}]})
    found = opened(folder, rows)
    assert len(found) == 3 and found.paired
    decode = tiny.tokenizer().decode
    for i in range(3):
        for answer, (ids, mask) in zip(("chosen", "rejected"), found.documents(i), strict=True):
            assert decode(ids[mask].tolist()) == rows[i][answer][0]["content"] + "</s>"
            assert decode(ids[~mask].tolist()).endswith(rows[i]["prompt"][-1]["content"] + "\n")
    assert np.isnan(found.gaps[[0, 2]]).all() and found.gaps[1] == -0.5
    assert found.counts["refused"] == {
        "answers_are_alike": 1, "not_a_pair": 1, "an answer without a turn of the assistant's": 1,
    }  # fmt: skip
    cut = opened(folder, pairs(12), max_len=20)
    assert cut.longest == 20 < int(cut.lengths.max()) and cut.counts["truncated"]
    assert len(opened(folder, pairs(12), max_len=20, long_rows="drop")) < 12


def test_drawn_and_held_out_rows_stay_pairs(folder: Path) -> None:
    rows = opened(folder, pairs())
    kept, held = rows.hold_out(0.25, 0)
    few = kept.drawn(7, 1)
    assert (len(kept), len(held), len(few)) == (18, 6, 7)
    for each in (kept, held, few):
        assert all(len(each.documents(i)) == 2 for i in range(len(each)))
        for i in range(len(each)):  # scores stay with their pair: 24 rows, by the number that the prompt says
            number = int(tiny.tokenizer().decode(each[i][0].tolist()).split()[1])
            assert np.isnan(each.gaps[i]) if number % 2 == 0 else each.gaps[i] == number % 5 - 1.5


# ------------------------------------------------------------------------------------------------------------ whole runs


def test_a_run_learns_what_is_preferred(folder: Path) -> None:
    told: list[str] = []
    chosen = config(folder, epochs=4, val_share=0.25, prefer={"loss": "dpo", "beta": 0.5})
    result = train(chosen, notify=told.append)
    steps = [line for line in read_metrics(chosen.out / "metrics.jsonl") if "loss" in line]
    assert result.loss_first == pytest.approx(math.log(2), abs=1e-5)
    assert steps[0]["margin"] == pytest.approx(0, abs=1e-4)
    assert steps[-1]["accuracy"] > 0.9 and steps[-1]["margin"] > 0.5
    assert steps[-1]["chosen_log_prob"] > steps[-1]["rejected_log_prob"]
    last = list(read_metrics(chosen.out / "metrics.jsonl"))[-1]
    assert last["val_loss"] == result.val_loss and last["val_loss"] < 0.6 and last["val_accuracy"] > 0.8
    assert sum("asking the reference" in line for line in told) == 2  # to learn from, and held out
    blocks = sorted((home() / "references").rglob("*.f64"))
    told.clear()
    train(config(folder, "other", epochs=1, val_share=0.25, lr=1e-3), notify=told.append)
    assert not any("asking the reference" in line for line in told)  # kept, whatever the settings of the loss
    train(config(folder, "smaller", epochs=1, val_share=0.25, micro_batch=3), notify=told.append)
    assert any("asking the reference" in line for line in told)  # other shapes round otherwise
    told.clear()
    blocks[0].write_bytes(blocks[0].read_bytes()[:-1] + b"\x00")
    train(config(folder, "again", epochs=1, val_share=0.25), notify=told.append)
    assert sum("asking the reference" in line for line in told) == 1


@pytest.mark.parametrize("changes", [{}, {"lora": {"r": 4, "variant": "dora"}, "loss": "ipo"}])
def test_a_stopped_run_goes_on_to_the_same_weights(folder: Path, changes: dict[str, Any]) -> None:
    more = {"epochs": 2, "micro_batch": 3, "checkpoint": EVERY_STEP, **changes}
    straight, broken = (config(folder, out, **more) for out in ("straight", "broken"))
    first = train(straight).loss_first
    if "lora" in changes:
        assert first == pytest.approx(25, rel=1e-4)  # (1 / (2 * 0.1))^2: an adapter begins as its base
    with pytest.raises(Stopped):
        train(broken, progress=stop_after(2))
    train(broken)
    assert losses(straight) == losses(broken)
    assert "lora" in changes or same(straight, broken)


@pytest.mark.timeout(280)
def test_two_processes_learn_what_one_does(folder: Path) -> None:
    one, two = (config(folder, name, batch=6, epochs=1, val_share=0.2) for name in ("one", "two"))
    run_in(one, 1)
    for path in (home() / "references").rglob("*.f64"):
        path.unlink()
    run_in(two, 2)
    assert len(losses(one)) == 4  # 19 pairs: the last step has one, so that a process has none
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)
    assert figures(two, "gradient_norm") == pytest.approx(figures(one, "gradient_norm"), rel=1e-4)
    assert figures(two, "accuracy") == figures(one, "accuracy")


def test_what_does_not_go_together_is_refused(folder: Path) -> None:
    refused: list[dict[str, Any]] = [
        {"packing": True},
        {"long_rows": "split"},
        {"mask_roles": ()},
        {"prefer": None},
        {"z_loss": 1e-4},
        {"prefer": {"loss": "ipo", "label_smoothing": 0.1}},
        {"prefer": {"loss": "dpo", "gamma": 2}},
    ]
    for wrong in refused:
        with pytest.raises(UsageError):
            config(folder, **wrong)
    with pytest.raises(UsageError):
        config(folder, objective="finetune")
    with pytest.raises(InputRefused, match="not_a_pair"):
        train(config(folder, data=(str(tiny_run.data(folder)),)))


def test_the_command(folder: Path) -> None:
    data, model = str(write(folder, pairs(8))), str(tiny_run.model(folder))
    command = ["train", "prefer", "--model", model, "--data", data, "--out", "out", "--style", "alpaca"]
    planned = CliRunner().invoke(app, [*command, "--loss", "dpo", "--dry-run"])
    assert planned.exit_code == 0 and "8 rows" in planned.stdout and not Path("out").exists()
    done = CliRunner().invoke(app, [*command, "--loss", "simpo", "--set", "prefer.gamma=0.5", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["steps"] == 1
    kept = json.loads(Path("out/manifest.json").read_text("utf-8"))["config"]
    assert (kept["prefer"]["gamma"], kept["lr"]) == (0.5, 1e-6)
    assert not (home() / "references").exists()  # simpo asks none
    shown = CliRunner().invoke(
        app, ["train", "preview", "--model", model, "--data", data, "--style", "alpaca", "--set", "objective=prefer",
              "--set", "prefer.loss=dpo", "--rows", "1", "--json"],
    )  # fmt: skip
    assert [row["runs"][-1]["text"] for row in json.loads(shown.stdout)["rows"]] == [
        "please 0</s>",
        "no 0</s>",
    ]


def test_a_recipe_lifts_pairs_and_learns_from_them(folder: Path) -> None:
    write(folder, pairs())
    tiny_run.model(folder)
    Path("small.yaml").write_text(
        "version: 1\nname: small\nstages:\n  rows: {data: [pairs.jsonl], test: 4, seed: 0}\n  lift: {both_fit: 0.0}\n"
        "  train: {model: model, objective: prefer, prefer: {loss: dpo}, style: alpaca, lora: {r: 2}, batch: 4,\n"
        "    dtype: float32, peak_flops: 1.0e+12, max_len: 400, val_data: '@lift:test'}\n",
        "utf-8",
    )
    done = CliRunner().invoke(app, ["run", "small.yaml", "--json"])
    assert done.exit_code == 0, done.output
    limited = Artifact.open("runs/small/lift")
    # To learn from: 20 pairs, and those of them that take a limit; to measure by: limits alone.
    assert limited.splits["train"] > 20 > limited.splits["test"] > 0
    assert all("lift" in record.meta for record in limited.records("test"))
    kept = json.loads(Path("runs/small/train/manifest.json").read_text("utf-8"))
    assert kept["rows"]["kept"] == limited.splits["train"]
    assert kept["result"]["val_loss"] == pytest.approx(math.log(2), rel=0.01)
