"""The prefixes of 13 model families: what their templates render, beside what the Magpie scripts hard-code.

The templates in data/templates are written in our own words; they render what the published ones do.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ojak.chat import ChatTemplate, chat_prefix, describe, encode_prompt

DATA = Path(__file__).parent / "data"
TABLE: list[dict[str, Any]] = json.loads((DATA / "golden_prefixes.json").read_text("utf-8"))["families"]
CONVERSATIONS = [
    ["user"],
    ["user", "assistant"],
    ["user", "assistant", "user"],
    ["user", "assistant", "user", "assistant"],
    ["system", "user"],
    ["system", "user", "assistant", "user"],
]


@dataclass
class FamilyTokenizer:
    """The special tokens of a family with their real ids; any other text becomes one id per character."""

    bos_token: str
    eos_token: str
    adds_bos: bool
    special_tokens: dict[str, int]
    eos_ids: list[int]

    @property
    def bos_id(self) -> int:
        return self.special_tokens[self.bos_token]

    @property
    def eos_id(self) -> int:
        return self.special_tokens[self.eos_token]

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        pieces = re.split("(" + "|".join(map(re.escape, self.special_tokens)) + ")", text)
        known = self.special_tokens
        return [i for p in pieces for i in ([known[p]] if p in known else [-ord(c) for c in p])]


def source_of(family: dict[str, Any]) -> str:
    return (DATA / "templates" / f"{family['family']}.jinja").read_text("utf-8")


@pytest.fixture(params=TABLE, ids=[family["family"] for family in TABLE])
def family(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


@pytest.fixture
def tokenizer(family: dict[str, Any]) -> FamilyTokenizer:
    return FamilyTokenizer(**family["tokenizer"])


def test_the_table_covers_the_families_of_the_paper() -> None:
    names = {family["family"] for family in TABLE}
    assert names == {path.stem for path in (DATA / "templates").glob("*.jinja")}
    assert len(names - {"llama-3.1"}) == 13  # the scripts use one entry for Llama 3 and 3.1


def test_prefix_is_what_the_template_renders(family: dict[str, Any], tokenizer: FamilyTokenizer) -> None:
    derived = chat_prefix(source_of(family), tokenizer, eos_ids=tokenizer.eos_ids)
    expected = family["template"]
    assert derived.pre_query == expected["pre_query"]
    assert derived.post_query == expected["post_query"]
    assert derived.stop_ids == tuple(sorted(tokenizer.special_tokens[t] for t in expected["stop_tokens"]))
    assert derived.stop_strings == tuple(expected["stop_strings"])


def test_every_difference_from_the_scripts_has_a_reason(
    family: dict[str, Any], tokenizer: FamilyTokenizer
) -> None:
    derived = chat_prefix(source_of(family), tokenizer, eos_ids=tokenizer.eos_ids)
    scripts, differences = family["scripts"], family["differences"]
    assert (derived.pre_query == scripts["pre_query"]) == (differences["pre_query"] is None)
    names = {tokenizer.special_tokens[name]: name for name in tokenizer.special_tokens}
    ours, theirs = {names[i] for i in derived.stop_ids}, set(scripts["stop_tokens"])
    assert theirs - ours == set(differences["scripts_stop_too"])
    assert ours - theirs == set(differences["template_stops_too"])
    reasons = [differences["pre_query"], *differences["scripts_stop_too"].values()]
    reasons += differences["template_stops_too"].values()
    assert all(reason is None or len(reason) > 20 for reason in reasons)


def test_the_prompt_has_one_bos_where_the_family_has_one(
    family: dict[str, Any], tokenizer: FamilyTokenizer
) -> None:
    pre_query = chat_prefix(source_of(family), tokenizer).pre_query
    ids = encode_prompt(tokenizer, pre_query)
    wants_bos = tokenizer.adds_bos or pre_query.startswith(tokenizer.bos_token)
    assert ids.count(tokenizer.bos_id) == wants_bos
    assert not wants_bos or ids[0] == tokenizer.bos_id


def test_prefix_and_post_query_make_the_prompt_of_a_response(
    family: dict[str, Any], tokenizer: FamilyTokenizer
) -> None:
    template = ChatTemplate.of(source_of(family), tokenizer)
    prefix = chat_prefix(template, tokenizer)
    prompt = template.render([[{"role": "user", "content": "Why is\n\nthe sky blue?"}]], True)[0]
    assert prompt == prefix.pre_query + "Why is\n\nthe sky blue?" + prefix.post_query


@pytest.mark.parametrize(
    ("name", "supports_system", "default"),
    [
        ("llama-3", True, None),
        ("llama-3.1", True, ""),
        ("qwen2.5", True, "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."),
        ("gemma-2", False, None),
        ("mistral-7b-v0.3", True, None),
        ("yi-1.5", True, None),
    ],
)
def test_description_tells_the_default_system_turn(name: str, supports_system: bool, default: str) -> None:
    family = next(family for family in TABLE if family["family"] == name)
    told = describe(source_of(family), FamilyTokenizer(**family["tokenizer"]))
    assert (told["supports_system"], told["default_system"]) == (supports_system, default)


def test_rendering_equals_transformers(family: dict[str, Any], tokenizer: FamilyTokenizer) -> None:
    """The oracle: Hugging Face's own rendering, for all conversations that the template takes."""
    oracle = pytest.importorskip("transformers.utils.chat_template_utils")
    template = ChatTemplate.of(source_of(family), tokenizer)
    compared = 0
    for roles in CONVERSATIONS:
        chat = [{"role": role, "content": f" {role} says\n {i} "} for i, role in enumerate(roles)]
        (ours,) = template.attempt([chat])
        if isinstance(ours, str):
            variables = {k: v for k, v in template.context(chat, False).items() if k.endswith("_token")}
            theirs, _ = oracle.render_jinja_template([chat], chat_template=template.source, **variables)
            assert ours == theirs[0]
            compared += 1
    assert compared >= 4
