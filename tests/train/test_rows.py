"""Rows from every format: what is learnt, what is cut or refused and counted, and the cache of tokens."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from ojak.artifact import publish
from ojak.chat import encode_chat
from ojak.errors import InputRefused, OjakError, UsageError
from ojak.model.files import home
from ojak.records import Conversation, Document, Message, Preference
from ojak.train import encode, rows, store
from ojak.train.batches import IGNORED, plan_epoch
from ojak.train.encode import pieces, text_blocks
from ojak.train.rows import Rows, open_rows
from ojak.train.sources import DataSource, parse_source
from ojak.train.styles import style_template

pytestmark = pytest.mark.usefixtures("folder")
TOKENIZER = tiny.tokenizer()
TEMPLATE = style_template("plain", TOKENIZER, None)
ALPACA = [{"instruction": f"Say {i}.", "input": "", "output": "ok" * i} for i in range(1, 7)]


def lines(name: str, made: list[Any]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return name


def opened(*data: str, **options: Any) -> Rows:
    return open_rows(data, TOKENIZER, **{"template": TEMPLATE, "objective": "finetune", **options})


def texts(found: Rows) -> list[tuple[str, str]]:
    """Of each row its text, and what of it is learnt."""
    decode = TOKENIZER.decode
    return [
        (decode(ids.tolist()), decode(ids[mask].tolist()))
        for ids, mask in (found[i] for i in range(len(found)))
    ]


def pair(question: str = "q", answer: str = "a") -> list[Message]:
    return [Message(role="user", content=question), Message(role="assistant", content=answer)]


# ------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "q", "input": "", "output": "a"},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"messages": pair()},
    ],
)
def test_formats_give_the_same_rows(row: dict[str, Any]) -> None:
    Path("array.json").write_text(json.dumps([row]), encoding="utf-8")
    Path("packed.jsonl.gz").write_bytes(gzip.compress(json.dumps(row).encode()))
    for path in (lines("d.jsonl", [row]), "array.json", "packed.jsonl.gz"):
        assert texts(opened(path)) == [("<s>q\na</s>", "a</s>")]


def test_an_artifact_gives_its_train_split() -> None:
    both = {"train": [Conversation("1", pair("one"))], "test": [Conversation("2", pair("two"))]}
    publish(Path("art"), kind="split", splits=both, config={})
    publish(Path("whole"), kind="magpie", records=[Conversation("3", pair("three"))], config={})
    assert texts(opened("art"))[0][0] == "<s>one\na</s>"
    assert texts(opened("art@test"))[0][0] == texts(opened("art", split="test"))[0][0] == "<s>two\na</s>"
    assert texts(opened("art", split="validation")) == texts(opened("art@test"))
    assert (
        texts(opened("whole@train:2"))[0][0]
        == texts(opened("whole", split="test"))[0][0]
        == "<s>three\na</s>"
    )
    with pytest.raises(UsageError, match=r"no split 'dev'\n.*train, test"):
        opened("art@dev")


def test_text_for_pretraining_has_one_bos_and_one_eos() -> None:
    Path("corpus").mkdir()
    Path("corpus/b.txt").write_text("\ufeffb</s>é", encoding="utf-8")
    Path("corpus/a.jsonl").write_text('{"text": "<s>a"}\n{"text": ""}\n', encoding="utf-8")
    Path("corpus/.hidden.txt").write_text("no", encoding="utf-8")
    Path("corpus/c.md.gz").write_bytes(gzip.compress(b"c"))
    found = opened("corpus", template=None, objective="pretrain")
    ids = [found[i][0].tolist() for i in range(3)]
    plain = [[*text.encode()] for text in ("<s>a", "b</s>é", "c")]  # what spells a control token is text
    assert ids == [[tiny.BOS, *each, tiny.EOS] for each in plain]
    assert all(found[i][1].tolist() == [False, *[True] * (len(ids[i]) - 1)] for i in range(3))
    assert found.counts["refused"] == {"empty": 1}


def test_conversations_can_be_pretrained_on_whole() -> None:
    (row,) = texts(opened(lines("d.jsonl", ALPACA[:1]), objective="pretrain"))
    assert row == ("<s>Say 1.\nok</s>", "Say 1.\nok</s>")


def test_a_long_text_is_read_in_blocks_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ojak.sources.BLOCK_BYTES", 5)
    monkeypatch.setattr(encode, "CHARACTERS", 5)
    text = "날개가 돋아라\n한 번만 더 날자꾸나\n" * 3 + "x" * 23
    Path("a.txt").write_text(text, encoding="utf-8")
    for path in ("a.txt", lines("a.jsonl", [{"text": text}])):
        found = opened(path, template=None, objective="pretrain", max_len=2000)
        assert texts(found) == [(f"<s>{text}</s>", f"{text}</s>")]
    Path("b.txt").write_bytes(b"abc\xff")
    with pytest.raises(InputRefused, match="not UTF-8"):
        opened("b.txt", template=None, objective="pretrain")


@given(text=st.text(max_size=40), size=st.integers(1, 9))
def test_blocks_are_the_text(text: str, size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode, "CHARACTERS", size)
        blocks = list(text_blocks(text))
    assert "".join(blocks) == text
    assert all(len(block) <= size for block in blocks)


# ------------------------------------------------------------------------------------------------- masks and refusals


def test_masks_per_role_and_everything() -> None:
    path = lines("d.jsonl", [{"messages": [Message(role="system", content="s"), *pair()]}])
    learnt = {
        ("system", "user"): "a</s>",
        ("user",): "sa</s>",
        ("system",): "qa</s>",
        (): "s\n\nq\na</s>",
    }
    for roles, expected in learnt.items():
        assert texts(opened(path, mask_roles=roles)) == [("<s>s\n\nq\na</s>", expected)]
    with pytest.raises(UsageError, match="no role to mask"):
        opened(path, mask_roles=("human",))


said = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="<"), max_size=12)
chats = st.lists(st.tuples(said, said), min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(
    chat=chats,
    roles=st.sampled_from([("system", "user"), ("system",), ()]),
    style=st.sampled_from(["plain", "phi-3"]),
)
def test_masks_are_the_bytes_of_the_turns(
    chat: list[tuple[str, str]], roles: tuple[str, ...], style: str
) -> None:
    """The oracle builds the text by hand; one token is one byte, so the mask is known byte for byte."""
    messages = [turn for question, answer in chat for turn in pair(question, answer)]
    user, reply = ("<|user|>\n", "<|assistant|>:\n") if style == "phi-3" else ("", "")
    expected: list[tuple[int, bool]] = [(tiny.BOS, False)]
    for number, (question, answer) in enumerate(chat):
        everything, asks = not roles, "user" not in roles
        head = ("\n" if number else "") + user
        for text, is_learnt in (
            (head, everything),
            (question, asks),
            ("\n" + reply, everything),
            (answer, True),
        ):
            expected += [(byte, is_learnt) for byte in text.encode()]
        expected.append((tiny.EOS, True))
    encoder = encode.Encoder(
        TOKENIZER, encode.Encoding("finetune", style_template(style, TOKENIZER, None), roles, 5000)
    )
    (row,) = encoder.rows([Conversation("c", messages)])
    assert list(zip(row.ids.tolist(), row.mask.tolist(), strict=True)) == expected


def test_each_refusal_is_counted_by_reason() -> None:
    rows_ = [
        *ALPACA[:2],
        {"instruction": "q", "output": "an end </s> inside"},
        {"messages": [Message(role="user", content="only a question")]},
        {"messages": [*pair(), Message(role="tool", content="x")]},
        {"text": "a document"},
        {"prompt": [], "chosen": [], "rejected": []},
    ]
    records = [
        Conversation(f"{i}", pair(row["instruction"], row["output"])) for i, row in enumerate(rows_[:3])
    ]
    path = lines("d.jsonl", [{"messages": record.messages} for record in records] + rows_[3:])
    counts = opened(path).counts
    assert (counts["records"], counts["kept"], counts["rows"]) == (7, 2, 2)
    assert sum(counts["refused"].values()) == 5
    assert counts["refused"]["not_a_conversation"] == 2
    assert sum("special token '</s>'" in reason for reason in counts["refused"]) == 1
    assert sum("no assistant turn" in reason for reason in counts["refused"]) == 1
    assert sum("turns of a user and an assistant" in reason for reason in counts["refused"]) == 1


def test_what_became_of_the_records_is_said() -> None:
    said: list[str] = []
    rows_ = [{"messages": pair()}, {"messages": pair("q", "0123456789")}, {"text": "x"}]
    for _ in range(2):  # read anew, then from the cache
        opened(lines("d.jsonl", rows_), max_len=8, notify=said.append)
    line = "d.jsonl: 2 rows from 3 records, 13 tokens, 7 learnt; 1 truncated; 1 refused: not_a_conversation"
    assert said == ["tokenizing d.jsonl", line, line]


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("style", ["plain", "alpaca", "phi-3"])
def test_acceptance_6_the_eos_is_learnt_and_there_is_one_bos(style: str, adds_bos: bool) -> None:
    """As with a tokenizer whose padding is its EOS: nothing is told from ids, so no true EOS is taken for padding."""
    tokenizer = tiny.tokenizer(adds_bos=adds_bos)
    template = style_template(style, tokenizer, None)
    path = lines("d.jsonl", [{"messages": [*pair("one", "1" * n), *pair("two", "2")]} for n in (1, 9)])
    found = open_rows([path], tokenizer, template=template, objective="finetune")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ojak.train.batches.PAD", tiny.EOS)
        (batch,) = plan_epoch(found, seed=0, epoch=0, batch=2, max_len=1024, packing=False, padded=True).step(
            0
        )
    assert len(set(batch.lengths)) == 2  # so that one row is padded
    for ids, targets, length in zip(
        batch.ids_BT.tolist(), batch.targets_BT.tolist(), batch.lengths, strict=True
    ):
        assert ids[:length].count(tiny.BOS) == int(adds_bos) and (ids[0] == tiny.BOS) == adds_bos
        assert targets.count(tiny.EOS) == 2  # each answer's own, and no padding
        assert targets[length - 1 :] == [IGNORED] * (len(targets) - length + 1)
    Path("t.txt").write_text("text", encoding="utf-8")
    raw = open_rows(["t.txt"], tokenizer, template=None, objective="pretrain")[0][0].tolist()
    assert raw == [*[tiny.BOS] * adds_bos, *b"text", tiny.EOS]


def test_a_conversation_that_is_too_long_to_render_ends_no_run() -> None:
    rows_ = [{"messages": pair()}, {"messages": pair("long " * 900_000)}, {"messages": pair()}]
    counts = opened(lines("d.jsonl", rows_)).counts
    assert (counts["kept"], sum(counts["refused"].values())) == (2, 1)


def test_reasons_are_bounded() -> None:
    counts = encode.Counts()
    for number in range(100):
        counts.refuse(f"reason {number}")
    assert len(counts.refused) == encode.MOST_REASONS + 1
    assert counts.refused["other_reasons"] == 80


@pytest.mark.parametrize(
    ("made", "options", "said"),
    [
        ([], {}, "it is empty"),
        ([{"text": "x"}], {}, "1: not_a_conversation"),
        ([{"text": ""}], {"objective": "pretrain"}, "1: empty"),
        ([{"messages": pair("long" * 9)}], {"max_len": 9}, "1: nothing_to_learn"),
        ([{"messages": pair("long" * 9)}], {"max_len": 9, "long_rows": "drop"}, "1: too_long"),
        ([{"messages": pair("", "a")}], {"mask_roles": ("assistant", "system", "user")}, "no assistant turn"),
    ],
)
def test_nothing_to_learn_ends_the_run(made: list[Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputRefused, match="gives nothing to learn from") as error:
        opened(lines("d.jsonl", made), **options)
    assert said in error.value.why


def test_everything_learnt_ends_the_run_where_masks_were_asked_for() -> None:
    bare = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' }}{% endfor %}"
    path = lines("d.jsonl", [{"messages": pair("", "answer")}])
    with pytest.raises(InputRefused, match="every token of every row would be learnt"):
        opened(path, template=bare)
    assert texts(opened(path, template=bare, mask_roles=())) == [("<s>answer</s>", "answer</s>")]


# ---------------------------------------------------------------------------------------------------------- long rows


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=4),
    limit=st.integers(4, 9),
    bos=st.sampled_from([[], [77]]),
)
def test_pieces_learn_each_token_once_after_the_one_before_it(
    sizes: list[int], limit: int, bos: list[int]
) -> None:
    total = np.arange(100, 100 + sum(sizes), dtype=np.uint32)
    learnt = total % 3 != 0
    borders = np.cumsum(sizes)[:-1]
    chunks = zip(np.split(total, borders), np.split(learnt, borders), strict=True)
    found = list(pieces(chunks, limit, bos))
    assert all(len(ids) <= limit for ids, _ in found)
    assert all(len(ids) == limit for ids, _ in found[:-1])
    assert [i for ids, mask in found for i in ids[mask].tolist()] == total[learnt].tolist()
    for ids, mask in found[1:]:
        assert ids[: len(bos)].tolist() == bos
        body = ids[len(bos) :]
        assert not mask[: len(bos) + 1].any()
        assert (np.diff(body) == 1).all()
    if len(total) <= limit:
        assert [ids.tolist() for ids, _ in found] == [total.tolist()] * bool(len(total))


def test_long_rows_are_cut_split_or_dropped_and_counted() -> None:
    path = lines("d.jsonl", [{"messages": pair("q", "0123456789")}, {"messages": pair()}])
    cases = {
        "truncate": (["<s>q\n01234", "<s>q\na</s>"], {"truncated": 1, "split": 0, "kept": 2}),
        "split": (["<s>q\n01234", "<s>456789</s>", "<s>q\na</s>"], {"truncated": 0, "split": 1, "kept": 2}),
        "drop": (["<s>q\na</s>"], {"truncated": 0, "split": 0, "kept": 1, "refused": {"too_long": 1}}),
    }
    for how, (expected, counts) in cases.items():
        found = opened(path, max_len=8, long_rows=how)
        assert [text for text, _ in texts(found)] == expected
        assert {name: found.counts[name] for name in counts} == counts
    assert texts(opened(path, max_len=8, long_rows="split"))[1][1] == "56789</s>"


def test_a_truncated_row_does_not_learn_to_stop_there() -> None:
    path = lines("d.jsonl", [{"messages": pair("q", "0123456789")}])
    ids, mask = opened(path, max_len=8)[0]
    assert tiny.EOS not in ids.tolist() and mask[-1]


# ---------------------------------------------------------------------------------------------------------- mixtures


def test_sources_are_paths_with_weights() -> None:
    Path("a:b.jsonl").write_text("x", encoding="utf-8")
    Path("c:2").write_text("x", encoding="utf-8")
    half = Fraction(1, 2)
    assert parse_source("a:b.jsonl") == DataSource(Path("a:b.jsonl"))
    assert parse_source("a:b.jsonl:0.5") == DataSource(Path("a:b.jsonl"), half)
    assert parse_source("c:2") == DataSource(Path("c:2"))
    assert parse_source("c:2:1/2") == DataSource(Path("c:2"), half)
    for wrong in (
        "",
        ":",
        "none.jsonl",
        "none.jsonl:2",
        "c:2:0",
        "c:2:-1",
        "c:2:x",
        "c:2:1/0",
        "c:2:nan",
        "c:2:99999",
    ):
        with pytest.raises(UsageError):
            parse_source(wrong)


def test_a_mixture_counts_and_hashes_its_parts() -> None:
    one, two = lines("a.jsonl", ALPACA[:2]), lines("b.jsonl", ALPACA[2:])
    both = opened(one, f"{two}:0.5")
    assert len(both) == 6 and both.sizes == (2, 4)
    assert texts(both) == [*texts(opened(one)), *texts(opened(two))]
    assert [source["weight"] for source in both.counts["sources"]] == [1.0, 0.5]
    assert both.counts["records"] == 6
    assert len({both.sha256, opened(one, two).sha256, opened(two, one).sha256, opened(one).sha256}) == 4
    with pytest.raises(IndexError):
        both[6]


# -------------------------------------------------------------------------------------------------------------- cache


def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was tokenized since."""
    found: list[str] = []
    real = rows.read_source

    def watched(source: DataSource, *more: Any) -> Any:
        found.append(source.path.name)
        return real(source, *more)

    monkeypatch.setattr(rows, "read_source", watched)
    return found


