"""The process that renders chat templates.

A chat template is a program by whoever published the model. It runs here, in a process that holds nothing worth
taking and that the kernel limits: memory, CPU time, no new files. `ojak.chat.TemplateSandbox` starts it by its path
and without the package's surroundings, so this file imports Jinja and the standard library only, and it is the only
one of the project that imports Jinja.

Protocol: one JSON object a line. First comes the line `{"ready": true}`, then for each request
`{"template": source, "contexts": [...]}` one reply: `{"results": [{"text": ...} | {"kind": ..., "message": ...}]}`,
or `{"breach": "output" | "memory"}`, after which the process ends.
"""

from __future__ import annotations

import codecs
import datetime
import json
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jinja2
import jinja2.debug  # Jinja imports it at the first error, when no file can be opened any more
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox
import jinja2.utils

REMOVED_GLOBALS = ("lipsum", "cycler", "joiner")  # no chat template needs them; each is a way in or a bomb
KEPT_TEMPLATES = 8
MESSAGE_CHARS = 300
# What a template can raise. Anything else ends the process, which the other side reports as well.
TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
# Python loads a codec's file at its first use, when no file can be opened any more.
CODECS = ("ascii", "latin-1", "unicode-escape", "utf-16", "utf-32")


class Refused(jinja2.TemplateError):
    """The template called `raise_exception`: its author rules the conversation out."""


class OutputLimit(Exception):
    """The batch rendered to more text than the limit."""


class Names(jinja2.utils.Namespace):
    """`namespace` without names that begin with an underscore, on which attacks on the sandbox rest."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            check_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        check_name(name)
        super().__setitem__(name, value)


def check_name(name: Any) -> None:
    if not isinstance(name, str) or name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace may not hold the name {name!r}")


class Generation(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}`, which marks what an assistant says: rendered as if not there."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; Jinja's own filter escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def raise_exception(message: Any = "") -> NoReturn:
    raise Refused(str(message))


def make_environment(today: str) -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """The environment that published chat templates are written for; `strftime_now` always says `today` (ISO date)."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    now = datetime.datetime.fromisoformat(today)
    for name in REMOVED_GLOBALS:
        del environment.globals[name]
    environment.globals.update(
        {
            "raise_exception": raise_exception,
            "strftime_now": lambda form: now.strftime(form),
            "namespace": Names,
            "dict": lambda *args, **kwargs: dict(*args, **kwargs),
        }
    )
    environment.filters["tojson"] = tojson
    return environment


class Renderer:
    """Renders batches; keeps the last few compiled templates."""

    def __init__(self, environment: jinja2.Environment, output_chars: int) -> None:
        self.environment, self.output_chars = environment, output_chars
        self.compiled: dict[str, jinja2.Template] = {}

    def compile(self, source: str) -> jinja2.Template:
        if source not in self.compiled:
            if len(self.compiled) >= KEPT_TEMPLATES:
                self.compiled.clear()
            self.compiled[source] = self.environment.from_string(source)
        return self.compiled[source]

    def batch(self, source: str, contexts: list[dict[str, Any]]) -> list[dict[str, str]]:
        self.left = self.output_chars
        return [self.one(source, context) for context in contexts]

    def one(self, source: str, context: dict[str, Any]) -> dict[str, str]:
        try:
            return {"text": "".join(self.pieces(self.compile(source), context))}
        except (OutputLimit, MemoryError):
            raise
        except TEMPLATE_ERRORS as error:
            return {"kind": kind_of(error), "message": str(error)[:MESSAGE_CHARS]}

    def pieces(self, template: jinja2.Template, context: dict[str, Any]) -> Iterator[str]:
        for piece in template.generate(context):
            self.left -= len(piece)
            if self.left < 0:
                raise OutputLimit
            yield piece


def kind_of(error: Exception) -> str:
    kinds: list[tuple[type[Exception], str]] = [
        (Refused, "refused"),
        (jinja2.exceptions.SecurityError, "security"),
        (jinja2.TemplateSyntaxError, "syntax"),
        (jinja2.UndefinedError, "undefined"),
    ]
    return next((kind for cls, kind in kinds if isinstance(error, cls)), type(error).__name__)


def limit_process(memory_bytes: int) -> None:
    """Takes away what rendering does not need: memory, new files, writing, core dumps."""
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(kind, (0, 0))


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]], cpu_seconds: float) -> None:
    """Answers requests until the other side closes, or a request breaks a limit."""
    for line in sys.stdin.buffer:
        # SIGPROF is left at its default action, which ends the process even inside a long call in C.
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        try:
            reply = answer(json.loads(line))
            data = json.dumps(reply).encode("ascii")
        except OutputLimit:
            reply, data = {}, b'{"breach": "output"}'
        except MemoryError:
            reply, data = {}, b'{"breach": "memory"}'
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(data + b"\n")
        sys.stdout.buffer.flush()
        if not reply:
            return


def main() -> None:
    settings = json.loads(sys.argv[-1])
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    renderer = Renderer(make_environment(settings["today"]), settings["output_chars"])
    for name in CODECS:
        codecs.lookup(name)
    renderer.batch("{% for x in a %}{{ 'x' + x | trim | tojson }}{% endfor %}", [{"a": [""]}])
    limit_process(settings["memory_bytes"])
    sys.stdout.buffer.write(b'{"ready": true}\n')
    sys.stdout.buffer.flush()
    serve(
        lambda request: {"results": renderer.batch(request["template"], request["contexts"])},
        settings["cpu_seconds"],
    )


if __name__ == "__main__":
    main()
