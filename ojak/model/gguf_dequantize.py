"""Quantised GGUF blocks to float32, vectorised over blocks.

The block layouts are ggml's (ggml-common.h, ggml-quants.c). The `gguf` package has the same functions, but takes two
seconds for a model of 135M weights and nine for one of 270M, which every start of the program would pay.
Shapes: N blocks, B bytes per block, W weights per block.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

# Small enough for the cache, and for torch to stay on one thread: waiting for a second one on a busy machine made this
# fifty times slower than doing the work.
WEIGHTS_PER_CHUNK = 1 << 15


def dequantize(raw: torch.Tensor, kind: str, block: tuple[int, int], shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor of `shape` whose bytes are `raw` (uint8, 1-D); `kind` is a key of PLAIN or BLOCKS.

    F32, F16 and BF16 keep their dtype and may share memory with `raw`; the others become float32.
    """
    if kind in PLAIN:
        return raw.view(PLAIN[kind]).reshape(shape)
    weights, block_bytes = block
    blocks_NB = raw.view(-1, block_bytes)
    out_NW = torch.empty(blocks_NB.shape[0], weights)
    step = max(1, WEIGHTS_PER_CHUNK // weights)
    for start in range(0, blocks_NB.shape[0], step):
        BLOCKS[kind](blocks_NB[start : start + step], out_NW[start : start + step])
    return out_NW.view(shape)


def _half(blocks_NB: torch.Tensor, at: int) -> torch.Tensor:
    """The float16 at byte `at` of every block, as float32 of shape (N, 1)."""
    return blocks_NB[:, at : at + 2].contiguous().view(torch.float16).float()


def _copy_nibbles(qs_NB: torch.Tensor, out_N2B: torch.Tensor) -> None:
    """Write all low halves of a block's bytes, then all high halves."""
    qs_NB = qs_NB.contiguous()  # bit operations on a strided view cost thirty times as much
    half = qs_NB.shape[1]
    out_N2B[:, :half] = qs_NB & 15
    out_N2B[:, half:] = qs_NB >> 4


def _fifth_bits(bytes_N4: torch.Tensor) -> torch.Tensor:
    """(N, 4) bytes -> (N, 32): the fifth bit of every weight in its place, 0 or 16."""
    words_N1 = bytes_N4.contiguous().view(torch.int32)
    return ((words_N1 >> torch.arange(32, dtype=torch.int32)) & 1) << 4


def _q4_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    _copy_nibbles(blocks[:, 2:], out)
    out.sub_(8).mul_(_half(blocks, 0))


def _q4_1(blocks: torch.Tensor, out: torch.Tensor) -> None:
    _copy_nibbles(blocks[:, 4:], out)
    out.mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q5_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    _copy_nibbles(blocks[:, 6:], out)
    out.add_(_fifth_bits(blocks[:, 2:6])).sub_(16).mul_(_half(blocks, 0))


def _q5_1(blocks: torch.Tensor, out: torch.Tensor) -> None:
    _copy_nibbles(blocks[:, 8:], out)
    out.add_(_fifth_bits(blocks[:, 4:8])).mul_(_half(blocks, 0)).add_(_half(blocks, 2))


def _q8_0(blocks: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(blocks[:, 2:].view(torch.int8)).mul_(_half(blocks, 0))


def _k_scales(packed_N12: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The eight 6-bit scales and eight 6-bit minima that a Q4_K or Q5_K block packs into 12 bytes; both (N, 8)."""
    first, second, third = packed_N12[:, 0:4], packed_N12[:, 4:8], packed_N12[:, 8:12]
    scales = torch.cat((first & 63, (third & 15) | ((first >> 6) << 4)), dim=1)
    minima = torch.cat((second & 63, (third >> 4) | ((second >> 6) << 4)), dim=1)
    return scales.float(), minima.float()


def _k_scale(blocks: torch.Tensor, out: torch.Tensor) -> None:
    """Integer weights in `out` -> d * scale * q - dmin * minimum, for each sub-block of 32."""
    scales, minima = _k_scales(blocks[:, 4:16])
    out_N8x32 = out.view(-1, 8, 32)
    out_N8x32.mul_((_half(blocks, 0) * scales).unsqueeze(2)).sub_((_half(blocks, 2) * minima).unsqueeze(2))


def _copy_k_nibbles(qs_N128: torch.Tensor, out: torch.Tensor) -> None:
    """Every 32 bytes hold two sub-blocks of 32 weights: one in the low halves, the next in the high halves."""
    groups, out_N4x2x32 = qs_N128.contiguous().view(-1, 4, 32), out.view(-1, 4, 2, 32)
    out_N4x2x32[:, :, 0] = groups & 15
    out_N4x2x32[:, :, 1] = groups >> 4


def _q4_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    _copy_k_nibbles(blocks[:, 16:144], out)
    _k_scale(blocks, out)


def _q5_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    _copy_k_nibbles(blocks[:, 48:176], out)
    high = blocks[:, 16:48].contiguous()
    for sub_block, part in enumerate(out.view(-1, 8, 32).unbind(1)):
        part += ((high >> sub_block) & 1) << 4
    _k_scale(blocks, out)


def _q6_k(blocks: torch.Tensor, out: torch.Tensor) -> None:
    low = blocks[:, 0:128].contiguous().view(-1, 2, 64)
    high = blocks[:, 128:192].contiguous().view(-1, 2, 32)
    out_N2x4x32 = out.view(-1, 2, 4, 32)
    for quarter in range(4):
        part = low[:, :, 32 * (quarter % 2) :][:, :, :32].contiguous()
        part = part & 15 if quarter < 2 else part >> 4
        out_N2x4x32[:, :, quarter] = part | (((high >> 2 * quarter) & 3) << 4)
    scales = blocks[:, 192:208].view(torch.int8).float() * _half(blocks, 208)
    out.sub_(32).view(-1, 16, 16).mul_(scales.unsqueeze(2))


PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BLOCKS: dict[str, Callable[[torch.Tensor, torch.Tensor], None]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0,
    "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
}  # fmt: skip
READABLE = (*PLAIN, *BLOCKS)
