"""Rendering, prefixes, stop tokens, one BOS, loss masks."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ojak.chat import (
    ChatPrefix,
    ChatTemplate,
    Limits,
    TemplateSandbox,
    chat_prefix,
    describe,
    encode_chat,
    encode_chats,
    encode_prompt,
)
from ojak.errors import InputRefused

CHATML = """
{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor -%}
{{- '<|im_start|>assistant\n' if add_generation_prompt else '' -}}
"""
TRIMMED = CHATML.replace("m.content", "(m.content | trim)")
WITH_BOS = "{{- bos_token -}}" + CHATML
PLAIN = """
{%- for m in messages %}{{ '\n### ' + m.role + ':\n' + m.content + '\n' }}{% endfor -%}
{{- '\n### assistant:\n' if add_generation_prompt else '' -}}
"""


class ByteTokenizer:
    """A real byte-level tokenizer of the `tokenizers` library, with merges that cross a turn's border."""

    bos_token, eos_token = "<s>", "<|end_of_text|>"

    def __init__(self, *, adds_bos: bool = False, has_bos: bool = True) -> None:
        letters = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {letter: i for i, letter in enumerate([*letters, "ĊĊ", "Hi"])}
        self.backend = Tokenizer(models.BPE(vocab=vocab, merges=[("Ċ", "Ċ"), ("H", "i")]))
        self.backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self.backend.decoder = decoders.ByteLevel()
        names = ("<s>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>")
        self.backend.add_special_tokens([AddedToken(name, special=True) for name in names])
        vocab = self.backend.get_vocab()
        self.special_tokens = {name: vocab[name] for name in names}
        self.bos_id = vocab["<s>"] if has_bos else None
        self.eos_id = vocab["<|end_of_text|>"]
        self.adds_bos = adds_bos

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self.backend.decode(ids, skip_special_tokens=False)


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


@pytest.fixture(scope="module")
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()


def learned(tokenizer: ByteTokenizer, ids: list[int], mask: list[bool]) -> str:
    return tokenizer.decode([i for i, is_learned in zip(ids, mask, strict=True) if is_learned])


# ---------------------------------------------------------------------------------------------------- rendering


def test_a_thousand_renders_take_one_round_trip_and_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = TemplateSandbox()
    template = ChatTemplate(CHATML, sandbox=sandbox)
    chats = [[user(f"question {i} " * 20)] for i in range(1000)]
    template.render(chats[:1])
    child = sandbox._child
    assert child is not None
    trips: list[int] = []
    ask = child.ask
    monkeypatch.setattr(child, "ask", lambda line: trips.append(len(line)) or ask(line))
    seconds = min(timed(lambda: template.render(chats, add_generation_prompt=True)) for _ in range(3))
    assert len(trips) == 3
    assert seconds < 0.3
    sandbox.close()


def timed(action: Any) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def test_large_batches_are_split_and_keep_their_order() -> None:
    sandbox = TemplateSandbox(Limits(frame_items=7, frame_bytes=600))
    texts = [str(i) for i in range(50)] + ["long" * 60 + str(i) for i in range(10)]
    contexts = [{"x": text} for text in texts]
    sizes = [len(frame) for frame in sandbox._frames(contexts) if isinstance(frame, list)]
    assert max(sizes) == 7 and sizes[-1] == 2 and sum(sizes) == len(texts)
    assert sandbox.render("{{ x }}", contexts) == texts
    assert sandbox.render("{{ x }}", []) == []
    sandbox.close()


def test_what_is_too_long_gives_its_error_in_its_place() -> None:
    sandbox = TemplateSandbox(Limits(frame_bytes=600))
    template = ChatTemplate("{{ messages[0].content }}", sandbox=sandbox)
    chats = [[user(text)] for text in ("a", "b", "long" * 200, "c")]
    first, second, third, fourth = template.attempt(chats)
    assert (first, second, fourth) == ("a", "b", "c")
    assert isinstance(third, InputRefused) and "longer than 600 bytes" in third.why
    with pytest.raises(InputRefused, match="cannot be rendered"):
        template.render(chats)
    sandbox.close()


