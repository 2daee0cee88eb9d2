"""Long texts read in tiles through ring buffers, against transformers with a full mask in float64, at several windows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from ojak.model.cache import PREFILL_TOKENS, CacheShape, entry_bytes
from ojak.model.decoder import Decoder
from ojak.model.reading import View, read_texts

LENGTH = 600  # two tiles and a part of one; the rings of the smaller windows wrap
IDS = torch.randint(0, tiny.VOCAB, (LENGTH + 1,), generator=torch.Generator().manual_seed(3)).tolist()
TEXT = IDS[:-1], IDS[1:]
UNCAPPED = {"attn_logit_softcapping": None, "final_logit_softcapping": None}


def decoder(family: str) -> Decoder:
    return tiny.decoder(family, scale=0.5, max_position_embeddings=1024)


def whole(ours: Decoder, family: str, window: int | None, **changes: Any) -> torch.Tensor:
    """Minus the log-probability of each token but the first, by transformers: one pass, masks in full, float64."""
    hf = copy.deepcopy(tiny.hf_config(family, max_position_embeddings=1024, **changes))
    hf["sliding_window"] = window or LENGTH
    config = AutoConfig.for_model(hf.pop("model_type"), **hf)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float64).eval()
    model.load_state_dict({name: weight.double() for name, weight in ours.state_dict().items()})
    with torch.no_grad():
        logits = model(torch.tensor([IDS[:-1]])).logits[0]
    return -logits.log_softmax(-1)[range(LENGTH), IDS[1:]]


@pytest.mark.parametrize("window", [9, 64, LENGTH // 2, None])
@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_tiles_through_rings_equal_a_full_mask(family: str, window: int | None) -> None:
    ours = decoder(family)
    found = read_texts(ours, [TEXT], View(LENGTH, window), stepped=7)
    wanted = whole(ours, family, window)
    torch.testing.assert_close(torch.tensor(found.nats).double(), wanted, rtol=2e-4, atol=2e-4)
    assert (found.prefill_tokens, len(found.steps_s)) == (LENGTH - 7, 7)


def test_without_caps_and_with_caps_that_bite() -> None:
    ours = decoder("gemma2")
    found = {
        caps: read_texts(ours, [TEXT], View(LENGTH, 300, caps), stepped=3).nats for caps in (True, False)
    }
    wanted = whole(ours, "gemma2", 300, **UNCAPPED)
    torch.testing.assert_close(torch.tensor(found[False]).double(), wanted, rtol=2e-4, atol=2e-4)
    assert (torch.tensor(found[True]) - torch.tensor(found[False])).abs().mean() > 0.1
    assert ours.config.attn_logit_softcapping == 2.0, "the decoder itself stays as it was"


def test_a_window_as_long_as_the_text_is_none() -> None:
    ours = decoder("gemma3")
    found = [read_texts(ours, [TEXT], View(LENGTH, window)).nats for window in (None, LENGTH, 10 * LENGTH)]
    assert found[0] == found[1] == found[2]
    assert found[0] != read_texts(ours, [TEXT], View(LENGTH, LENGTH - 200)).nats


def test_texts_do_not_see_each_other_and_a_ring_takes_its_window_and_a_tile() -> None:
    ours = decoder("gemma2")
    first, second = (IDS[:300], IDS[1:301]), (IDS[300:500], IDS[301:501])
    both = read_texts(ours, [first, second], View(300, 20))
    alone = read_texts(ours, [second], View(300, 20))
    assert both.nats[300:] == alone.nats
    entries = (20 + PREFILL_TOKENS - 1) + 300  # one local layer, one global one
    assert both.cache_bytes == entries * entry_bytes(ours.config, torch.float32)
    assert both.cache_bytes < 2 * CacheShape(slots=1, capacity=300, prefix_capacity=0).ring(
        None
    ) * entry_bytes(ours.config, torch.float32)
