"""Text that grows: the pieces joined are what the tokenizer makes of the whole, cut at the first stop text."""

from __future__ import annotations

import tiny
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from ojak.model.request import Drawn
from ojak.model.tokenizer import SPACE, Tokenizer
from ojak.serve.text import GrowingText, Words, overlap

BYTES = tiny.tokenizer()


def sentencepiece() -> Tokenizer:
    """Words with a mark for spaces, rare characters byte by byte, the first space stripped: as Llama 2 and Gemma."""
    words = [f"{SPACE}a", f"{SPACE}the", "b", "é", SPACE, f"{SPACE}{SPACE}", "가"]
    names = ["<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    vocabulary = {name: i for i, name in enumerate(names)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], byte_fallback=True))
    decoders = tokenizers.decoders
    backend.decoder = decoders.Sequence(  # type: ignore[misc]
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([tokenizers.AddedToken(name, special=True) for name in ("<s>", "</s>")])
    return Tokenizer(backend, bos_id=0, eos_id=1, adds_bos=True)


PIECES = sentencepiece()
VALID = st.text("aé가😀\ufffd b", max_size=8).map(lambda text: list(text.encode()))
NOISE = st.lists(st.integers(0, 259), max_size=12)
BYTE_IDS = st.lists(st.one_of(VALID, NOISE), max_size=6).map(
    lambda parts: [i for part in parts for i in part]
)
PIECE_IDS = st.lists(
    st.one_of(
        VALID.map(lambda raw: [2 + byte for byte in raw]),
        st.lists(st.one_of(st.integers(2, 257), st.integers(258, 264)), max_size=9),
        st.lists(st.integers(258, 264), max_size=5),
    ),
    max_size=6,
).map(lambda parts: [i for part in parts for i in part])
STOPS = st.lists(st.text("aé가 b\ufffd", min_size=1, max_size=3), max_size=3)


def pieces(tokenizer: Tokenizer, ids: list[int], stops: list[str]) -> tuple[list[str], str]:
    """(what was sent, piece by piece, the whole text as the engine gives it)."""
    whole = tokenizer.decode(ids)
    cuts = [at for stop in stops if (at := whole.find(stop)) >= 0]
    whole = whole[: min(cuts)] if cuts else whole
    growing = GrowingText(tokenizer, [], stops)
    sent = [growing.add(token) for token in ids]
    return [*sent, growing.rest(whole)], whole


@given(BYTE_IDS, STOPS)
@settings(max_examples=300, derandomize=True, deadline=None)
def test_bytes(ids: list[int], stops: list[str]) -> None:
    sent, whole = pieces(BYTES, ids, stops)
    assert "".join(sent) == whole


@given(PIECE_IDS, STOPS)
@settings(max_examples=300, derandomize=True, deadline=None)
def test_words_with_byte_fallback(ids: list[int], stops: list[str]) -> None:
    sent, whole = pieces(PIECES, ids, stops)
    assert "".join(sent) == whole


def test_text_is_sent_as_soon_as_it_is_sure() -> None:
    ids = [*b"ab", *"é".encode(), *b"cxyd"]
    sent, _ = pieces(BYTES, ids, ["xyz"])
    assert sent == ["a", "b", "", "é", "c", "", "", "xyd", ""]
    assert pieces(BYTES, [*b"abSTOPcd"], ["STOP"])[0] == ["a", "b", *[""] * 7]


def test_the_place_of_each_token_in_the_text() -> None:
    growing, places = GrowingText(BYTES, [], ["xyz"]), []
    for token in (*"aéb".encode(), *b"xyc"):
        places.append(growing.length)
        growing.add(token)
    assert places == [0, 1, 1, 2, 3, 4, 5][: len(places)]


def test_the_stop_token_is_no_text() -> None:
    growing = GrowingText(BYTES, [tiny.EOS], [])
    assert [growing.add(i) for i in (*b"ab", tiny.EOS)] == ["a", "b", ""]
    assert growing.length == 2


def test_tokens_without_text_do_not_hide_what_was_before_them() -> None:
    """The first space of a text is stripped; after an id that stands for nothing, a space is not the first."""
    b, space_a, nothing = (PIECES.backend.get_vocab()[name] for name in ("b", f"{SPACE}a", "</s>"))
    for ids in ([b, 999, space_a], [999, space_a, 999, 999, space_a], [b, nothing, space_a]):
        sent, whole = pieces(PIECES, ids, [])
        assert "".join(sent) == whole
    assert pieces(PIECES, [b, 999, space_a], [])[1] == "b a"


def test_overlaps() -> None:
    assert overlap("abc", "cd") == 1
    assert overlap("abab", "ababc") == 4
    assert overlap("abab", "abac") == 2
    assert overlap("abc", "abc") == 0, "all of it is found, not waited for"
    assert overlap("", "a") == overlap("abc", "x") == 0


def test_names_of_tokens() -> None:
    words = Words(BYTES)
    assert [words.plain(i) for i in (97, 0xC3, 0xE9, tiny.EOS)] == ["a", "bytes:\\xc3", "bytes:\\xe9", "</s>"]
    entry = words.chat(Drawn(0xC3, float("-inf"), ((97, -0.5),)))
    assert (entry["token"], entry["bytes"], entry["logprob"]) == ("\ufffd", [0xC3], -9999.0)
    assert entry["top_logprobs"] == [{"token": "a", "logprob": -0.5, "bytes": [97]}]
