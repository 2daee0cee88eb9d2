"""A grid of models from nothing that differ in one switch each, and the texts that all of them learn from.

    OUT/data/              the texts, in the splits train and validation
    OUT/models/<arm>/      config.json and the tokenizer of each arm, for training from nothing
    OUT/tokenizers/        one for each size of a vocabulary
    OUT/manifest.json      kind "grid": what each arm is, its parameters, its operations a token

Tokenizers are trained on the texts of the split train; arms with a vocabulary of one size share theirs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import orjson
from pydantic import Field, field_validator, model_validator

from ojak._files import remove
from ojak._progress import silent
from ojak._settings import Settings, dotted, explain, problems
from ojak.artifact import Artifact, publish
from ojak.errors import InputRefused, PartialResult, UsageError
from ojak.model import checkpoint
from ojak.records import Document
from ojak.sources import LongText
from ojak.train.arms import ARM
from ojak.train.rows import shuffled
from ojak.train.sources import parse_source, read_source, split_of
from ojak.train.tokenizer import train_tokenizer
from ojak.train.variant import (
    VariantConfig,
    decoder_config,
    flops_per_token,
    hf_fields,
    parameter_count,
    resized,
)

BASE = "reference"  # `base` is what an evaluation calls an untrained model
MODELS, TOKENIZERS, TEXTS = "models", "tokenizers", "texts.jsonl"
VALIDATION = "validation"
TRAIN = "train"  # of an arm: the settings of its training that are its own
MOST_ARMS = 64


@dataclass(frozen=True, slots=True)
class Variant:
    """An arm: the factors in which it is not the base, what it sets, its model, and settings of its training."""

    name: str
    factors: tuple[str, ...]
    changes: Mapping[str, Any]
    config: VariantConfig
    train: Mapping[str, Any]


class GridConfig(Settings):
    """data: texts to learn from, as paths or results of earlier stages (none: the corpus). validation: the share of the
    texts that no arm learns from.

    tokens: of each run; where the vocabulary is another one, as many as cost the same operations. max_len: tokens of a
    row in training. base: the model that all others are compared with.
    factors: for each its other values, by name: what the arm `<factor>-<name>` sets, switches of `VariantConfig`, and
    under `train` settings of its training. product: factors of which all values are combined, too.
    """

    data: tuple[str, ...] = ()
    validation: float = Field(default=0.1, gt=0, lt=1)
    tokens: int = Field(ge=1)
    max_len: int = Field(default=256, ge=4)
    seed: int = 0
    base: VariantConfig = VariantConfig()
    factors: dict[str, dict[str, dict[str, Any] | None]] = Field(default_factory=dict)
    product: tuple[str, ...] = ()

    @field_validator("product")
    @classmethod
    def _two_or_more(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(names) == 1 or len(set(names)) < len(names):
            raise ValueError("name two or more different factors")
        return names

    @model_validator(mode="after")
    def _variants_are_sound(self) -> GridConfig:
        unknown = [name for name in self.product if name not in self.factors]
        if unknown:
            raise ValueError(f"product names {unknown[0][:80]!r}, which is no factor")
        names = [variant.name for variant in self.variants()]
        if len(names) > MOST_ARMS or len(set(names)) < len(names):
            raise ValueError(f"{len(names)} arms: at most {MOST_ARMS}, each with a name of its own")
        return self

    def variants(self) -> list[Variant]:
        """The arms: the base, each value of each factor, then the combinations. Raises ValueError for a wrong one."""
        single = {
            factor: [(f"{factor}-{name}", changes or {}) for name, changes in values.items()]
            for factor, values in self.factors.items()
        }
        found = [self._variant(BASE, (), {})]
        for factor, values in single.items():
            found += [self._variant(name, (factor,), changes) for name, changes in values]
        for chosen in product(*(single[factor] for factor in self.product)) if self.product else ():
            name, changes = ".".join(name for name, _ in chosen), dict[str, Any]()
            for _, each in chosen:
                changes = _joined(name, changes, each)
            found.append(self._variant(name, self.product, changes))
        return found

    def _variant(self, name: str, factors: tuple[str, ...], changes: Mapping[str, Any]) -> Variant:
        if not ARM.fullmatch(name):
            raise ValueError(
                f"{name[:80]!r} cannot be the name of an arm (a to z, 0 to 9, '.', '_', '-'; 40 of them)"
            )
        own = {key: value for key, value in changes.items() if key != TRAIN}
        train = changes.get(TRAIN) or {}
        if not isinstance(train, Mapping) or {"model", "max_tokens"} & train.keys():
            raise ValueError(f"{name}.{TRAIN}: settings of the training, without model and max_tokens")
        values = {**self.base.model_dump(exclude_unset=True), **own}
        if wrong := list(problems(VariantConfig, values)):
            lines = [explain(item, f"{name}.{dotted(item['loc'])}", fields) for item, fields in wrong]
            raise ValueError("; ".join(lines))
        config = VariantConfig(**values)
        if config.same_parameters:
            config = resized(config, parameter_count(decoder_config(self.base)))
        return Variant(name, factors, changes, config, train)

    def tokens_of(self, variant: Variant) -> int:
        """The tokens that a run of the arm reads: of another vocabulary as many as cost what the base's do."""
        if variant.config.vocab_size == self.base.vocab_size:
            return self.tokens
        cost, own = (
            flops_per_token(decoder_config(each), self.max_len) for each in (self.base, variant.config)
        )
        return max(1, round(self.tokens * cost / own))

    def arms(self) -> dict[str, dict[str, Any]]:
        """The arms of the training (`ojak.train.arms`), by name."""
        found: dict[str, dict[str, Any]] = {}
        for variant in self.variants():
            other = variant.config.vocab_size != self.base.vocab_size
            budget = {"max_tokens": self.tokens_of(variant)} if other else {}
            found[variant.name] = {"model": f"@grid/{variant.name}", **budget, **variant.train}
        return found


