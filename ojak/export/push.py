"""An artifact to the Hugging Face hub: checked first, private unless asked otherwise, in one commit.

Nothing goes out before every hash holds and every text of every row was searched for secrets. Only the artifact's own
files go: no ledger, no lock, no notes beside it. The token comes from the environment or the hub's own store.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ojak.artifact import Artifact, verify
from ojak.errors import EngineUnavailable, InputRefused, UsageError, VerificationFailed
from ojak.records import MESSAGE_FIELDS, AnyRecord, dump_json, to_row

if TYPE_CHECKING:
    from huggingface_hub import HfApi

REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
OWN_FILE = re.compile(r"(data/[a-z][a-z0-9_]{0,63}|rejected/part)-\d{5}-of-\d{5}\.parquet")
MANIFEST, CARD = "manifest.json", "README.md"
MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class PushFile:
    """A file that goes to the hub; `sha256` is what the manifest says of it (None: it is the manifest)."""

    path: str
    bytes: int
    sha256: str | None


@dataclass(frozen=True, slots=True)
class PushPlan:
    """What a push would do, made without a network.

    personal: kind -> rows that hold such data. card: the text of README.md. stopped: the budget that ended the run
    early, if one did.
    """

    folder: Path
    repo: str
    private: bool
    rows: int
    files: tuple[PushFile, ...]
    card: str
    personal: dict[str, int] = field(default_factory=dict)
    stopped: str | None = None

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(file.bytes for file in self.files)


@dataclass(frozen=True, slots=True)
class Pushed:
    """Where it lies now: the page of the data set, and the commit."""

    url: str
    commit: str
    removed: tuple[str, ...] = ()


def plan_push(folder: Path | str, repo: str, *, private: bool = True) -> PushPlan:
    """Check the artifact in `folder` and say what would go to the data set `repo` ("name/data"). No network.

    Raises UsageError for a name that the hub does not take, VerificationFailed if a hash or a count does not hold,
    InputRefused where there is no artifact, or a secret is found in it (the message names rows, never the secret).
    """
    if not REPO.fullmatch(repo) or ".." in repo or "--" in repo or repo.endswith(".git"):
        raise UsageError(
            f"{repo!r} is no name of a data set on the hub", fix="give user/name or organisation/name"
        )
    artifact = verify(folder)
    personal = _search(artifact)
    manifest = artifact.path / MANIFEST
    files = [PushFile(entry["path"], entry["bytes"], entry["sha256"]) for entry in artifact.files]
    files.append(PushFile(MANIFEST, manifest.stat().st_size, artifact.manifest_sha256))
    card = (artifact.path / CARD).read_text("utf-8")
    stopped = artifact.stats.get("stopped")
    rows = sum(artifact.splits.values())
    return PushPlan(
        artifact.path, repo, private, rows, tuple(files), card, personal, str(stopped) if stopped else None
    )


def push(plan: PushPlan, *, api: HfApi | None = None) -> Pushed:
    """Do what `plan` says, in one commit; files of an earlier version that this one lacks are removed by it.

    Raises UsageError if the data set is there already and open to all while the plan says private, or the hub refuses
    the token; EngineUnavailable if it does not answer; VerificationFailed if a file changed since the plan was made.
    """
    from huggingface_hub import HfApi

    api = api or HfApi()
    with _hub_errors(plan.repo):
        there = _existing(api, plan)
        url = api.create_repo(plan.repo, repo_type="dataset", private=plan.private, exist_ok=True)
        names = {file.path for file in plan.files}
        removed = tuple(name for name in there if OWN_FILE.fullmatch(name) and name not in names)
        commit = api.create_commit(
            plan.repo,
            operations=_operations(plan, removed),
            commit_message=f"{plan.rows:,} rows, made with ojak",
            repo_type="dataset",
        )
    return Pushed(str(url), commit.oid, removed)


def _search(artifact: Artifact) -> dict[str, int]:
    """Refuse an artifact with a secret anywhere in it; how many rows hold personal data, by kind."""
    from ojak.rules.privacy import find_personal_data
    from ojak.rules.secrets import find_secrets

    secrets: list[str] = []
    personal = Counter[str]()
    for where, written, beside in _texts(artifact):
        kinds = {found.kind for text in (*written, *beside) for found in find_secrets(text)}
        secrets += [f"{where} ({', '.join(sorted(kinds))})"] if kinds else []
        # Not in what stands beside the text: seeds and times look like numbers of people.
        personal.update({found.kind for text in written for found in find_personal_data(text)})
    if secrets:
        more = f" and {len(secrets) - MOST_NAMED} more" if len(secrets) > MOST_NAMED else ""
        raise InputRefused(
            f"{artifact.path} holds what looks like a secret, in {len(secrets)} places",
            why=", ".join(secrets[:MOST_NAMED]) + more,
            fix="take it out, and withdraw the secret: it may be known by now",
        )
    return dict(sorted(personal.items()))


def _texts(artifact: Artifact) -> Iterator[tuple[str, list[str], list[str]]]:
    """(where, what was written there, what stands beside it) of everything that would go out."""
    for name in (MANIFEST, CARD):
        yield name, [], [(artifact.path / name).read_text("utf-8")]
    for record in artifact.records():
        yield f"row {record.id}", *_strings(record)
    for record in artifact.rejected():
        yield f"rejected row {record.id}", *_strings(record)


def _strings(record: AnyRecord) -> tuple[list[str], list[str]]:
    written, beside = [], []
    for name, value in to_row(record).items():
        if name in MESSAGE_FIELDS:
            written += [turn["content"] for turn in value]
        elif name == "text":
            written.append(value)
        elif value:
            beside.append(value if isinstance(value, str) else dump_json(value))
    return written, beside


def _existing(api: HfApi, plan: PushPlan) -> list[str]:
    """The files of the data set, if it is there. Raises UsageError if it is open to all and may not be."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.dataset_info(plan.repo)
    except RepositoryNotFoundError:
        return []
    if plan.private and not info.private:
        raise UsageError(
            f"the data set {plan.repo} is open to all",
            why="a push is private unless it is asked to be public",
            fix="pass --public, or make the data set private on the hub",
        )
    return [file.rfilename for file in info.siblings or ()]


