"""Each switch of a grid against an independent oracle, or an identity that it must keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import model as tiny_model
from tiny import randomised
from torch.utils.flop_counter import FlopCounterMode

from ojak.errors import InputRefused
from ojak.export.model import export_model
from ojak.model import checkpoint
from ojak.model.attention import causal_mask
from ojak.model.config import config_from_hf, config_to_hf
from ojak.model.decoder import Decoder, DecoderConfig
from ojak.train.variant import (
    VariantConfig,
    decoder_config,
    flops_per_token,
    hf_fields,
    parameter_count,
    places_seen,
    resized,
)

transformers = pytest.importorskip("transformers")

TINY: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": 5,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 5.0,
}
BEFORE = ("input_layernorm", "pre_feedforward_layernorm")
AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")
IDS = torch.arange(24)[None] * 7 % 251


def made(**changes: Any) -> Decoder:
    return randomised(Decoder(decoder_config(VariantConfig(**{**TINY, **changes}))), 0.4)


def oracle(decoder: Decoder, **fields: Any) -> torch.Tensor:
    """The logits that transformers gives Gemma 2 with these weights, the norms that the decoder lacks taken out."""
    config = {
        **config_to_hf(decoder.config),
        **fields,
        "model_type": "gemma2",
        "attn_implementation": "eager",
    }
    known = {name: value for name, value in config.items() if name not in ("architectures", "norm_offset")}
    theirs = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**known)).eval()
    config_of = decoder.config
    for layer in theirs.model.layers:
        for name in (() if config_of.pre_norms else BEFORE) + (() if config_of.sandwich_norms else AFTER):
            setattr(layer, name, torch.nn.Identity())
    weights = decoder.state_dict()
    if not config_of.sandwich_norms:  # the one before the feed-forward has this name there
        weights = {name.replace(AFTER[0], BEFORE[1]): weight for name, weight in weights.items()}
    missing = theirs.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"lm_head.weight"}
    theirs.tie_weights()
    with torch.no_grad():
        return theirs(IDS).logits


SWITCHES: dict[str, dict[str, Any]] = {
    "window": {"sliding_window": 3},
    "pattern": {"local_layers": 2},
    "no window": {"local_layers": 0},
    "mha": {"num_key_value_heads": 4},
    "mqa": {"num_key_value_heads": 1},
    "no attention cap": {"attn_logit_softcapping": None},
    "no final cap": {"final_logit_softcapping": None},
    "pre-norm": {"norms": "pre"},
    "post-norm": {"norms": "post"},
    "wide": {"num_hidden_layers": 1, "hidden_size": 48},
    "untied": {"tie_word_embeddings": False},
}


@pytest.mark.parametrize("changes", SWITCHES.values(), ids=SWITCHES)
def test_a_switch_is_what_transformers_computes(changes: dict[str, Any]) -> None:
    decoder, base = made(**changes), made()
    torch.testing.assert_close(decoder(IDS), oracle(decoder), rtol=1e-4, atol=1e-4)
    if not changes.keys() & {"num_key_value_heads", "hidden_size", "tie_word_embeddings"}:
        base.load_state_dict(decoder.state_dict(), strict=False)
        assert not torch.allclose(base(IDS), decoder(IDS)), "the switch changes nothing"


def test_identities() -> None:
    def logits(like: Decoder | None = None, **changes: Any) -> torch.Tensor:
        decoder = made(**changes)
        if like is not None:
            decoder.load_state_dict({**decoder.state_dict(), **like.state_dict()})
        return decoder(IDS)

    base = made()
    # A window as long as the text is none.
    torch.testing.assert_close(logits(base, sliding_window=24), logits(base, local_layers=0))
    # A cap that nothing reaches is none.
    far, none = (
        {f"{name}_softcapping": cap for name in ("attn_logit", "final_logit")} for cap in (1e6, None)
    )
    torch.testing.assert_close(logits(base, **far), logits(base, **none), rtol=1e-4, atol=1e-4)
    # Untied, with the embeddings copied, is tied.
    torch.testing.assert_close(logits(base, tie_word_embeddings=False), logits(base))
    # Shared keys and values are keys and values that are equal.
    whole = made(num_key_value_heads=4)
    whole.load_state_dict(
        {name: weight for name, weight in base.state_dict().items() if not _is_shared(name)}, strict=False
    )
    for ours, shared in zip(whole.model.layers, base.model.layers, strict=True):
        for name in ("k_proj", "v_proj"):
            weight = shared.get_parameter(f"self_attn.{name}.weight").view(2, 8, 32).repeat_interleave(2, 0)
            ours.get_parameter(f"self_attn.{name}.weight").copy_(weight.reshape(32, 32))
    torch.testing.assert_close(whole(IDS), base(IDS), rtol=1e-5, atol=1e-5)


def _is_shared(name: str) -> bool:
    return "k_proj" in name or "v_proj" in name


@pytest.mark.parametrize("norms", ["pre", "post", "sandwich"])
@pytest.mark.parametrize("tied", [True, False])
def test_parameters_and_operations_are_counted_right(norms: Any, tied: bool) -> None:
    config = decoder_config(
        VariantConfig(**{**TINY, "norms": norms, "tie_word_embeddings": tied, "qk_norm": not tied})
    )
    decoder = Decoder(config)
    assert parameter_count(config) == sum(weight.numel() for weight in decoder.parameters())
    with FlopCounterMode(display=False) as counter:
        decoder(torch.zeros(1, 1, dtype=torch.int64))  # one place, which sees itself
    assert flops_per_token(config, 1) == 3 * counter.get_total_flops()
    for length, window in ((7, None), (7, 3), (3, 9), (5, 1)):
        mask = causal_mask(torch.arange(length)[None], window)
        assert places_seen(length, window) == pytest.approx(float(mask.sum()) / length)


@pytest.mark.parametrize("layers", [1, 2, 6, 9])
def test_wide_and_deep_have_equal_parameters(layers: int) -> None:
    base = VariantConfig(hidden_size=64, intermediate_size=176, vocab_size=600, num_hidden_layers=3)
    wanted = parameter_count(decoder_config(base))
    config = resized(base.model_copy(update={"num_hidden_layers": layers}), wanted)
    found = Decoder(decoder_config(config))
    count = sum(weight.numel() for weight in found.parameters())
    assert abs(count - wanted) / wanted < 0.005
    assert config.intermediate_size / config.hidden_size == pytest.approx(176 / 64, rel=0.4)
    assert (config.num_attention_heads, config.head_dim) == (4, 16)


def test_a_folder_says_what_it_is(folder: Path) -> None:
    assert hf_fields(VariantConfig(**TINY))["model_type"] == "gemma2"
    llama = VariantConfig(**{
        **TINY, "norms": "pre", "scale_embeddings": False, "local_layers": 0, "attn_logit_softcapping": None,
        "final_logit_softcapping": None, "hidden_act": "silu",
    })  # fmt: skip
    assert hf_fields(llama)["model_type"] == "llama"
    for config in (
        VariantConfig(**TINY),
        llama,
        *(VariantConfig(**{**TINY, "norms": name}) for name in ("pre", "post")),
    ):
        fields = hf_fields(config)
        json.dumps(fields)
        back, wanted = config_from_hf(fields), decoder_config(config)
        assert {**vars_of(back)} == {**vars_of(wanted)}
    for name in ("pre", "post"):
        fields = hf_fields(VariantConfig(**{**TINY, "norms": name}))
        assert (fields["model_type"], fields["architectures"]) == ("ojak", ["OjakForCausalLM"])
        with pytest.raises((ValueError, KeyError)):
            transformers.AutoConfig.for_model(**fields)


def vars_of(config: DecoderConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


@pytest.mark.parametrize(
    "wrong", [{"pre_norms": 1}, {"norm_offset": 7}, {"pre_norms": False, "sandwich_norms": False}]
)
def test_a_wrong_configuration_of_our_own_type_is_refused(wrong: dict[str, Any]) -> None:
    fields = hf_fields(VariantConfig(**{**TINY, "norms": "post"}))
    with pytest.raises(InputRefused):
        config_from_hf({**fields, **wrong})
    del fields["qk_norm"]
    with pytest.raises(InputRefused, match="qk_norm"):
        config_from_hf(fields)


@pytest.mark.parametrize("fmt", ["hf", "gguf", "ollama"])
def test_exporters_refuse_what_no_family_can_say(folder: Path, fmt: Any) -> None:
    decoder = made(norms="post")
    source = tiny_model("gemma2")
    checkpoint.save(
        folder / "own",
        config_to_hf(decoder.config),
        decoder.named_parameters(),
        source.tokenizer,
        None,
        {"eos_token_id": [257]},
    )
    with pytest.raises(InputRefused, match="only ojak"):
        export_model(str(folder / "own"), fmt, folder / f"out.{fmt}")
    assert not (folder / f"out.{fmt}").exists()
