"""Loss and gradients of the decoder: against transformers, packed against padded, shared against apart, N x 1 = 1 x N."""

from __future__ import annotations

from collections.abc import Sequence

import batch_maker
import pytest
import tiny
import torch
from test_decoder import reference
from torch import Tensor

from ojak.model.attention import CausalAttention, DocumentAttention
from ojak.model.config import config_from_hf
from ojak.model.decoder import Attend, Decoder
from ojak.train.batches import Batch
from ojak.train.documents import documents
from ojak.train.objectives import NextToken

FAMILIES = sorted(tiny.FAMILIES)
CAPPED = {"llama": "llama", "gemma2": "gemma2"}


def learnable(family: str, **changes: object) -> Decoder:
    return tiny.decoder(family, **changes).requires_grad_(True)  # pyright: ignore[reportArgumentType]


def gradients(
    decoder: Decoder, batches: Sequence[Batch], objective: NextToken
) -> tuple[float, dict[str, Tensor]]:
    """The loss over all batches as one step, and the gradients it leaves."""
    decoder.zero_grad(set_to_none=True)
    supervised, total = sum(batch.supervised for batch in batches), 0.0
    for batch in batches:
        loss = objective(decoder, batch)
        assert loss.supervised == batch.supervised
        (loss.sum / supervised).backward()
        total += float(loss.sum.detach())
    found = {n: p.grad.clone() for n, p in decoder.named_parameters() if p.grad is not None}
    return total / supervised, found


def check_equal(
    a: tuple[float, dict[str, Tensor]], b: tuple[float, dict[str, Tensor]], within: float
) -> None:
    assert a[0] == pytest.approx(b[0], rel=within, abs=within)
    assert a[1].keys() == b[1].keys()
    for name, grad in a[1].items():
        worst, size = float((grad - b[1][name]).abs().max()), float(b[1][name].abs().max())
        assert worst <= within * max(1.0, size), f"{name}: {worst} of {size}"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "qwen3"])
def test_loss_and_gradients_are_those_of_transformers(family: str) -> None:
    decoder = learnable(family)
    theirs = reference(tiny.hf_config(family), decoder).train()
    batch = batch_maker.padded(batch_maker.some())
    mask = torch.tensor([[i < n for i in range(batch.ids_BT.shape[1])] for n in batch.lengths])
    logits = theirs(batch.ids_BT, attention_mask=mask.long()).logits
    loss = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), batch.targets_BT.flatten(), ignore_index=-100
    )
    loss.backward()
    found, ours = gradients(decoder, [batch], NextToken(share=True))
    assert found == pytest.approx(float(loss.detach()), rel=1e-5)
    wanted = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    assert ours.keys() == wanted.keys()
    for name, grad in wanted.items():
        torch.testing.assert_close(
            ours[name], grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max().clamp_min(1))
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_documents_in_one_row_teach_what_padded_rows_teach(family: str) -> None:
    decoder, made = learnable(family), batch_maker.some(longest=40)
    padded = gradients(decoder, [batch_maker.padded(made)], NextToken(padded=True))
    for batch in (batch_maker.packed(made), batch_maker.padded(made)):
        for share in (False, True):
            check_equal(gradients(decoder, [batch], NextToken(share=share)), padded, 1e-5)


def test_shared_beginnings_are_computed_once() -> None:
    words = [7, 8, 9, 10, 11]
    made = [(words + tail, [i > 4 for i in range(5 + len(tail))]) for tail in ([1, 2], [1, 3], [4], [1, 2])]
    batch = batch_maker.packed(made)
    found = documents(batch, share=True)
    assert found.tokens == 5 + 4  # then 1, 2 (twice the same), 3 and 4
    assert documents(batch, share=False).tokens == batch.tokens
    rows = [found.ids_1N[0, place].tolist() for place in found.places]
    assert rows == [ids for ids, _ in made]
    assert all(found.positions_1N[0, place].tolist() == list(range(len(place))) for place in found.places)


