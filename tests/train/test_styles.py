"""Prompt styles: the exact texts, what is learnt of them, and that transformers reads and masks them alike."""

from __future__ import annotations

from typing import Any

import pytest
import tiny

from ojak.chat import ChatTemplate, chat_prefix, encode_chats
from ojak.errors import InputRefused, UsageError
from ojak.formats import template_turns
from ojak.records import Conversation, Message
from ojak.train.styles import SOURCES, STYLES, default_style, style_template, turn_end_ids

TASK = "Below is an instruction that describes a task"
ANSWER = "Write a response that appropriately completes the request."
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def alpaca_row(given: str = "") -> Conversation:
    question = "Add.\n" + given if given else "Add."
    turns = [Message(role="user", content=question), Message(role="assistant", content="Three.")]
    return Conversation("a", turns, meta={"alpaca_input": given} if given else {})


def rendered(style: str, row: Conversation, *, adds_bos: bool = True, prompt: bool = False) -> str:
    tokenizer = tiny.tokenizer(adds_bos=adds_bos)
    template = ChatTemplate.of(style_template(style, tokenizer, None), tokenizer)
    turns = template_turns(row)
    return template.render([turns[:-1] if prompt else turns], prompt)[0]


def test_chapter_7_exactly() -> None:
    """The format of rasbt/LLMs-from-scratch, ch07: `format_input(entry)` + response, with one end token."""
    head = f"{TASK}. {ANSWER}\n\n### Instruction:\nAdd."
    assert rendered("alpaca-chapter7", alpaca_row()) == f"<s>{head}\n\n### Response:\nThree.</s>"
    given = f"{head}\n\n### Input:\n1 and 2\n\n### Response:\n"
    assert rendered("alpaca-chapter7", alpaca_row("1 and 2")) == f"<s>{given}Three.</s>"
    assert rendered("alpaca-chapter7", alpaca_row("1 and 2"), prompt=True, adds_bos=False) == given


def test_alpaca_has_a_preamble_for_inputs() -> None:
    """The two prompts of tatsu-lab/stanford_alpaca."""
    more = f"{TASK}, paired with an input that provides further context. {ANSWER}"
    expected = f"<s>{more}\n\n### Instruction:\nAdd.\n\n### Input:\n1\n\n### Response:\nThree.</s>"
    assert rendered("alpaca", alpaca_row("1")) == expected
    assert rendered("alpaca", alpaca_row()).startswith(
        f"<s>{TASK}. {ANSWER}\n\n### Instruction:\nAdd.\n\n###"
    )


def test_phi_3_and_plain() -> None:
    assert rendered("phi-3", alpaca_row("1")) == "<s><|user|>\nAdd.\n1\n<|assistant|>:\nThree.</s>"
    assert rendered("plain", alpaca_row("1")) == "<s>Add.\n1\nThree.</s>"


def test_an_instruction_that_is_empty_keeps_its_input_apart() -> None:
    row = Conversation(
        "a", [Message(role="user", content="\nx"), *alpaca_row().messages[1:]], meta={"alpaca_input": "x"}
    )
    assert "### Instruction:\n\n\n### Input:\nx\n\n### Response" in rendered("alpaca", row)


TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "I."},
    {"role": "user", "content": "Add.\n1", "input": "1"},
    {"role": "assistant", "content": "One."},
]


@pytest.mark.parametrize("style", sorted(SOURCES))
def test_the_prompt_at_use_is_what_stands_before_the_answer_in_training(style: str) -> None:
    tokenizer = tiny.tokenizer()
    template = ChatTemplate.of(style_template(style, tokenizer, None), tokenizer)
    (whole,) = template.render([TURNS])
    for end in (2, 4):
        (prompt,) = template.render([TURNS[:end]], add_generation_prompt=True)
        if end == 4:  # what comes later does not change the preamble, as there is a system turn
            assert whole == prompt + "One.</s>"
        assert whole.startswith(prompt)
    assert whole.count("<s>") == 1


@pytest.mark.parametrize("style", sorted(SOURCES))
@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        (("assistant",), ["I.</s>", "One.</s>"]),
        (("user", "assistant"), ["Who?", "I.</s>", "{last}", "One.</s>"]),
        (("system", "assistant"), ["Be brief.", "I.</s>", "One.</s>"]),
    ],
)
def test_what_is_learnt_is_said_by_the_roles_and_its_end_token(
    style: str, roles: tuple[str, ...], expected: list[str]
) -> None:
    tokenizer = tiny.tokenizer()
    (encoded,) = encode_chats(style_template(style, tokenizer, None), tokenizer, [TURNS], roles)
    assert not isinstance(encoded, InputRefused)
    ids, mask = encoded
    learnt = tokenizer.decode([i for i, is_learnt in zip(ids, mask, strict=True) if is_learnt])
    last = "Add.\n\n### Input:\n1" if style.startswith("alpaca") else "Add.\n1"
    assert learnt == "".join(expected).replace("{last}", last)
    assert ids.count(tiny.BOS) == 1 and not mask[0]


@pytest.mark.parametrize("style", sorted(SOURCES))
def test_a_model_trained_so_stops_at_the_eos(style: str) -> None:
    tokenizer = tiny.tokenizer()
    template = style_template(style, tokenizer, None)
    assert turn_end_ids(template, tokenizer) == (tiny.EOS,)
    if style != "plain":  # whose turns nothing marks
        assert tiny.EOS in chat_prefix(template, tokenizer, turns=2).stop_ids


