"""The decoder against `transformers` (eager, float32) on random tiny models of each family, and its configuration."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ojak.errors import InputRefused
from ojak.model.config import config_from_hf, config_to_hf
from ojak.model.decoder import Decoder, DecoderConfig, RMSNorm

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "factor": 4.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in tiny.FAMILIES},
    "llama_tied": ("llama", {"tie_word_embeddings": True}),
    "llama_bias_wide_heads": ("llama", {"attention_bias": True, "head_dim": 16}),
    "llama_multi_head": ("llama", {"num_key_value_heads": 4}),
    "llama_one_kv_head": ("llama", {"num_key_value_heads": 1}),
    "llama_linear": ("llama", {"rope_scaling": LINEAR}),
    "llama_llama3": ("llama", {"rope_scaling": LLAMA3, "rope_theta": 10000.0}),
    "mistral_global": ("mistral", {"sliding_window": None}),
    "qwen2_untied": ("qwen2", {"tie_word_embeddings": False}),
    "qwen2_last_layers_slide": (
        "qwen2",
        {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1},
    ),
    "qwen3_bias_tied": ("qwen3", {"attention_bias": True, "tie_word_embeddings": True}),
    "gemma2_no_caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "gemma2_caps_by_default": ("gemma2", {"num_hidden_layers": 4}),
    "gemma3_linear_global": ("gemma3", {"rope_scaling": LINEAR}),
    "gemma3_pattern": (
        "gemma3",
        {"num_hidden_layers": 7, "layer_types": None, "sliding_window_pattern": 3, "sliding_window": 5},
    ),
}
IDS_BT = torch.randint(0, tiny.VOCAB, (2, 40), generator=torch.Generator().manual_seed(1))


def reference(hf: dict[str, Any], ours: Decoder) -> PreTrainedModel:
    """The same weights in transformers' own model of that config.json."""
    fields = copy.deepcopy(
        {name: value for name, value in hf.items() if name != "model_type"}
    )  # it edits them
    config = AutoConfig.for_model(hf["model_type"], **fields)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    missing, unexpected = model.load_state_dict(ours.state_dict(), strict=False)
    assert not missing
    assert not unexpected
    return model


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case: str) -> None:
    family, changes = CASES[case]
    hf = {k: v for k, v in tiny.hf_config(family, **changes).items() if k != "layer_types" or v is not None}
    if case == "gemma2_caps_by_default":
        hf = {k: v for k, v in hf.items() if not k.endswith("softcapping")}
    ours = tiny.randomised(Decoder(config_from_hf(hf)), 1.0)
    with torch.no_grad():
        wanted = reference(hf, ours)(IDS_BT).logits
        assert relative(ours(IDS_BT), wanted) <= 1e-4


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {"sliding_window": None}),
        ("qwen2_sliding", {"sliding_window": 100}),
        ("gemma2", {"sliding_window": 100}),
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"final_logit_softcapping": None}),
        ("gemma2", {"query_pre_attn_scalar": 8}),
        ("gemma3", {"rope_local_base_freq": 100000.0}),
        ("gemma3", {"sliding_window": 100}),
        ("llama", {"rope_theta": 10000.0}),
    ],
)
def test_the_tiny_models_are_where_it_bites(family: str, changes: dict[str, Any]) -> None:
    """Without the feature the logits differ by far more than the tolerance: the test above is able to see it."""
    plain, changed = tiny.decoder(family, scale=1.0), tiny.decoder(family, scale=1.0, **changes)
    assert relative(changed(IDS_BT), plain(IDS_BT)) > 1e-2


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_gradients_reach_every_parameter(family: str) -> None:
    decoder = tiny.decoder(family).requires_grad_(True)
    decoder(IDS_BT).square().mean().backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()] in (
        [],
        [name for name, _ in decoder.named_parameters() if name.endswith("k_proj.bias")],
    )


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
def test_only_distances_between_positions_count(family: str) -> None:
    decoder = tiny.decoder(family)
    positions_BT = torch.arange(IDS_BT.shape[1]).expand_as(IDS_BT)
    moved = decoder(IDS_BT, positions_BT + 100)
    assert relative(moved, decoder(IDS_BT)) < 1e-3
    assert relative(decoder(IDS_BT, positions_BT * 2), decoder(IDS_BT)) > 1e-2


def test_a_token_sees_none_that_follow() -> None:
    for family in tiny.FAMILIES:
        decoder = tiny.decoder(family)
        assert torch.allclose(decoder(IDS_BT[:, :13]), decoder(IDS_BT)[:, :13], rtol=1e-4, atol=1e-4)


def test_embeddings_are_scaled_by_a_rounded_root() -> None:
    """Gemma's sqrt(hidden_size) takes the activations' dtype: 576^0.5 is 24, but 640^0.5 = 25.298 is 25.25 in bf16."""
    decoder = tiny.decoder("gemma2", hidden_size=640, num_hidden_layers=1, dtype=torch.bfloat16)
    seen: list[torch.Tensor] = []
    decoder.model.layers[0].register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    decoder(IDS_BT[:, :3])
    rows = decoder.model.embed_tokens.weight[IDS_BT[:, :3]]
    assert torch.equal(seen[0], rows * torch.tensor(25.25, dtype=torch.bfloat16))


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norms_round_once(offset: float) -> None:
    norm = RMSNorm(64, 1e-6, offset).to(torch.bfloat16).requires_grad_(False)
    random = torch.Generator().manual_seed(0)
    norm.weight.copy_(torch.randn(64, generator=random))
    x = torch.randn(200, 64, generator=random).bfloat16()
    wide = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    wanted = wide * (norm.weight.double() + offset)
    got = norm(x)
    assert got.dtype == torch.bfloat16
    assert ((got.double() - wanted).abs() <= wanted.abs() * 2**-8).all()  # half a unit in the last place