def test_acceptance_12_the_cache_is_used_again_and_only_for_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    path = lines("d.jsonl", ALPACA)
    Path("elsewhere").mkdir()
    seen = made(monkeypatch)
    first = opened(path)
    assert texts(opened(path)) == texts(first)
    os.link(path, "elsewhere/d.jsonl")
    assert opened("elsewhere/d.jsonl:3").counts["rows"] == 6  # content counts, not the place or the weight
    assert seen == ["d.jsonl"]
    other = tiny.tokenizer()
    other.backend.add_tokens(["Say"])
    changes: list[Any] = [
        lambda: opened(path, max_len=12),
        lambda: opened(path, long_rows="drop"),
        lambda: opened(path, mask_roles=()),
        lambda: opened(path, objective="pretrain"),
        lambda: opened(path, template=style_template("phi-3", TOKENIZER, None)),
        lambda: open_rows([path], other, template=TEMPLATE, objective="finetune"),
        lambda: open_rows([path], tiny.tokenizer(adds_bos=False), template=TEMPLATE, objective="finetune"),
        lambda: opened(lines("d.jsonl", ALPACA[:-1])),
    ]
    for number, change in enumerate(changes, 2):
        change()
        assert len(seen) == number
    monkeypatch.setattr(rows, "code_sha256", lambda names: "other code")
    opened(path)
    assert len(seen) == len(changes) + 2


