"""The tokenizer that a GGUF file carries, rebuilt as a `tokenizers` object.

Two kinds: byte-level BPE ("gpt2", which stores its merges and the name of its pre-tokenizer) and SentencePiece BPE
("llama", which stores a score per token instead of merges). Token types are those of SentencePiece. The expressions
below are the public ones of the models named; an unknown name is refused, because a wrong one would quietly cut text
at other places than the model was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from ojak.errors import InputRefused
from ojak.model.tokenizer import SPACE, Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
END_OF_TURN = (
    "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "<|end_of_text|>",
)  # fmt: skip
NO_TOKEN = (-1, 2**32 - 1)  # what writers put where a model has no such token: llama.cpp's LLAMA_TOKEN_NULL
MAX_MERGEABLE = 512  # characters of a SentencePiece token; the work on one is quadratic in its length

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")
PRE_TOKENIZERS: dict[str, tuple[str, ...]] = {
    "default": DEFAULT,
    "gpt-2": (GPT2,),
    "smollm": (r"\p{N}", GPT2),
    "starcoder": (r"\p{N}", GPT2),
    "llama-bpe": (LLAMA3,),
    "llama3": (LLAMA3,),
    "qwen2": (QWEN2,),
    "deepseek-r1-qwen": (QWEN2,),
    "tekken": (TEKKEN,),
}
WHOLE_TOKENS_FIRST = (
    "llama-bpe",
    "llama3",
    "tekken",
)  # a piece that is a token is taken before merges are tried
BOS_BY_DEFAULT = ("llama-bpe", "llama3", "tekken")
COMPOSED = ("qwen2", "deepseek-r1-qwen")  # these models saw their text in Unicode form NFC


def build(metadata: dict[str, Any]) -> Tokenizer:
    """The tokenizer described by the `tokenizer.ggml.*` keys. Raises InputRefused for a kind that is not read."""
    kind = metadata.get("tokenizer.ggml.model")
    tokens = _strings(metadata, "tokens")
    types = _types(metadata, len(tokens))
    if len(set(tokens)) != len(tokens):
        _refuse("two tokens have the same text")
    if kind == "gpt2":
        backend = _byte_level(metadata, tokens)
    elif kind == "llama":
        backend = _sentencepiece(metadata, tokens, types)
    else:
        _refuse(f"its tokenizer is of kind {str(kind)[:40]!r}; 'gpt2' (byte-level BPE) and 'llama' are read")
    _add_tokens(backend, tokens, types)
    bos_id, eos_id = _special_id(metadata, "bos", tokens), _special_id(metadata, "eos", tokens)
    adds_bos = bos_id is not None and _adds_bos(metadata)
    if bos_id is not None and adds_bos:
        bos = tokens[bos_id]
        backend.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", bos, "$B"], special_tokens=[(bos, bos_id)]
        )
    return Tokenizer(backend, bos_id=bos_id, eos_id=eos_id, adds_bos=adds_bos)


def stop_ids(metadata: dict[str, Any], tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that end a turn or a text: those the file names, and control tokens with a name used for that."""
    tokens = metadata["tokenizer.ggml.tokens"]
    named = [_special_id(metadata, role, tokens) for role in ("eos", "eot", "eom")]
    known = [tokenizer.special_tokens.get(text) for text in END_OF_TURN]
    return tuple(dict.fromkeys(i for i in (*named, *known) if i is not None))


def _refuse(why: str) -> NoReturn:
    raise InputRefused(
        "the tokenizer of this GGUF file cannot be used", why=why,
        fix="use another conversion of the model, or its Hugging Face folder",
    )  # fmt: skip


def _strings(metadata: dict[str, Any], key: str) -> list[str]:
    values = metadata.get(f"tokenizer.ggml.{key}")
    if not isinstance(values, list) or not values or not isinstance(values[0], str):
        _refuse(f"there is no list of strings tokenizer.ggml.{key}")
    return values


