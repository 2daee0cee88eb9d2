"""Mixes for pretraining: budgets to one sequence, shares to one text, nothing leaks, the same texts for every arm."""

from __future__ import annotations

import json
import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from ojak._settings import WrongSettings
from ojak.artifact import Artifact, publish
from ojak.cli.app import app
from ojak.errors import InputRefused, UsageError
from ojak.model.tokenizer import Tokenizer
from ojak.records import Conversation, Document, Message
from ojak.train.config import TrainConfig
from ojak.train.mix import make_arms, make_mix, summary
from ojak.train.mix_config import MixArmsConfig, MixConfig
from ojak.train.mix_plan import AUGMENTED, NOT, PLAIN, take
from ojak.train.mix_units import Sizes, cut
from ojak.train.rows import open_rows
from ojak.train.run import train

pytestmark = pytest.mark.usefixtures("folder")
LIMIT = 64  # max_len of these tests


def tokens(text: str, limit: int = LIMIT) -> int:
    """What training counts, by hand: bytes and an EOS (a saved tiny tokenizer adds no BOS); each later piece repeats a
    token."""
    size = len(text.encode()) + 1 if text else 0
    return size if size <= limit else size + math.ceil((size - limit) / (limit - 1))


@pytest.fixture
def model(folder: Path) -> str:
    return str(tiny.model(scale=0.1).save(folder / "model"))


def corpus(path: Path, documents: list[Document]) -> Path:
    publish(path, kind="augment", records=documents, config={})
    return path


def article(number: int, length: int = 20, **meta: Any) -> Document:
    text = f"<{number}> " + "x" * length
    return Document(f"d{number}", text, "book", meta)


def with_pairs(number: int, length: int = 20, **meta: Any) -> Document:
    plain = article(number, length)
    return article(number, length, augmented=f"{plain.text}\n\nQ{number}? A{number}.", **meta)


def mix(source: Path, out: str, model: str, **options: Any) -> Artifact:
    given_options = {"arm": "vanilla", "tokens": 500, "tokenizer": model, "max_len": LIMIT, **options}
    return make_mix(source, Path(out), MixConfig(**given_options))


def made(artifact: Artifact, split: str = "train") -> list[Document]:
    return [record for record in artifact.records(split) if isinstance(record, Document)]


def stats(artifact: Artifact, arm: str = "train") -> dict[str, Any]:
    return artifact.stats["arms"][arm]


def share(artifact: Artifact, name: str) -> float:
    """The share of a source, counted by hand."""
    sizes = Counter[str]()
    for row in made(artifact):
        sizes[row.meta["source"]] += tokens(row.text)
    return sizes[name] / sizes.total()


units = st.lists(
    st.tuples(st.lists(st.integers(0, 90), min_size=1, max_size=3), st.integers(0, 1)), min_size=1, max_size=30
)  # fmt: skip


def as_sizes(found: list[tuple[list[int], int]]) -> Sizes:
    texts = [size for documents, _ in found for size in documents]
    starts = np.cumsum([0, *(len(documents) for documents, _ in found)])
    pairs = [sum(documents) + 7 if has else 0 for documents, has in found]
    return Sizes(np.array(texts, np.int64), starts, np.array(pairs, np.int64))


@given(units, st.integers(1, 3_000), st.sampled_from([0.0, 0.2, 0.5, 1.0]), st.integers(0, 5))
@settings(max_examples=300, deadline=None)
def test_a_plan_keeps_its_budget(
    found: list[tuple[list[int], int]], budget: int, ratio: float, seed: int
) -> None:
    sizes = as_sizes(found)
    if not sizes.texts.any() and not sizes.augmented.any():
        with pytest.raises(InputRefused, match="no text"):
            take(sizes, budget, ratio=ratio, key=(seed,), max_len=LIMIT)
        return
    assume(int(sizes.texts.sum()) * 900 > budget)
    taken = take(sizes, budget, ratio=ratio, key=(seed,), max_len=LIMIT)
    # Brute force over what it says that it takes.
    total = Counter[int]()
    for forms in taken.passes:
        for unit, form in enumerate(forms.tolist()):
            documents, _ = found[unit]
            total[form] += {NOT: 0, PLAIN: sum(documents), AUGMENTED: int(sizes.augmented[unit])}[form]
    end = taken.end
    if end and end.form == PLAIN:
        total[PLAIN] += sum(found[end.unit][0][: end.documents])
        assert taken.passes[-1][end.unit] == NOT
    assert (taken.plain, taken.augmented) == (total[PLAIN], total[AUGMENTED])
    left = budget - taken.tokens - (end.tokens if end else 0)
    assert 0 <= left < max(LIMIT, 1) + 1
    assert all((forms != NOT).all() for forms in taken.passes[:-1]), (
        "a text came again before every other came"
    )


