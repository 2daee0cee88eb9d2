"""Prompt styles, each a chat template in plain Jinja.

The style that a model was trained with is saved as its `chat_template.jinja`: whoever runs the model, here or in
transformers, vLLM or llama.cpp, then writes the same prompt, and the model stops where it learnt to. Each answer ends
with the tokenizer's EOS.

    chat             the model's own template
    alpaca           Stanford's: one preamble for an instruction alone, another for one with an input
    alpaca-chapter7  the same with the first preamble only ("Build a Large Language Model (From Scratch)", chapter 7)
    phi-3            <|user|> and <|assistant|>: as plain text (that chapter's exercise 7.1)
    plain            question, line end, answer
    synthesizer      the published instruction synthesizer's (arXiv 2406.14491): a text, then the pairs made from it

A system turn stands in the place of Alpaca's preamble. An Alpaca row's input comes as `input` beside the question
(`formats.template_turns`); a question typed by a person has none.
"""

from __future__ import annotations

from collections.abc import Callable

from ojak.chat import ChatTemplate, ChatTokenizer, read_turn_end, special_pattern, turn_boundaries
from ojak.errors import InputRefused, UsageError

OWN = "chat"
TASK = "Below is an instruction that describes a task"
ANSWER = "Write a response that appropriately completes the request."
WITH_INPUT = f"{TASK}, paired with an input that provides further context. {ANSWER}"
WITHOUT_INPUT = f"{TASK}. {ANSWER}"

REFUSE = """{{- raise_exception('this style has turns of a user and an assistant, and a system turn before them') }}"""

ALPACA = """
{%- set found = namespace(input=false) %}
{%- for message in messages %}
{%- if message.input %}{% set found.input = true %}{% endif %}
{%- endfor %}
{%- if messages[0].role == 'system' %}
{{- messages[0].content }}
{%- elif found.input %}
{{- 'WITH_INPUT' }}
{%- else %}
{{- 'WITHOUT_INPUT' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'user' and message.input %}
{{- '\\n\\n### Instruction:\\n' + message.content[:message.content | length - message.input | length - 1] }}
{{- '\\n\\n### Input:\\n' + message.input }}
{%- elif message.role == 'user' %}
{{- '\\n\\n### Instruction:\\n' + message.content }}
{%- elif message.role == 'assistant' %}
{{- '\\n\\n### Response:\\n' + message.content + eos_token }}
{%- elif not (message.role == 'system' and loop.first) %}
REFUSE
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '\\n\\n### Response:\\n' }}
{%- endif %}
"""

TURNS = """
{%- for message in messages %}
{%- if message.role == 'system' and loop.first %}
{{- SYSTEM }}
{%- elif message.role == 'user' %}
{{- USER }}
{%- elif message.role == 'assistant' %}
{{- ASSISTANT + message.content + eos_token + ('' if loop.last and not add_generation_prompt else '\\n') }}
{%- else %}
REFUSE
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- ASSISTANT }}
{%- endif %}
"""

# Examples follow each other as there: each begins with the BOS, where the tokenizer writes one, and a space.
SYNTHESIZER = """
{%- for message in messages %}
{%- if message.role == 'user' %}
{{- ('' if loop.first else OPENING) + ' <CON> ' + message.content + ' </CON>\\n\\n' }}
{%- elif message.role == 'assistant' %}
{{- message.content + eos_token }}
{%- else %}
{{- raise_exception('this style has turns of a user and an assistant alone') }}
{%- endif %}
{%- endfor %}
"""


def _alpaca(with_input: str) -> str:
    return ALPACA.replace("WITH_INPUT", with_input, 1).replace("WITHOUT_INPUT", WITHOUT_INPUT)


def _turns(system: str, user: str, assistant: str) -> str:
    return TURNS.replace("SYSTEM", system).replace("USER", user).replace("ASSISTANT", assistant)


SOURCES: dict[str, Callable[[], str]] = {
    "alpaca": lambda: _alpaca(WITH_INPUT),
    "alpaca-chapter7": lambda: _alpaca(WITHOUT_INPUT),
    "phi-3": lambda: _turns(
        "'<|system|>\\n' + message.content + '\\n'",
        "'<|user|>\\n' + message.content + '\\n'",
        "'<|assistant|>:\\n'",
    ),
    "plain": lambda: _turns("message.content + '\\n\\n'", "message.content + '\\n'", "''"),
}
EXAMPLES = {
    "synthesizer": SYNTHESIZER
}  # rows of examples, which are no conversations: several begin with a BOS
STYLES = (OWN, *SOURCES, *EXAMPLES)


def default_style(source: str | None) -> str:
    """The style for a model with the chat template `source`: its own, or `alpaca` where it has none."""
    return OWN if source and source.strip() else "alpaca"


def style_for(objective: str, style: str | None, source: str | None) -> str | None:
    """The style of a run in which `style` (None: nothing) was asked for; the model has the chat template `source`.

    Raw text needs none: pretraining takes one, for the conversations among its data, only from the model or on demand.
    """
    found = style or default_style(source)
    return found if objective != "pretrain" or style or found == OWN else None


def style_template(name: str | None, tokenizer: ChatTokenizer, source: str | None) -> str:
    """The chat template (Jinja) of a style, for a model with this tokenizer and the chat template `source`.

    name: one of STYLES, None for the default. Raises UsageError for another name, InputRefused for `chat` where the
    model has no template, and where the tokenizer has no EOS with which an answer could end.
    """
    name = name or default_style(source)
    if name not in STYLES:
        raise UsageError(f"{name!r} is no prompt style", fix=f"use one of: {', '.join(STYLES)}")
    if name == OWN:
        return _own(source)
    if not tokenizer.eos_token:
        raise InputRefused(
            f"the style {name} cannot be used with this model",
            why="its tokenizer has no end-of-text token, so that no answer would end",
            fix="use a model whose tokenizer names an eos_token",
        )
    # A BOS in the text, so that programs that tokenize what the template renders have one; `encode_prompt` adds none.
    opening, again = ("{{- bos_token }}", "bos_token") if tokenizer.adds_bos else ("", "''")
    source = EXAMPLES[name].replace("OPENING", again) if name in EXAMPLES else SOURCES[name]()
    return opening + source.replace("REFUSE", REFUSE).strip("\n") + "\n"


def _own(source: str | None) -> str:
    if not source or not source.strip():
        others = ", ".join(SOURCES)
        raise InputRefused(
            "the model has no chat template of its own",
            why="it is a base model",
            fix=f"train it with another style: {others}",
        )
    return source


def turn_end_ids(template: str, tokenizer: ChatTokenizer) -> tuple[int, ...]:
    """The ids of the tokens with which the template ends what an assistant says: a trained model must stop at them."""
    answers = turn_boundaries(ChatTemplate.of(template, tokenizer))[1::2]
    specials = special_pattern(tokenizer)
    names = [tokens[0] for tokens, _ in (read_turn_end(text, specials) for text in answers) if tokens]
    return tuple(dict.fromkeys(tokenizer.special_tokens[name] for name in names))
