"""Scores that a model reads: likelihoods by hand, rewards against transformers itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stand_ins import Blind, curate, reasons, row

from ojak.curate.scores import Likelihoods, Tokens
from ojak.curate.view import View
from ojak.engines.base import Scored
from ojak.engines.scripted import ScriptedEngine
from ojak.errors import InputRefused, UsageError


def views(*pairs: tuple[str, str]) -> list[View]:
    return [View.of(row(i, *pair)) for i, pair in enumerate(pairs)]


def test_likelihoods_are_means_over_the_response() -> None:
    # The scripted engine gives -1 to a word that the prompt has, -3 to others: "cat" is known, "sat" is not.
    (view,) = found = views(("see the cat sit", "cat sat sat sat"))
    Likelihoods(ScriptedEngine()).annotate(found)
    assert view.scores["perplexity"] == pytest.approx(math.exp((1 + 3 + 3 + 3) / 4), abs=1e-3)
    assert view.scores["instruction_gain"] == pytest.approx((-1 - 9) / 4 - (-3))


class Short(ScriptedEngine):
    """Refuses texts of more than four words."""

    def score(self, texts: Iterable[Scored]) -> Iterator[tuple[float, ...]]:
        for text in texts:
            if len(str(text.continuation).split()) > 4:
                raise UsageError("too long")
            yield from super().score([text])


def test_a_row_that_does_not_fit_has_no_score() -> None:
    found = views(("a b", "one two"), ("a b", "one two three four five"), ("a b", ""), ("", "b b"))
    Likelihoods(Short()).annotate(found)
    assert ["perplexity" in view.scores for view in found] == [True, False, False, True]


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot run on the engine"):
        Likelihoods(Blind())


def test_tokens_are_the_engine_s() -> None:
    found = views(("a b c", "d e"))
    Tokens(ScriptedEngine()).annotate(found)
    assert (found[0].scores["instruction_tokens"], found[0].scores["response_tokens"]) == (3, 2)


def test_a_rule_on_the_gain(tmp_path: Path) -> None:
    rows = [row(0, "see the cat sit", "the cat"), row(1, "see the cat sit", "no dog")]
    artifact = curate(
        tmp_path, rows, "[{min_score: {score: instruction_gain, above: 0}}]", with_engine=ScriptedEngine()
    )
    assert reasons(artifact) == {1: "min_instruction_gain"}


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model of a few thousand parameters, with a chat template."""
    return reward_model(tmp_path_factory.mktemp("head"), labels=1)


def reward_model(folder: Path, labels: int, **save: Any) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedTokenizerFast

    words = {
        word: i
        for i, word in enumerate(["<unk>", "<pad>", "<s>", "see", "the", "cat", "user", "assistant", "sat"])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", bos_token="<s>"
    )
    fast.chat_template = "{{ bos_token }}{% for m in messages %} {{ m.role }} {{ m.content }}{% endfor %}"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=1,
    )  # fmt: skip
    config.num_labels = labels
    LlamaForSequenceClassification(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def test_rewards_are_those_of_transformers(head: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from ojak.curate.reward import Rewards

    found = views(("see the cat", "the cat sat"), ("cat", "the"))
    rewards = Rewards(str(head))
    rewards.annotate(found)
    tokenizer: Any = AutoTokenizer.from_pretrained(head)
    model: Any = AutoModelForSequenceClassification.from_pretrained(head)
    for view in found:
        turns = [
            {"role": "user", "content": view.instruction},
            {"role": "assistant", "content": view.response},
        ]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        with torch.no_grad():
            expected = (
                model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, 0].item()
            )
        assert view.scores["reward"] == pytest.approx(expected, abs=1e-5)
        assert view.makers["reward_model"] == rewards.identity
    assert found[0].scores["reward"] != found[1].scores["reward"]


def test_heads_that_are_none(tmp_path: Path, head: Path) -> None:
    from ojak.curate.reward import Rewards

    with pytest.raises(InputRefused, match="2 outputs"):
        Rewards(str(reward_model(tmp_path / "two", labels=2)))
    with pytest.raises(InputRefused, match="cannot be used"):
        Rewards(str(tmp_path / "nothing"))
    pickled = reward_model(tmp_path / "pickled", labels=1)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(InputRefused, match="cannot be used"):
        Rewards(str(pickled))


def test_a_reward_model_is_a_judge_like_any_other(
    tmp_path: Path, head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import stand_ins

    rule = "[{min_score: {score: reward, above: -100}}]"
    stand_ins.use_judge(monkeypatch, usable=None)
    artifact = curate(tmp_path, [row(0)], rule, reward_model=str(head))
    assert "has not been calibrated" in artifact.stats["not_applied"]["min_reward"]
    assert str(head) not in (tmp_path / "out/manifest.json").read_text("utf-8")
    trusted = curate(tmp_path, [row(0)], rule, out="b", reward_model=str(head), trust_anyway=True)
    assert trusted.stats["not_applied"] == {}
