"""A run in as many processes as started it: `python split_training.py TASK` (JSON), alone or under torchrun.

The task: {"folder", "steps", "resume", "dtype", "result"}. It trains a tiny decoder on ragged rows by Adam, written out
here, so that the processes are tested and not the loop; it saves a checkpoint at its end and leaves the losses, the
lines of the resume and a hash of the weights in `result`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "model")]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from tiny import VOCAB, decoder  # noqa: E402
from torch import Tensor  # noqa: E402

from ojak.model.decoder import Decoder  # noqa: E402
from ojak.train.checkpoints import TrainState, newest_valid, save_checkpoint  # noqa: E402
from ojak.train.processes import Processes, joined, local, split_weights  # noqa: E402

ROWS = 5  # an odd number: one of two processes has a row more


def rows_of(step: int, processes: Processes) -> list[Tensor]:
    """This process's rows of a step, each of another length; as many as the others have, some with nothing to learn."""
    random = torch.Generator().manual_seed(step % 2)
    rows = [torch.randint(0, VOCAB, (1, 6 + 5 * i), generator=random) for i in range(ROWS)]
    own = rows[processes.rank :: processes.size]
    return own + [rows[0][:, :1]] * (-(-ROWS // processes.size) - len(own))


def loss_of(model: Decoder, ids_1T: Tensor) -> tuple[Tensor, int]:
    """The sum over the second half of a row, and its tokens; the output layer is used outside of `forward`."""
    first = ids_1T.shape[1] // 2
    hidden_SD = model.hidden(ids_1T)[0, first:-1]
    logits = hidden_SD @ model.get_parameter("lm_head.weight").t()
    return F.cross_entropy(logits.float(), ids_1T[0, first + 1 :], reduction="sum"), len(hidden_SD)


def begin(model: Decoder, processes: Processes, dtype: torch.dtype) -> tuple[dict[str, Tensor], TrainState]:
    """The weights that are learnt, and the state that they and their moments are."""
    model.requires_grad_(True)
    weights: dict[str, Tensor] = {**dict(model.named_parameters())}
    shapes: dict[str, tuple[int, ...]] = {}
    if processes.size > 1:
        weights = split_weights(model, processes, dtype)
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    tensors = {name: local(weight.detach()) for name, weight in weights.items()}
    for name in weights:
        for slot in ("exp_avg", "exp_avg_sq"):
            tensors[f"optimizer.{name}.{slot}"] = torch.zeros_like(tensors[name])
            if processes.size > 1:
                shapes[f"optimizer.{name}.{slot}"] = shapes[name]
    return weights, TrainState(0, 0, 0, 0, 0, 0.0, {"lr": 0.01}, "r" * 64, tensors, shapes)


def adam(weights: dict[str, Tensor], state: TrainState) -> None:
    for name, weight in weights.items():
        assert weight.grad is not None, name
        grad, own = local(weight.grad), state.tensors[name]
        first = state.tensors[f"optimizer.{name}.exp_avg"].lerp_(grad, 0.1)
        second = state.tensors[f"optimizer.{name}.exp_avg_sq"].lerp_(grad * grad, 0.05)
        t = state.step + 1
        own -= 0.01 * (first / (1 - 0.9**t)) / ((second / (1 - 0.95**t)).sqrt() + 1e-8)
        weight.grad = None


def step(
    model: Decoder, weights: dict[str, Tensor], state: TrainState, processes: Processes
) -> tuple[float, float]:
    batches = rows_of(state.step, processes)
    count = processes.total(sum(max(0, row.shape[1] - 1 - row.shape[1] // 2) for row in batches))[0]
    loss = 0.0
    for row in batches:
        total, _ = loss_of(model, row)
        (total / count).backward()
        loss += float(total.detach())
    squares = sum(
        float(local(weight.grad).square().sum()) for weight in weights.values() if weight.grad is not None
    )
    norm = processes.total(squares)[0] ** 0.5
    with torch.no_grad():
        adam(weights, state)
    state.step += 1
    return processes.total(loss)[0] / count, norm


def validation(model: Decoder, state: TrainState) -> float:
    """Between steps, without gradients: the weights must be those of the step before."""
    with torch.no_grad():
        return float(loss_of(model, torch.arange(20)[None])[0])


def run(task: dict[str, Any]) -> None:
    with joined(torch.device("cpu")) as processes:
        model = decoder("qwen2" if task.get("tied", True) else "llama", seed=1)
        weights, state = begin(model, processes, getattr(torch, task.get("dtype", "float32")))
        folder, reasons = Path(task["folder"]), []
        if task.get("resume"):
            found, reasons = newest_valid(folder, like=state, processes=processes)
            if found is not None:
                state.take(found)
        losses, norms, checked = [], [], []
        while state.step < task["steps"]:
            loss, norm = step(model, weights, state, processes)
            losses.append(loss)
            norms.append(norm)
            checked.append(validation(model, state))
        save_checkpoint(folder, state, processes=processes)
        result = {
            "losses": losses,
            "norms": norms,
            "checked": checked,
            "reasons": reasons,
            "size": processes.size,
        }
        told = processes.texts(json.dumps(result))
        if processes.first:
            Path(task["result"]).write_text(json.dumps([json.loads(text) for text in told]), "utf-8")


if __name__ == "__main__":
    run(json.loads(sys.argv[1]))