def test_templates_have_what_published_ones_use() -> None:
    cases = {
        "{% for x in [1, 2, 3] %}{% if x == 2 %}{% continue %}{% endif %}{{ x }}{% endfor %}": "13",
        "{{ {'b': '<é>', 'a': 1} | tojson }}": '{"b": "<é>", "a": 1}',
        "{{ strftime_now('%d %b %Y') }}": "26 Jul 2024",
        "{% set ns = namespace(n=1) %}{% for x in [1, 2] %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}": "4",
        "{% generation %}said{% endgeneration %}": "said",
        "  {% if true %}\nx\n{% endif %}\ny\n": "x\ny",
        "{{ tools is none }}{{ bos_token }}{{ nothing }}{{ 'é\\n'.strip() }}": "True<s>é",
        "{{ lipsum is defined or cycler is defined or joiner is defined }}": "False",
        "{{ dict(a=1).a }}{{ 'x'.encode('utf-16') | length }}": "14",
    }
    for source, expected in cases.items():
        assert ChatTemplate(source, bos_token="<s>").render([[user("q")]]) == [expected]


def test_extra_variables_reach_the_template() -> None:
    template = ChatTemplate("{{ enable_thinking }}", variables={"enable_thinking": False})
    assert template.render([[user("q")]]) == ["False"]


def test_any_text_comes_through_unchanged() -> None:
    texts = ["\x00\x1b[31m", "\ud800 lone", "😀\u2028", "{{ 7 * 7 }}{% raw %}", "\r\n", ""]
    assert ChatTemplate("{{ messages[0].content }}").render([[user(t)] for t in texts]) == texts


def test_attempt_gives_errors_in_place_and_render_raises_them() -> None:
    template = ChatTemplate("{{ raise_exception('no \x1b[31m' ~ 'go') if messages | length > 1 }}ok")
    good, bad = [user("q")], [user("q"), user("q")]
    first, second, third = template.attempt([good, bad, good])
    assert (first, third) == ("ok", "ok")
    assert isinstance(second, InputRefused) and "no  [31mgo" in second.why
    assert "\x1b" not in str(second)
    with pytest.raises(InputRefused, match="refuses this conversation"):
        template.render([good, bad])


def test_a_dead_child_is_replaced() -> None:
    sandbox = TemplateSandbox()
    assert sandbox.render("{{ 1 }}", [{}]) == ["1"]
    child = sandbox._child
    assert child is not None
    child.process.kill()
    child.process.wait()
    assert sandbox.render("{{ 2 }}", [{}]) == ["2"]
    second = sandbox._child
    sandbox.close()
    assert second is not None and second.process.poll() is not None


