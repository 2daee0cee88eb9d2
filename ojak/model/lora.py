"""Low-rank adapters: put on a decoder to be trained, kept in PEFT's own files, merged into their base model.

    trained = apply_lora(model.decoder, LoraConfig(r=16), seed=0)
    save_adapter("out/adapter", model, config, base="smollm2-135m-instruct")
    load_model("out/adapter")                         the base model with the adapter merged

The base weights are never changed. OLoRA and PiSSA, which are usually made by subtracting from the base what the
adapter begins with, subtract it in the adapter instead: s (B A - B0 A0) = s [B, -B0] [A; A0]. So what is trained is
what is saved, a plain LoRA of rank 2r that belongs to the model as it was published, in whatever precision that is.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import torch
from torch import Tensor, nn

from ojak._code import version
from ojak.errors import InputRefused, UsageError
from ojak.model import checkpoint
from ojak.model.decoder import Decoder
from ojak.model.lora_config import LoraConfig
from ojak.model.lora_layer import LoraLinear, fold, lora_layers, set_module

if TYPE_CHECKING:
    from ojak.model.load import Model

__all__ = [
    "Adapter",
    "LoraConfig",
    "apply_lora",
    "is_adapter",
    "merge_adapter",
    "read_adapter",
    "save_adapter",
]

CONFIG_FILE, WEIGHTS_FILE, BASE_FILE = "adapter_config.json", "adapter_model.safetensors", "base.json"
MAX_BASE_CHARS = 4096
WEIGHT = re.compile(
    r"base_model\.model\.(?P<layer>model\.layers\.[0-9]{1,4}\.[a-z_]+\.[a-z_]+)"
    r"\.(?P<part>lora_A|lora_B|lora_magnitude_vector)(\.weight)?",
    re.ASCII,
)
# Settings of PEFT that change what an adapter does and are not read; each must be absent or empty.
UNREAD = (
    "alpha_pattern", "rank_pattern", "modules_to_save", "fan_in_fan_out", "lora_bias", "layer_replication",
    "trainable_token_indices", "alora_invocation_tokens", "target_parameters", "use_qalora", "megatron_config",
)  # fmt: skip
# Ways to begin that leave PEFT's base model changed: such an adapter does not belong to the model that it names.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def apply_lora(decoder: Decoder, config: LoraConfig, seed: int) -> list[nn.Parameter]:
    """Freezes the decoder, puts an adapter on the layers that `config` names, gives what is to be trained.

    The new model writes what the old one did. Where an adapter begins is a function of the seed and the layer's name
    (and of its weights, for OLoRA and PiSSA). With dropout, training draws from torch's own generator.

    Raises UsageError for a name that no layer has, a rank larger than a layer, and a decoder that has adapters or was
    made ready for generation.
    """
    _refuse_changed(decoder)
    decoder.requires_grad_(False)
    trained: list[nn.Parameter] = []
    for name in _targets(decoder, config):
        base = cast("nn.Linear", decoder.get_submodule(name))
        layer = _adapted(base, config, _generator(seed, name), name)
        set_module(decoder, name, layer)
        trained += [p for key, p in layer.named_parameters() if key.startswith("lora_")]
    return trained


def _refuse_changed(decoder: Decoder) -> None:
    attention = decoder.get_submodule("model.layers.0.self_attn")
    if attention.fused_qkv is not None or next(lora_layers(decoder), None):
        raise UsageError(
            "this model cannot take an adapter", why="it has one, or was made ready for generation",
            fix="load it anew",
        )  # fmt: skip


def _targets(decoder: Decoder, config: LoraConfig) -> list[str]:
    """The full names of the layers to adapt. The output layer is none of them."""
    inner = [
        name
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear) and ".layers." in name
    ]
    if config.targets == "all-linear":
        return inner
    known = sorted({name.rpartition(".")[2] for name in inner})
    for wanted in config.targets:
        if wanted not in known:
            raise UsageError(f"no layer is called {wanted!r}", fix=f"lora.targets takes: {', '.join(known)}")
    return [name for name in inner if name.rpartition(".")[2] in config.targets]


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"lora\0{seed}\0{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _adapted(base: nn.Linear, config: LoraConfig, random: torch.Generator, name: str) -> LoraLinear:
    weight_OI = base.weight.detach().float()
    if config.r > min(weight_OI.shape):
        raise UsageError(
            f"lora.r is {config.r}, larger than a layer", why=f"{name} is {tuple(weight_OI.shape)}",
            fix=f"use up to {min(weight_OI.shape)}",
        )  # fmt: skip
    start = STARTS.get(config.variant)
    if start is None:
        a_RI, b_OR = _zero_start(weight_OI, config.r, random)
    else:
        a_RI, b_OR = start(weight_OI, config.r, config.scaling)
    lengths_O = torch.linalg.vector_norm(weight_OI, dim=1) if config.variant == "dora" else None
    return LoraLinear(
        base, a_RI.contiguous(), b_OR.contiguous(), scaling=config.scaling, dropout=config.dropout,
        subtract_start=start is not None, magnitude_O=lengths_O,
    )  # fmt: skip


def _zero_start(weight_OI: Tensor, r: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """A uniform within 1 / sqrt(in), as PEFT draws it; B zero."""
    wide = weight_OI.shape[1]
    a_RI = (2 * torch.rand(r, wide, generator=random) - 1) / wide**0.5
    return a_RI.to(weight_OI.device), weight_OI.new_zeros(weight_OI.shape[0], r)


def _olora_start(weight_OI: Tensor, r: int, scaling: float) -> tuple[Tensor, Tensor]:
    """W = Q R: B the first r columns of Q, A the first r rows of R (arXiv 2406.01775, section 3)."""
    q_OK, r_KI = torch.linalg.qr(weight_OI)
    return r_KI[:r], q_OK[:, :r]


def _pissa_start(weight_OI: Tensor, r: int, scaling: float) -> tuple[Tensor, Tensor]:
    """W = U S V^T: s B A is its best approximation of rank r, S shared by both (arXiv 2404.02948, equations 2 to 4)."""
    u_OK, s_K, vt_KI = torch.linalg.svd(weight_OI, full_matrices=False)
    root_R = (s_K[:r] / scaling).sqrt()
    return root_R[:, None] * vt_KI[:r], u_OK[:, :r] * root_R


STARTS: dict[str, Callable[[Tensor, int, float], tuple[Tensor, Tensor]]] = {
    "olora": _olora_start,
    "pissa": _pissa_start,
}


# ------------------------------------------------------------------------------------------------- PEFT's files


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter as it lies on disk: its base model's name or path, that model's hash where it is known, its layers.

    `layers`: the layer's name -> "lora_A" (r, in), "lora_B" (out, r) and, of DoRA, "lora_magnitude_vector" (out).
    """

    base: str
    base_sha256: str | None
    scaling: float
    layers: Mapping[str, Mapping[str, Tensor]]


