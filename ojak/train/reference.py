"""What the reference of preference training says of each answer: asked once, before the first step, and kept.

The reference is the model as the run begins; with an adapter, its base. Two numbers a pair are all that the losses
need of it, the log-probabilities of both answers, so that no second model stays in memory, and a run that goes on, or
another one with other settings, asks nothing again.

OJAK_HOME/references/<key>/<first row>.f64    SHA-256 of what follows, then float64[rows, 2]; of BLOCK rows
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ojak._code import code_sha256
from ojak._files import disk_errors, write_atomic
from ojak.model.files import home
from ojak.model.lora_layer import without_adapters
from ojak.records import dump_json
from ojak.train.batches import batch_of, filler
from ojak.train.fresh import drawn_by
from ojak.train.log_probs import answer_log_probs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ojak.train.config import TrainConfig
    from ojak.train.objectives import Material

BLOCK = 128  # pairs: what a kill may cost
DIGEST_BYTES = 32
CODE = ("train/reference.py", "train/log_probs.py", "train/loss.py", "model/decoder.py", "model/attention.py")


def reference_log_probs(config: TrainConfig, material: Material) -> NDArray[np.float64]:
    """log p(better answer), log p(worse answer) of each row under the model as it is now: float64[rows, 2].

    Kept under a key of the model's and the rows' hashes. With several processes all of them call this. Raises
    ResourceExhausted if the disk is full; what was asked by then is kept.
    """
    rows, processes = material.rows, material.processes
    folder, found, told = home() / "references" / _key(config, material), [], False
    for first in range(0, len(rows), BLOCK):
        numbers = range(first, min(first + BLOCK, len(rows)))
        path = folder / f"{first:010d}.f64"
        kept = _read(path, len(numbers))
        if processes.from_first(int(kept is None)):
            if not told:
                material.notify(f"asking the reference for {len(rows) - first:,} pairs")
            told, kept = True, _asked(config, material, numbers)
            with processes.together("keeping what the reference said"):
                _write(path, kept, processes.first)
        found.append(_shared(kept, len(numbers), material))
    return np.concatenate(found)


def _key(config: TrainConfig, material: Material) -> str:
    """What the numbers depend on; they are those of a training step with the same dtype on the same kind of device.

    Shapes of products round differently: what another micro-batch left must not make a run another one than it would
    be by itself.
    """
    key: dict[str, Any] = {
        "model": material.model.sha256,
        "drawn_by": drawn_by(config),
        "rows": material.rows.sha256,
        "dtype": config.dtype,
        "shapes": [_micro(config, material), material.processes.size],
        "device": material.processes.device.type,
        "torch": torch.__version__,
        "code": code_sha256(CODE),
    }
    return hashlib.sha256(dump_json(key).encode()).hexdigest()[:32]


def _micro(config: TrainConfig, material: Material) -> int:
    """Pairs that are asked about together."""
    return config.micro_batch or max(1, config.batch // material.processes.size)


def _read(path: Path, count: int) -> NDArray[np.float64] | None:
    """The numbers of a block; None where they are missing or damaged."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, numbers = data[:DIGEST_BYTES], data[DIGEST_BYTES:]
    if len(numbers) != 16 * count or hashlib.sha256(numbers).digest() != digest:
        return None
    return np.frombuffer(numbers, np.float64).reshape(-1, 2)


def _write(path: Path, found: NDArray[np.float64], is_first: bool) -> None:
    if not is_first:
        return
    numbers = found.tobytes()
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, hashlib.sha256(numbers).digest() + numbers)


@torch.no_grad()
def _asked(config: TrainConfig, material: Material, numbers: range) -> NDArray[np.float64]:
    """The numbers of some rows, which the processes share among them: each makes as many batches as the others."""
    decoder, processes = material.model.decoder, material.processes
    micro = _micro(config, material)
    own = numbers[processes.rank :: processes.size]
    most = math.ceil(math.ceil(len(numbers) / processes.size) / micro)
    found, was_training = np.zeros((len(numbers), 2)), decoder.training
    decoder.eval()
    with without_adapters(decoder):
        for at in range(0, most * micro, micro):
            part = own[at : at + micro]
            batch = batch_of(material.rows, part) if part else filler()
            sums_A = answer_log_probs(decoder, batch).sums_A.cpu().numpy()
            if part:
                found[[number - numbers[0] for number in part]] = sums_A.reshape(-1, 2)
    decoder.train(was_training)
    return np.array(processes.total(*found.ravel().tolist())).reshape(-1, 2)


def _shared(kept: NDArray[np.float64] | None, count: int, material: Material) -> NDArray[np.float64]:
    """The first process's numbers, for all: the others may not see its disk."""
    own = kept if material.processes.first and kept is not None else np.zeros((count, 2))
    return np.array(material.processes.total(*own.ravel().tolist())).reshape(-1, 2)
