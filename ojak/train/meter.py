"""What a step costs: operations, the share of the machine's rate that they reach, and how long the rest will take.

Operations are those of the mathematics, whatever is done twice: for each token that is computed, two a weight that it
is multiplied with on the way forward, two for the gradient of the layer's input, two for that of the weight where it is
learnt (arXiv 2001.08361, section 2.1); in the output layer, for each supervised token. Attention's own products are
left out.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import torch

from ojak.model.estimate import matrix_rate

if TYPE_CHECKING:
    from ojak.model.decoder import Decoder
    from ojak.train.checkpoints import TrainState

RECENT = 20  # steps that the time to the end is told from

# Dense bfloat16 operations a second, as the makers state them.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "4090": 165e12,
    "3090": 71e12,
    "T4": 65e12,
}


def peak_flops(device: torch.device) -> float | None:
    """The operations a second of this GPU by its maker's word, or of this CPU as measured; None for another GPU."""
    if device.type != "cuda":
        return matrix_rate()
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAKS.items() if known in name), None)


def operations(decoder: Decoder) -> tuple[float, float]:
    """Operations for each computed token in the layers, and for each supervised one in the output layer."""
    layers = 0
    for name, weight in decoder.model.layers.named_parameters():
        if weight.ndim == 2 and "lora_" not in name:
            layers += weight.numel() * (6 if weight.requires_grad else 4)
        elif weight.ndim == 2:
            layers += weight.numel() * 6
    head = decoder.get_parameter("lm_head.weight")
    return float(layers), float(head.numel() * (6 if head.requires_grad else 4))


class Meter:
    """Tells the figures of each step. peak: operations a second of all processes, None where it is not known."""

    def __init__(self, decoder: Decoder, peak: float | None) -> None:
        self.per_token, self.per_target = operations(decoder)
        self.peak = peak
        self.recent: deque[float] = deque(maxlen=RECENT)

    def step(
        self, state: TrainState, steps: int, seconds: float, tokens: int, supervised: int, computed: int
    ) -> dict[str, Any]:
        """The figures of the step that `state` has just made; tokens are those of the data, without padding."""
        self.recent.append(seconds)
        done = computed * self.per_token + supervised * self.per_target
        return {
            "step": state.step,
            "steps": steps,
            "epoch": state.epoch,
            "tokens": state.tokens,
            "supervised_tokens": state.supervised_tokens,
            "supervised_share": round(supervised / max(1, tokens), 4),
            "computed_share": round(computed / max(1, tokens), 4),
            "tokens_per_s": round(tokens / seconds, 1),
            "seconds": round(seconds, 4),
            "mfu": round(done / seconds / self.peak, 4) if self.peak else None,
            "peak_flops": self.peak,
            "eta_s": round((steps - state.step) * sum(self.recent) / len(self.recent), 1),
        }
