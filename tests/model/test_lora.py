"""Low-rank adapters against the formulas of their papers in float64, their files against PEFT where it is installed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ojak.cli.describe import describe_model
from ojak.errors import InputRefused, UsageError, VerificationFailed
from ojak.model import lora_layer
from ojak.model.decoder import Decoder
from ojak.model.fuse import fuse
from ojak.model.load import Model, load_model
from ojak.model.lora import apply_lora, merge_adapter, read_adapter, save_adapter
from ojak.model.lora_config import LoraConfig
from ojak.model.lora_layer import LoraLinear, lora_layers

VARIANTS = ("lora", "rslora", "dora", "olora", "pissa")
IDS = torch.tensor([[3, 17, 101, 255, 8, 64, 3, 200]])
R, ALPHA = 4, 6.0
TURNS = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def config(variant: str, **changes: Any) -> LoraConfig:
    return LoraConfig(**{"r": R, "alpha": ALPHA, "variant": variant, **changes})


def trained(variant: str, family: str = "llama", **changes: Any) -> tuple[Decoder, list[torch.nn.Parameter]]:
    """A tiny decoder with adapters that are no longer what they began as."""
    decoder = tiny.decoder(family, scale=0.2)
    parameters = apply_lora(decoder, config(variant, **changes), seed=5)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    return decoder, parameters


def begun(weight: np.ndarray, variant: str, scaling: float) -> np.ndarray:
    """What OLoRA and PiSSA subtract from the base weight, float64."""
    if variant == "olora":
        q, r = np.linalg.qr(weight)
        return scaling * q[:, :R] @ r[:R]
    u, s, v = np.linalg.svd(weight, full_matrices=False)
    return (u[:, :R] * s[:R]) @ v[:R]


def reference(layer: LoraLinear, variant: str) -> np.ndarray:
    """The effective weight by the paper's formula, float64."""
    weight, a, b = (t.detach().double().numpy() for t in (layer.weight, layer.lora_A, layer.lora_B))
    scaling = ALPHA / (R**0.5 if variant == "rslora" else R)
    result = weight + scaling * b @ a
    if variant in ("olora", "pissa"):
        result -= begun(weight, variant, scaling)
    if variant == "dora":
        assert layer.lora_magnitude_vector is not None
        lengths = np.sqrt((result**2).sum(1, keepdims=True))
        result = layer.lora_magnitude_vector.detach().double().numpy()[:, None] * result / lengths
    return result


def dense(decoder: Decoder, variant: str) -> Decoder:
    """A plain float64 decoder whose weights are `reference`'s."""
    plain = tiny.decoder(decoder.config.model_type.removesuffix("_text"), scale=0.2).double()
    with torch.no_grad():
        for name, layer in lora_layers(decoder):
            plain.get_parameter(f"{name}.weight").copy_(torch.from_numpy(reference(layer, variant)))
    return plain


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_the_formula(variant: str, family: str) -> None:
    decoder, _ = trained(variant, family)
    expected = dense(decoder, variant)(IDS)
    untouched = tiny.decoder(family, scale=0.2)(IDS)
    assert float((decoder(IDS) - expected).abs().max().detach()) < 1e-4
    assert float((decoder(IDS) - untouched).abs().max().detach()) > 0.05


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_the_chain_rule(variant: str) -> None:
    decoder, parameters = trained(variant)
    weights = torch.randn(1, 8, tiny.VOCAB, generator=torch.Generator().manual_seed(2))
    (decoder(IDS) * weights).sum().backward()
    assert all(p.grad is not None for p in parameters)
    assert decoder.model.embed_tokens.weight.grad is None
    plain = dense(decoder, variant).requires_grad_(True)
    (plain(IDS) * weights.double()).sum().backward()
    for name, layer in lora_layers(decoder):
        grad = plain.get_parameter(f"{name}.weight").grad
        assert grad is not None
        g, a, b = grad.numpy(), layer.lora_A.detach().double().numpy(), layer.lora_B.detach().double().numpy()
        if layer.lora_magnitude_vector is not None:  # the length is a constant: DoRA, section 4.3
            update = layer.weight.double().numpy() + layer.scaling * b @ a
            lengths = np.sqrt((update**2).sum(1))
            close(layer.lora_magnitude_vector.grad, (g * update).sum(1) / lengths)
            g = g * (layer.lora_magnitude_vector.detach().double().numpy() / lengths)[:, None]
        close(layer.lora_A.grad, layer.scaling * b.T @ g)
        close(layer.lora_B.grad, layer.scaling * g @ a.T)


def close(found: torch.Tensor | None, expected: np.ndarray) -> None:
    assert found is not None
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=2e-4 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_new_adapter_changes_nothing(variant: str, dtype: torch.dtype) -> None:
    decoder = tiny.decoder("llama", scale=0.2, dtype=dtype)
    before, weights = decoder(IDS), {n: p.clone() for n, p in decoder.named_parameters()}
    apply_lora(decoder, config(variant), seed=0)
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    assert float((decoder(IDS) - before).abs().max().detach()) < tolerance * float(
        before.abs().max().detach()
    )
    now = dict(decoder.named_parameters())
    assert all(torch.equal(now[name], weight) for name, weight in weights.items())


