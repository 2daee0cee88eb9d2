"""`ojak tokenizer train`: what it makes is loaded by transformers, gives every text back, and is the same each time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from ojak.artifact import publish
from ojak.cli.app import app
from ojak.model.tokenizer import Tokenizer
from ojak.records import Conversation, Document, Message
from ojak.train import tokenizer as module
from ojak.train.tokenizer import train_tokenizer

pytestmark = pytest.mark.usefixtures("folder")
WORDS = (
    "the crow builds a bridge; the magpie builds another. In 1985 they met 7 times: 한국의 까치와 까마귀. "
)


def train(*more: str, size: int = 300, out: str = "t") -> Result:
    words = ["tokenizer", "train", "--vocab-size", str(size), "--out", out, *more]
    return CliRunner().invoke(app, words)


@pytest.fixture
def data(folder: Path) -> str:
    Path("d.jsonl").write_text(
        "".join(json.dumps({"text": WORDS * (n + 1)}) + "\n" for n in range(4)), "utf-8"
    )
    return "d.jsonl"


def test_it_is_a_hugging_face_folder(data: str) -> None:
    result = train("--data", data, "--special", "<|tool|>", "--json")
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert (told["vocab_size"], told["texts"], told["out"]) == (300, 4, "t")
    assert told["bytes_per_token"] > 1.2
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained("t")
    ours = Tokenizer.from_folder(Path("t"), {})
    text = WORDS + "\n<|im_start|>user\n12<|im_end|><|tool|>"
    assert theirs(text)["input_ids"] == ours.encode(text)
    assert theirs.decode(theirs(text)["input_ids"]) == text
    assert (theirs.eos_token, theirs.pad_token, theirs.bos_token) == ("<|endoftext|>", "<|endoftext|>", None)
    assert set(ours.special_tokens) == {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|tool|>"}
    assert len(ours.encode("<|tool|>")) == 1
    assert len(ours.encode("<|tool|>", special=False)) > 1
    assert len(ours.encode("1985")) == 4


def test_every_text_comes_back(data: str) -> None:
    train("--data", data)
    made = Tokenizer.from_folder(Path("t"), {})

    @settings(max_examples=200, deadline=None)
    @given(st.text())
    def check(text: str) -> None:
        assert made.decode(made.encode(text, special=False)) == text

    check()


def test_all_turns_of_all_sources_are_read(data: str) -> None:
    turns = [
        Message(role="user", content="quokka " * 900),
        Message(role="assistant", content="numbat " * 900),
    ]
    publish(Path("a"), kind="magpie", records=[Conversation("1", turns)], config={})
    result = train("--data", data, "--data", "a", size=320, out="both")
    assert result.exit_code == 0, result.stderr
    made = Tokenizer.from_folder(Path("both"), {})
    assert len(made.encode(" quokka")) == len(made.encode(" numbat")) == 1


def test_the_same_texts_give_the_same_tokens(data: str) -> None:
    train("--data", data)
    train("--data", data, out="again")
    assert Path("t/tokenizer.json").read_bytes() == Path("again/tokenizer.json").read_bytes()


def test_too_little_text_is_a_partial_result(data: str) -> None:
    result = train("--data", data, size=5000)
    assert result.exit_code == 3
    assert "tokens, not 5,000" in result.stderr
    assert Tokenizer.from_folder(Path("t"), {}).vocab_size > 260


def test_what_cannot_be_made_is_refused(data: str) -> None:
    assert train("--data", data, size=200).exit_code == 2
    assert train("--data", data, "--special", "x").exit_code == 2
    assert train("--data", "nothing.jsonl").exit_code == 9
    publish(Path("empty"), kind="test", records=[Document("1", "")], config={})
    assert train("--data", "empty").exit_code == 9
    assert not Path("t").exists()
    assert train("--data", data).exit_code == 0
    assert train("--data", data).exit_code == 2


def test_a_tokenizer_that_loses_text_is_not_kept(data: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.pre_tokenizers, "ByteLevel", _LosesSpaces)
    with pytest.raises(Exception, match="as it was"):
        train_tokenizer([Path(data)], vocab_size=300, out=Path("t"))
    assert not Path("t").exists()


class _LosesSpaces:
    """A stand-in whose tokens have no byte for what it was not shown."""

    def __new__(cls, **_: object) -> object:
        return module.tokenizers.pre_tokenizers.Whitespace()

    @staticmethod
    def alphabet() -> list[str]:
        return [chr(256 + n) for n in range(256)]
