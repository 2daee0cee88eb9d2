"""What lies in the folder of a run, and whether a run may go on with it. No model is needed to say so.

The folder holds `ledger.sqlite` (every finished request), and once something is done the artifact itself: `data/`,
`rejected/`, `README.md`, `manifest.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ojak._code import code_sha256
from ojak._files import disk_errors
from ojak.artifact import Artifact, refuse_within
from ojak.errors import ResumeRefused, TargetExists
from ojak.ledger import Ledger
from ojak.synthesize.config import RunConfig

LEDGER = "ledger.sqlite"
WORKERS = "workers"  # what the workers of the engine ray have finished, until it is in the ledger


def check_folder(config: RunConfig, out: Path) -> None:
    """Raises TargetExists or ResumeRefused where `config.resume` and what is in the folder do not go together."""
    with disk_errors(out):
        refuse_within(out)
        has_run = (out / LEDGER).exists()
    if has_run and config.resume == "never":
        raise TargetExists(
            f"{out} holds a run already",
            why="--resume never",
            fix="choose another folder, or allow it to be resumed",
        )
    if not has_run and config.resume == "always":
        raise ResumeRefused(
            f"{out} holds no run to resume", why="--resume always", fix="check the folder's name"
        )
    if not has_run and (out / "manifest.json").exists():
        raise TargetExists(f"{out} holds another artifact", fix="choose another folder")
    taken = [name for name in ("data", "rejected", "README.md") if (out / name).exists()]
    if taken and not has_run:  # said now, not when hours of generation are to be published
        raise TargetExists(
            f"{out} holds {', '.join(taken)}", why="it is not ours to replace", fix="choose another folder"
        )


def check_resumable(config: RunConfig) -> None:
    """Raises, before a model is looked at and without writing, what a run would raise for what its folder holds.

    Only whether a model's files changed under the same name is left for the run to find.
    """
    out = Path(config.out)
    check_folder(config, out)
    if finished_artifact(config, out) or not (out / LEDGER).exists():
        return
    with Ledger(out / LEDGER, read_only=True) as ledger:
        begun = ledger.get_meta("settings") or {}
        identity = {
            name.removeprefix("engine."): value for name, value in begun.items() if name.startswith("engine.")
        }
        compare_settings(config, identity, ledger)


def finished_artifact(config: RunConfig, out: Path) -> Artifact | None:
    """The artifact, if it is there, whole, and what this very configuration makes."""
    if not (out / "manifest.json").exists():
        return None
    artifact = Artifact.open(out)
    same = artifact.manifest["config"] == recorded(config) and not artifact.stats.get("stopped")
    if config.retry_failed and artifact.counts.get("failed"):
        return None
    return artifact.verify() if same else None


def recorded(config: RunConfig) -> dict[str, Any]:
    """The configuration as the manifest keeps it, and a hash of the code that judges rows."""
    return config.recorded() | {"code_sha256": code_sha256(config.judges)}


def compare_settings(config: RunConfig, identity: dict[str, Any], ledger: Ledger) -> None:
    """Raises ResumeRefused where the folder was begun with other settings than these, or another engine."""
    if not ledger.counts():  # a folder in which nothing was done yet takes any settings
        return
    before, caps_before = ledger.get_meta("settings") or {}, ledger.get_meta("caps") or {}
    if changed := changes(before, begun_settings(config, identity), caps_before, begun_caps(config)):
        raise ResumeRefused(
            f"{config.out} was begun with other settings",
            why="; ".join(changed),
            fix="use the settings of before, or another folder",
        )


def begun_settings(config: RunConfig, identity: dict[str, Any]) -> dict[str, Any]:
    """What a run remembers of how it was begun: all that shapes a row."""
    return {**config.shaping(), **{f"engine.{name}": value for name, value in identity.items()}}


def begun_caps(config: RunConfig) -> dict[str, int]:
    """The settings that may grow."""
    return {name: getattr(config, name) for name in sorted(config.growing)}


def changes(
    before: dict[str, Any], now: dict[str, Any], caps_before: dict[str, int], caps: dict[str, int]
) -> list[str]:
    """What keeps a run from being continued: each changed setting, each cap that shrank."""
    changed = [
        f"{k}: {before.get(k)!r} -> {now.get(k)!r}" for k in {**before, **now} if before.get(k) != now.get(k)
    ]
    shrunk = [
        f"{k}: {caps_before[k]} -> {caps[k]} (may only grow)" for k in caps_before if caps[k] < caps_before[k]
    ]
    return changed + shrunk
