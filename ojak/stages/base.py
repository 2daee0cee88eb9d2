"""What a stage is: a row of the table, the work that it is given, and what it says of its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ojak._progress import Listener, silent
from ojak._settings import Settings


def all_of(_settings: Settings, before: Sequence[str]) -> Sequence[str]:
    """What a stage takes whose settings name no other: every result that it can take."""
    return before


def no_files(_settings: Settings) -> Mapping[str, str | None]:
    """What a stage reads whose settings name no file."""
    return {}


def nothing(_values: Mapping[str, Any], _stage: str) -> Mapping[str, Any]:
    """What a stage lends that gives no other any settings."""
    return {}


def open_result(folder: Path) -> None:
    """Raise VerificationFailed where the artifact in `folder` is damaged, as far as sizes tell."""
    from ojak.artifact import Artifact

    Artifact.open(folder)


@dataclass(frozen=True, slots=True)
class Job:
    """One stage of one run. `inputs`: the result folders of the stages that it reads, by name.

    `notify` is told in a line what a person may want to know, `progress` how far the work is.
    """

    settings: Settings
    out: Path
    inputs: Mapping[str, Path] = field(default_factory=dict)
    accept_license: tuple[str, ...] = ()
    notify: Callable[[str], None] = silent
    progress: Listener | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a stage says of its result: facts for `--json`, and the budget that stopped it early, if one did."""

    facts: dict[str, Any]
    stopped: str | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """A row of the table.

    needs, uses: the stages whose results it must have, and those it takes where the recipe has them.
    result: the file whose presence says that the stage has finished. settings: gives the model of its
    settings; `own` of its fields are set by the run, never by a recipe, and `inherits` field -> (stage,
    field) is its default.
    code: the files and folders of this package that shape its result. resumes: it goes on with what a folder
    holds; `check` raises what it would raise for what is there, and writes nothing.
    picks: of the stages before it that it can read, those that it reads with these settings; raises UsageError for
    settings that name none of them. sound: raises VerificationFailed where its result (a manifest) is damaged.
    stable: run again with the same settings, it leaves a sound result as it is, unless one of `shaped_by`, of the
    stages that it reads, has changed its own. files: a hash of what its settings name by a path and do not hash
    themselves, by the path, None where there is nothing. limits: those of its fields that only say when to stop early.
    lends: what it gives the settings of a later stage, by its own settings as a recipe has them and the later one's
    name; what the recipe says itself comes first.
    """

    name: str
    what: str
    settings: Callable[[], type[Settings]]
    run: Callable[[Job], Outcome]
    code: tuple[str, ...]
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    writes: str = "records"
    result: str = "manifest.json"
    own: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    inherits: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    resumes: bool = False
    check: Callable[[Job], None] | None = None
    stable: bool = False
    shaped_by: tuple[str, ...] = ()
    picks: Callable[[Settings, Sequence[str]], Sequence[str]] = all_of
    sound: Callable[[Path], None] = open_result
    files: Callable[[Settings], Mapping[str, str | None]] = no_files
    lends: Callable[[Mapping[str, Any], str], Mapping[str, Any]] = nothing

    @property
    def reads(self) -> tuple[str, ...]:
        """Every stage whose result it can take."""
        return self.needs + self.uses

    def fields(self) -> list[str]:
        """The names that a recipe may set."""
        return [name for name in self.settings().model_fields if name not in self.own]
