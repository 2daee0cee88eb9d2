"""Hostile chat templates: each ends in InputRefused, in bounded time and memory, and the sandbox works afterwards."""

from __future__ import annotations

import ast
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import ojak
from ojak.chat import ChatTemplate, Limits, TemplateSandbox
from ojak.errors import InputRefused

LIMITS = Limits(cpu_seconds=1.0)
SECONDS = 15.0  # of the clock: a busy machine takes a while for one second of CPU
NESTED = "{% for a in range(99999) %}" * 3 + "BODY" + "{% endfor %}" * 3
MESSAGES = [{"role": "user", "content": "hello"}]

BOMBS = {
    "memory": "{{ ('a' * 2000000000) | length }}",
    "memory by doubling": "{% set ns = namespace(s='ab') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "memory by list": "{{ ([0] * 900000000) | length }}",
    "memory by width": "{{ '%2000000000d' % 1 }}",
    "memory by format": "{{ '{:>2000000000}'.format(1) }}",
    "memory by join": "{{ range(99999) | join('a' * 99999) | length }}",
    "memory by center": "{{ 'a' | center(2000000000) | length }}",
    "time": NESTED.replace("BODY", ""),
    "time in C": "{{ 10 ** (10 ** 9) }}",
    "time at compilation": "{{ messages if 7 ** (7 ** 11) else 1 }}",
    "time by sort": NESTED.replace("BODY", "{{ range(99999) | sort | first }}"),
    "range": "{{ range(10 ** 12) | list | length }}",
    "output": NESTED.replace("BODY", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
    "output at once": "{{ 'a' * 20000000 }}",
    "recursion of a macro": "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}",
    "recursion of a loop": "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}",
    "nesting of brackets": "{{ " + "(" * 30000 + "1" + ")" * 30000 + " }}",
    "nesting of blocks": "{% if 1 %}" * 9000 + "{% endif %}" * 9000,
    "nesting of lists": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "sum": "{{ " + "1+" * 60000 + "1 }}",
    "html words": "{{ lipsum(n=10000000) }}",
}

INJECTIONS = {
    "class": "{{ ''.__class__ }}",
    "mro": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "subscript": "{{ ''['__class__']['__base__'] }}",
    "attr filter": "{{ '' | attr('__class__') }}",
    "attr filter, joined": "{{ '' | attr('__cl' ~ 'ass__') }}",
    "map attribute": "{{ [''] | map(attribute='__class__') | list }}",
    "group by": "{{ [''] | groupby('__class__') }}",
    "lipsum": "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "joiner": "{{ joiner.__init__.__globals__.os.popen('id').read() }}",
    "namespace": "{{ namespace.__init__.__globals__.os.popen('id').read() }}",
    "namespace set": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "namespace call": "{{ namespace(__class__=1) }}",
    "function globals": "{{ raise_exception.__globals__ }}",
    "function code": "{{ strftime_now.__code__ }}",
    "func_globals": "{{ raise_exception.func_globals }}",
    "self": "{{ self.__init__.__globals__ }}",
    "self, private": "{{ self._TemplateReference__context }}",
    "macro": "{% macro m() %}{% endmacro %}{{ m.__call__.__globals__ }}",
    "macro, private": "{% macro m() %}{% endmacro %}{{ m._func.__globals__ }}",
    "loop": "{% for i in [1] %}{{ loop.__init__.__globals__ }}{% endfor %}",
    "format": "{{ '{0.__class__}'.format('') }}",
    "format map": "{{ '{a.__class__.__mro__}'.format_map({'a': ''}) }}",
    "format by filter": "{{ (['{0.__class__}'] | map('attr', 'format') | list | first)('') }}",
    "format, indirect": "{% set f = '{0.__class__.__mro__}'.format %}{{ f('') }}",
    "format through attr": "{{ ('{0.__class__}' | attr('format'))('') }}",
    "mro of a type": "{{ dict.mro() }}",
    "generator": "{{ (x for x in []).gi_frame }}",
    "mutation": "{{ messages.append(1) }}",
    "mutation of a turn": "{{ messages[0].update({'role': 'system'}) }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os }}",
    "from import": "{% from 'os' import system %}{{ system('id') }}",
    "extends": "{% extends '/etc/passwd' %}",
    "request": "{{ request.application.__globals__ }}",
    "config": "{{ config.items() }}",
    "builtins": "{{ __builtins__ }}{{ open('/etc/passwd') }}",
    "codec that needs a file": "{{ 'a'.encode('idna') }}",
}
REVEALED = ("<class", "<type", "uid=", "root:", "<function", "<module", "<frame", "<code")


@pytest.fixture(scope="module")
def sandbox() -> Iterator[TemplateSandbox]:
    sandbox = TemplateSandbox(LIMITS)
    yield sandbox
    sandbox.close()


def works(sandbox: TemplateSandbox) -> bool:
    return sandbox.render("{{ messages[0].content }}!", [{"messages": MESSAGES}]) == ["hello!"]


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_end_in_time_and_memory(name: str, sandbox: TemplateSandbox) -> None:
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with pytest.raises(InputRefused) as caught:
        sandbox.render(BOMBS[name], [{"messages": MESSAGES}])
    assert time.monotonic() - start < SECONDS
    assert caught.value.why and caught.value.fix and caught.value.exit_code == 9
    assert works(sandbox)
    # The largest of all children so far, those of other tests too, in KiB. A child begins as a copy of this process.
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    known = max(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert largest <= known or largest * 1024 < Limits().memory_bytes * 1.1


@pytest.mark.parametrize("name", INJECTIONS)
def test_injections_are_refused_or_reveal_nothing(name: str, sandbox: TemplateSandbox) -> None:
    (result,) = sandbox.attempt(INJECTIONS[name], [{"messages": MESSAGES}])
    shown = result if isinstance(result, str) else result.why
    assert not any(sign in shown for sign in REVEALED)
    assert works(sandbox)


@pytest.mark.parametrize("name", ["mro", "self", "loop", "macro", "namespace set", "format map", "mutation"])
def test_the_sandbox_says_what_it_forbids(name: str, sandbox: TemplateSandbox) -> None:
    with pytest.raises(InputRefused, match="sandbox forbids"):
        sandbox.render(INJECTIONS[name], [{"messages": MESSAGES}])


def test_what_one_template_does_is_not_seen_by_the_next(sandbox: TemplateSandbox) -> None:
    sandbox.attempt("{% set messages = [] %}{% set range = 1 %}{{ range }}", [{"messages": MESSAGES}])
    assert sandbox.render("{{ range(3) | list }}{{ x is defined }}", [{}]) == ["[0, 1, 2]False"]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{# " + "a" * Limits().template_bytes + " #}", "the limit is"),
        (b"{{ '\xff\xfe' }}", "not valid UTF-8"),
        ("{{ '\ud800' }}", "not valid UTF-8"),
        ("{% if %}", "not valid Jinja"),
        ("{{ unknown() }}", "does not exist"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages['x'] + 1 }}", "does not exist"),
        ("{{ 1 + 'a' }}", "TypeError"),
    ],
)
def test_templates_that_are_none(source: str, why: str, sandbox: TemplateSandbox) -> None:
    with pytest.raises(InputRefused) as caught:
        sandbox.render(source, [{"messages": MESSAGES}])
    assert why in caught.value.why
    assert works(sandbox)