def _types(metadata: dict[str, Any], count: int) -> list[int]:
    types = metadata.get("tokenizer.ggml.token_type", [NORMAL] * count)
    if not isinstance(types, list) or len(types) != count:
        _refuse("there is not one token type for each token")
    return types


def _special_id(metadata: dict[str, Any], role: str, tokens: Sequence[str]) -> int | None:
    """The id of the token with this role, None where there is none. Raises InputRefused for the id of no token."""
    key = f"tokenizer.ggml.{role}_token_id"
    value = metadata.get(key)
    if value is None or value in NO_TOKEN:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(tokens):
        _refuse(f"its {key} is {str(value)[:40]}, which is none of its {len(tokens)} tokens")
    return value


def _adds_bos(metadata: dict[str, Any]) -> bool:
    by_default = (
        metadata["tokenizer.ggml.model"] == "llama" or metadata.get("tokenizer.ggml.pre") in BOS_BY_DEFAULT
    )
    return bool(metadata.get("tokenizer.ggml.add_bos_token", by_default))


def _byte_level(metadata: dict[str, Any], tokens: list[str]) -> Backend:
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
        _refuse(f"its pre-tokenizer {str(pre)[:40]!r} is not known; known are {', '.join(PRE_TOKENIZERS)}")
    vocabulary = {token: i for i, token in enumerate(tokens)}
    merges = [_merge(line, vocabulary) for line in _strings(metadata, "merges")]
    backend = Backend(models.BPE(vocabulary, merges, ignore_merges=pre in WHOLE_TOKENS_FIRST))
    if pre in COMPOSED:
        backend.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PRE_TOKENIZERS[pre]]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    backend.decoder = decoders.ByteLevel()
    return backend


def _merge(line: str, vocabulary: dict[str, int]) -> tuple[str, str]:
    left, space, right = line.partition(" ")
    if not space or left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
        _refuse(f"the merge {line[:80]!r} does not join two tokens into a third")
    return left, right


def _sentencepiece(metadata: dict[str, Any], tokens: list[str], types: list[int]) -> Backend:
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens) or not isinstance(scores[0], int | float):
        _refuse("there is not one score for each token")
    ranks = [score for score, kind in zip(scores, types, strict=True) if kind == NORMAL]
    if 2 * len(set(ranks)) < len(ranks):
        _refuse("most scores are equal, so they do not say which tokens to join first")
    unknown = _special_id(metadata, "unknown", tokens)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    model = models.BPE(
        vocabulary, _merges_from_scores(tokens, scores, types), byte_fallback=True, fuse_unk=True,
        unk_token=None if unknown is None else tokens[unknown],
    )  # fmt: skip
    backend = Backend(model)
    prefixed = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    prefix, strip = ([normalizers.Prepend(SPACE)], [decoders.Strip(" ", 1, 0)]) if prefixed else ([], [])
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", SPACE)])
    backend.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )  # fmt: skip
    return backend


def _merges_from_scores(tokens: list[str], scores: list[float], types: list[int]) -> list[tuple[str, str]]:
    """Merges that do what SentencePiece does: of all neighbours that form a token, join those of the best score.

    Control and byte tokens are no targets: text that spells one out must not become one.
    """
    joinable = {token: scores[i] for i, token in enumerate(tokens) if types[i] in (NORMAL, USER_DEFINED)}
    best_first = sorted(joinable, key=lambda token: -joinable[token])
    return [
        (left, right)
        for token in best_first
        if len(token) <= MAX_MERGEABLE
        for cut in range(1, len(token))
        if (left := token[:cut]) in joinable and (right := token[cut:]) in joinable
    ]


def _add_tokens(backend: Backend, tokens: list[str], types: list[int]) -> None:
    """Tokens that are found in the text before anything else; the control tokens among them are special."""
    special = [
        token for token, kind in zip(tokens, types, strict=True) if kind in (CONTROL, UNKNOWN) and token
    ]
    plain = [token for token, kind in zip(tokens, types, strict=True) if kind == USER_DEFINED and token]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    backend.add_tokens([AddedToken(token, normalized=False, special=False) for token in plain])