@given(st.lists(st.integers(1, 60), min_size=20, max_size=60), st.floats(0, 1), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_a_share_is_right_to_one_text(lengths: list[int], ratio: float, seed: int) -> None:
    sizes = as_sizes([([length], 1) for length in lengths])
    taken = take(sizes, 10 * sum(lengths), ratio=ratio, key=(seed,), max_len=LIMIT)
    assert abs(taken.augmented - ratio * taken.tokens) <= int(sizes.augmented.max())


@given(st.text(max_size=300), st.integers(4, 200), st.integers(1, 30))
@settings(max_examples=200, deadline=None)
def test_a_cut_is_a_beginning_that_fits(text: str, most: int, slack: int) -> None:
    found = cut(text, most, tokens, slack)
    assert text.startswith(found)
    assert tokens(found) <= most
    if found != text:
        longest = max(length for length in range(len(text) + 1) if tokens(text[:length]) <= most)
        assert len(found) == longest or (found[-1] in "\n " and tokens(found) > most - slack)


@given(
    st.lists(st.tuples(st.integers(0, 150), st.booleans()), min_size=1, max_size=12),
    st.integers(1, 1500),
    st.sampled_from(["vanilla", "instruct"]),
    st.sampled_from([0.2, 1.0]),
    st.integers(1, 3),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_mix_has_its_tokens_and_nothing_leaks(
    model: str, documents: list[tuple[int, bool]], budget: int, arm: str, ratio: float, shots: int
) -> None:
    records = [
        (with_pairs if has else article)(i, length, group=f"g{i // shots}", shot=i % shots)
        for i, (length, has) in enumerate(documents)
    ]
    with tempfile.TemporaryDirectory() as place:
        source = corpus(Path(place) / "corpus", records)
        found = mix(source, f"{place}/mix", model, arm=arm, tokens=budget, ratio=ratio)
        rows = made(found)
    assert sum(tokens(row.text) for row in rows) == stats(found)["tokens"] <= budget
    assert budget - stats(found)["tokens"] < LIMIT + 1
    whole = {record.id: record for record in records}
    for row in rows:
        parts = [whole[name] for name in row.meta["documents"]]
        assert len({part.meta["group"] for part in parts}) == 1
        if row.meta["source"] == "raw":
            (part,) = parts
            assert part.text.startswith(row.text)
            continue
        assert [part.meta["shot"] for part in parts] == list(range(len(parts)))
        assert "\n\n".join(part.meta.get("augmented", part.text) for part in parts).startswith(row.text)
    cut_rows = [
        row
        for row in rows
        if row.meta["source"] == "raw" and whole[row.meta["documents"][0]].text != row.text
    ]
    assert len(cut_rows) <= 1
    once = Counter((row.meta["pass"], name) for row in rows for name in row.meta["documents"])
    assert max(once.values(), default=1) == 1, "a document came twice in one pass, or in both forms"


def test_training_counts_the_same_tokens(model: str, folder: Path) -> None:
    source = corpus(folder / "corpus", [with_pairs(i, 7 * i % 150) for i in range(30)])
    found = mix(source, "mix", model, arm="instruct", tokens=3_000, ratio=0.5)
    rows = open_rows(
        [str(folder / "mix")],
        Tokenizer.from_folder(Path(model), {}),
        template=None,
        objective="pretrain",
        max_len=LIMIT,
    )
    assert int(rows.lengths.sum()) == stats(found)["tokens"]
    assert 3_000 - int(rows.lengths.max()) < stats(found)["tokens"] <= 3_000
    config = TrainConfig(
        objective="pretrain", model=model, data=("mix",), out=folder / "out", max_len=LIMIT, batch=64, dtype="float32",
        peak_flops=1e12,
    )  # fmt: skip
    assert train(config).tokens == stats(found)["tokens"]


def test_the_arms_have_the_same_budget_and_take_the_same_texts(model: str, folder: Path) -> None:
    source = corpus(folder / "corpus", [with_pairs(i, 20) for i in range(60)])
    Path("set.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": f"ask {i}"},
                        {"role": "assistant", "content": "so"},
                    ]
                }
            )
            + "\n"
            for i in range(9)
        )
    )
    options: dict[str, Any] = {"tokens": 1_000, "ratio": 0.3}
    vanilla = mix(source, "vanilla", model, **options)
    instruct = mix(source, "instruct", model, arm="instruct", **options)
    mixed = mix(source, "mixed", model, arm="mix", mix_data="set.jsonl", **options)
    for found in (vanilla, instruct, mixed):
        assert 1_000 - LIMIT < stats(found)["tokens"] <= 1_000
        assert sum(stats(found)["share"].values()) == pytest.approx(1, abs=1e-5)
    assert share(vanilla, "raw") == 1
    assert share(instruct, "augmented") == pytest.approx(0.3, abs=LIMIT / 1_000)
    assert share(mixed, "mix") == pytest.approx(0.3, abs=LIMIT / 1_000)
    assert stats(mixed)["share"]["mix"] == pytest.approx(share(mixed, "mix"), abs=1e-5)
    assert stats(mixed)["passes"]["mix"] > 1  # a set of nine short rows is read several times
    names = [{name for row in made(each) for name in row.meta["documents"]} for each in (vanilla, instruct)]
    assert names[1] < names[0]  # pairs take tokens, so that fewer of the same texts fit
    asked = [row.text for row in made(mixed) if row.meta["source"] == "mix"]
    assert set(asked) == {f"ask {i} so" for i in range(9)}