def save_adapter(folder: Path | str, model: Model, config: LoraConfig, *, base: str) -> Path:
    """Writes the adapters of `model.decoder`, put there by `apply_lora`, as a folder that `peft` loads.

    base: the name or the path of the model that they were put on; `model.sha256` is its hash. The folder also gets the
    model's tokenizer, its chat template and its stop ids, which may have been changed for the adapter. It appears whole
    or not at all. Raises TargetExists, ResourceExhausted, UsageError for a decoder without adapters.
    """
    layers = dict(lora_layers(model.decoder))
    if not layers:
        raise UsageError("this model has no adapter to save", fix="use Model.save")
    place = Path(base).expanduser()
    named = str(place.absolute()) if place.exists() else base
    stops = {"eos_token_id": list(model.stop_ids), "bos_token_id": model.tokenizer.bos_id}
    made = {
        "name": model.name,
        "sha256": model.sha256,
        "lora": config.model_dump(),
        "ojak_version": version(),
    }
    with checkpoint.new_folder(folder) as staging:
        _save_weights(staging / WEIGHTS_FILE, layers)
        checkpoint.save_text_side(staging, {}, model.tokenizer, model.chat_template, stops)
        checkpoint.write_json(staging / BASE_FILE, made)
        checkpoint.write_json(staging / CONFIG_FILE, _peft_config(config, named, list(layers)))
    return Path(folder).absolute()


def _save_weights(path: Path, layers: Mapping[str, LoraLinear]) -> None:
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        a_RI, b_OR = layer.factors()
        parts = {
            "lora_A.weight": a_RI,
            "lora_B.weight": b_OR,
            "lora_magnitude_vector": layer.lora_magnitude_vector,
        }
        for part, tensor in parts.items():
            if tensor is not None:
                tensors[f"base_model.model.{name}.{part}"] = (
                    tensor.detach().float().cpu().clone().contiguous()
                )
    save_file(tensors, path, metadata={"format": "pt"})


def _peft_config(config: LoraConfig, base: str, layers: list[str]) -> dict[str, Any]:
    """PEFT's `adapter_config.json`. Rank and alpha are doubled where the adapter holds what it began with, too."""
    times = 2 if config.variant in STARTS else 1
    alpha = times * config.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": times * config.r,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": config.dropout,
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        "bias": "none",
        "use_rslora": config.variant == "rslora",
        "use_dora": config.variant == "dora",
        "init_lora_weights": True,
        "inference_mode": True,
    }


def is_adapter(path: Path) -> bool:
    """Whether this is the folder of an adapter, not of a whole model."""
    return (path / CONFIG_FILE).is_file() and not (path / "config.json").is_file()


