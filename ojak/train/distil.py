"""The objective of distillation: what the student should predict is what a teacher predicts at the same tokens.

The teacher is a model that reads the same rows without gradients, or a cache of what one predicted. Both see the rows
as the student does: the same tokens by the same numbers, so their vocabularies must be the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ojak.errors import InputRefused, UsageError
from ojak.model.decoder import Decoder
from ojak.model.load import from_source, read_source
from ojak.model.source import Source
from ojak.train.batches import IGNORED
from ojak.train.distil_cache import Cache, is_cache, vocabulary_sha256
from ojak.train.distil_config import DIVERGENCES
from ojak.train.distil_loss import DenseTeacher, SparseTeacher, Teacher, distil_loss
from ojak.train.encode import Encoding
from ojak.train.objectives import Loss, Material, NextToken, Objective
from ojak.train.optimizer import STATE_DTYPES

if TYPE_CHECKING:
    from ojak.model.load import Model
    from ojak.model.tokenizer import Tokenizer
    from ojak.train.batches import Batch
    from ojak.train.config import TrainConfig
    from ojak.train.distil_config import DistilConfig
    from ojak.train.rows import Rows

OTHER_TOKENS = (
    "let the teacher write answers and learn from their text, which is tokenized anew: ojak synthesize magpie --model"
    " TEACHER --out ANSWERS, then ojak train finetune --model STUDENT --data ANSWERS"
)


@dataclass(frozen=True, slots=True)
class Distil:
    """A divergence of the student's predictions from a teacher's, over what the batch supervises.

    own: how hidden states are computed. teacher: gives its predictions for a batch, in the order of what is supervised.
    """

    config: DistilConfig
    own: NextToken
    teacher: Callable[[Batch], Teacher]

    def __call__(self, decoder: Decoder, batch: Batch) -> Loss:
        teacher = self.teacher(
            batch
        )  # first: what its layers need is free again when the student's are computed
        hidden_SD, targets_S, computed = supervised(*self.own.states(decoder, batch))
        total, count = distil_loss(
            hidden_SD,
            decoder.get_parameter("lm_head.weight"),
            targets_S,
            teacher,
            kind=self.config.loss,  # pyright: ignore[reportArgumentType] (minillm is an objective of its own)
            beta=beta_of(self.config),
            temperature=self.config.temperature,
            ce_weight=self.config.ce_weight,
            softcap=decoder.config.final_logit_softcapping,
        )
        return Loss(total, count, computed)


def supervised(hidden_SD: Tensor, targets_S: Tensor, computed: int) -> tuple[Tensor, Tensor, int]:
    """The states from which something is to be told; a padded batch has others between."""
    places = (targets_S != IGNORED).nonzero()[:, 0]
    if len(places) == len(targets_S):
        return hidden_SD, targets_S, computed
    return hidden_SD.index_select(0, places), targets_S[places], computed


def beta_of(config: DistilConfig) -> float:
    """The setting, or that of the loss's paper."""
    return config.beta if config.beta is not None else 0.1 if config.loss == "dpkd" else 0.5


@dataclass(frozen=True, slots=True)
class OnlineTeacher:
    """A model in evaluation mode that reads each batch."""

    decoder: Decoder
    own: NextToken

    @torch.no_grad()
    def __call__(self, batch: Batch) -> DenseTeacher:
        hidden_SD, _, _ = supervised(*self.own.states(self.decoder, batch))
        weight_VD = self.decoder.get_parameter("lm_head.weight")
        return DenseTeacher(hidden_SD, weight_VD, self.decoder.config.final_logit_softcapping)


def unpadded(teacher: Model, vocab_size: int) -> Model:
    """The teacher with its first `vocab_size` tokens, its weights shared: a student's padding may be shorter.

    What lies beyond stands for nothing in the student's vocabulary: it must neither be compared nor be drawn.
    """
    if teacher.config.vocab_size == vocab_size:
        return teacher
    config = replace(teacher.config, vocab_size=vocab_size)
    with torch.device("meta"):
        small = Decoder(config)
    weights = teacher.decoder.state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:vocab_size]
    small.load_state_dict(weights, assign=True)
    if config.tie_word_embeddings:
        small.lm_head.weight = small.model.embed_tokens.weight
    return replace(teacher, config=config, decoder=small.eval().requires_grad_(False))