def _operations(plan: PushPlan, removed: Sequence[str]) -> list[Any]:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    operations: list[Any] = []
    for file in plan.files:
        operation = CommitOperationAdd(file.path, plan.folder / file.path)
        if operation.upload_info.sha256.hex() != file.sha256:
            raise VerificationFailed(
                f"{plan.folder / file.path} has changed", why="it was checked a moment ago"
            )
        operations.append(operation)
    return [*operations, *(CommitOperationDelete(name, is_folder=False) for name in removed)]


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """What the hub or the way to it says no with, as an error for a person."""
    import httpx2
    from huggingface_hub.errors import (
        BadRequestError,
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
    )

    try:
        yield
    except (HFValidationError, BadRequestError) as error:
        raise UsageError(f"the hub does not take {repo}", why=_first_line(error)) from error
    except LocalTokenNotFoundError as error:
        raise _refused(repo, "there is no token") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            raise _refused(repo, f"it answers {status}: {_first_line(error)}") from error
        raise EngineUnavailable(
            f"the hub did not take {repo}", why=f"{status}: {_first_line(error)}"
        ) from error
    except (httpx2.HTTPError, ConnectionError) as error:
        raise EngineUnavailable(
            "the hub does not answer",
            why=_first_line(error),
            fix="try again later; nothing was changed by halves",
        ) from error
    except ValueError as error:  # what the hub says of a card
        raise InputRefused(f"the hub does not take the card of {repo}", why=str(error)[:500]) from error


def _refused(repo: str, why: str) -> UsageError:
    return UsageError(
        f"the hub lets nobody without a right to it write {repo}",
        why=why,
        fix="set HF_TOKEN to a token with write access, or run `hf auth login`",
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