def _joined(name: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What two factors of a combination set. Raises ValueError where they differ: one would not be tried at all."""
    found = dict(one)
    for key, value in other.items():
        if isinstance(found.get(key), Mapping) and isinstance(value, Mapping):
            value = _joined(name, found[key], value)
        elif key in found and found[key] != value:
            raise ValueError(f"{name[:80]}: two of its factors set {str(key)[:80]!r}")
        found[key] = value
    return found


def make_grid(
    data: Sequence[str], out: Path, config: GridConfig, *, notify: Callable[[str], None] = silent
) -> Artifact:
    """Divides the texts of `data`, and writes a configuration and a tokenizer for each arm.

    Raises InputRefused for data that are no texts or too few, UsageError for a vocabulary that the texts cannot fill.
    """
    for name in (MODELS, TOKENIZERS) if not (out / "manifest.json").exists() else ():
        remove(out / name)  # of a run that was killed
    parts = _divided(list(_documents(data, notify)), config)
    variants = config.variants()
    for size in dict.fromkeys(variant.config.vocab_size for variant in variants):
        notify(f"a tokenizer of {size:,} tokens")
        _tokenizer(parts[TRAIN], size, out)
    for variant in variants:
        folder = out / MODELS / variant.name
        shutil.copytree(out / TOKENIZERS / str(variant.config.vocab_size), folder)
        checkpoint.write_json(folder / "config.json", hf_fields(variant.config))
    counts = {name: len(rows) for name, rows in parts.items()}
    return publish(
        out, kind="grid", splits=parts, config=config.model_dump(mode="json"), inputs=_inputs(data),
        stats={"arms": arm_facts(config), "against": BASE, **counts},
    )  # fmt: skip


def _inputs(data: Sequence[str]) -> list[Path | str]:
    return [
        path
        for text in data
        if (path := parse_source(text).path).is_dir() and (path / "manifest.json").exists()
    ]


def _documents(data: Sequence[str], notify: Callable[[str], None]) -> Iterator[Document]:
    for text in data:
        source = parse_source(text)
        for record in read_source(source, split_of(source), lambda line: notify(str(line))):
            record = record.document() if isinstance(record, LongText) else record
            if not isinstance(record, Document):
                raise InputRefused(
                    f"{source.path} holds {type(record).__name__.lower()}s, no texts", fix="give documents"
                )
            if record.text:
                yield record


def _divided(texts: list[Document], config: GridConfig) -> dict[str, list[Document]]:
    count = max(1, round(config.validation * len(texts)))
    if len(texts) <= count:
        raise InputRefused(
            f"{len(texts)} texts cannot be divided", fix="give more texts, each a document of its own"
        )
    held = set(shuffled(len(texts), config.seed, "held out")[:count].tolist())
    return {
        TRAIN: [text for place, text in enumerate(texts) if place not in held],
        VALIDATION: [text for place, text in enumerate(texts) if place in held],
    }


def _tokenizer(texts: Sequence[Document], size: int, out: Path) -> None:
    """Trains a tokenizer of exactly `size` tokens into OUT/tokenizers/<size>."""
    (out / TOKENIZERS).mkdir(parents=True, exist_ok=True)
    path = out / TOKENIZERS / TEXTS
    path.write_bytes(b"".join(orjson.dumps({"id": text.id, "text": text.text}) + b"\n" for text in texts))
    try:
        train_tokenizer([path], vocab_size=size, out=out / TOKENIZERS / str(size))
    except PartialResult as error:
        raise UsageError(
            f"the texts are too few for a vocabulary of {size:,}",
            why=error.what,
            fix="lower vocab_size, or add texts",
        ) from error
    finally:
        path.unlink(missing_ok=True)


def arm_facts(config: GridConfig) -> dict[str, dict[str, Any]]:
    """What each arm is, as JSON values: its sizes, its parameters, the operations and the tokens of its training."""
    return {variant.name: _facts(config, variant) for variant in config.variants()}


def _facts(config: GridConfig, variant: Variant) -> dict[str, Any]:
    decoder = decoder_config(variant.config)
    return {
        "factors": list(variant.factors),
        "changes": dict(variant.changes),
        "model_type": decoder.model_type,
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "num_hidden_layers": decoder.num_hidden_layers,
        "parameters": parameter_count(decoder),
        "flops_per_token": flops_per_token(decoder, config.max_len),
        "tokens": config.tokens_of(variant),
    }
