"""A byte-level BPE tokenizer from one's own text (arXiv 1508.07909; on bytes: GPT-2), for a model that begins anew.

Digits stand alone and words are cut as GPT-2 cuts them, which is how SmolLM2 does it: so the tokenizer has a name
in GGUF files. Texts are streamed; what is kept in memory is the count of each word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from ojak._progress import silent
from ojak.errors import InputRefused, PartialResult, UsageError, VerificationFailed
from ojak.formats import load
from ojak.model import checkpoint
from ojak.model.tokenizer import Tokenizer
from ojak.records import AnyRecord, to_row

END = "<|endoftext|>"
SPECIAL = (END, "<|im_start|>", "<|im_end|>")  # the end of a text; the marks of ChatML's turns
CHECKED_TEXTS = 2_000
MOST_TOKENS = 1 << 20
# All bytes, and what other normalisations would change: spaces, line ends, composed and decomposed letters, a BOM.
HARD_TEXTS = (
    "".join(map(chr, range(256))), " \t\r\n  \u00a0\u3000", "e\u0301 é ﬁ Å", "\ufeff한국어 1234,5 🏳️‍🌈", "\x00", "",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TrainedTokenizer:
    """What was made: `vocab_size` tokens from `texts` texts. `bytes_per_token`: over the texts that were checked."""

    out: Path
    vocab_size: int
    texts: int
    bytes_per_token: float


def train_tokenizer(
    data: Sequence[Path],
    *,
    vocab_size: int,
    out: Path,
    special: Sequence[str] = (),
    min_frequency: int = 2,
) -> TrainedTokenizer:
    """Trains a tokenizer on all texts and turns in `data` (any format of formats.py), into a new Hugging Face folder.

    `vocab_size` counts the 256 bytes and the special tokens: END, which ends a text and pads, ChatML's two, and those
    of `special`. A pair of tokens is joined if it occurs `min_frequency` times. Before the folder gets its name, texts
    must come back from it as they were.

    Raises UsageError, InputRefused (no text), TargetExists, VerificationFailed; PartialResult, with the folder there,
    if the texts do not give so many tokens.
    """
    names = list(dict.fromkeys([*SPECIAL, *special]))
    _check(names, vocab_size)
    counter = _Counted(
        text for path in data for record in load(path, warn=silent) for text in texts_of(record)
    )
    backend = _trained(counter, names, vocab_size, min_frequency)
    if not counter.texts:
        raise InputRefused("there is no text to train a tokenizer on", why=", ".join(map(str, data)))
    made = Tokenizer(backend, bos_id=None, eos_id=backend.token_to_id(END), adds_bos=False)
    with checkpoint.new_folder(out) as staging:
        checkpoint.save_text_side(staging, {"pad_token_id": made.eos_id}, made, None, None)
        ratio = _verified(Tokenizer.from_folder(staging, {}), counter.first)
    if made.vocab_size < vocab_size:
        raise PartialResult(
            f"the texts give {made.vocab_size:,} tokens, not {vocab_size:,}; {out} has them",
            why=f"no further pair of tokens occurs {min_frequency} times",
            fix="give more text, or a smaller --vocab-size",
        )
    return TrainedTokenizer(out, made.vocab_size, counter.texts, ratio)


def texts_of(record: AnyRecord) -> Iterator[str]:
    """Every text in a record: a document's, or those of its turns."""
    row = to_row(record)
    if row.get("text"):
        yield row["text"]
    for part in ("messages", "prompt", "chosen", "rejected"):
        yield from (message["content"] for message in row.get(part, ()) if message["content"])


class _Counted:
    """Texts on their way to the trainer: counted, the first ones kept."""

    def __init__(self, texts: Iterator[str]) -> None:
        self._all = texts
        self.texts = 0
        self.first: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for text in self._all:
            self.texts += 1
            if len(self.first) < CHECKED_TEXTS:
                self.first.append(text)
            yield text


def _check(names: Sequence[str], vocab_size: int) -> None:
    least = 256 + len(names)
    if not least <= vocab_size <= MOST_TOKENS:
        raise UsageError(
            f"a vocabulary of {vocab_size:,} tokens cannot be made",
            why=f"256 bytes and {len(names)} special tokens are {least}",
            fix=f"use {least} to {MOST_TOKENS:,}",
        )
    for name in names:
        if not name.strip() or len(name) > 100 or len(name) < 2:
            raise UsageError(
                f"{name[:100]!r} cannot be a special token", fix="use 2 to 100 characters, such as <|tool|>"
            )


def _trained(
    texts: Iterable[str], names: Sequence[str], vocab_size: int, min_frequency: int
) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )  # type: ignore[misc]
    backend.decoder = decoders.ByteLevel()  # type: ignore[misc]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in names],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(iter(texts), trainer)
    return backend


def _verified(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """Bytes per token over `texts`, each of which must come back as it was."""
    tokens = size = 0
    for text in (*HARD_TEXTS, *texts):
        ids = tokenizer.encode(text, special=False)
        if tokenizer.decode(ids) != text:
            raise VerificationFailed(
                "the tokenizer does not give a text back as it was", why=f"it begins with {text[:60]!r}",
                fix="report this, with the text",
            )  # fmt: skip
        if text not in HARD_TEXTS:
            tokens, size = tokens + len(ids), size + len(text.encode())
    return size / tokens if tokens else 0.0
