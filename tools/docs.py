"""Writes the parts of the documentation that come from the code: the source tree, the commands, the tables.

    python -m tools.docs            write them again
    python -m tools.docs --check    say which are out of date, and fail if any is

A part stands between `<!-- generated: NAME -->` and `<!-- end -->`, in any Markdown file of `pages()`.
"""

from __future__ import annotations

import ast
import json
import re
import sys
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
GOLDEN = "tests/data/golden_prefixes.json"

# The order in which data flow; what is not listed here comes last, by name.
PARTS = (
    "cli", "recipe", "stages", "records", "artifact", "ledger", "formats", "sources", "chat", "errors", "similarity",
    "rules", "judge", "model", "engines", "corpus", "synthesize", "augment", "curate", "train", "merge",
    "evaluate", "export", "report", "serve", "web",
)  # fmt: skip
# What a reader comes for first, in the folders that hold it.
HEARTS = {"model": ("decoder", "generate"), "synthesize": ("magpie",)}
FOLDERS = {
    "recipes": "YAML, each says in its first lines how it differs from the one it grew from",
    "tests": "mirrors ojak; attacks on its inputs, faults, parity with transformers and llama.cpp",
    "benchmarks": "a script for each claim about speed, peers measured in the same run",
    "docs": "a tour in the order in which data flow",
    "experiments": "what was tried, with dates, what failed included",
    "tools": "what make runs on the project itself",
}


def pages() -> list[Path]:
    """The Markdown files of the project's own documentation."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def refreshed(text: str) -> str:
    """`text` with every generated part as the code has it now. Raises KeyError for a part that nobody makes."""
    return BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found['name']]()}{found[3]}", text)


def stale() -> list[Path]:
    """The pages whose generated parts are out of date."""
    return [page for page in pages() if refreshed(page.read_text("utf-8")) != page.read_text("utf-8")]


# ------------------------------------------------------------------------------------------------------- the source


def tree() -> str:
    """The package and its neighbours, a line each, with the first sentence of each docstring."""
    names = {path.stem: path for path in (ROOT / "ojak").iterdir() if _is_part(path)}
    listed = [name for name in PARTS if name in names]
    rows = [("ojak/", "")]
    for name in [*listed, *sorted(names.keys() - set(PARTS))]:
        rows.append((f"  {_label(names[name])}", _summary(names[name])))
        hearts = [names[name] / f"{heart}.py" for heart in HEARTS.get(name, ())]
        rows += [(f"    {_label(heart)}", _summary(heart)) for heart in hearts]
    rows += [(f"{name}/", what) for name, what in FOLDERS.items() if (ROOT / name).is_dir()]
    return "```\n" + "".join(f"{label:<17}{what}".rstrip() + "\n" for label, what in rows) + "```\n"


def _is_part(path: Path) -> bool:
    if path.name.startswith("_"):
        return False
    return path.suffix == ".py" or (path / "__init__.py").is_file()


def _label(path: Path) -> str:
    return f"{path.name}/" if path.is_dir() else path.name


def _summary(path: Path) -> str:
    """The first sentence of a module's docstring."""
    source = path / "__init__.py" if path.is_dir() else path
    docstring = ast.get_docstring(ast.parse(source.read_text("utf-8"))) or ""
    paragraph = " ".join(docstring.partition("\n\n")[0].split())
    return re.split(r"(?<=[.])\s|\.$", paragraph, maxsplit=1)[0].rstrip(".")


# ------------------------------------------------------------------------------------------------------- the tables


def stages() -> str:
    """The table of stages, as `ojak/stages/` has it."""
    from ojak.stages import STAGES

    rows = [
        (f"`{stage.name}`", stage.what, ", ".join(stage.reads) or "-", stage.writes, _codes(stage.fields()))
        for stage in STAGES
    ]
    return _table(("stage", "what it does", "reads", "writes", "settings"), rows)


def rules() -> str:
    """Every rule on instructions and responses, in the order in which they run."""
    from ojak.rules import MAGPIE_RULES, RESPONSE_RULES

    rows = [(f"`{r.name}`", r.action, r.what, r.why) for r in (*MAGPIE_RULES, *RESPONSE_RULES)]
    return _table(("reason code", "action", "what", "why"), rows)


def models() -> str:
    """The models that have names."""
    from ojak.model.known import KNOWN

    rows = [
        (f"`{each.name}`", each.what, f"{each.size / 1e6:.0f} MB", f"[{each.license}]({each.license_url})")
        for each in KNOWN.values()
    ]
    return _table(("name", "what", "size", "licence"), rows)


def grids() -> str:
    """The presets of `--grid`."""
    from ojak.synthesize.grids import PRESETS

    rows = [
        (f"`{name}`", str(len(cells)), ", ".join(f"{t:g}:{p:g}" for t, p in dict.fromkeys(cells)))
        for name, cells in PRESETS.items()
    ]
    return _table(("preset", "cells", "temperature:top-p, without repeats"), rows)


