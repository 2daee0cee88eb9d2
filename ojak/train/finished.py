"""A folder that a run is to work in: is it another's, and if a run is finished there, is its model what it was?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ojak._files import sha256_file
from ojak.errors import ResumeRefused, TargetExists, UsageError, VerificationFailed
from ojak.train.sources import contents_sha256, parse_source
from ojak.train.trackers import METRICS, check_metrics

if TYPE_CHECKING:
    from ojak.train.config import TrainConfig

MANIFEST = "manifest.json"
MODEL, ADAPTER, CHECKPOINTS = "model", "adapter", "checkpoints"
ANOTHER = "remove the folder to train again, or choose another --out"


def finished_result(config: TrainConfig) -> dict[str, Any] | None:
    """The result of the run of these settings that is finished in its folder; None where one may begin or go on.

    Raises ResumeRefused for a folder with another run, or one that read other data; TargetExists where nothing may be
    resumed, or what no run made would be replaced; VerificationFailed for a finished run whose files have changed.
    """
    if config.out.exists() and not config.out.is_dir():
        raise TargetExists(f"{config.out} is a file", why="a run has a folder", fix="choose another --out")
    manifest = read_manifest(config.out)
    if manifest is not None:
        if config.resume == "never":
            raise TargetExists(f"{config.out} holds a finished run", fix="choose another --out")
        check_same(config, manifest)
        check_files(config.out, manifest)
        return dict(manifest["result"])
    check_own(result_folder(config), (config.out / CHECKPOINTS, config.out / METRICS))
    check_metrics(config.out / METRICS)
    begun = (config.out / CHECKPOINTS).is_dir()
    if begun and config.resume == "never":
        raise TargetExists(
            f"{config.out} holds a run that is not finished", fix="resume it, or choose another --out"
        )
    if not begun and config.resume == "always":
        raise UsageError(f"there is nothing to resume in {config.out}", fix="leave out --resume")
    return None


def result_folder(config: TrainConfig) -> Path:
    """Where the trained model goes."""
    return config.out / (ADAPTER if config.lora else MODEL)


def read_manifest(out: Path) -> dict[str, Any] | None:
    """The manifest in a run's folder, None where there is none. Raises VerificationFailed where it is damaged."""
    path = out / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise VerificationFailed(f"{path} is damaged", why=str(error), fix=ANOTHER) from error
    if not isinstance(manifest, dict):
        raise VerificationFailed(f"{path} is damaged", why="it is no object", fix=ANOTHER)
    return manifest


def check_same(config: TrainConfig, manifest: dict[str, Any]) -> None:
    """Raise ResumeRefused unless a finished run is the one that `config` asks for: its settings, and its data.

    Data that are not there any more, or of which an older manifest says nothing, are taken for the same.
    """
    if manifest.get("config_sha256") != config.sha256:
        raise ResumeRefused(
            f"{config.out} holds a finished run with other settings", fix="choose another --out"
        )
    before, now = manifest.get("data_sha256"), contents_sha256(config.data)
    if not isinstance(before, list) or now is None or before == now:
        return
    changed = [
        str(parse_source(text).path)
        for text, old, new in zip(config.data, before, now, strict=False)
        if old != new
    ]
    raise ResumeRefused(
        f"{', '.join(changed) or 'the data'} has changed since the run in {config.out} was finished",
        why="its model learnt from other rows",
        fix="choose another --out to train on what is there now",
    )


def check_sizes(out: Path, manifest: dict[str, Any]) -> None:
    """Raise VerificationFailed where a file of a finished run is missing, or has another size; nothing is read."""
    for name, entry in _entries(out, manifest).items():
        path = out / name
        if not path.is_file() or path.stat().st_size != entry.get("bytes"):
            raise VerificationFailed(
                f"{path} is missing or has changed", why="its run is finished", fix=ANOTHER
            )


def _entries(out: Path, manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a manifest says of each file: {"path", "bytes", "sha256"} under its path."""
    try:
        return {str(entry["path"]): {"sha256": entry["sha256"], **entry} for entry in manifest["files"]}
    except (KeyError, TypeError) as error:
        raise VerificationFailed(
            f"{out / MANIFEST} is damaged", why=f"files: {error}", fix=ANOTHER
        ) from error


def check_files(out: Path, manifest: dict[str, Any]) -> None:
    """Raise VerificationFailed unless the files of a finished run are those that its manifest tells of."""
    for name, entry in _entries(out, manifest).items():
        path = out / name
        if not path.is_file():
            raise VerificationFailed(
                f"{path} is missing", why="the run that made it is finished", fix=ANOTHER
            )
        if sha256_file(path) != entry["sha256"]:
            raise VerificationFailed(
                f"{path} has changed", why="its SHA-256 is not the manifest's", fix=ANOTHER
            )


def check_own(folder: Path, traces: tuple[Path, ...]) -> None:
    """Raise TargetExists if something is in the place of a run's model, and no trace of a run says that one began."""
    if folder.is_symlink() or (folder.exists() and not any(trace.exists() for trace in traces)):
        raise TargetExists(
            f"{folder} is there already",
            why="no run of ojak made it, and the trained model would take its place",
            fix="choose another --out",
        )
