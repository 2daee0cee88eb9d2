"""Tasks of lm-evaluation-harness from a folder of YAML files, as plain values: rows are local files, nothing is code.

In lm-eval's own reading a task may name functions (`!function`), a Python class, metrics and data of a hub. Here a task
has only the settings in `SETTINGS`, which are values, and its rows are in files on this machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ojak import _recipe_yaml
from ojak._settings import meant
from ojak.errors import InputRefused, UsageError

Task = dict[str, Any]

SETTINGS = frozenset(
    {
        "task", "task_alias", "tag", "dataset_path", "dataset_kwargs", "training_split", "validation_split",
        "test_split", "fewshot_split", "doc_to_text", "doc_to_target", "doc_to_choice", "description",
        "target_delimiter", "fewshot_delimiter", "fewshot_config", "num_fewshot", "metric_list", "output_type",
        "generation_kwargs", "repeats", "filter_list", "should_decontaminate", "doc_to_decontamination_query",
        "gen_prefix", "metadata",
    }
)  # fmt: skip
READERS = ("json", "csv", "parquet", "text")  # of `datasets`; each reads files and runs nothing
OPTIONS = frozenset({"data_files", "field", "delimiter"})  # of such a reader
MOST_INCLUDED = 8  # files, one including the next


def read_tasks(folder: Path, names: Sequence[str]) -> list[Task]:
    """The tasks of these names, from the YAML files in `folder`, the paths of their rows made absolute.

    Raises UsageError for a folder or a name that is not there, InputRefused for a task that asks for more than values.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", fix="give --harness-tasks a folder of task files")
    found, unread = _named(folder)
    for name in names:
        if name not in found:
            if unread:  # it may be the one that is meant
                raise unread[0]
            raise UsageError(
                f"{folder} has no task {name[:80]!r}",
                why=meant(name, sorted(found)),
                fix="name the tasks of its *.yaml files after --harness, with commas between them",
            )
    return [_checked(*found[name]) for name in dict.fromkeys(names)]


def _named(folder: Path) -> tuple[dict[str, tuple[Path, Task]], list[InputRefused]]:
    """Every task of the folder by its name, and why others cannot be read. Files without a name are to be included."""
    found: dict[str, tuple[Path, Task]] = {}
    unread: list[InputRefused] = []
    for path in sorted(folder.rglob("*.yaml")):
        try:
            task = _read(path)
        except InputRefused as error:
            unread.append(error)
            continue
        name = task.get("task")
        if not isinstance(name, str):
            continue
        if name in found:
            raise InputRefused(
                f"the task {name[:80]!r} stands in two files",
                why=f"{found[name][0]} and {path}",
                fix="rename one",
            )
        found[name] = (path, task)
    return found, unread


def _read(path: Path, depth: int = 0) -> Task:
    """The settings of a file over those of the files that it includes."""
    try:
        task = _recipe_yaml.read(path).value
    except UsageError as error:
        raise InputRefused(
            f"{path} cannot be read as a task",
            why=error.what,
            fix="a task holds plain values; tags such as !function would run code",
        ) from error
    if not isinstance(task, dict):
        raise InputRefused(f"{path} is no task", why="it is not a set of names and values")
    included = task.pop("include", [])
    if depth > MOST_INCLUDED:
        raise InputRefused(f"{path} is included too deep", why="does it include itself?")
    merged: Task = {}
    for other in included if isinstance(included, list) else [included]:
        merged |= _read(path.parent / str(other), depth + 1)
    return merged | task


def _checked(path: Path, task: Task) -> Task:
    """The task with absolute paths, if it holds nothing but values and reads nothing but files."""
    foreign = sorted(task.keys() - SETTINGS)
    if foreign:
        raise InputRefused(
            f"{path}: the setting {foreign[0][:80]!r} is not taken",
            why="a task here is values and local files: no functions, no classes, no data of a hub",
            fix=f"leave it out; there are: {', '.join(sorted(SETTINGS))}",
        )
    for metric in task.get("metric_list") or ():
        if not isinstance(metric, dict) or metric.get("hf_evaluate"):
            raise InputRefused(
                f"{path}: a metric of a hub is not taken",
                why="it is a program that would be fetched and run",
                fix="use a metric of lm-eval itself, such as acc or exact_match, without hf_evaluate",
            )
    options = task.get("dataset_kwargs")
    if task.get("dataset_path") not in READERS or not isinstance(options, dict):
        raise InputRefused(
            f"{path}: its rows are not in local files",
            why=f"dataset_path is {str(task.get('dataset_path'))[:80]!r}",
            fix=f"dataset_path: {READERS[0]} (or {', '.join(READERS[1:])}), and "
            "dataset_kwargs: {data_files: {test: FILE}}",
        )
    if foreign := sorted(options.keys() - OPTIONS):
        raise InputRefused(
            f"{path}: dataset_kwargs has {foreign[0][:80]!r}", why=f"taken: {', '.join(sorted(OPTIONS))}"
        )
    return {**task, "dataset_kwargs": {**options, "data_files": _files(path, options.get("data_files"))}}


def _files(path: Path, given: Any) -> Any:
    """The files of each split, absolute; relative ones lie beside the task's own file."""
    if isinstance(given, Mapping):
        return {str(split): _files(path, files) for split, files in given.items()}
    if isinstance(given, list) and given:
        return [_files(path, each) for each in given]
    file = path.parent / given if isinstance(given, str) else path.parent
    if not file.is_file():
        raise InputRefused(
            f"{path}: {str(given)[:200]!r} is no file",
            why="data_files names files on this machine, beside the task's own unless they are absolute",
        )
    return str(file.resolve())
