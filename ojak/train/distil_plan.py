"""What a teacher adds to a run's time and memory, told before it is begun; its weights are not read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ojak.model.config import config_from_hf
from ojak.model.decoder import Decoder, DecoderConfig
from ojak.train.distil import cached_teacher, check_vocabulary, supervised, teacher_source
from ojak.train.distil_cache import is_cache
from ojak.train.objectives import Material, NextToken
from ojak.train.optimizer import STATE_DTYPES

if TYPE_CHECKING:
    from ojak.train.batches import Batch
    from ojak.train.config import TrainConfig

FEW = 2  # layers that are measured, and one more
TIMED = 2  # passes
LOGITS = 1 << 24  # of them at once


@dataclass(frozen=True, slots=True)
class TeacherCost:
    """bytes: of the weights, held all the time. seconds: of reading one micro-batch."""

    bytes: float = 0.0
    seconds: float = 0.0


def teacher_cost(
    config: TrainConfig,
    material: Material,
    batch: Batch,
    device: torch.device,
    clock: Callable[[torch.device], float],
) -> TeacherCost:
    """What the teacher of these settings adds to a run: nothing where there is none, or a cache in its place.

    Raises what the run would raise for a teacher that does not fit. What sampled answers take is not in it.
    """
    settings = config.distil
    if config.objective != "distil" or settings is None:
        return TeacherCost()
    if is_cache(settings.teacher):
        cached_teacher(config, settings, material)
        return TeacherCost()
    source = teacher_source(config, settings, material.notify)
    check_vocabulary(material.model, source)
    if settings.samples:
        material.notify(
            f"{settings.loss} samples answers as it learns; their time and memory are not in the plan"
        )
    shape = config_from_hf(source.config)
    with torch.device("meta"):
        count = sum(weight.numel() for weight in Decoder(shape).parameters())
    dtype = STATE_DTYPES[config.dtype]
    layers = min(FEW, shape.num_hidden_layers)
    few = _seconds(shape, layers, batch, dtype, device, clock)
    if layers == shape.num_hidden_layers:
        return TeacherCost(count * dtype.itemsize, few)
    each = max(0.0, _seconds(shape, layers + 1, batch, dtype, device, clock) - few)
    return TeacherCost(count * dtype.itemsize, few + each * (shape.num_hidden_layers - layers))


@torch.no_grad()
def _seconds(
    shape: DecoderConfig, layers: int, batch: Batch, dtype: torch.dtype, device: torch.device,
    clock: Callable[[torch.device], float],
) -> float:  # fmt: skip
    """Of reading a batch with so many of a teacher's layers, and of its logits where something is learnt."""
    few = replace(shape, num_hidden_layers=layers, layer_types=shape.layer_types[:layers])
    decoder = Decoder(few).to(device=device, dtype=dtype).eval()
    weight_VD = decoder.get_parameter("lm_head.weight")
    taken: list[float] = []
    for _ in range(TIMED):
        begin = clock(device)
        hidden_SD, _, _ = supervised(*NextToken().states(decoder, batch))
        for part_RD in hidden_SD.split(max(1, LOGITS // len(weight_VD))):
            _ = part_RD @ weight_VD.t()
        taken.append(clock(device) - begin)
    return min(taken)
