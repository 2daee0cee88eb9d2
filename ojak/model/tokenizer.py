"""Text to token ids and back: one class over the `tokenizers` library, whatever file the vocabulary came from."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import tokenizers

from ojak.errors import InputRefused

MAX_TOKENIZER_BYTES = 256 << 20
SPACE = "\u2581"  # how SentencePiece writes a space inside a token


class Tokenizer:
    """A tokenizer that never adds a token by itself: a BOS is there when the caller or the text puts it there.

    bos_id, eos_id: None where the model has none. adds_bos: whether the model was trained with a BOS before each text.
    special_tokens: text -> id of the control tokens. vocab_size: the number of ids, added tokens included.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, *, bos_id: int | None, eos_id: int | None, adds_bos: bool
    ) -> None:
        self.backend = backend
        self.bos_id, self.eos_id, self.adds_bos = bos_id, eos_id, adds_bos
        self.bos_token = None if bos_id is None else backend.id_to_token(bos_id)
        self.eos_token = None if eos_id is None else backend.id_to_token(eos_id)
        self.vocab_size = backend.get_vocab_size()
        added = backend.get_added_tokens_decoder()
        self.special_tokens = {token.content: i for i, token in sorted(added.items()) if token.special}
        self._added = {i: token.content for i, token in added.items()}
        self._lock = threading.Lock()
        self._bytes: dict[int, bytes] = {}

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """The ids of `text`. special=False: control tokens spelled out in it are plain text (a user's message)."""
        with self._lock:  # the switch is a state of the backend, not an argument of its call
            self.backend.encode_special_tokens = not special
            return self.backend.encode(text, add_special_tokens=False).ids

    def beyond(self, rows: int) -> dict[int, str]:
        """The tokens, id -> text, whose ids a model with so many rows of embeddings does not have."""
        vocabulary = self.backend.get_vocab(with_added_tokens=True)
        return {i: text for text, i in sorted(vocabulary.items(), key=lambda item: item[1]) if i >= rows}

    def encode_batch(self, texts: Sequence[str], *, special: bool = True) -> list[list[int]]:
        """`encode` for many texts at once."""
        with self._lock:
            self.backend.encode_special_tokens = not special
            return [
                encoding.ids for encoding in self.backend.encode_batch_fast(texts, add_special_tokens=False)
            ]

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD. Raises nothing for ids outside the vocabulary."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one token stands for, for work on a text that is still growing; b"" for an unused id."""
        if token_id not in self._bytes:
            self._bytes[token_id] = self._to_bytes(token_id)
        return self._bytes[token_id]

    def _to_bytes(self, token_id: int) -> bytes:
        token = self.backend.id_to_token(token_id)
        if token is None:
            return b""
        if token_id in self._added:
            return self._added[token_id].encode("utf-8")
        if self._is_byte_level:
            return b"".join(_char_to_byte().get(char) or char.encode("utf-8") for char in token)
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes.fromhex(token[3:5])
        return token.replace(SPACE, " ").encode("utf-8")

    @cached_property
    def _is_byte_level(self) -> bool:
        decoder = json.loads(self.to_json()).get("decoder") or {}
        return "ByteLevel" in {decoder.get("type")} | {d.get("type") for d in decoder.get("decoders", [])}

    @cached_property
    def sha256(self) -> str:
        """A hash of all that shapes ids: taken once, as writing out a large vocabulary takes a second."""
        special = f"{self.bos_id} {self.eos_id} {self.adds_bos}\n"
        return hashlib.sha256((special + self.to_json()).encode("utf-8", "surrogatepass")).hexdigest()

    def to_json(self) -> str:
        """The content of a `tokenizer.json`, which `transformers` and `tokenizers` read."""
        return self.backend.to_str(pretty=False)

    @classmethod
    def from_folder(cls, folder: Path, config: Mapping[str, Any]) -> Tokenizer:
        """Reads `tokenizer.json` (+ `tokenizer_config.json`) of a Hugging Face folder; `config` is its config.json.

        Raises InputRefused where there is none, none that the library accepts, or one without the end token it names.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise InputRefused(
                f"{folder} has no tokenizer.json", why="other vocabulary files are not read",
                fix='save it with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)',
            )  # fmt: skip
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise InputRefused(f"{path} is larger than {MAX_TOKENIZER_BYTES >> 20} MiB")
        backend = parse_tokenizer(path.read_text("utf-8"), str(path))
        extra = _read_json(folder / "tokenizer_config.json")
        _add_declared_tokens(backend, extra)
        bos_id = _token_id(backend, extra.get("bos_token"), config.get("bos_token_id"))
        eos_id = _token_id(backend, extra.get("eos_token"), config.get("eos_token_id"))
        if eos_id is None and extra.get("eos_token"):
            raise InputRefused(
                f"the tokenizer of {folder} lacks its own end token",
                why=f"its eos_token is {str(extra['eos_token'])[:80]!r}, which is no token of tokenizer.json",
                fix="without it no text ends: put the tokenizer's files back as the model was published with",
            )
        return cls(
            backend, bos_id=bos_id, eos_id=eos_id, adds_bos=bos_id is not None and _adds(backend, bos_id)
        )


def parse_tokenizer(text: str, name: str) -> tokenizers.Tokenizer:
    """A `tokenizers.Tokenizer` from JSON text that nobody vouches for. Raises InputRefused."""
    try:
        backend = tokenizers.Tokenizer.from_str(text)
        backend.no_padding()
        backend.no_truncation()
        return backend
    except BaseException as error:  # a panic inside the library is not an Exception
        if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        raise InputRefused(f"{name} is not a usable tokenizer", why=str(error)[:300]) from error


def _adds(backend: tokenizers.Tokenizer, bos_id: int) -> bool:
    """Whether the tokenizer's own post-processing puts the BOS before a text."""
    return backend.encode("a", add_special_tokens=True).ids[:1] == [bos_id]


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file() or path.stat().st_size > MAX_TOKENIZER_BYTES:
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputRefused(f"{path} is not JSON", why=str(error)[:200]) from error
    return content if isinstance(content, dict) else {}


def _add_declared_tokens(backend: tokenizers.Tokenizer, extra: dict[str, Any]) -> None:
    """Tokens that tokenizer_config.json marks as special but tokenizer.json lacks (older exports)."""
    declared = extra.get("added_tokens_decoder")
    for token in declared.values() if isinstance(declared, dict) else ():
        content = token.get("content") if isinstance(token, dict) else None
        if isinstance(content, str) and token.get("special") and backend.token_to_id(content) is not None:
            backend.add_special_tokens([tokenizers.AddedToken(content, special=True, normalized=False)])


def _token_id(backend: tokenizers.Tokenizer, token: Any, fallback: Any) -> int | None:
    """The id of a token given as text, as {"content": text}, or else by `fallback`: an id or a list of ids."""
    content = token.get("content") if isinstance(token, dict) else token
    if isinstance(content, str):
        return backend.token_to_id(content)
    first = fallback[0] if isinstance(fallback, list) and fallback else fallback
    if isinstance(first, int) and not isinstance(first, bool) and 0 <= first < backend.get_vocab_size():
        return first
    return None


@cache
def _char_to_byte() -> dict[str, bytes]:
    """GPT-2's printable stand-ins for bytes: printable Latin-1 stands for itself, the rest begins at U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): bytes([byte]) for byte in plain}
    others = [byte for byte in range(256) if byte not in plain]
    return table | {chr(256 + i): bytes([byte]) for i, byte in enumerate(others)}
