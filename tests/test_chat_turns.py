"""Conversations of several turns: the text up to a user's next word, for any template, or a refusal with the reason."""

from __future__ import annotations

import json
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ojak.chat import ChatPrefix, ChatTemplate, chat_prefix
from ojak.engines.scripted import ScriptedEngine
from ojak.errors import InputRefused, UsageError
from test_chat import CHATML, ByteTokenizer, assistant, user
from test_chat_golden import TABLE, FamilyTokenizer, source_of

TURNS = 4
WORDS = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1).map(
    lambda text: f"Is {text}?"
)


def tokenizer_of(family: dict[str, Any]) -> FamilyTokenizer:
    return FamilyTokenizer(**family["tokenizer"])


def conversation(texts: list[str]) -> list[dict[str, str]]:
    return [make(text) for make, text in zip(cycle((user, assistant)), texts, strict=False)]


@pytest.mark.parametrize("family", TABLE, ids=[family["family"] for family in TABLE])
def test_a_published_template_renders_what_the_prefix_joins(family: dict[str, Any]) -> None:
    """The oracle is the whole conversation, rendered with its real texts."""
    tokenizer = tokenizer_of(family)
    template = ChatTemplate.of(source_of(family), tokenizer)
    prefix = chat_prefix(template, tokenizer, turns=TURNS)
    texts = [f"{'What of' if n % 2 == 0 else 'It is'} number {n}, then?" for n in range(2 * TURNS)]
    for number in range(1, 2 * TURNS, 2):
        (whole,) = template.render([conversation(texts[:number])], add_generation_prompt=True)
        assert prefix.text(texts[:number]) == whole
        header = prefix.text(texts[: number - 1])
        assert whole.startswith(header)
        assert whole[len(header) :].startswith(texts[number - 1])


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(WORDS, max_size=2 * TURNS - 1))
def test_joining_is_rendering_for_any_texts(texts: list[str]) -> None:
    tokenizer = ByteTokenizer()
    prefix = chat_prefix(CHATML, tokenizer, turns=TURNS, system="Be brief.")
    template = ChatTemplate.of(CHATML, tokenizer)
    asked = texts if len(texts) % 2 else [*texts, "X"]
    chat = [{"role": "system", "content": "Be brief."}, *conversation(asked)]
    (whole,) = template.render([chat], add_generation_prompt=True)
    assert prefix.text(asked) == whole
    assert whole.startswith(prefix.text(texts))


def test_a_system_turn_that_moves_with_the_last_question_is_followed() -> None:
    """As in some templates of Mistral: the system text stands in front of the last user's turn."""
    moving = """
    {%- set ns = namespace(system='') -%}
    {%- for m in messages %}
      {%- if m.role == 'system' %}{% set ns.system = m.content ~ '\n\n' %}
      {%- elif m.role == 'user' %}{{ '[INST] ' ~ (ns.system if loop.last else '') ~ m.content ~ '[/INST]' }}
      {%- else %}{{ ' ' ~ m.content ~ eos_token }}{% endif -%}
    {% endfor -%}"""
    prefix = chat_prefix(moving, ByteTokenizer(), system="Be brief.", turns=2)
    assert prefix.text([]) == "[INST] Be brief.\n\n"
    assert prefix.text(["a", "b"]) == "[INST] a[/INST] b<|end_of_text|>[INST] Be brief.\n\n"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (
            "{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}" + CHATML,
            "one turn only",
        ),
        (CHATML.replace("in messages", "in messages[-1:]"), "leaves out what a user says"),
        (CHATML.replace("in messages", "in messages|reverse"), "changes the order"),
        (
            CHATML.replace("m.content", "(m.content if m.role == 'user' else '...')"),
            "leaves out what the assistant says",
        ),
        (
            CHATML.replace(
                "m.content", "(m.content ~ (messages[0].content|length if loop.index > 1 else ''))"
            ),
            "depends on the turn",
        ),
    ],
    ids=["raises", "forgets", "reorders", "drops the answer", "depends"],
)
def test_a_template_that_cannot_is_refused_with_the_reason(template: str, why: str) -> None:
    assert chat_prefix(template, ByteTokenizer()).layouts == ()
    with pytest.raises(InputRefused, match="conversation of 2 turns") as caught:
        chat_prefix(template, ByteTokenizer(), turns=2)
    assert why in caught.value.why


def test_more_turns_than_were_asked_for_are_refused() -> None:
    prefix = chat_prefix(CHATML, ByteTokenizer(), turns=2)
    prefix.text(["a", "b", "c"])
    with pytest.raises(UsageError, match="no layout of 3 turns"):
        prefix.text(["a", "b", "c", "d"])


def test_the_scripted_engine_has_the_layouts_of_chatml() -> None:
    made = ScriptedEngine().chat_prefix("Be brief.", turns=3)
    assert isinstance(made, ChatPrefix)
    assert made.layouts == chat_prefix(CHATML, ByteTokenizer(), system="Be brief.", turns=3).layouts


def test_the_table_has_the_families() -> None:
    data = Path(__file__).parent / "data/golden_prefixes.json"
    assert len(TABLE) == len(json.loads(data.read_text("utf-8"))["families"]) >= 13