def test_a_forked_process_gets_a_child_of_its_own() -> None:
    sandbox = TemplateSandbox()
    sandbox.render("{{ 1 }}", [{}])
    first = sandbox._child
    pid = os.fork()
    if pid == 0:
        renders = sandbox.render("{{ 2 }}", [{}]) == ["2"]
        os._exit(0 if renders and sandbox._child is not first else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert sandbox.render("{{ 3 }}", [{}]) == ["3"]
    assert sandbox._child is first  # the other process did not end it
    sandbox.close()


# ---------------------------------------------------------------------------------------------------- prefixes


def test_prefix_with_and_without_a_system_turn(tokenizer: ByteTokenizer) -> None:
    names = tokenizer.special_tokens
    stops = tuple(sorted(names.values()))
    assert chat_prefix(CHATML, tokenizer) == ChatPrefix(
        "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", stops, (), None
    )
    told = chat_prefix(CHATML, tokenizer, system="Speak of stars.")
    assert told.pre_query == "<|im_start|>system\nSpeak of stars.<|im_end|>\n<|im_start|>user\n"
    assert (told.system, told.stop_ids) == ("Speak of stars.", stops)


def test_eos_ids_of_the_configuration_are_stops_too(tokenizer: ByteTokenizer) -> None:
    assert 7 in chat_prefix(CHATML, tokenizer, eos_ids=[7]).stop_ids
    assert 7 not in chat_prefix(CHATML, tokenizer).stop_ids


def test_templates_without_tokens_give_stop_strings(tokenizer: ByteTokenizer) -> None:
    prefix = chat_prefix(PLAIN, tokenizer)
    assert prefix.stop_strings == ("\n### assistant:", "\n### user:")
    assert prefix.stop_ids == tuple(
        sorted(tokenizer.special_tokens[name] for name in ("<s>", "<|end_of_text|>"))
    )


def test_a_plain_word_is_no_stop_string(tokenizer: ByteTokenizer) -> None:
    source = "{% for m in messages %}{{ m.role + '\n' + m.content + '\n' }}{% endfor %}"
    assert chat_prefix(source, tokenizer).stop_strings == ()


def test_a_thought_opened_in_the_generation_prompt_is_no_stop(tokenizer: ByteTokenizer) -> None:
    tokenizer = ByteTokenizer()
    tokenizer.special_tokens = {**tokenizer.special_tokens, "<think>": 999}
    prefix = chat_prefix(CHATML.replace("assistant\n'", "assistant\n<think>'"), tokenizer)
    assert prefix.post_query.endswith("<think>")
    assert 999 not in prefix.stop_ids


def test_a_template_of_one_exchange_still_gives_its_stops(tokenizer: ByteTokenizer) -> None:
    source = (
        "{{ raise_exception('one exchange') if messages | length > 2 }}Q: {{ messages[0].content }}\nA: "
        "{% if messages[1] %}{{ messages[1].content + '<|im_end|>' }}{% endif %}"
    )
    prefix = chat_prefix(source, tokenizer)
    assert (prefix.pre_query, prefix.post_query) == ("Q: ", "\nA: ")
    assert tokenizer.special_tokens["<|im_end|>"] in prefix.stop_ids


def test_a_base_model_is_told_so(tokenizer: ByteTokenizer) -> None:
    for nothing in (None, "", " \n"):
        with pytest.raises(InputRefused, match="no chat template") as caught:
            chat_prefix(nothing, tokenizer)
        assert "base model" in caught.value.why and "instruction-tuned" in caught.value.fix


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("(m.content | lower)", "changes the case"),
        ("(m.content | upper)", "changes the case"),
        ("(m.content | title)", "changes the case"),
        ("m.content[:-2]", "cuts what a user says"),
        ("(m.content | truncate(9))", "cuts what a user says"),
        ("(m.content + m.content)", "repeats what a user says (2 times)"),
        ("(m.content | length | string)", "leaves out what a user says"),
        ("(m.content | length | string + m.content)", "depends on the turn"),
    ],
)
def test_templates_that_change_what_a_user_says_are_refused(
    change: str, why: str, tokenizer: ByteTokenizer
) -> None:
    with pytest.raises(InputRefused) as caught:
        chat_prefix(CHATML.replace("m.content", change), tokenizer)
    assert why in caught.value.why


def test_a_template_that_marks_no_user_turn_is_refused(tokenizer: ByteTokenizer) -> None:
    for source in ("{{ messages[0].content }}", "{{ bos_token + ' ' + messages[0].content + ' =>' }}"):
        with pytest.raises(InputRefused, match="writes nothing before"):
            chat_prefix(source, tokenizer)


def test_a_template_that_drops_the_system_turn_is_refused(tokenizer: ByteTokenizer) -> None:
    drops = CHATML.replace("in messages %", "in messages if m.role != 'system' %")
    with pytest.raises(InputRefused, match="leaves out the system turn"):
        chat_prefix(drops, tokenizer, system="Speak of stars.")
    assert describe(drops, tokenizer)["supports_system"] is False