def read_adapter(folder: Path | str) -> Adapter:
    """Reads an adapter that `save_adapter` or PEFT wrote. Raises InputRefused for one that is not a LoRA or DoRA of
    linear layers alone, was made for a changed base, or has its weights as a pickle.
    """
    folder = Path(folder)
    config = checkpoint.read_object(folder / CONFIG_FILE)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not 0 < len(base) <= MAX_BASE_CHARS:
        _refuse(
            folder,
            "it does not name its base model",
            "write base_model_name_or_path into adapter_config.json",
        )
    _check_kind(folder, config)
    digest = checkpoint.read_object(folder / BASE_FILE).get("sha256")
    layers = _read_weights(folder, use_dora=bool(config.get("use_dora")))
    return Adapter(base, digest if isinstance(digest, str) else None, _scaling(folder, config), layers)


def _refuse(
    folder: Path, why: str, fix: str = "merge it with PEFT (merge_and_unload), and use the result"
) -> NoReturn:
    raise InputRefused(f"the adapter {folder} cannot be used", why=why, fix=fix)


def _check_kind(folder: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        _refuse(folder, f"it is of type {str(config.get('peft_type'))[:40]!r}; LORA is read")
    for name in UNREAD:
        if config.get(name):
            _refuse(folder, f"it has the setting {name} = {str(config[name])[:80]}, which is not read")
    if config.get("bias", "none") != "none":
        _refuse(folder, f"it changes biases ({str(config['bias'])[:40]!r})")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(CHANGES_BASE):
        _refuse(
            folder, f"it began as {start[:40]!r}, so that it belongs to a base model changed in the same way",
            "save it with PEFT's path_initial_model_for_weight_conversion",
        )  # fmt: skip


def _scaling(folder: Path, config: Mapping[str, Any]) -> float:
    r, alpha = config.get("r"), config.get("lora_alpha")
    if type(r) is int and 0 < r <= 1 << 16 and isinstance(alpha, int | float) and 0 < alpha < 1e9:
        return float(alpha) / (r**0.5 if config.get("use_rslora") else r)
    _refuse(folder, f"r is {str(r)[:40]}, lora_alpha is {str(alpha)[:40]}", "correct adapter_config.json")


def _read_weights(folder: Path, *, use_dora: bool) -> dict[str, dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS_FILE
    if not path.is_file():
        _refuse(folder, f"it has no {WEIGHTS_FILE}", "save it with safe_serialization=True")
    checkpoint.check_safetensors(path)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        _refuse(folder, str(error)[:200], "get the file again")
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = WEIGHT.fullmatch(name)
        if match is None:
            _refuse(folder, f"the weight {name[:120]!r} is not one of a linear layer in a block")
        if not bool(torch.isfinite(tensor).all()):
            _refuse(folder, f"the weight {name[:120]!r} holds infinities or NaNs", "use another copy")
        layers.setdefault(match["layer"], {})[match["part"]] = tensor.float()
    expected = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if use_dora else set())
    for name, parts in layers.items():
        if parts.keys() != expected:
            _refuse(folder, f"{name} has {sorted(parts)}, not {sorted(expected)}", "use another copy")
    return layers


# ------------------------------------------------------------------------------------------------------- merging


def merge_adapter(decoder: Decoder, folder: Path | str) -> None:
    """Merges the adapter in `folder` into a float32 decoder of its base model, and compares logits before and after.

    Raises InputRefused for an adapter that does not fit, VerificationFailed if logits change by more than rounding.
    """
    _refuse_changed(decoder)
    adapter = read_adapter(folder)
    for name, parts in adapter.layers.items():
        set_module(decoder, name, _attached(decoder, name, parts, adapter.scaling, Path(folder)))
    fold(decoder)


def _attached(
    decoder: Decoder, name: str, parts: Mapping[str, Tensor], scaling: float, folder: Path
) -> LoraLinear:
    base = dict(decoder.named_modules()).get(name)
    a_RI, b_OR, magnitude_O = parts["lora_A"], parts["lora_B"], parts.get("lora_magnitude_vector")
    if not isinstance(base, nn.Linear):
        _refuse(folder, f"its base model has no layer {name}", "name the model that it was made for")
    out, into = base.weight.shape
    fits = a_RI.ndim == b_OR.ndim == 2 and (len(b_OR), a_RI.shape[1]) == (out, into)
    if not fits or b_OR.shape[1] != len(a_RI) or not (magnitude_O is None or magnitude_O.shape == (out,)):
        why = f"its {name} has the shapes {[tuple(part.shape) for part in parts.values()]}, the layer {(out, into)}"
        _refuse(folder, why, "name the model that it was made for")
    device = base.weight.device
    return LoraLinear(
        base, a_RI.to(device), b_OR.to(device), scaling=scaling,
        magnitude_O=None if magnitude_O is None else magnitude_O.to(device),
    )  # fmt: skip
