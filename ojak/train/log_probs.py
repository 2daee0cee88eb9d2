"""Log-probabilities of given tokens, fused with the output layer: the logits of some rows are in memory at a time.

Unlike the cross-entropy of `loss.py`, whose gradient is the same factor for every row, what is made of these numbers
gives each row a factor of its own, which is known in the backward pass only. The gradient of the hidden states is that
factor times a row that can be made while the logits are there. That of the output layer is a sum over rows, for which
the logits are made a second time, unless one chunk holds them all and they are kept. A frozen output layer (an adapter
is trained) therefore costs two products a row, a learnt one three or four.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ojak.train.documents import document_states
from ojak.train.loss import _added, _alone, _finished, _rows, most_bytes, of_targets

if TYPE_CHECKING:
    from ojak.model.decoder import Decoder
    from ojak.train.batches import Batch


@dataclass(frozen=True, slots=True)
class AnswerLogProbs:
    """Of each document of a batch, shape (A,), float64: log p of what is learnt of it, and how many tokens that is.

    tokens: that went through the layers.
    """

    sums_A: Tensor
    lengths_A: Tensor
    tokens: int


def answer_log_probs(decoder: Decoder, batch: Batch, *, share: bool = True) -> AnswerLogProbs:
    """The log-probability of the answer in each document, with its gradient; `share` as in `documents`."""
    hidden_SD, targets_S, found = document_states(decoder, batch, share=share)
    log_probs_S = chunked_log_probs(
        hidden_SD,
        decoder.get_parameter("lm_head.weight"),
        targets_S,
        softcap=decoder.config.final_logit_softcapping,
    )
    # One sum an answer, in one order whatever stands beside it: as many processes and micro-batches as one likes.
    sums_A = torch.stack([each.sum() for each in log_probs_S.double().split(list(found.learnt))])
    return AnswerLogProbs(
        sums_A, torch.tensor(found.learnt, dtype=torch.float64, device=hidden_SD.device), found.tokens
    )


def chunked_log_probs(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    softcap: float | None = None,
    chunk: int | None = None,
) -> Tensor:
    """log p(target) of each row, shape (N,), float32 (float64 for float64), with its gradient.

    Logits are softcap * tanh(h w / softcap) where there is a cap. Products are in the dtype of hidden_ND, all else in
    float32. `chunk`: the most bytes of logits in memory, though at least those of one row. Without rows the result is
    empty; its sum has zero gradients. Gradients can be asked for once.
    """
    if not len(targets_N):
        return hidden_ND.sum(-1).float() + 0.0 * weight_VD[0].sum()
    rows = _rows(len(targets_N), len(weight_VD) * hidden_ND.element_size(), chunk or most_bytes(hidden_ND))
    found = _LogProbs.apply(hidden_ND, weight_VD, targets_N, softcap, rows, torch.is_grad_enabled())
    assert isinstance(found, Tensor)
    return found


class _LogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, rows: int,
        learning: bool,
    ) -> Tensor:  # fmt: skip
        ctx.softcap, ctx.rows = softcap, rows
        wants_hidden, wants_weight = (learning and wanted for wanted in ctx.needs_input_grad[:2])
        keeps = wants_weight and rows >= len(hidden)
        hidden_grad = torch.empty_like(hidden) if wants_hidden else None
        buffer_RV, losses_of = hidden.new_empty(rows, len(weight)), of_targets(targets, softcap=softcap)
        losses: list[Tensor] = []
        for at in range(0, len(hidden), rows):
            logits = torch.mm(hidden[at : at + rows], weight.t(), out=buffer_RV[: len(hidden) - at])
            losses.append(losses_of(logits, slice(at, at + len(logits)), wants_hidden or keeps))
            if hidden_grad is not None:
                torch.mm(logits, weight, out=hidden_grad[at : at + rows])
        ctx.save_for_backward(
            hidden_grad, buffer_RV if keeps else None, *((hidden, weight, targets) if wants_weight else ())
        )
        return -torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden_grad, slopes, *given = ctx.saved_tensors
        factors_N1 = -grads[0][:, None]
        weight_grad = None
        if given:
            hidden, weight, targets = given
            scaled = (hidden * factors_N1).to(hidden.dtype)
            if slopes is not None:
                weight_grad = _finished(None, slopes, scaled, 1.0)
            else:
                weight_grad = _again(hidden, scaled, weight, targets, ctx.softcap, ctx.rows)
        if hidden_grad is not None:
            hidden_grad = (hidden_grad * factors_N1).to(hidden_grad.dtype)
        return hidden_grad, weight_grad, None, None, None, None


def _again(
    hidden: Tensor, scaled: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, rows: int
) -> Tensor:
    """The output layer's gradient, for which every chunk's logits are made once more."""
    buffer_RV, losses_of = hidden.new_empty(rows, len(weight)), of_targets(targets, softcap=softcap)
    starts, total = range(0, len(hidden), rows), None

    def slopes(at: int) -> Tensor:
        logits = torch.mm(hidden[at : at + rows], weight.t(), out=buffer_RV[: len(hidden) - at])
        losses_of(logits, slice(at, at + len(logits)), True)
        return logits

    for at in starts[:-1]:
        total = _added(total, slopes(at), scaled[at : at + rows])
    return _alone(_finished(total, slopes(starts[-1]), scaled[starts[-1] :], 1.0))