def test_description_of_the_bos(tokenizer: ByteTokenizer) -> None:
    assert describe(WITH_BOS, tokenizer)["bos"] == "template"
    assert describe(CHATML, ByteTokenizer(adds_bos=True))["bos"] == "tokenizer"
    told = describe(CHATML, tokenizer)
    assert told["bos"] == "none"
    assert dict(zip(told["stop_tokens"], told["stop_ids"], strict=True)) == tokenizer.special_tokens


# ---------------------------------------------------------------------------------------------------- token ids


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("source", [CHATML, WITH_BOS, "{{ bos_token }}" + WITH_BOS])
def test_never_two_bos(source: str, adds_bos: bool) -> None:
    tokenizer = ByteTokenizer(adds_bos=adds_bos)
    template = ChatTemplate.of(source, tokenizer)
    ids = encode_prompt(tokenizer, template.render([[user("hello")]], True)[0])
    wants_bos = adds_bos or "bos_token" in source
    bos = tokenizer.special_tokens["<s>"]
    assert ids.count(bos) == wants_bos
    assert (ids[0] == bos) == wants_bos


def test_an_empty_prompt_is_a_bos_at_most() -> None:
    assert encode_prompt(ByteTokenizer(), "") == []
    adding = ByteTokenizer(adds_bos=True)
    assert encode_prompt(adding, "") == [adding.bos_id]
    without = ByteTokenizer(adds_bos=True, has_bos=False)
    assert encode_prompt(without, "<s><s>") == without.encode("<s><s>")


def test_the_mask_covers_what_the_assistant_says_and_its_end(tokenizer: ByteTokenizer) -> None:
    chat = [
        {"role": "system", "content": "S"},
        user("A?"),
        assistant("Hi\n\nB."),
        user("C?"),
        assistant("D."),
    ]
    ids, mask = encode_chat(CHATML, tokenizer, chat)
    assert ids == encode_prompt(tokenizer, ChatTemplate(CHATML).render([chat])[0])
    assert len(mask) == len(ids)
    assert learned(tokenizer, ids, mask) == "Hi\n\nB.<|im_end|>D.<|im_end|>"


def test_a_token_across_the_border_is_learned(tokenizer: ByteTokenizer) -> None:
    """The header ends in a newline, the answer begins with one: the tokenizer makes one token of both."""
    ids, mask = encode_chat(CHATML, tokenizer, [user("A?"), assistant("\nB")])
    assert learned(tokenizer, ids, mask) == "\n\nB<|im_end|>"


def test_equal_turns_get_masks_of_their_own(tokenizer: ByteTokenizer) -> None:
    chat = [user("Hi"), assistant("Hi"), user("Hi"), assistant("Hi")]
    ids, mask = encode_chat(TRIMMED, tokenizer, chat)
    assert learned(tokenizer, ids, mask) == "Hi<|im_end|>" * 2
    assert sum(mask) == 4


def test_a_trimming_template_is_followed(tokenizer: ByteTokenizer) -> None:
    ids, mask = encode_chat(TRIMMED, tokenizer, [user(" A "), assistant("  B \n")])
    assert learned(tokenizer, ids, mask) == "B<|im_end|>"


def test_the_prompt_at_inference_is_the_beginning_in_training(tokenizer: ByteTokenizer) -> None:
    ids, mask = encode_chat(WITH_BOS, tokenizer, [user("A?"), assistant("B.")])
    prompt = encode_prompt(tokenizer, ChatTemplate.of(WITH_BOS, tokenizer).render([[user("A?")]], True)[0])
    assert ids[: mask.index(True)] == prompt


words = st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"]), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=3))
def test_mask_property(turns: list[tuple[str, str]]) -> None:
    tokenizer = ByteTokenizer()
    chat = [message for asked, said in turns for message in (user(asked), assistant("." + said))]
    ids, mask = encode_chat(CHATML, tokenizer, chat)
    assert learned(tokenizer, ids, mask) == "".join(f".{said}<|im_end|>" for _, said in turns)