def filter_rules() -> str:
    """The rules of filter recipes, and what each takes."""
    from ojak.curate.filters import RULES

    rows = [
        (f"`{name}`", rule.what, _codes([field.alias or key for key, field in rule.model_fields.items()]))
        for name, rule in RULES.items()
    ]
    return _table(("rule", "a row passes if", "settings"), rows)


def presets() -> str:
    """The filter recipes that come with ojak."""
    from ojak.curate.recipe import load_recipe
    from ojak.curate.recipe import presets as names

    recipes = [load_recipe(name) for name in names()]
    rows = [(f"`{r.name}`", r.about, _codes([rule.name for rule in r.rules]), r.source) for r in recipes]
    return _table(("recipe", "keeps", "rules, in order", "source"), rows)


def train_settings() -> str:
    """Every setting of a training run with its default."""
    from ojak.train.config import TrainConfig

    return _table(("setting", "default"), list(_settings(TrainConfig)))


def _settings(kind: Any, before: str = "") -> Iterator[tuple[str, str]]:
    """(name, default) of all settings, those within others under their names."""
    from pydantic import BaseModel

    for name, field in kind.model_fields.items():
        kinds = (field.annotation, *typing.get_args(field.annotation))
        inner = next((each for each in kinds if isinstance(each, type) and issubclass(each, BaseModel)), None)
        if inner is not None:
            yield from _settings(inner, f"{before}{name}.")
        else:
            default = (
                "required"
                if field.is_required()
                else f"`{json.dumps(field.get_default(call_default_factory=True))}`"
            )
            yield f"`{before}{name}`", default.replace("`null`", "")


def prefixes() -> str:
    """What the templates of thirteen families render, and where the paper's scripts differ."""
    families: list[dict[str, Any]] = json.loads((ROOT / GOLDEN).read_text("utf-8"))["families"]
    rows = [
        (family["models"], _text(family["template"]["pre_query"]), _text(family["scripts"]["pre_query"]))
        for family in families
    ]
    rows = [(models, ours, "the same" if theirs == ours else theirs) for models, ours, theirs in rows]
    return _table(("models", "pre-query text, as the template renders it", "in the paper's scripts"), rows)


def _text(value: str) -> str:
    """A text as a line of code in a table's cell."""
    return "`" + value.replace("\n", "\\n").replace("|", "\\|") + "`"


def _codes(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "-"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


# ----------------------------------------------------------------------------------------------------- the commands


def commands() -> str:
    """Every command with its help and its options."""
    from typer.main import get_command

    from ojak.cli.app import app

    return "\n".join(_command(name, command) for name, command in leaves("ojak", get_command(app)))


def leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """(full name, command) of every command that does something; groups come first, as data flow."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, below in sorted(command.commands.items(), key=lambda item: not hasattr(item[1], "commands")):
        yield from leaves(f"{name} {word}", below)


def _command(name: str, command: Any) -> str:
    arguments = [_metavar(p) for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    usage = " ".join([name, *arguments, *(["[OPTIONS]"] if options else [])])
    parts = [f"## {name}\n", f"```\n{usage}\n```\n", f"{(command.help or '').strip()}\n"]
    if options:
        parts.append(_table(("option", "default", ""), [_option(option) for option in options]))
    return "\n".join(parts)


def _option(option: Any) -> tuple[str, str, str]:
    names = "/".join([*option.opts, *option.secondary_opts])
    default = "required" if option.required else _default(option)
    return _text(f"{names} {_metavar(option)}".strip()), default, (option.help or "").replace("|", "\\|")


def _metavar(param: Any) -> str:
    """What stands for the value of a parameter: its own word, its choices, or its type; nothing for a switch."""
    kind = param.type_descriptor.annotation
    if param.metavar or kind is bool:
        return param.metavar or ""
    choices = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return "|".join(choices)
    named = [each for each in (choices or [kind]) if each is not type(None)]
    known = {int: "N", float: "X"}
    return known.get(named[0], str(param.name).upper())


def _default(option: Any) -> str:
    value = option.default
    return "" if value is None or value is False or callable(value) else f"`{value}`"


BLOCKS: dict[str, Callable[[], str]] = {
    "tree": tree,
    "commands": commands,
    "stages": stages,
    "rules": rules,
    "models": models,
    "grids": grids,
    "filter-rules": filter_rules,
    "presets": presets,
    "train-settings": train_settings,
    "prefixes": prefixes,
}


def main(arguments: Sequence[str]) -> int:
    found = stale()
    if "--check" in arguments:
        for page in found:
            print(f"out of date: {page.relative_to(ROOT)}; `make docs` writes it again", file=sys.stderr)
        return 1 if found else 0
    for page in found:
        page.write_text(refreshed(page.read_text("utf-8")), "utf-8")
        print(f"wrote {page.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