def test_the_default_is_the_model_s_own_template_or_alpaca() -> None:
    tokenizer = tiny.tokenizer()
    assert (default_style(CHATML), default_style(None), default_style(" ")) == ("chat", "alpaca", "alpaca")
    assert style_template(None, tokenizer, CHATML) == CHATML
    assert style_template(None, tokenizer, None) == style_template("alpaca", tokenizer, CHATML)


def test_what_cannot_be_is_refused() -> None:
    tokenizer = tiny.tokenizer()
    with pytest.raises(UsageError, match=r"vicuna.*\n.*chat, alpaca, alpaca-chapter7, phi-3, plain"):
        style_template("vicuna", tokenizer, None)
    with pytest.raises(InputRefused, match="no chat template of its own"):
        style_template("chat", tokenizer, None)
    tokenizer.eos_token = None
    for style in SOURCES:
        with pytest.raises(InputRefused, match="no answer would end"):
            style_template(style, tokenizer, None)


@pytest.mark.parametrize("style", sorted(SOURCES))
def test_other_roles_are_refused(style: str) -> None:
    tokenizer = tiny.tokenizer()
    late = [*TURNS[1:], TURNS[0]]
    tool = [*TURNS, {"role": "tool", "content": "x"}]
    for encoded in encode_chats(style_template(style, tokenizer, None), tokenizer, [late, tool]):
        assert isinstance(encoded, InputRefused)
        assert "turns of a user and an assistant" in encoded.why


def fast_tokenizer(template: str) -> Any:
    """transformers' own tokenizer around the same vocabulary."""
    transformers = pytest.importorskip("transformers")
    ours = tiny.tokenizer()
    ours.backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=ours.backend, bos_token="<s>", eos_token="</s>", chat_template=template
    )


@pytest.mark.parametrize("style", sorted(SOURCES))
def test_transformers_renders_the_saved_template_alike(style: str) -> None:
    """The oracle is transformers' `apply_chat_template`, which is how vLLM and lm-eval read the folder, too."""
    tokenizer = tiny.tokenizer()
    template = style_template(style, tokenizer, None)
    theirs = fast_tokenizer(template)
    for turns, prompt in ((TURNS, False), (TURNS[:-1], True), (TURNS[1:3], False)):
        (ours,) = ChatTemplate.of(template, tokenizer).render([turns], prompt)
        assert theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt) == ours


def test_masks_are_those_of_transformers_generation_markers() -> None:
    """SmolLM2's ChatML with `{% generation %}` around what the assistant writes; transformers marks those tokens."""
    from ojak.model.tokenizer import Tokenizer

    marked = CHATML.replace(
        "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}",
        "{{ '<|im_start|>' + m['role'] + '\\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
        "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}"
        "{{ m['content'] + '<|im_end|>' + '\\n' }}{% endif %}",
    )
    theirs = fast_tokenizer(marked)
    ours = Tokenizer(theirs.backend_tokenizer, bos_id=None, eos_id=tiny.EOS, adds_bos=False)
    turns = [{key: text for key, text in turn.items() if key != "input"} for turn in TURNS]
    chats = [
        turns,
        turns[1:],
        [*turns, {"role": "user", "content": "é?"}, {"role": "assistant", "content": "\nß 날 "}],
    ]
    for chat, encoded in zip(chats, encode_chats(CHATML, ours, chats), strict=True):
        found = theirs.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
        assert not isinstance(encoded, InputRefused)
        assert encoded[0] == list(found["input_ids"])
        assert [int(is_learnt) for is_learnt in encoded[1]] == list(found["assistant_masks"])


def test_every_style_is_in_the_documented_list() -> None:
    from ojak.train import styles

    assert all(f"    {name} " in str(styles.__doc__) for name in STYLES)


@pytest.mark.real
def test_masks_of_the_real_template_are_those_of_transformers() -> None:
    """SmolLM2's own template and tokenizer, its assistant turns put between `{% generation %}` marks for the oracle."""
    transformers = pytest.importorskip("transformers")
    from ojak.model.load import read_source

    source = read_source("smollm2-135m-instruct")
    template, tokenizer = str(source.chat_template), source.tokenizer
    turn = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    said = (
        "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}{% generation %}"
        "{{message['content'] + '<|im_end|>'}}{% endgeneration %}{% else %}{{message['content'] + '<|im_end|>'}}"
        "{% endif %}{{'\n'}}"
    )
    marked = template.replace(turn, said).replace(turn.replace("\n", "\\n"), said.replace("\n", "\\n"))
    assert "{% generation %}" in marked
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, chat_template=marked)
    answers = ["Four.", "", "\n\nA list:\n- 날개\n- 3.14 ", "  indented", "def f():\n\treturn 1"]
    chats = [
        [
            turn
            for n in range(3)
            for turn in ({"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": a})
        ]
        for a in answers
    ]
    for chat, encoded in zip(chats, encode_chats(template, tokenizer, chats), strict=True):
        found = theirs.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
        assert not isinstance(encoded, InputRefused)
        assert encoded[0] == list(found["input_ids"])
        assert [int(is_learnt) for is_learnt in encoded[1]] == list(found["assistant_masks"])
