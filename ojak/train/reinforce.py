"""REINFORCE: answers drawn from the model as it is, rewarded by rules, held near a moving mean of its own weights.

For each prompt K answers y_i are drawn. With the reward r(y) and the anchor's log-probability log a(y), the return is
R_i = r(y_i) - beta * (log q(y_i) - log a(y_i)), and what is learnt is

    -1/K * sum_i (R_i - mean of R_j, j != i) * log q(y_i)

whose gradient is, in the mean over draws, that of -(E r - beta * KL(q || a)): the others of a prompt are drawn without
y_i, so that subtracting their mean adds nothing to it but takes noise away. q is the model at the temperature that is
drawn with, in the draws, the gradient and the log-ratio alike.

The anchor is a moving mean of the run's own weights from its first step on, with the share mu of the newest (WARP,
arXiv 2406.16768, section 3.1); with mu = 0 it is the model that the run began with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ojak.errors import UsageError
from ojak.model.attention import DocumentAttention, take_rows
from ojak.train.documents import Documents, documents
from ojak.train.live import Answer, LiveSampler, answer_batch, prompts_of
from ojak.train.loss import token_log_probs, weighted_log_probs
from ojak.train.objectives import Loss, Material
from ojak.train.rewards import Reward, parse_reward

if TYPE_CHECKING:
    from ojak.model.decoder import Decoder
    from ojak.train.batches import Batch
    from ojak.train.config import TrainConfig
    from ojak.train.ema import MovingMean
    from ojak.train.reinforce_config import ReinforceConfig


def reinforce(config: TrainConfig, material: Material | None) -> Reinforce:
    """The objective of the settings `config.reinforce`. Raises UsageError where they do not fit the run."""
    settings = config.reinforce
    if settings is None:
        raise UsageError("nothing says what is rewarded", fix="give --reward rules:SPEC")
    if material is None or material.anchor is None:
        raise UsageError(
            "a run that draws its own answers cannot be planned",
            why="how long they are is not known before they are drawn",
            fix="begin it with a small --max-tokens, and look at its figures",
        )
    if config.lora is not None and config.lora.dropout:
        raise UsageError("answers are drawn without dropout", fix="leave out lora.dropout")
    if config.val_share:
        raise UsageError("prompts that are held out have no answers to measure", fix="use --val-data")
    sampler = LiveSampler(
        material.model, max_tokens=settings.answer_tokens, longest_prompt=int(material.rows.lengths.max()),
        slots=(config.micro_batch or config.batch) * settings.samples, seed=config.seed,
        temperature=settings.temperature, processes=material.processes,
    )  # fmt: skip
    return Reinforce(settings, parse_reward(settings.reward), sampler, material.anchor)


@dataclass(frozen=True, slots=True)
class Reinforce:
    """The objective; see the module's docstring. A row of the batch is a prompt with one learnt token."""

    settings: ReinforceConfig
    reward: Reward
    sampler: LiveSampler
    anchor: MovingMean

    def __call__(self, decoder: Decoder, batch: Batch) -> Loss:
        answers = self.sampler.sample(prompts_of(batch), epoch=batch.epoch, samples=self.settings.samples)
        return self.learn(decoder, answers)

    def learn(self, decoder: Decoder, answers: Sequence[Answer]) -> Loss:
        """The loss over answers, `samples` to each prompt side by side; its sum is over prompts."""
        rewards = torch.tensor([self.reward(answer.text, answer.stopped) for answer in answers])
        found = documents(answer_batch(answers), share=True)
        hidden_SD = _hidden(decoder, found)
        ratios = self._log_ratios(decoder, found, hidden_SD.detach(), answers)
        weights = advantages(rewards - self.settings.beta * ratios, self.settings.samples)
        lengths = torch.tensor([len(answer.ids) for answer in answers])
        total = weighted_log_probs(
            hidden_SD, decoder.get_parameter("lm_head.weight"), found.targets_S.to(hidden_SD.device),
            (-weights / self.settings.samples).repeat_interleave(lengths).to(hidden_SD.device),
            softcap=decoder.config.final_logit_softcapping, temperature=self.settings.temperature,
        )  # fmt: skip
        return Loss(
            total, len(answers) // self.settings.samples, found.tokens, _extras(answers, rewards, ratios)
        )

    @torch.no_grad()
    def _log_ratios(
        self, decoder: Decoder, found: Documents, hidden_SD: Tensor, answers: Sequence[Answer]
    ) -> Tensor:
        """log q(y) - log a(y) of each answer, float32 on the CPU."""
        own = self._log_probs(decoder, decoder.get_parameter("lm_head.weight"), hidden_SD, found)
        weights = {
            name: mean.to(decoder.get_parameter(name).dtype) for name, mean in self.anchor.means.items()
        }
        far_SD = functional_call(
            _Hidden(decoder), {f"decoder.{name}": weight for name, weight in weights.items()}, (found,)
        )
        head = "model.embed_tokens.weight" if decoder.config.tie_word_embeddings else "lm_head.weight"
        weight_VD = weights.get(head, decoder.get_parameter(head))
        apart = own - self._log_probs(decoder, weight_VD, far_SD, found)
        parts = apart.cpu().split([len(answer.ids) for answer in answers])
        return torch.stack([part.sum() for part in parts])

    def _log_probs(self, decoder: Decoder, weight_VD: Tensor, hidden_SD: Tensor, found: Documents) -> Tensor:
        return token_log_probs(
            hidden_SD, weight_VD, found.targets_S.to(hidden_SD.device),
            softcap=decoder.config.final_logit_softcapping, temperature=self.settings.temperature,
        )  # fmt: skip


def advantages(returns_N: Tensor, samples: int) -> Tensor:
    """Each return less the mean of the others of its prompt; `samples` of a prompt stand side by side."""
    returns_PK = returns_N.view(-1, samples)
    others_PK = (returns_PK.sum(1, keepdim=True) - returns_PK) / (samples - 1)
    return (returns_PK - others_PK).flatten()


def _hidden(decoder: Decoder, found: Documents) -> Tensor:
    """The hidden states (S, D) from which the learnt tokens are predicted."""
    device = decoder.model.embed_tokens.weight.device
    attend = DocumentAttention(decoder.config, found.places, device=device)
    hidden_1ND = decoder.hidden(found.ids_1N.to(device), found.positions_1N.to(device), attend)
    return take_rows(hidden_1ND[0], found.sources_S.to(device), repeats=True)


class _Hidden(nn.Module):
    """`_hidden` as the forward pass of a module, so that it can be called with other weights."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, found: Documents) -> Tensor:
        return _hidden(self.decoder, found)


def _extras(answers: Sequence[Answer], rewards: Tensor, ratios: Tensor) -> dict[str, tuple[float, float]]:
    count = float(len(answers))
    return {
        "reward": (float(rewards.sum()), count),
        "kl": (float(ratios.sum()), count),
        "answer_tokens": (float(sum(len(answer.ids) for answer in answers)), count),
        "stopped": (float(sum(answer.stopped for answer in answers)), count),
    }