def test_the_beginning_follows_the_seed_and_the_name() -> None:
    first, again, other = (apply_lora(tiny.decoder("llama"), config("lora"), seed) for seed in (1, 1, 2))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert not torch.equal(first[0], first[2])  # A of q_proj, A of k_proj
    assert float(first[0].abs().max().detach()) <= 32**-0.5


def test_targets_and_ranks_are_checked() -> None:
    decoder = tiny.decoder("llama")
    assert len(apply_lora(decoder, config("lora", targets=("q_proj", "down_proj")), seed=0)) == 2 * 2 * 2
    assert {name.rpartition(".")[2] for name, _ in lora_layers(decoder)} == {"q_proj", "down_proj"}
    with pytest.raises(UsageError, match="has one"):
        apply_lora(decoder, config("lora"), seed=0)
    with pytest.raises(UsageError, match="no layer is called 'qkv'"):
        apply_lora(tiny.decoder("llama"), config("lora", targets=("qkv",)), seed=0)
    with pytest.raises(UsageError, match="larger than a layer"):
        apply_lora(tiny.decoder("llama"), config("lora", r=17), seed=0)
    fused = tiny.decoder("llama")
    fuse(fused)
    with pytest.raises(UsageError, match="made ready for generation"):
        apply_lora(fused, config("lora"), seed=0)


# --------------------------------------------------------------------------------------------------------- files


def a_base(folder: Path) -> Model:
    """A tiny model in a folder, loaded."""
    made = tiny.model("llama", scale=0.2)
    made.chat_template = "base"
    made.save(folder)
    return load_model(folder, dtype="float32", device="cpu")


def an_adapter(tmp_path: Path, variant: str, **changes: Any) -> tuple[Model, Path]:
    """The model with trained adapters, and the folder that they were saved in."""
    model = a_base(tmp_path / "base")
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in apply_lora(model.decoder, config(variant), seed=5):
            parameter += 0.1 * torch.randn(parameter.shape, generator=random)
    changed = replace(model, **changes)
    return changed, save_adapter(tmp_path / "adapter", changed, config(variant), base=str(tmp_path / "base"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_adapter_comes_back_merged(variant: str, tmp_path: Path) -> None:
    model, folder = an_adapter(tmp_path, variant, chat_template="own", stop_ids=(tiny.EOS, 7))
    back = load_model(folder, dtype="float32", device="cpu")
    assert not list(lora_layers(back.decoder))
    assert float((back.decoder(IDS) - model.decoder(IDS)).abs().max().detach()) < 1e-4
    assert (back.chat_template, set(back.stop_ids), back.name) == ("own", {tiny.EOS, 7}, "adapter")
    assert back.sha256 != model.sha256
    rounded = load_model(folder, dtype="bfloat16", device="cpu")
    for (name, exact), (_, half) in zip(
        back.decoder.named_parameters(), rounded.decoder.named_parameters(), strict=True
    ):
        assert torch.equal(exact.bfloat16(), half), name  # one rounding, after the merge


def test_it_is_described_as_a_model_is(tmp_path: Path) -> None:
    model, folder = an_adapter(tmp_path, "lora", chat_template=TURNS)
    found = describe_model(str(folder))
    assert found["config"]["hidden_size"] == model.config.hidden_size
    assert found["chat"]["pre_query"] == "<s>user\n"
    assert found["weights_sha256"] == load_model(folder, device="cpu").sha256


def test_the_files_are_those_of_peft(tmp_path: Path) -> None:
    _, folder = an_adapter(tmp_path, "dora")
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        names = set(file.keys())
    layer = "base_model.model.model.layers.1.mlp.up_proj"
    assert {f"{layer}.lora_A.weight", f"{layer}.lora_B.weight", f"{layer}.lora_magnitude_vector"} <= names
    assert len(names) == 2 * 7 * 3
    written = json.loads((folder / "adapter_config.json").read_text())
    assert (written["peft_type"], written["r"], written["lora_alpha"]) == ("LORA", R, 6)
    assert (written["use_dora"], written["use_rslora"]) == (True, False)
    assert written["base_model_name_or_path"] == str(tmp_path / "base")


def test_pissa_is_saved_as_a_plain_delta_of_twice_the_rank(tmp_path: Path) -> None:
    model, folder = an_adapter(tmp_path, "pissa")
    written = json.loads((folder / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], written["init_lora_weights"]) == (2 * R, 12, True)
    adapter = read_adapter(folder)
    layers = dict(lora_layers(model.decoder))
    for name, parts in adapter.layers.items():
        delta = adapter.scaling * parts["lora_B"].double() @ parts["lora_A"].double()
        expected = reference(layers[name], "pissa") - layers[name].weight.detach().double().numpy()
        np.testing.assert_allclose(delta.detach().numpy(), expected, atol=1e-4)


def test_another_base_is_refused(tmp_path: Path) -> None:
    _, folder = an_adapter(tmp_path, "lora")
    path = tmp_path / "base" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] += 1e-3
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputRefused, match="another version"):
        load_model(folder, dtype="float32", device="cpu")


