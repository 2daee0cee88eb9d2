"""Weights and activations in 8 or 4 bits: what they cost in quality, and what they gain in speed on a CPU.

    python -m experiments.int8_weights --data texts.txt --quality
    python -m experiments.int8_weights --data texts.txt --speed

Quality is the mean KL divergence of the next token's distribution from that of float32, over tokens of a text. Forms of
weights alone run in the kernels that would be used; those with 8-bit activations are simulated in float32: weights by
output channel, activations by token, both symmetric, with smoothing (arXiv 2211.10438, equation 4): inputs are divided
by s_j = max|x_j|^alpha / max|w_j|^(1 - alpha) and weights multiplied by it, x being that of a calibration text.

Speed is that of a decode step of `--texts` rows with 100 tokens of context each, all products in one form.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ojak.model.cache import CacheShape, DecodeAttend, SlotCache
from ojak.model.decoder import Decoder
from ojak.model.fuse import fuse
from ojak.model.load import load_model
from ojak.model.memory import keep_freed_memory
from ojak.sources import read_all

PIECE = 256  # tokens read at once
GROUP = 32  # weights of 4 bits that share a scale
FILLED = 100
Make = Callable[[str, nn.Module], nn.Module]


class Int8Weight(nn.Module):
    """Weights in 8 bits with a scale for each output channel; the kernel widens them to bf16 as it multiplies."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        weight = layer.get_parameter("weight").detach().float()
        scale = weight.abs().amax(1).clamp(min=1e-12) / 127
        self.matrix = (weight / scale[:, None]).round().to(torch.int8)
        self.scale, self.bias = scale.bfloat16(), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out = torch._weight_int8pack_mm(flat, self.matrix, self.scale).view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


class Int4Weight(nn.Module):
    """Weights in 4 bits with a scale and a zero for each GROUP inputs of an output channel."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        weight = layer.get_parameter("weight").detach().float()
        N, K = weight.shape
        groups = weight.view(N, K // GROUP, GROUP)
        low, high = groups.amin(-1), groups.amax(-1)
        scale = ((high - low) / 15).clamp(min=1e-9)
        zero = low + 8 * scale  # the kernel computes (q - 8) * scale + zero
        q = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15).to(torch.int32).view(N, K)
        self.matrix = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.contiguous(), 1)
        self.scale = torch.stack([scale, zero], -1).transpose(0, 1).contiguous().bfloat16()
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, self.matrix, GROUP, self.scale)
        out = out.view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


class Simulated(nn.Module):
    """Weights and activations rounded to 8 bits, computed in float32. largest: of each input, in the calibration."""

    def __init__(self, layer: nn.Module, largest: Tensor, alpha: float) -> None:
        super().__init__()
        weight = layer.get_parameter("weight").detach()
        smooth = largest.clamp(min=1e-5) ** alpha / weight.abs().amax(0).clamp(min=1e-5) ** (1 - alpha)
        self.smooth = smooth if alpha else torch.ones_like(smooth)
        self.matrix, self.bias = rounded(weight * self.smooth), layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(rounded(x / self.smooth), self.matrix, self.bias)


def rounded(x: Tensor) -> Tensor:
    """Rows of x on 255 levels each."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (x / scale).round() * scale


def linears(decoder: Decoder) -> Iterator[tuple[str, nn.Module]]:
    """Every layer that is a product with weights, by name."""
    for name, module in decoder.named_modules():
        if isinstance(module, nn.Linear):
            yield name, module


def replaced(decoder: Decoder, make: Make) -> None:
    """Puts what `make` gives in the place of each of them."""
    for name, module in list(linears(decoder)):
        parent, _, own = name.rpartition(".")
        setattr(decoder.get_submodule(parent), own, make(name, module))


def tokens(args: argparse.Namespace, count: int, skip: int) -> list[list[int]]:
    """Pieces of the text, after the model's BOS."""
    model = load_model(args.model, dtype="float32", accept_license=args.accept_license)
    text = "\n\n".join(getattr(row, "text", "") for row in read_all(Path(args.data)))[: 20 * (count + skip)]
    ids = model.tokenizer.encode(text, special=False)[skip : skip + count]
    begin = [model.tokenizer.bos_id] if model.tokenizer.adds_bos else []
    return [[*begin, *ids[at : at + PIECE]] for at in range(0, len(ids), PIECE)]