@dataclass(frozen=True, slots=True)
class CachedTeacher:
    """What a teacher predicted on a run's rows, looked up by their numbers."""

    cache: Cache
    rows: Rows
    top_k: int | None
    device: torch.device

    def __call__(self, batch: Batch) -> SparseTeacher:
        found = self.cache.predictions([self._place(row) for row in batch.rows], self.top_k)
        if len(found.tail_N) != batch.supervised:
            raise InputRefused(
                f"{self.cache.path} predicts {len(found.tail_N)} tokens where {batch.supervised} are learnt",
                fix="make the cache anew",
            )
        parts = (found.indices_NK, found.log_probs_NK, found.tail_N)
        return SparseTeacher(*(part.to(self.device) for part in parts))

    def _place(self, row: int) -> tuple[str, int]:
        """The token store that a row of the run is of, and its number there."""
        part, number = self.rows.place(row)
        return part.store.sha256, number


def distil_objective(config: TrainConfig, material: Material, own: NextToken) -> Objective:
    """What `train distil` learns by. own: the same rows' cross-entropy, whose way of computing states is taken.

    Raises UsageError for settings that do not fit each other, InputRefused for a teacher with another vocabulary, and
    for a cache that was made of other rows, and what `load_model` does.
    """
    settings = config.distil
    assert settings is not None  # the settings of a run see to it
    if config.z_loss:
        raise UsageError(
            "z_loss is for cross-entropy alone", fix="leave it out where a teacher is learnt from"
        )
    if is_cache(settings.teacher):
        return Distil(settings, own, cached_teacher(config, settings, material))
    source = teacher_source(config, settings, material.notify)
    check_vocabulary(material.model, source)
    whole = from_source(source, STATE_DTYPES[config.dtype], material.processes.device)
    teacher = unpadded(whole, material.model.config.vocab_size)
    if settings.samples:
        return _sampling(config, settings, material, teacher, own)
    return Distil(settings, own, OnlineTeacher(teacher.decoder, own))


def teacher_source(config: TrainConfig, settings: DistilConfig, notify: Callable[[str], None]) -> Source:
    """The files of a teacher that is a model. Raises UsageError for a setting of caches, and what `load_model` does."""
    if settings.top_k is not None:
        raise UsageError(
            "distil.top_k does nothing with a model as the teacher",
            why="it cuts what a cache holds; a model's predictions are learnt from whole",
            fix="leave it out, or make a cache of so many tokens and name it as the teacher: ojak distil cache --top-k",
        )
    return read_source(settings.teacher, accept_license=config.accept_license, notify=notify)


def check_vocabulary(student: Model, teacher: Source) -> None:
    """Raise InputRefused unless the same numbers stand for the same tokens."""
    if vocabulary_sha256(student.tokenizer) == vocabulary_sha256(teacher.tokenizer):
        rows = int(teacher.config.get("vocab_size", student.config.vocab_size))
        if rows >= student.config.vocab_size:
            return
        why = f"the teacher's output layer has {rows} tokens, the student's {student.config.vocab_size}"
        raise InputRefused(
            f"{student.name} cannot be distilled from {teacher.name}", why=why, fix=OTHER_TOKENS
        )
    raise InputRefused(
        f"{student.name} cannot be distilled from {teacher.name}",
        why=f"their tokenizers differ: {_difference(student.tokenizer, teacher.tokenizer)}, so that what the teacher"
        " predicts is of other tokens",
        fix=OTHER_TOKENS,
    )


def _difference(ours: Tokenizer, theirs: Tokenizer) -> str:
    """In what two vocabularies differ, in a few words."""
    if ours.vocab_size != theirs.vocab_size:
        return f"{ours.vocab_size} tokens and {theirs.vocab_size}"
    both = range(ours.vocab_size)
    first = next(i for i in both if ours.backend.id_to_token(i) != theirs.backend.id_to_token(i))
    names = [each.backend.id_to_token(first) for each in (ours, theirs)]
    return f"token {first} is {names[0]!r:.40} and {names[1]!r:.40}"


