"""An Ollama Modelfile: a chat template in Ollama's own language, and what ends an answer.

Ollama renders Go templates. For a template with .System, .Prompt and .Response it writes one piece of text a round (a
question and its answer), the system text in the first, and stops at .Response in the last. The pieces are found by
rendering the model's own template with words that no text holds; then several conversations are rendered both ways,
and a model whose template cannot be told in these terms is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from ojak.chat import ChatTemplate, split_at, turn
from ojak.errors import InputRefused

MOST_CONTEXT = 8192  # tokens; Ollama takes memory for all of it at once


@dataclass(frozen=True, slots=True)
class Round:
    """The texts of a round: around the system text (empty where there is none), the question, and the answer."""

    before_system: str
    after_system: str
    before_prompt: str
    after_prompt: str
    after_response: str

    def render(self, system: str | None, turns: Sequence[str]) -> str:
        """What Ollama writes for questions and answers in turn, up to the answer that is to come."""
        text = "" if system is None else f"{self.before_system}{system}{self.after_system}"
        for at in range(0, len(turns), 2):
            text += f"{self.before_prompt}{turns[at]}{self.after_prompt}"
            if at + 1 < len(turns):
                text += f"{turns[at + 1]}{self.after_response}"
        return text


def modelfile(
    template: ChatTemplate,
    weights: str,
    *,
    stops: Sequence[str],
    context: int,
    default_system: str | None,
    bos: str,
) -> str:
    """The Modelfile of a model in the file `weights` beside it. Raises InputRefused for a template of another form.

    default_system: the system text that the template writes where nobody gives one. bos: what Ollama puts before a
    text by itself, "" for nothing.
    """
    found = read_round(template, default_system, bos)
    system = f"{{{{ if .System }}}}{_go(found.before_system)}{{{{ .System }}}}{_go(found.after_system)}{{{{ end }}}}"
    text = (
        f"{system if found.before_system or found.after_system else ''}{_go(found.before_prompt)}{{{{ .Prompt }}}}"
        f"{_go(found.after_prompt)}{{{{ .Response }}}}{_go(found.after_response)}"
    )
    lines = [f"FROM ./{weights}", f"TEMPLATE {_quoted(text)}"]
    if default_system:
        lines.append(f"SYSTEM {_quoted(default_system)}")
    lines += [f"PARAMETER stop {_one_line(stop)}" for stop in stops]
    return "\n".join([*lines, f"PARAMETER num_ctx {min(context, MOST_CONTEXT)}", ""])


def read_round(template: ChatTemplate, default_system: str | None, bos: str) -> Round:
    """The texts of a round, proven on conversations of one to three questions. Raises InputRefused."""
    one, two = template.layout(1), template.layout(2)
    _, mark = template.sentinels()
    closed = template.render([[turn("user", "1"), turn("assistant", mark)]])[0].partition(mark)[2]
    after_response = closed if two[2].startswith(closed) else _without_end(two[2], one[0])
    before_prompt, after_prompt = two[2].removeprefix(after_response), one[1]
    before_system = after_system = ""
    system_mark = mark[::-1]  # `mark` itself is what a prefix is found by
    asked = default_system if default_system is not None else _system_mark(template, system_mark)
    if asked is not None:
        opening = template.render(
            [[turn("system", system_mark), turn("user", "")]], add_generation_prompt=True
        )[0]
        before, after = split_at(opening, system_mark)
        before_system = before.removeprefix(bos)
        after_system = after.removesuffix(before_prompt + after_prompt)
    found = Round(before_system, after_system, before_prompt, after_prompt, after_response)
    _prove(found, template, default_system, bos, has_system=asked is not None)
    return found


def _without_end(text: str, end: str) -> str:
    """`text` up to where it has its longest end in common with `end`."""
    size = next(
        size for size in range(min(len(text), len(end)), -1, -1) if text.endswith(end[len(end) - size :])
    )
    return text[: len(text) - size]


def _system_mark(template: ChatTemplate, mark: str) -> str | None:
    """Something to say in the system turn, None for a template without one."""
    try:
        template.prefix(mark)
    except InputRefused:
        return None
    return mark


def _prove(
    found: Round, template: ChatTemplate, default_system: str | None, bos: str, *, has_system: bool
) -> None:
    said = ("What is\n it?", "This.", "And {{ that }}?", "No.", "Why?")
    systems = [None, "Be brief."] if has_system else [None]
    for system in systems:
        for count in (1, 3, 5):
            opening = [] if system is None else [turn("system", system)]
            turns = [
                turn(role, text) for role, text in zip(("user", "assistant") * 3, said[:count], strict=False)
            ]
            (own,) = template.render([[*opening, *turns]], add_generation_prompt=True)
            ollama = found.render(default_system if system is None else system, said[:count])
            if own.removeprefix(bos) != ollama:
                _refuse(f"a conversation of {count} turns would read {ollama[:200]!r}, not {own[:200]!r}")


def _refuse(why: str) -> NoReturn:
    raise InputRefused(
        "this model's chat template cannot be told in Ollama's terms", why=why,
        fix="use --format gguf: llama.cpp runs the template itself",
    )  # fmt: skip


def _go(text: str) -> str:
    """A text within a Go template, where double braces would act."""
    return text.replace("{{", '{{ "{{" }}')


def _quoted(text: str) -> str:
    if '"""' in text:
        _refuse('it holds """, which ends a text in a Modelfile')
    return f'"""{text}"""'


def _one_line(text: str) -> str:
    if "\n" in text or '"' in text:
        return _quoted(text)
    return f'"{text}"'