def calibrate(decoder: Decoder, pieces: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """The largest absolute value of each input of each product."""
    largest: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def seen(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            most = inputs[0].abs().flatten(0, -2).amax(0)
            largest[name] = torch.maximum(largest.get(name, most), most)

        return seen

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in linears(decoder)]
    for piece in pieces:
        decoder(torch.tensor([piece]))
    for hook in hooks:
        hook.remove()
    return largest


def quality(args: argparse.Namespace) -> None:
    """Prints a line of JSON for each form."""

    def fresh(dtype: str) -> Decoder:
        return load_model(args.model, dtype=dtype, accept_license=args.accept_license).decoder

    pieces = tokens(args, args.tokens, args.calibration)
    plain = fresh("float32")
    largest = calibrate(plain, tokens(args, args.calibration, 0))
    wanted = [plain(torch.tensor([piece]))[0].log_softmax(-1) for piece in pieces]

    def compare(form: str, decoder: Decoder) -> None:
        divergence, same, count = 0.0, 0, 0
        for piece, target in zip(pieces, wanted, strict=True):
            got = decoder(torch.tensor([piece]))[0].float().log_softmax(-1)
            divergence += (target.exp() * (target - got)).sum().item()
            same += int((target.argmax(-1) == got.argmax(-1)).sum())
            count += len(piece)
        line = {"form": form, "kl": round(divergence / count, 5), "same_top": round(same / count, 4)}
        print(json.dumps({**line, "tokens": count}), flush=True)

    def simulated(alpha: float, spared: Sequence[str]) -> Make:
        def make(name: str, layer: nn.Module) -> nn.Module:
            kept = any(name.endswith(each) for each in spared)
            return layer if kept else Simulated(layer, largest[name], alpha)

        return make

    compare("bf16", fresh("bfloat16"))
    for form, kind in (
        ("int8 weights, bf16 products", Int8Weight),
        ("int4 weights, bf16 products", Int4Weight),
    ):
        decoder = fresh("bfloat16")
        replaced(decoder, lambda _name, layer, kind=kind: kind(layer))
        compare(form, decoder)
    for alpha in args.alphas:
        for spared in (("lm_head",), ("lm_head", "down_proj")):
            decoder = fresh("float32")
            replaced(decoder, simulated(alpha, spared))
            compare(f"int8 products, alpha {alpha}, without {' and '.join(spared)}", decoder)


def speed(args: argparse.Namespace) -> None:
    """Prints a line of JSON for each form and number of rows: the best time of a step in ms."""
    for form, kind in (("bf16", None), ("int8 weights", Int8Weight), ("int4 weights", Int4Weight)):
        model = load_model(args.model, dtype="bfloat16", accept_license=args.accept_license)
        if kind is None:
            fuse(model.decoder)
        else:
            replaced(model.decoder, lambda _name, layer, kind=kind: kind(layer))
        for rows in args.texts:
            best = best_step(model.decoder, rows, args.steps)
            print(json.dumps({"form": form, "rows": rows, "step_ms": round(1000 * best, 2)}), flush=True)


def best_step(decoder: Decoder, rows: int, steps: int) -> float:
    """CPU seconds of this thread for the fastest of `steps` decode steps, which other programs change least."""
    weight = decoder.model.embed_tokens.weight
    shape = CacheShape(slots=rows, capacity=FILLED + 1, prefix_capacity=0)
    cache = SlotCache(decoder.config, shape, weight.dtype, weight.device)
    cache.fit(FILLED + 1)
    own_N, ids_BT = torch.full((rows,), FILLED), torch.ones(1, rows, dtype=torch.int64)
    seconds = []
    for _ in range(steps):
        begun = time.thread_time()
        attend = DecodeAttend(cache, own_N, torch.zeros(rows, 2, dtype=torch.int64))
        decoder.logits(decoder.hidden(ids_BT, own_N[None], attend))
        seconds.append(time.thread_time() - begun)
    return min(seconds)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--accept-license", action="append", default=[])
    parser.add_argument("--data", required=True, help="text, in any format that is read")
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--calibration", type=int, default=2048, help="tokens before those")
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.0, 0.5, 0.65, 0.8])
    parser.add_argument("--texts", type=int, nargs="+", default=[1, 4, 16, 64, 128])
    parser.add_argument("--steps", type=int, default=20)
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    keep_freed_memory()
    args = arguments()
    if args.quality:
        quality(args)
    if args.speed:
        speed(args)


if __name__ == "__main__":
    main()