def test_replay_has_its_ratio_in_tokens(model: str, folder: Path) -> None:
    source = corpus(folder / "corpus", [with_pairs(i) for i in range(80)])
    chats = [Conversation(f"c{i}", [Message(role="user", content=f"hello {i}"), Message(role="assistant", content="yes")]) for i in range(80)]  # fmt: skip
    publish(folder / "chats", kind="rows", records=chats, config={})
    found = mix(source, "out", model, arm="instruct", tokens=2_000, ratio=1.0, replay="chats:1")
    assert share(found, "replay") == pytest.approx(0.5, abs=LIMIT / 2_000)
    assert share(found, "augmented") == pytest.approx(0.5, abs=LIMIT / 2_000)
    less = mix(source, "less", model, tokens=2_000, replay="chats:0.25")
    assert share(less, "replay") == pytest.approx(0.2, abs=LIMIT / 2_000)


def test_a_small_source_is_read_again_and_it_is_said(model: str, folder: Path) -> None:
    source = corpus(folder / "corpus", [article(i) for i in range(10)])
    said: list[str] = []
    one_pass = sum(tokens(article(i).text) for i in range(10))
    config = MixConfig(arm="vanilla", tokens=int(2.5 * one_pass), tokenizer=model, max_len=LIMIT)
    found = make_mix(source, folder / "out", config, notify=said.append)
    times = Counter(name for row in made(found) for name in row.meta["documents"])
    assert set(times.values()) == {2, 3}
    assert stats(found)["passes"]["raw"] == pytest.approx(2.5, abs=0.11)
    assert any("read 2." in line for line in said)


def test_a_share_that_cannot_be_reached_is_said(model: str, folder: Path) -> None:
    source = corpus(folder / "corpus", [with_pairs(0), *(article(i) for i in range(1, 20))])
    said: list[str] = []
    config = MixConfig(arm="instruct", ratio=1.0, tokens=400, tokenizer=model, max_len=LIMIT)
    make_mix(source, folder / "out", config, notify=said.append)
    assert any("1 of 20 have pairs" in line for line in said)