def test_an_oversized_conversation_is_refused(sandbox: TemplateSandbox) -> None:
    with pytest.raises(InputRefused, match="bytes cannot be rendered"):
        sandbox.render("{{ x | length }}", [{"x": "a" * (Limits().frame_bytes + 1)}])
    assert works(sandbox)


def test_a_bomb_in_the_middle_of_a_batch_stops_the_batch(sandbox: TemplateSandbox) -> None:
    source = "{% if bomb %}" + BOMBS["time"] + "{% endif %}fine"
    with pytest.raises(InputRefused, match="longer than the sandbox allows"):
        sandbox.render(source, [{"bomb": i == 5} for i in range(10)])
    assert works(sandbox)


def test_the_wall_clock_limit_holds_where_no_cpu_is_used() -> None:
    sandbox = TemplateSandbox(Limits(wall_seconds=0.5))
    assert works(sandbox)
    child = sandbox._child
    assert child is not None
    os.kill(child.process.pid, 19)  # SIGSTOP: it neither answers nor works
    start = time.monotonic()
    with pytest.raises(InputRefused, match="longer than the sandbox allows"):
        sandbox.render("{{ 1 }}", [{}])
    assert time.monotonic() - start < 5
    assert works(sandbox)
    sandbox.close()


def test_an_interrupted_batch_leaves_no_stale_reply(
    sandbox: TemplateSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert works(sandbox)
    child = sandbox._child
    assert child is not None

    def interrupt(deadline: float) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(child, "_read_line", interrupt)
    with pytest.raises(KeyboardInterrupt):
        sandbox.render("{{ 'stale' }}", [{}])
    assert works(sandbox)


def test_the_child_holds_nothing_worth_taking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    sandbox = TemplateSandbox()
    assert works(sandbox)
    child = sandbox._child
    assert child is not None
    proc = Path("/proc") / str(child.process.pid)
    assert b"hunter2" not in (proc / "environ").read_bytes()
    assert os.readlink(proc / "cwd") == "/"
    limits = {line[:25].strip(): line[26:].split()[0] for line in (proc / "limits").read_text().splitlines()}
    assert limits["Max open files"] == limits["Max file size"] == limits["Max core file size"] == "0"
    assert limits["Max address space"] == str(Limits().memory_bytes)
    held = [os.readlink(link) for link in (proc / "fd").iterdir()]
    assert all(target.startswith("socket:") or target == "/dev/null" for target in held)
    sandbox.close()


def test_the_child_ends_with_its_owner() -> None:
    sandbox = TemplateSandbox()
    assert works(sandbox)
    child = sandbox._child
    assert child is not None
    process = child.process
    del sandbox, child
    assert process.wait(timeout=10) != 0


def test_hostile_prefixes_are_refused(sandbox: TemplateSandbox) -> None:
    for source in (BOMBS["memory"], BOMBS["time"], INJECTIONS["mro"], "", "{{ messages[0].content[:3] }}"):
        with pytest.raises(InputRefused):
            ChatTemplate(source, sandbox=sandbox).prefix()


def test_only_the_child_renders_templates_that_are_not_ours() -> None:
    """Jinja is imported by the child, which makes one sandboxed environment, and by the report, for its own page, and where lm-eval runs."""
    root = Path(ojak.__path__[0])
    trees = {
        path.relative_to(root).as_posix(): ast.parse(path.read_text("utf-8")) for path in root.rglob("*.py")
    }
    assert {name for name, tree in trees.items() if imports_jinja(tree)} <= {
        "_template_child.py",
        "evaluate/harness_child.py",  # in a process of its own, in place of lm-eval's unguarded environment
        "report/html.py",
    }
    assert [name for name, tree in trees.items() if "from_string" in called(tree)] == ["_template_child.py"]
    made = [
        name for name in called(trees["_template_child.py"]) if name.endswith(("Environment", "Template"))
    ]
    assert made == ["ImmutableSandboxedEnvironment"]


def imports_jinja(tree: ast.Module) -> bool:
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return any(name.split(".")[0] == "jinja2" for name in names)


def called(tree: ast.Module) -> list[str]:
    """The last names of all that is called: `x.y.z()` gives z."""
    functions = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in functions]