def test_an_adapter_on_an_adapter(tmp_path: Path) -> None:
    _, folder = an_adapter(tmp_path, "lora")
    upper = load_model(folder, dtype="float32", device="cpu")
    apply_lora(upper.decoder, config("olora"), seed=0)
    second = save_adapter(tmp_path / "second", upper, config("olora"), base=str(folder))
    both = load_model(second, dtype="float32", device="cpu")
    assert float((both.decoder(IDS) - upper.decoder(IDS)).abs().max().detach()) < 1e-4


def rewrite(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern"),
        ({"bias": "all"}, "biases"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed in the same way"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": "16"}, "lora_alpha is 16"),
        ({"base_model_name_or_path": None}, "does not name its base"),
        ({"use_dora": True}, "lora_magnitude_vector"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_read_is_refused(changes: dict[str, Any], why: str, tmp_path: Path) -> None:
    _, folder = an_adapter(tmp_path, "lora")
    rewrite(folder, **changes)
    with pytest.raises(InputRefused, match=why):
        load_model(folder, dtype="float32", device="cpu")


def test_unsound_weights_are_refused(tmp_path: Path) -> None:
    _, folder = an_adapter(tmp_path, "lora")
    path = folder / "adapter_model.safetensors"
    sound = load_file(path)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    for bad, why in (
        ({**sound, name: sound[name] * float("nan")}, "NaNs"),
        ({**sound, name: sound[name][:, :-2].contiguous()}, "shapes"),
        ({**sound, name.replace("q_proj", "z_proj"): sound[name].clone()}, "z_proj has"),
        (
            {**sound, "base_model.model.lm_head.lora_A.weight": sound[name].clone()},
            "not one of a linear layer",
        ),
    ):
        save_file(bad, path)
        with pytest.raises(InputRefused, match=why):
            load_model(folder, dtype="float32", device="cpu")
    path.unlink()
    with pytest.raises(InputRefused, match="safe_serialization"):
        load_model(folder, dtype="float32", device="cpu")


def test_a_circle_of_adapters_ends(tmp_path: Path) -> None:
    _, folder = an_adapter(tmp_path, "lora")
    rewrite(folder, base_model_name_or_path=str(folder))
    with pytest.raises(InputRefused, match="made for itself"):
        load_model(folder)


def test_merging_is_checked_and_wants_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = an_adapter(tmp_path, "lora")
    with pytest.raises(UsageError, match="float32"):
        merge_adapter(tiny.decoder("llama", dtype=torch.bfloat16), folder)
    right = LoraLinear.merged
    monkeypatch.setattr(lora_layer.LoraLinear, "merged", lambda layer: right(layer) * 1.01)
    with pytest.raises(VerificationFailed, match="does not write"):
        merge_adapter(tiny.decoder("llama", scale=0.2), folder)


# ---------------------------------------------------------------------------------------------------------- PEFT


THEIR_WARNINGS = pytest.mark.filterwarnings("default")


def peft_model(folder: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@THEIR_WARNINGS
@pytest.mark.parametrize("variant", VARIANTS)
def test_peft_loads_what_was_saved(variant: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, folder = an_adapter(tmp_path, variant)
    theirs = peft.PeftModel.from_pretrained(peft_model(tmp_path / "base"), folder)
    assert float((theirs(IDS).logits - model.decoder(IDS)).abs().max().detach()) < 1e-4


@THEIR_WARNINGS
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_those_of_peft(variant: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model, folder = an_adapter(tmp_path, variant)
    theirs = peft.PeftModel.from_pretrained(peft_model(tmp_path / "base"), folder, is_trainable=True)
    theirs.eval()
    (theirs(IDS).logits ** 2).sum().backward()
    (model.decoder(IDS) ** 2).sum().backward()
    found = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    for name, layer in lora_layers(model.decoder):
        prefix = f"base_model.model.{name}"
        close(layer.lora_A.grad, found[f"{prefix}.lora_A.default.weight"][:R].numpy())
        close(layer.lora_B.grad, found[f"{prefix}.lora_B.default.weight"][:, :R].numpy())
        if layer.lora_magnitude_vector is not None:
            theirs_m = found[f"{prefix}.lora_magnitude_vector.default.weight"]
            close(layer.lora_magnitude_vector.grad, theirs_m.numpy())


@THEIR_WARNINGS
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
def test_an_adapter_of_peft_is_read(options: dict[str, bool], tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    a_base(tmp_path / "base")
    settings = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False,
        task_type="CAUSAL_LM", **options,
    )  # fmt: skip
    theirs = peft.get_peft_model(peft_model(tmp_path / "base"), settings)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs", dtype="float32", device="cpu")
    assert float((theirs(IDS).logits - ours.decoder(IDS)).abs().max().detach()) < 1e-4