def cached_teacher(config: TrainConfig, settings: DistilConfig, material: Material) -> CachedTeacher:
    """The cache, if it is of this vocabulary, this temperature and these rows; raises InputRefused if not."""
    if settings.loss not in DIVERGENCES:
        raise UsageError(
            f"{settings.loss} cannot learn from a cache",
            why="it needs what the teacher predicts of other texts than the rows, or of all tokens",
            fix=f"give the model itself as the teacher, or choose one of {', '.join(DIVERGENCES)}",
        )
    cache = Cache.open(settings.teacher)
    header, model = cache.header, material.model
    if header["tokenizer_sha256"] != vocabulary_sha256(model.tokenizer):
        raise InputRefused(
            f"{model.name} cannot be distilled from {cache.path}",
            why=f"the tokenizer of the teacher {header['teacher']!r:.80} is another, so that what it predicts is of"
            " other tokens",
            fix=OTHER_TOKENS,
        )
    if header["temperature"] != settings.temperature:
        raise InputRefused(
            f"{cache.path} was made at temperature {header['temperature']:g}, not {settings.temperature:g}",
            fix=f"--set distil.temperature={header['temperature']:g}, or make another cache",
        )
    if (settings.top_k or 1) > header["top_k"]:
        raise InputRefused(
            f"{cache.path} holds {header['top_k']} tokens of each place, not {settings.top_k}",
            fix="lower distil.top_k, or leave it out",
        )
    if header["vocab_size"] > model.config.vocab_size:
        raise InputRefused(
            f"the teacher of {cache.path} has {header['vocab_size']} tokens, the student {model.config.vocab_size}",
            fix="give the model itself as the teacher, whose padding is then left out",
        )
    _check_rows(config, cache, material)
    return CachedTeacher(cache, material.rows, settings.top_k, material.processes.device)


def _check_rows(config: TrainConfig, cache: Cache, material: Material) -> None:
    """Raise InputRefused where a source's rows are not among those that the teacher read."""
    strangers = [part for part in material.rows.parts if cache.rows(part.store.sha256) != len(part.store)]
    if not strangers:
        return
    template = material.model.chat_template
    encoding = Encoding(config.reads, template, config.mask_roles, config.max_len, config.long_rows)
    other = [name for name, value in encoding.key().items() if cache.header.get(name) != value]
    raise InputRefused(
        f"{cache.path} was not made of the rows of {strangers[0].name}",
        why=f"the run has another {', '.join(other)}" if other else "the teacher read other texts",
        fix="train with the cache's data, style, max_len and masks, or make a cache of these rows: ojak distil cache",
    )


def _sampling(
    config: TrainConfig, settings: DistilConfig, material: Material, teacher: Model, own: NextToken
) -> Objective:
    """The objectives that learn from answers which the student, or both, write as they learn."""
    from ojak.train.dpkd import DPKD
    from ojak.train.live import LiveSampler
    from ojak.train.live_mix import Mix
    from ojak.train.minillm import MiniLLM

    longest = int(material.rows.lengths.max())

    def sampler(model: Model, seed: int = config.seed, mix: Mix | None = None) -> LiveSampler:
        return LiveSampler(
            model, max_tokens=settings.max_tokens, longest_prompt=longest, seed=seed,
            temperature=settings.temperature, mix=mix, processes=material.processes,
        )  # fmt: skip

    if settings.loss == "minillm":
        mix = Mix(teacher.decoder, settings.alpha) if settings.alpha else None
        mixed = sampler(material.model, mix=mix)
        return MiniLLM(mixed, teacher.decoder, own, ce_weight=settings.ce_weight)
    # Of another seed: answers of like models and one seed are alike.
    theirs = sampler(teacher, config.seed ^ 1) if settings.teacher_answers == "sampled" else None
    return DPKD(sampler(material.model), teacher.decoder, theirs, own, beta_of(settings), settings.ce_weight)