@pytest.mark.parametrize("name", [*store.FILES, "manifest.json"])
def test_a_damaged_cache_is_made_anew(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lines("d.jsonl", ALPACA)
    good = texts(opened(path))
    seen = made(monkeypatch)
    (folder,) = (home() / "tokens").iterdir()
    for damage in (lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:-8], lambda data: b""):
        (folder / name).write_bytes(damage((folder / name).read_bytes()))
        assert texts(opened(path)) == good
    assert len(seen) == 3


def test_a_failure_leaves_nothing_that_is_taken_for_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    path = lines("d.jsonl", [*ALPACA, {"messages": 1}])
    with pytest.raises(InputRefused, match="line 7"):
        opened(path)
    assert not list((home() / "tokens").rglob("manifest.json"))
    lines("d.jsonl", ALPACA)
    assert len(opened(path)) == 6


def test_data_that_change_while_they_are_read_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    path = lines("d.jsonl", ALPACA)
    real = rows.read_source

    def changing(*arguments: Any) -> Any:
        yield from real(*arguments)
        lines("d.jsonl", ALPACA[:2])

    monkeypatch.setattr(rows, "read_source", changing)
    with pytest.raises(InputRefused, match="changed while it was read"):
        opened(path)
    assert not list((home() / "tokens").rglob("manifest.json"))


