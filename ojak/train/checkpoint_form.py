"""The form of a checkpoint on disk, and reading one that may be damaged or hostile."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ojak._files import sha256_file
from ojak.errors import VerificationFailed
from ojak.model.checkpoint import check_safetensors
from ojak.model.tensor_files import Form
from ojak.train.processes import part_rows

MANIFEST, STATE = "manifest.json", "state.json"
MAX_MANIFEST_BYTES, MAX_STATE_BYTES = 16 << 20, 64 << 20
GROUPS = ("master", "ema", "anchor", "optimizer")
COMPANY = re.compile(
    r"(?!manifest\.)[a-zA-Z][a-zA-Z0-9_]{0,60}\.(json|jinja|md)"
)  # what makes a model of the weights
TENSOR_FILE = re.compile(
    r"(adapter_)?model\.safetensors|(master|ema|anchor|optimizer)-rank[0-9]{1,5}of[0-9]{1,5}\.safetensors"
)

Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Entry(_Form):
    """A file of the checkpoint."""

    path: Annotated[str, Field(max_length=100)]
    bytes: Count
    sha256: Sha256


class Manifest(_Form):
    """What the checkpoint consists of; sha256: of this manifest, written without it."""

    schema_version: Literal[1]
    kind: Literal["checkpoint"]
    created: str
    ojak_version: str
    files: tuple[Entry, ...]
    sha256: str = ""

    def signed(self) -> Manifest:
        """The same with its hash."""
        bare = self.model_copy(update={"sha256": ""})
        return self.model_copy(update={"sha256": hashlib.sha256(encoded(bare)).hexdigest()})

    @classmethod
    def read(cls, place: Path) -> Self:
        """The manifest of the checkpoint `place`, every byte of it checked. Raises VerificationFailed."""
        manifest = _read(cls, place / MANIFEST, MAX_MANIFEST_BYTES)
        if encoded(manifest.signed()) != (place / MANIFEST).read_bytes():
            raise VerificationFailed(
                f"{MANIFEST} has changed", why="its SHA-256 is not the one that it gives"
            )
        return manifest


class TensorForm(_Form):
    """A tensor's whole shape; split: each process wrote its rows of it."""

    dtype: Literal["F64", "F32", "F16", "BF16"]
    shape: tuple[Count, ...]
    split: bool


class StateForm(_Form):
    """state.json: `TrainState` without its tensors, and their forms."""

    schema_version: Literal[1]
    step: Count
    epoch: Count
    step_in_epoch: Count
    tokens: Count
    supervised_tokens: Count
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    config: dict[str, Any]
    rows_sha256: str
    adapter: bool
    extra: dict[str, Any]
    processes: Annotated[int, Field(ge=1, lt=100_000)]
    tensors: dict[str, TensorForm]

    @classmethod
    def read(cls, place: Path) -> Self:
        """The state of the checkpoint `place`. Raises VerificationFailed."""
        return _read(cls, place / STATE, MAX_STATE_BYTES)


def encoded(form: Manifest | StateForm) -> bytes:
    """The bytes of its file."""
    return form.model_dump_json(indent=1).encode() + b"\n"


def _read(form: type[Any], path: Path, limit: int) -> Any:
    _check_plain(path)
    size = path.stat().st_size
    if size > limit:
        raise VerificationFailed(f"{path.name} is too big", why=f"{size} bytes; {limit} are read")
    try:
        return form.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part)[:60] for part in first["loc"])
        raise VerificationFailed(
            f"{path.name} is damaged", why=f"{place} {first['msg']}".strip()[:200]
        ) from error


def step_name(step: int) -> str:
    """The name of a checkpoint's folder."""
    return f"step-{step:07d}"


def group_of(name: str) -> str | None:
    """Which of the per-process files a tensor belongs to; None for the weights."""
    group = name.partition(".")[0]
    return group if group in GROUPS else None


