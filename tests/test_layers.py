"""The dependency rule: which part of ojak may import which. Every import counts, inside functions too.

errors, records                              nothing of ours
_private modules                             those, and each other
artifact, ledger, chat, similarity, rules    those; formats: artifact, too; similarity: model, whose hub has embedders
sources                                      artifact, formats, and what those may
model                                        errors and private modules
engines                                      model, chat, ledger, and what those may
judge                                        engines, rules, and what those may
corpus ... web (the stages' folders)         anything above, never each other
stages, recipe, cli, __init__                anything
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "ojak"
GROUND = {"errors", "records"}
PRIVATE = "_private"
TEXT = {"artifact", "ledger", "chat", "similarity", "rules"}
BELOW_STAGES = GROUND | TEXT | {PRIVATE, "formats", "sources", "model", "engines", "judge"}
STAGES = {
    "corpus",
    "synthesize",
    "augment",
    "curate",
    "train",
    "merge",
    "evaluate",
    "export",
    "report",
    "serve",
    "web",
}
TOP = {"stages", "recipe", "cli", "__init__"}

MAY_IMPORT: dict[str, set[str]] = {
    **{part: set() for part in GROUND},
    **{part: GROUND | {PRIVATE} for part in TEXT},
    PRIVATE: GROUND | {PRIVATE},
    "formats": GROUND | {PRIVATE, "artifact"},
    "sources": GROUND | {PRIVATE, "artifact", "formats"},
    "similarity": GROUND | {PRIVATE, "model"},  # an embedder is found as every model is
    "model": {"errors", PRIVATE},
    "engines": GROUND | {PRIVATE, "model", "chat", "ledger"},
    "judge": GROUND | {PRIVATE, "model", "chat", "engines", "rules"},
    **{part: BELOW_STAGES for part in STAGES},
    **{part: BELOW_STAGES | STAGES | TOP for part in TOP},
}
BEHIND = {
    "_api": "__init__",
    "_recipe_run": "recipe",
}  # private parts of the top level
LOADS_TORCH = {"model", "engines", "train", "merge"}


def part_of(module: str) -> str:
    """The part that a name belongs to: "ojak.model.hub" to "model"; "ojak" and what it gives away to "__init__"."""
    part = module.split(".")[1] if "." in module else "__init__"
    part = BEHIND.get(part, part)
    if part.startswith("_") and not part.startswith("__"):
        return PRIVATE
    return part if part in MAY_IMPORT else "__init__"


def imported(source: str, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, full name) of everything that `source` imports: statements anywhere, and import_module("...")."""
    home = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")).lstrip(
            "_"
        ) in ("import_module", "import"):
            yield from ((node.lineno, str(arg.value)) for arg in node.args if isinstance(arg, ast.Constant))


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """The imports of `module` that break the rule, as text with line numbers."""
    part = part_of(module)
    found: list[str] = []
    for line, name in imported(source, module, is_package):
        root = name.split(".")[0]
        if root == "torch" and part not in LOADS_TORCH:
            found.append(f"{module}:{line} imports torch")
        if root == "ojak" and (other := part_of(name)) != part and other not in MAY_IMPORT[part]:
            found.append(f"{module}:{line} imports {name}")
    return found


def modules() -> Iterator[tuple[Path, str]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        names = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield path, ".".join(names[:-1] if names[-1] == "__init__" else names)


def test_every_import_obeys_the_rule() -> None:
    found = [
        line
        for path, module in modules()
        for line in violations(path.read_text("utf-8"), module, path.name == "__init__.py")
    ]
    assert found == []


def test_every_part_has_a_place() -> None:
    parts = {module.split(".")[1] for _, module in modules() if "." in module}
    assert {part for part in parts if not part.startswith("_")} <= MAY_IMPORT.keys()


@pytest.mark.parametrize(
    ("module", "source", "broken"),
    [
        ("ojak.records", "from ojak.errors import UsageError", True),
        ("ojak.ledger", "from ojak.errors import UsageError", False),
        ("ojak.ledger", "import ojak.artifact", True),
        ("ojak.formats", "from ojak import artifact", False),
        ("ojak.similarity.embedding", "from ojak.model import hub", False),
        ("ojak.similarity.minhash", "from ojak.rules import rule", True),
        ("ojak.similarity.embedding", "import torch", True),
        ("ojak.model.hub", "from ojak.similarity import normalize", True),
        ("ojak.rules.rule", "from ojak import artifact", True),
        ("ojak.rules.rule", "from ojak.rules import edits", False),
        ("ojak._recipe_run", "from ojak.stages import STAGES", False),
        ("ojak.artifact", "from ojak._recipe_run import run", True),
        ("ojak._files", "from ojak.artifact import publish", True),
        ("ojak.artifact", "from ojak._files import remove", False),
        ("ojak.model.decoder", "def f():\n    from ojak.chat import ChatPrefix", True),
        ("ojak.model.decoder", "if TYPE_CHECKING:\n    from ojak.chat import ChatPrefix", True),
        ("ojak.model.decoder", "from ..chat import ChatPrefix", True),
        ("ojak.model.decoder", "from . import attention", False),
        ("ojak.model.decoder", "from .. import engines", True),
        ("ojak.engines.native", "from ojak.rules import sanitize", True),
        ("ojak.curate.split", "from ojak.synthesize.magpie import MagpieConfig", True),
        ("ojak.curate.split", "importlib.import_module('ojak.report')", True),
        ("ojak.curate.split", "from ojak.stages import STAGES", True),
        ("ojak.curate.split", "import ojak", True),
        ("ojak.curate.split", "from ojak import read", True),
        ("ojak.cli.data", "from ojak.curate.split import split", False),
        ("ojak.cli.data", "from ojak import read", False),
        ("ojak.chat", "def f():\n    import torch.nn", True),
        ("ojak.model.decoder", "import torch", False),
    ],
)
def test_the_rule_sees(module: str, source: str, broken: bool) -> None:
    assert bool(violations(source, module)) is broken


def test_relative_imports_of_a_package_start_at_itself() -> None:
    assert violations("from . import native", "ojak.engines", is_package=True) == []
    assert violations("from .. import curate", "ojak.engines", is_package=True) != []