# -- configurations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_a_configuration_survives_the_way_there_and_back(case: str) -> None:
    family, changes = CASES[case]
    config = config_from_hf(tiny.hf_config(family, bos_token_id=1, eos_token_id=[2, 3], **changes))
    written = json.loads(json.dumps(config_to_hf(config)))
    assert config_from_hf(written) == config
    assert written["eos_token_id"] == [2, 3]


@pytest.mark.parametrize("case", CASES)
def test_transformers_reads_what_is_written(case: str) -> None:
    """transformers fills in defaults of its own where a field is missing: a written config.json must leave no room."""
    family, changes = CASES[case]
    ours = tiny.decoder(family, **changes)
    with torch.no_grad():
        model = reference(json.loads(json.dumps(config_to_hf(ours.config))), ours)
        assert relative(ours(IDS_BT), model(IDS_BT).logits) <= 1e-4
        # and what transformers 5 then saves (`rope_parameters`), we read as the same
        assert_same_model(
            config_from_hf(json.loads(model.config.to_json_string(use_diff=False))), ours.config
        )


def assert_same_model(got: DecoderConfig, wanted: DecoderConfig) -> None:
    for name in (
        "layer_types",
        "rope_theta",
        "rope_scaling",
        "attn_logit_softcapping",
        "head_dim",
        "qk_norm",
    ):
        assert getattr(got, name) == getattr(wanted, name), name
    for layer in range(wanted.num_hidden_layers):
        assert (got.window(layer), got.rope_base(layer)) == (wanted.window(layer), wanted.rope_base(layer))


def test_rope_parameters_of_transformers_5() -> None:
    flat = {"rope_theta": 7e4, **LLAMA3}
    config = config_from_hf(tiny.hf_config("llama", rope_theta=None, rope_parameters=flat))
    assert config.rope_theta == 7e4
    assert config.rope_scaling == LLAMA3
    nested = {
        "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    }
    config = config_from_hf(
        tiny.hf_config("gemma3", rope_theta=None, rope_local_base_freq=None, rope_parameters=nested)
    )
    assert (config.rope_theta, config.rope_local_base_freq) == (1e6, 1e4)
    assert config.rope_scaling == {"rope_type": "linear", "factor": 8.0}


def test_defaults_are_those_of_the_family() -> None:
    few = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    given = {name: tiny.COMMON[name] for name in few}
    llama, gemma2, gemma3, mistral, qwen2 = (
        config_from_hf({**given, "model_type": kind})
        for kind in ("llama", "gemma2", "gemma3_text", "mistral", "qwen2")
    )
    assert (llama.head_dim, llama.num_key_value_heads, llama.rope_theta) == (8, 4, 10000.0)
    assert (gemma2.head_dim, gemma2.attn_logit_softcapping, gemma2.final_logit_softcapping) == (
        256,
        50.0,
        30.0,
    )
    assert (gemma2.layer_types, gemma2.sliding_window) == (("sliding_attention", "full_attention"), 4096)
    assert gemma2.tie_word_embeddings
    assert (gemma3.rope_theta, gemma3.rope_local_base_freq) == (1e6, 1e4)
    assert mistral.window(0) == 4096
    assert (qwen2.attention_bias, qwen2.window(1)) == (True, None)
    assert gemma2.attention_scale == gemma3.attention_scale == 1 / 16


def test_a_multimodal_gemma_3_is_read_for_its_text() -> None:
    config = config_from_hf(
        {"model_type": "gemma3", "text_config": tiny.hf_config("gemma3"), "vision_config": {}}
    )
    assert config == config_from_hf(tiny.hf_config("gemma3"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "gpt2"}, "gpt2"),
        ({"model_type": None}, "None"),
        ({"hidden_size": None}, "NoneType"),
        ({"num_attention_heads": 0, "head_dim": None}, "num_attention_heads|ZeroDivision"),
        ({"num_attention_heads": -4}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "3 key-value heads"),
        ({"head_dim": 7}, "even"),
        ({"head_dim": 1 << 40}, "head_dim"),
        ({"vocab_size": 97.5}, "vocab_size"),
        ({"vocab_size": "97"}, "vocab_size"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"hidden_act": "relu"}, "relu"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps"),
        ({"rope_theta": math.nan}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor"),
        ({"rope_scaling": "linear"}, "AttributeError"),
        ({"rope_parameters": [1]}, "AttributeError"),
    ],
)  # fmt: skip
def test_a_configuration_that_cannot_work_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputRefused, match=said):
        config_from_hf(tiny.hf_config("llama", **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": 0},
        {"sliding_window": -3},
        {"layer_types": ["sliding_attention"]},
        {"layer_types": ["a", "b"]},
    ],
)
def test_impossible_windows_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InputRefused):
        config_from_hf(tiny.hf_config("gemma2", **changes))


@pytest.mark.parametrize(("family", "biased"), [("llama", True), ("qwen3", True), ("qwen2", False)])
def test_whether_the_output_of_attention_has_a_bias_stands_in_the_configuration(
    family: str, biased: bool
) -> None:
    """Qwen 2 has biases on queries, keys and values alone."""
    config = config_from_hf(tiny.hf_config(family, attention_bias=True))
    for wanted, given in ((biased, config), (not biased, replace(config, attention_output_bias=not biased))):
        names = {name for name, _ in Decoder(given).model.layers[0].named_parameters()}
        assert ("self_attn.o_proj.bias" in names) == wanted
        assert "self_attn.q_proj.bias" in names
    assert "attention_output_bias" not in config_to_hf(config)
    assert config_from_hf(config_to_hf(config)) == config