def rank_file(group: str, rank: int, size: int) -> str:
    """The file with the rows of the process `rank` of `size`."""
    return f"{group}-rank{rank}of{size}.safetensors"


def weights_file(adapter: bool) -> str:
    """The file with the whole weights."""
    return "adapter_model.safetensors" if adapter else "model.safetensors"


def check(place: Path) -> StateForm:
    """The state of the checkpoint `place`, after every file's hash and every tensor's form was checked.

    Raises VerificationFailed or InputRefused, naming the file, for anything missing, changed, linked, unknown or
    inconsistent.
    """
    if place.is_symlink() or not place.is_dir():
        raise VerificationFailed(f"{place.name} is no folder of ours", why="it is a link or a file")
    files = _checked_files(place, Manifest.read(place))
    if STATE not in files:
        raise VerificationFailed(f"{MANIFEST} does not list {STATE}")
    state = StateForm.read(place)
    if place.name != step_name(state.step) or state.processes > len(files):  # before as many names are made
        raise VerificationFailed(
            f"{STATE} does not belong here", why=f"it is of step {state.step} and {state.processes} processes"
        )
    expected = _expected(state)
    held = {name for name in files if TENSOR_FILE.fullmatch(name)}
    if held != expected.keys():
        differing = sorted(held ^ expected.keys())
        raise VerificationFailed(f"{differing[0]} should be there, and is not, or the other way round")
    for name, tensors in expected.items():
        _check_tensors(place / name, tensors)
    return state


def _checked_files(place: Path, manifest: Manifest) -> set[str]:
    """The names that the manifest lists, each checked for its content. Only known names pass: none leads out."""
    names = [entry.path for entry in manifest.files]
    unknown = [name for name in names if not COMPANY.fullmatch(name) and not TENSOR_FILE.fullmatch(name)]
    if unknown or len(set(names)) != len(names):
        raise VerificationFailed(f"{MANIFEST} lists {(unknown or names)[0]!r}, unknown or twice")
    for entry in manifest.files:
        path = place / entry.path
        _check_plain(path)
        size = path.stat().st_size
        if size != entry.bytes:
            raise VerificationFailed(
                f"{entry.path} has changed", why=f"it has {size} bytes; the manifest says {entry.bytes}"
            )
        if sha256_file(path) != entry.sha256:
            raise VerificationFailed(f"{entry.path} has changed", why="its SHA-256 is not the manifest's")
    return set(names)


def _check_plain(path: Path) -> None:
    if path.is_symlink():
        raise VerificationFailed(f"{path.name} is a link", why="a checkpoint holds its own files")
    if not path.is_file():
        raise VerificationFailed(f"{path.name} is missing")


def _expected(state: StateForm) -> dict[str, dict[str, Form]]:
    """The tensors that each file must hold, by the forms in state.json."""
    files: dict[str, dict[str, Form]] = {weights_file(state.adapter): {}}
    for name, tensor in state.tensors.items():
        group = group_of(name)
        if group is None:
            files[weights_file(state.adapter)][name] = (tensor.dtype, tensor.shape)
            continue
        for rank in range(state.processes):
            file = files.setdefault(rank_file(group, rank, state.processes), {})
            if tensor.split and tensor.shape:
                first, end = part_rows(tensor.shape[0], rank, state.processes)
                file[name] = (tensor.dtype, (end - first, *tensor.shape[1:]))
            elif rank == 0:
                file[name] = (tensor.dtype, tensor.shape)
    return files


def _check_tensors(path: Path, expected: dict[str, Form]) -> None:
    header = check_safetensors(path)
    held = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
    wrong = sorted(name for name in {*held, *expected} if held.get(name) != expected.get(name))
    if wrong:
        name = wrong[0]
        raise VerificationFailed(
            f"{path.name} does not hold the tensors of {STATE}",
            why=f"{name[:200]!r} is {held.get(name, 'missing')}, should be {expected.get(name, 'missing')}",
        )