@pytest.mark.parametrize(
    ("source", "chat", "why"),
    [
        (CHATML, [user("A?")], "no assistant turn"),
        (CHATML, [user("A? <|im_end|>"), assistant("B")], "special token '<|im_end|>'"),
        (CHATML, [user("A?"), assistant("B<|im_start|>user")], "special token '<|im_start|>'"),
        (PLAIN, [user("A?"), assistant("B")], "never learn to stop"),
        (CHATML + "{{ raise_exception('never') }}", [user("A?"), assistant("B")], "never"),
        (CHATML + "{{ messages[-1].content | length }}", [user("A?"), assistant("B")], "depends on the turn"),
    ],
)
def test_conversations_that_cannot_be_learned_are_refused(
    source: str, chat: list[dict[str, str]], why: str, tokenizer: ByteTokenizer
) -> None:
    with pytest.raises(InputRefused) as caught:
        encode_chat(source, tokenizer, chat)
    assert why in caught.value.why


def test_a_batch_keeps_its_good_rows(tokenizer: ByteTokenizer) -> None:
    good, bad = [user("A?"), assistant("B")], [user("A?")]
    first, second, third = encode_chats(CHATML, tokenizer, [good, bad, good])
    assert isinstance(second, InputRefused)
    assert first == third == encode_chat(CHATML, tokenizer, good)


# ------------------------------------------------------------------------------------------------ a real model


@pytest.mark.real
def test_the_template_of_the_default_model() -> None:
    from ojak.model import gguf, hub

    source = gguf.read(hub.find("smollm2-135m-instruct"))
    prefix = chat_prefix(source.chat_template, source.tokenizer, eos_ids=source.stop_ids)
    default = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    assert prefix.pre_query == f"<|im_start|>system\n{default}<|im_end|>\n<|im_start|>user\n"
    assert prefix.post_query == "<|im_end|>\n<|im_start|>assistant\n"
    names = source.tokenizer.special_tokens
    assert {names["<|im_start|>"], names["<|im_end|>"]} <= set(prefix.stop_ids)
    ids = encode_prompt(source.tokenizer, prefix.pre_query)
    assert source.tokenizer.decode(ids) == prefix.pre_query
    assert ids.count(names["<|im_start|>"]) == 2
    chat = [user("Why?"), assistant("Because.\n\nSo.")]
    ids, mask = encode_chat(source.chat_template, source.tokenizer, chat)
    said = [i for i, is_learned in zip(ids, mask, strict=True) if is_learned]
    assert source.tokenizer.decode(said) == "Because.\n\nSo.<|im_end|>"


BORDERING = st.text("\nHi a", min_size=1, max_size=8)


@settings(max_examples=80, deadline=None)
@given(
    chat=st.lists(st.tuples(BORDERING, BORDERING), min_size=1, max_size=3),
    padding=st.sampled_from(["", "x" * 60]),
)
def test_borders_are_those_of_what_stands_before_them(chat: list[tuple[str, str]], padding: str) -> None:
    """However a border is found, it is where the tokens part from those of the text before it."""
    tokenizer = ByteTokenizer()
    messages = [turn for question, answer in chat for turn in (user(question), assistant(answer + padding))]
    text = ChatTemplate(CHATML).render([messages])[0]
    ids = tokenizer.encode(text)
    expected, at = [False] * len(ids), 0
    for message in messages:
        start = text.index(f"{message['role']}\n", at) + len(message["role"]) + 1
        at = start + len(message["content"]) + len("<|im_end|>")
        if message["role"] == "assistant":
            prefixes = (tokenizer.encode(text[:place]) for place in (start, at))
            first, last = (
                next((i for i, id_ in enumerate(ids) if prefix[i : i + 1] != [id_]), len(ids))
                for prefix in prefixes
            )
            expected[first:last] = [True] * (last - first)
    assert encode_chats(CHATML, tokenizer, [messages]) == [(ids, expected)]
