"""A tokenizer as the `tokenizer.ggml.*` keys of a GGUF file: the way back of gguf_tokenizer.py.

A GGUF file has a name for the way in which text is cut into words, not the expression itself; and SentencePiece's
vocabularies have scores there, not merges. A tokenizer that has no such name is refused, and one that was written is
built again from the keys and compared with the model's own on texts made of the whole vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from ojak.errors import InputRefused
from ojak.model.gguf_tokenizer import (
    BYTE,
    COMPOSED,
    CONTROL,
    END_OF_TURN,
    GPT2,
    NORMAL,
    PRE_TOKENIZERS,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    WHOLE_TOKENS_FIRST,
)
from ojak.model.tokenizer import SPACE, Tokenizer

if TYPE_CHECKING:
    from ojak.model.load import Model

BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
LEAST_SCORE = -1e9  # of tokens that nothing is joined into
PROBES = 2_000
PROBE_TOKENS = 40
HARD_TEXTS = ("", " ", "  a\n\n b\t", "it's 1234 o'clock", "e\u0301 é ﬁ", "한국어 漢字 🏳️‍🌈", "\x00\ufeff")


def metadata(model: Model, stop_ids: Sequence[int]) -> dict[str, Any]:
    """The keys. Raises InputRefused for a tokenizer that has no place in a GGUF file, or too many stops."""
    tokenizer = model.tokenizer
    described = json.loads(tokenizer.to_json())
    kind = described["model"]
    if kind.get("type") != "BPE":
        _refuse(f"it is of type {kind.get('type')}; byte-level BPE and SentencePiece's BPE can be written")
    tokens = _tokens(tokenizer, model.config.vocab_size)
    found: dict[str, Any] = {"tokenizer.ggml.tokens": tokens}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in kind["merges"]]
    if kind.get("byte_fallback"):
        found |= _sentencepiece(described, tokens, kind["merges"])
    else:
        found |= {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": _pre_tokenizer(described),
            "tokenizer.ggml.merges": merges,
        }
    found["tokenizer.ggml.token_type"] = _types(tokenizer, tokens, kind.get("unk_token"))
    found |= _special_ids(tokenizer, stop_ids, kind.get("unk_token"))
    found["tokenizer.ggml.add_bos_token"] = tokenizer.adds_bos
    if model.chat_template is not None:
        found["tokenizer.chat_template"] = model.chat_template
    return found


def check(own: Tokenizer, written: Tokenizer, rows: int) -> None:
    """Compares two tokenizers on texts made of the whole vocabulary. Raises InputRefused where they differ."""
    texts = [*HARD_TEXTS, *_probes(own, rows)]
    pairs = zip(texts, own.encode_batch(texts), written.encode_batch(texts), strict=True)
    for text, ours, theirs in pairs:
        if ours != theirs and max(ours, default=0) < rows:
            _refuse(f"llama.cpp would cut {text[:60]!r} in another way")


def _probes(tokenizer: Tokenizer, rows: int) -> list[str]:
    ids = [i for i in range(min(tokenizer.vocab_size, rows)) if i not in tokenizer.special_tokens.values()]
    step = max(1, len(ids) // (PROBES * PROBE_TOKENS))
    chosen = ids[::step]
    # Neighbours in the vocabulary are alike; by strides, texts hold tokens of all kinds.
    stride = -(-len(chosen) // PROBE_TOKENS) or 1
    return [tokenizer.decode(chosen[at::stride]) for at in range(min(PROBES, stride))]


def _refuse(why: str) -> NoReturn:
    raise InputRefused(
        "this model's tokenizer cannot be written to a GGUF file", why=why,
        fix="export it as a Hugging Face folder (--format hf)",
    )  # fmt: skip


def _tokens(tokenizer: Tokenizer, rows: int) -> list[str]:
    """A text for every row of the embeddings; those without a token get a name that no text has."""
    tokens = [f"[PAD{i}]" for i in range(rows)]
    for text, i in tokenizer.backend.get_vocab(with_added_tokens=True).items():
        if i < rows:
            tokens[i] = text
    if len(set(tokens)) != rows:
        _refuse("two of its tokens have the same text")
    return tokens


def _types(tokenizer: Tokenizer, tokens: Sequence[str], unknown: str | None) -> list[int]:
    added = tokenizer.backend.get_added_tokens_decoder()
    known = set(tokenizer.backend.get_vocab(with_added_tokens=True).values())

    def kind(i: int, text: str) -> int:
        if text == unknown:
            return UNKNOWN
        if i in added:
            return CONTROL if added[i].special else USER_DEFINED
        if i not in known:
            return UNUSED
        return BYTE if BYTE_TOKEN.fullmatch(text) else NORMAL

    return [kind(i, text) for i, text in enumerate(tokens)]


def _pre_tokenizer(described: Mapping[str, Any]) -> str:
    """The name of the way in which text is cut before tokens are sought."""
    patterns = tuple(_patterns(described.get("pre_tokenizer") or {}))
    composed = _is_composed(described.get("normalizer"))
    whole = bool(described["model"].get("ignore_merges"))
    for name, known in PRE_TOKENIZERS.items():
        if known == patterns and (name in COMPOSED) == composed and (name in WHOLE_TOKENS_FIRST) == whole:
            return name
    _refuse("the way in which it cuts text into words has no name in llama.cpp")


def _is_composed(normalizer: Mapping[str, Any] | None) -> bool:
    if normalizer is None or normalizer.get("type") == "NFC":
        return normalizer is not None
    _refuse(f"it normalises text by {str(normalizer.get('type'))[:40]}")


def _patterns(step: Mapping[str, Any]) -> list[str]:
    """The expressions that a pre-tokenizer cuts by, in order."""
    kind = step.get("type")
    if kind == "Sequence":
        return [pattern for inner in step["pretokenizers"] for pattern in _patterns(inner)]
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return [GPT2] if step.get("use_regex", True) else []
    if kind == "Digits" and step.get("individual_digits"):
        return [r"\p{N}"]
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        pattern = step["pattern"]
        return [pattern.get("Regex") or re.escape(pattern.get("String", ""))]
    _refuse(f"it cuts text by {str(kind)[:40]}")


def _sentencepiece(
    described: Mapping[str, Any], tokens: Sequence[str], merges: Sequence[Any]
) -> dict[str, Any]:
    """Scores that join tokens in the order of the merges: what is joined first has the best one."""
    steps = described.get("normalizer") or {}
    steps = steps.get("normalizers", [steps])
    prefixed = {"type": "Prepend", "prepend": SPACE} in steps
    if [step for step in steps if step.get("type") not in ("Prepend", "Replace")]:
        _refuse(f"it normalises text by {[step.get('type') for step in steps]}")
    order: dict[str, int] = {}
    for merge in merges:
        order.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), len(order))
    scores = [-float(order[token]) if token in order else LEAST_SCORE for token in tokens]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": prefixed,
    }


def _special_ids(tokenizer: Tokenizer, stop_ids: Sequence[int], unknown: str | None) -> dict[str, int]:
    """The roles that a file has. llama.cpp also ends at control tokens whose name says so."""
    by_name = {tokenizer.special_tokens.get(name) for name in END_OF_TURN}
    ends = [i for i in stop_ids if i != tokenizer.eos_id and i not in by_name]
    if tokenizer.eos_id is not None:
        ends.insert(0, tokenizer.eos_id)
    else:
        ends = [*ends, *(i for i in stop_ids if i not in ends)]
    if len(ends) > 3:
        _refuse(f"{len(ends)} tokens end a text; a GGUF file names three")
    found = {
        f"tokenizer.ggml.{role}_token_id": i for role, i in zip(("eos", "eot", "eom"), ends, strict=False)
    }
    others = {"bos": tokenizer.bos_id, "unknown": tokenizer.backend.token_to_id(unknown) if unknown else None}
    return found | {f"tokenizer.ggml.{role}_token_id": i for role, i in others.items() if i is not None}