def test_the_seed_decides_alone(model: str, folder: Path) -> None:
    source = corpus(folder / "corpus", [with_pairs(i) for i in range(60)])
    hashes = [
        [entry["sha256"] for entry in mix(source, f"out{i}", model, arm="instruct", seed=seed).files if "data/" in entry["path"]]
        for i, seed in enumerate((0, 0, 1))
    ]  # fmt: skip
    assert hashes[0] == hashes[1] != hashes[2]


def test_what_is_held_out_is_in_no_arm(model: str, folder: Path) -> None:
    records = [with_pairs(i, group=f"g{i // 2}", shot=i % 2) for i in range(40)]
    source = corpus(folder / "corpus", records)
    shared: dict[str, Any] = {"tokens": 3_000, "tokenizer": model, "max_len": LIMIT, "held_out": 0.25}
    arms = MixArmsConfig(
        **shared, arms={"vanilla": None, "instruct": {"ratio": 0.5}, "half": {"arm": "instruct"}}
    )
    found = make_arms(source, folder / "arms", arms.configs())
    kept_out = {name for row in made(found, "validation") for name in row.meta["documents"]}
    assert len(kept_out) == 10
    assert [row.text for row in made(found, "validation")] == [
        each.text for each in records if each.id in kept_out
    ]
    for arm in ("vanilla", "instruct", "half"):
        rows = made(found, arm)
        assert not kept_out & {name for row in rows for name in row.meta["documents"]}
        assert sum(tokens(row.text) for row in rows) == stats(found, arm)["tokens"]
        assert 3_000 - LIMIT < stats(found, arm)["tokens"] <= 3_000
    alone = mix(source, "alone", model, tokens=3_000, held_out=0.25, arm="instruct", ratio=0.5)
    assert [row.text for row in made(alone)] == [row.text for row in made(found, "instruct")]
    assert open_rows([f"{folder}/arms@half"], tiny.tokenizer(), template=None, objective="pretrain")


def test_an_arm_may_have_a_corpus_of_its_own(model: str, folder: Path) -> None:
    """The same texts in chains of other lengths and another order: what is held out of one is held out of all."""
    pairs = [with_pairs(i, group=f"g{i // 2}", shot=i % 2) for i in range(40)]
    others = [with_pairs(i, group=f"h{i // 3}", shot=place) for i in range(38, -1, -3) for place, i in enumerate((i, i - 1, i - 2))]  # fmt: skip
    source, other = corpus(folder / "corpus", pairs), corpus(folder / "other", others)
    arms = MixArmsConfig(
        tokens=1_000, tokenizer=model, max_len=LIMIT, held_out=0.2,
        arms={"instruct": None, "three": {"arm": "instruct", "data": str(other), "ratio": 1.0}},
    )  # fmt: skip
    found = make_arms(source, folder / "arms", arms.configs())
    kept_out = {name for row in made(found, "validation") for name in row.meta["documents"]}
    rows = made(found, "three")
    assert len(kept_out) == 8
    assert not kept_out & {name for row in rows for name in row.meta["documents"]}
    assert {len(row.meta["documents"]) for row in rows if row.meta["source"] == "augmented"} == {3}
    assert [row.text for row in made(found, "instruct")] == [
        row.text
        for row in made(
            make_arms(source, folder / "alone", {"instruct": arms.configs()["instruct"]}), "instruct"
        )
    ]
    with pytest.raises(UsageError, match="lies in"):
        make_arms(source, other / "inside", arms.configs())