def test_a_damaged_artifact_is_not_learnt_from() -> None:
    publish(Path("art"), kind="magpie", records=[Document(str(i), "x" * 50) for i in range(9)], config={})
    (file,) = Path("art/data").iterdir()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(OjakError) as error:
        opened("art", objective="pretrain")
    assert error.value.exit_code == 7


def test_preferences_are_no_text() -> None:
    publish(
        Path("art"), kind="pairs", records=[Preference("p", pair()[:1], pair()[1:], pair()[1:])], config={}
    )
    with pytest.raises(InputRefused, match="neither_text_nor_conversation"):
        opened("art", objective="pretrain")


def test_memory_does_not_grow_with_the_data() -> None:
    """Peak of Python's own memory while 2 MB of text are tokenized, against a quarter of that."""

    def peak(lines_: int) -> int:
        Path("a.txt").write_text(("word " * 200 + "\n") * lines_, encoding="utf-8")
        tracemalloc.start()
        opened("a.txt", template=None, objective="pretrain", max_len=1024)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ojak.sources.BLOCK_BYTES", 20_000)
        small, large = peak(500), peak(2000)
    assert large < small * 1.5


def test_the_mask_of_a_row_is_that_of_encode_chat() -> None:
    path = lines("d.jsonl", [{"messages": [*pair("one", "1"), *pair("two", "2")]}])
    ids, mask = opened(path)[0]
    expected = encode_chat(TEMPLATE, TOKENIZER, [*pair("one", "1"), *pair("two", "2")])
    assert (ids.tolist(), mask.tolist()) == expected