def test_a_document_sees_no_other() -> None:
    decoder, made = learnable("llama"), batch_maker.some(prefix=0)
    alone = [gradients(decoder, [batch_maker.padded([document])], NextToken())[0] for document in made]
    counts = [batch_maker.padded([document]).supervised for document in made]
    together = gradients(decoder, [batch_maker.packed(made)], NextToken())[0]
    mean = sum(loss * count for loss, count in zip(alone, counts, strict=True)) / sum(counts)
    assert together == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral", "gemma3"])
@pytest.mark.parametrize("plain", [False, True])
def test_attention_of_documents_is_that_of_a_block_mask(family: str, plain: bool) -> None:
    config = config_from_hf(tiny.hf_config(family))
    random, lengths = torch.Generator().manual_seed(0), [3, 29, 1, 14, 30]
    total = sum(lengths)
    q = torch.randn(1, total, 4, 8, generator=random) * 3
    k, v = (torch.randn(1, total, 2, 8, generator=random) * 3 for _ in range(2))
    places = list(torch.arange(total).split(lengths))
    ours = DocumentAttention(config, places, device=torch.device("cpu"), plain=plain)
    dense = CausalAttention(config, torch.arange(total)[None], plain=True)
    owner = torch.repeat_interleave(torch.tensor(lengths))
    same = owner[:, None] == owner[None, :]
    dense.masks = {window: mask & same for window, mask in dense.masks.items()}
    for layer in range(config.num_hidden_layers):
        torch.testing.assert_close(ours(layer, q, k, v), dense(layer, q, k, v), rtol=1e-5, atol=1e-5)
        found, wanted = (attention_gradients(each, layer, q, k, v) for each in (ours, dense))
        for got, want in zip(found, wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def attention_gradients(attend: Attend, layer: int, *inputs: Tensor) -> tuple[Tensor, ...]:
    own = [x.clone().requires_grad_() for x in inputs]
    out = attend(layer, *own)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(5))
    return torch.autograd.grad((out * weights).sum(), own)


def test_a_token_without_a_document_is_an_error() -> None:
    config = config_from_hf(tiny.hf_config("llama"))
    with pytest.raises(ValueError, match="no document"):
        DocumentAttention(config, [torch.tensor([0, 1]), torch.tensor([0, 3])], device=torch.device("cpu"))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_n_by_one_is_one_by_n(family: str) -> None:
    """Acceptance test 1: micro-batches of one document each against one of all, with ragged masks."""
    decoder, made = learnable(family, scale=0.2), batch_maker.some(count=7)
    whole = gradients(decoder, [batch_maker.padded(made)], NextToken())
    apart = gradients(decoder, [batch_maker.padded([document]) for document in made], NextToken())
    check_equal(apart, whole, 1e-6)


def test_recomputed_layers_give_the_same_gradients() -> None:
    decoder, batch = learnable("gemma2"), batch_maker.packed(batch_maker.some())
    kept = gradients(decoder, [batch], NextToken())
    decoder.model.recompute = True
    check_equal(gradients(decoder, [batch], NextToken()), kept, 0.0)


def test_bfloat16_is_float32_within_rounding() -> None:
    exact, rounded = learnable("llama", scale=0.1), learnable("llama", scale=0.1, dtype=torch.bfloat16)
    with torch.no_grad():
        for a, b in zip(exact.parameters(), rounded.parameters(), strict=True):
            a.copy_(b)
    batch = batch_maker.packed(batch_maker.some())
    (loss, wanted), (found, ours) = (
        gradients(exact, [batch], NextToken()),
        gradients(rounded, [batch], NextToken()),
    )
    assert found == pytest.approx(loss, rel=0.01)
    for name, grad in wanted.items():
        assert float((ours[name].float() - grad).norm() / grad.norm()) < 0.06, name