def test_arms_that_cannot_be_compared_are_refused(model: str, folder: Path) -> None:
    source = corpus(folder / "corpus", [article(i) for i in range(9)])
    arms = {
        name: MixConfig(arm="vanilla", tokens=99, tokenizer=model, seed=seed)
        for seed, name in enumerate("ab")
    }
    with pytest.raises(UsageError, match="a seed each"):
        make_arms(source, folder / "out", arms)
    with pytest.raises(WrongSettings, match=r"arms\.x\.ratio"):
        MixArmsConfig(tokens=9, arms={"x": {"ratio": 7}})
    with pytest.raises(WrongSettings, match="takes no weight"):
        MixConfig(arm="mix", tokens=9, mix_data="chats.jsonl:0.5")
    for name in ("validation", "Two", ""):
        with pytest.raises(WrongSettings, match="name of an arm"):
            MixArmsConfig(tokens=9, arms={name: None})
    assert [
        config.arm
        for config in MixArmsConfig(tokens=9, arms={"instruct": None, "x": None}).configs().values()
    ] == ["instruct", "vanilla"]


def test_long_texts_are_cut_at_a_line(model: str, folder: Path) -> None:
    text = "".join(f"line {i}\n" for i in range(200))
    source = corpus(folder / "corpus", [Document("d", text)])
    found = mix(source, "out", model, tokens=700)
    (row,) = made(found)
    assert text.startswith(row.text)
    assert row.text.endswith("\n")
    assert 700 - LIMIT < stats(found)["tokens"] == tokens(row.text) <= 700


def test_what_is_refused(model: str, folder: Path) -> None:
    torn = corpus(
        folder / "torn", [with_pairs(0, group="a", shot=0), article(1), with_pairs(2, group="a", shot=1)]
    )
    with pytest.raises(InputRefused, match="do not follow one another"):
        mix(torn, "out", model)
    empty = corpus(folder / "empty", [Document("a", "")])
    with pytest.raises(InputRefused, match="no text"):
        mix(empty, "out", model)
    with pytest.raises(InputRefused, match="1,000 passes"):
        mix(corpus(folder / "one", [article(0)]), "out", model, tokens=10**6)
    Path("plain.txt").write_text("words")
    with pytest.raises(InputRefused, match="no corpus"):
        mix(Path("plain.txt"), "out", model)
    with pytest.raises(UsageError, match="nothing at"):
        mix(torn, "out", model, replay="absent:1")
    with pytest.raises(WrongSettings, match="mix needs mix_data"):
        MixConfig(arm="mix", tokens=10)
    with pytest.raises(WrongSettings, match="takes no mix_data"):
        MixConfig(arm="vanilla", tokens=10, mix_data="x")
    assert not Path("out/manifest.json").exists()


def test_the_verb(model: str, folder: Path) -> None:
    corpus(folder / "corpus", [with_pairs(i) for i in range(30)])
    words = [
        "pretrain-mix",
        "corpus",
        "--arm",
        "instruct",
        "--tokens",
        "600",
        "--tokenizer",
        model,
        "--max-len",
        "64",
        "--out",
    ]
    told = CliRunner().invoke(app, [*words, "a", "--json"])
    facts = json.loads(told.stdout)
    assert told.exit_code == 0
    assert facts["tokens"] <= 600
    assert facts["sequences"] == len(made(Artifact.open("a")))
    assert set(facts["share"]) == {"raw", "augmented"}
    assert facts == json.loads(json.dumps(summary(Artifact.open("a"))))
    again = CliRunner().invoke(app, [*words, "b"])
    assert again.stdout == "b\n"
    assert "tokens in" in again.stderr
    wrong = CliRunner().invoke(app, [*words, "c", "--ratio", "2"])
    assert wrong.exit_code == 2
    assert "--ratio" in wrong.stderr
    alone = CliRunner().invoke(app, ["pretrain-mix", "corpus", "--arm", "mix", "--tokens", "9", "--out", "c"])
    assert alone.exit_code == 2
    assert "error: the arm mix needs mix_data" in alone.stderr


def test_a_mix_without_a_token_is_no_success(model: str, folder: Path) -> None:
    corpus(folder / "corpus", [with_pairs(i) for i in range(3)])
    words = [
        "pretrain-mix",
        "corpus",
        "--arm",
        "vanilla",
        "--tokens",
        "1",
        "--tokenizer",
        model,
        "--out",
        "a",
    ]
    told = CliRunner().invoke(app, words)
    assert (told.exit_code, told.stdout) == (3, "a\n")
    assert "no text fits into 1 tokens" in told.stderr