def test_pretraining_takes_conversations_in_a_style_only() -> None:
    path = lines("d.jsonl", [{"messages": pair()}, {"text": "words"}])
    found = opened(path, template=None, objective="pretrain")
    assert (len(found), found.counts["refused"]) == (1, {"needs_a_style": 1})
    assert texts(opened(path, objective="pretrain"))[0] == ("<s>q\na</s>", "q\na</s>")


CHAPTER_7 = Path(__file__).resolve().parents[3] / "shared/data/chapter7/instruction-data.json"


def test_the_chapter_s_rows_are_its_own_format() -> None:
    """The oracle is `format_input` of the chapter, written out by hand."""
    if not CHAPTER_7.is_file():
        pytest.skip("the chapter's data are not here")
    template = style_template("alpaca-chapter7", TOKENIZER, None)
    found = texts(opened(str(CHAPTER_7), template=template, max_len=5000))
    entries = json.loads(CHAPTER_7.read_text("utf-8"))
    assert len(found) == len(entries) == 1100
    head = (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\n"
    )
    for entry, (text, learnt) in zip(entries, found, strict=True):
        given = f"\n\n### Input:\n{entry['input']}" if entry["input"] else ""
        assert text == f"<s>{head}{entry['instruction']}{given}\n\n### Response:\n{entry['output']}</s>"
        assert learnt == f"{entry['output']}</s>"


def test_processes_that_ask_at_once_tokenize_once(folder: Path) -> None:
    """As those of torchrun do."""
    tiny.model("llama").save("base")
    path = lines("d.jsonl", ALPACA * 300)
    program = f"""
import sys
from ojak.model.load import read_source
from ojak.train.rows import open_rows
tokenizer = read_source("base").tokenizer
print("ready", flush=True)
sys.stdin.readline()
found = open_rows([{path!r}], tokenizer, template={TEMPLATE!r}, objective="finetune", notify=print)
print(found.sha256)
"""
    command = [sys.executable, "-c", program]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for process in both:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    said = [process.communicate("go\n")[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(line.startswith("tokenizing") for each in said for line in each) == 1
    assert said[0][-1] == said[1][-1]
