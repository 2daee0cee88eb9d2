"""A small model out of a large one: some of its layers, and of each layer's feed-forward the neurons that weigh most.

What is left has lost much and still knows more than random weights: a student to be distilled from the model that it
was (arXiv 1910.01108, section 3: every second layer; arXiv 2407.14679: width by importance). Which layers can best be
spared is measured by `ojak.evaluate.depth`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ojak.errors import InputRefused, UsageError
from ojak.model import checkpoint
from ojak.model.config import config_from_hf, config_to_hf
from ojak.model.decoder import Decoder, DecoderConfig
from ojak.model.load import check_finite, from_source, read_source
from ojak.model.source import Source

LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
FEED_FORWARD = ("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")
INWARD = FEED_FORWARD[2]  # has a neuron in each column, the other two in each row


@dataclass(frozen=True, slots=True)
class Shrunk:
    """What was made: its folder, which layers of the whole model it kept (from 0), and the parameters of both."""

    out: str
    layers: tuple[int, ...]
    intermediate_size: int
    parameters: int
    parameters_before: int

    def to_dict(self) -> dict[str, Any]:
        """The object that `--json` prints."""
        return {name: getattr(self, name) for name in self.__slots__}


def shrink_model(
    name_or_path: str,
    out: Path | str,
    *,
    layers: int | None = None,
    intermediate: int | None = None,
    choose: Callable[[Source], Sequence[int]] | None = None,
    accept_license: Collection[str] = (),
    notify: Callable[[str], None] | None = None,
) -> Shrunk:
    """Writes a model of `layers` of a model's layers to the folder `out`, a Hugging Face folder.

    layers: how many stay, spread evenly, the first and the last among them; each keeps its kind (local or global).
    choose: says of the model which stay, from 0, rising. It may take long, so all else that can be refused is refused
    before.
    intermediate: the width of the feed-forward that stays: of each layer the neurons with the largest product of the
    norms of their three weight vectors. Embeddings, norms, tokenizer and chat template are the model's.

    Raises UsageError for sizes that the model does not have, TargetExists, and what `load_model` does.
    """
    source = read_source(name_or_path, accept_license=accept_license, notify=notify)
    whole = config_from_hf(source.config)
    count = whole.num_hidden_layers
    kept = spread(count, count if layers is None else layers)
    inner = whole.intermediate_size if intermediate is None else intermediate
    if not inner >= 1:
        raise UsageError(f"a feed-forward of {inner} neurons", fix="give --intermediate 1 or more")
    if inner > whole.intermediate_size:
        raise UsageError(
            f"a feed-forward of {inner} is wider than the model's {whole.intermediate_size}",
            fix="give a smaller --intermediate",
        )
    checkpoint.check_free(out)
    if choose is not None:
        kept = tuple(choose(source))
    config = replace(config_with(whole, kept), intermediate_size=inner)
    tensors = _narrowed(_kept(_weights(source, whole), kept), inner, whole.intermediate_size)
    stops = {"eos_token_id": list(source.stop_ids), "bos_token_id": source.tokenizer.bos_id}
    path = checkpoint.save(out, config_to_hf(config), tensors, source.tokenizer, source.chat_template, stops)
    return Shrunk(str(path), kept, inner, _parameters(config), _parameters(whole))


def config_with(whole: DecoderConfig, kept: Sequence[int]) -> DecoderConfig:
    """The configuration of a model's layers `kept`, from 0. Raises UsageError where they do not rise or are not its."""
    if not kept or list(kept) != sorted({*kept} & {*range(whole.num_hidden_layers)}):
        raise UsageError(
            f"the layers {list(kept)[:100]} of a model that has {whole.num_hidden_layers}",
            fix=f"name each once, rising, from 0 to {whole.num_hidden_layers - 1}",
        )
    types = tuple(whole.layer_types[i] for i in kept)
    return replace(whole, num_hidden_layers=len(kept), layer_types=types)


def decoder_with(whole: Decoder, kept: Sequence[int]) -> Decoder:
    """A decoder of some layers of another one, whose weights it shares. Raises as `config_with` does."""
    with torch.device("meta"):
        small = Decoder(config_with(whole.config, kept))
    weights = dict(_kept(iter(whole.state_dict().items()), kept))
    small.load_state_dict(weights, assign=True)
    if whole.config.tie_word_embeddings:
        small.lm_head.weight = small.model.embed_tokens.weight
    return small.eval().requires_grad_(False)


def spread(count: int, wanted: int) -> tuple[int, ...]:
    """`wanted` of the numbers below `count`, evenly spread, the first and the last among them; 1 of them: the first.

    Raises UsageError for more than there are, or less than one.
    """
    if not 1 <= wanted <= count:
        raise UsageError(
            f"{wanted} layers of a model that has {count}", fix=f"choose --layers from 1 to {count}"
        )
    gaps = max(1, wanted - 1)
    return tuple((2 * i * (count - 1) + gaps) // (2 * gaps) for i in range(wanted))  # halves go up


def _weights(source: Source, whole: DecoderConfig) -> Iterator[tuple[str, Tensor]]:
    """The weights, their names and shapes checked; adapters merged in, what was stored in few bits as bfloat16."""
    if source.adapters:
        yield from from_source(source, torch.bfloat16, "cpu").decoder.named_parameters()
        return
    expected = _shapes(whole)
    for name, tensor in source.tensors():
        if expected.pop(name, None) != tensor.shape:
            raise InputRefused(
                f"the weight {name[:200]!r} of shape {tuple(tensor.shape)} does not fit the model's configuration"
            )
        check_finite(name, tensor)
        yield name, tensor.bfloat16() if source.quantization else tensor
    if expected:
        raise InputRefused(f"{len(expected)} weights are missing", why=f"the first is {next(iter(expected))}")


def _kept(weights: Iterator[tuple[str, Tensor]], layers: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    """The weights of the layers that stay, by their new numbers, and those of no layer."""
    places = {layer: place for place, layer in enumerate(layers)}
    for name, tensor in weights:
        found = LAYER.fullmatch(name)
        if found is None:
            yield name, tensor
        elif int(found[1]) in places:
            yield f"model.layers.{places[int(found[1])]}.{found[2]}", tensor


def _narrowed(weights: Iterator[tuple[str, Tensor]], inner: int, before: int) -> Iterator[tuple[str, Tensor]]:
    """The weights, the feed-forward ones with the heaviest `inner` neurons only; those wait for each other."""
    waiting: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights:
        part = next((part for part in FEED_FORWARD if name.endswith(part)), None)
        if part is None or inner == before:
            yield name, tensor
            continue
        layer = waiting.setdefault(name.removesuffix(part), {})
        layer[part] = tensor
        if len(layer) == len(FEED_FORWARD):
            chosen = _heaviest(layer, inner)
            for other, weight in waiting.pop(name.removesuffix(part)).items():
                yield name.removesuffix(part) + other, weight.index_select(int(other == INWARD), chosen)


def _heaviest(layer: dict[str, Tensor], count: int) -> Tensor:
    """The numbers of the neurons with the largest product of norms, rising: int64[count]."""
    norms = [weight.float().norm(dim=0 if part == INWARD else 1) for part, weight in layer.items()]
    return torch.stack(norms).prod(0).topk(count).indices.sort().values


def _shapes(config: DecoderConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: weight.shape for name, weight in Decoder(config).named_parameters()}


def _parameters(config: DecoderConfig) -> int:
    return sum(shape.numel() for shape in _shapes(config).values())
