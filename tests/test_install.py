"""The installer: which build of torch it asks for, and where. Nothing is installed here; pip is a stand-in."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PIP = """#!/usr/bin/env bash
echo "$@" >> "$PIP_LOG"
case "$*" in
  *--index-url*) exit $INDEX_FAILS ;;
  *+cpu*) exit $LOCAL_FAILS ;;
esac
"""


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    path.chmod(0o755)
    return path


def install(tmp_path: Path, *, local: bool, index: bool, gpu: bool = False, extra: str = "") -> list[str]:
    """What pip is asked to install, call by call, where the CPU build is or is not to be had."""
    executable(tmp_path / "venv/bin/python", PIP)
    answer = "exit 0" if gpu else "exit 9"
    executable(tmp_path / "bin/nvidia-smi", f"#!/usr/bin/env bash\n{answer}\n")
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PIP_LOG": str(tmp_path / "log"),
        "LOCAL_FAILS": str(int(not local)),
        "INDEX_FAILS": str(int(not index)),
    }
    command = [str(ROOT / "tools/install.sh"), str(tmp_path / "venv"), *filter(None, [extra])]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
    return (tmp_path / "log").read_text("utf-8").splitlines()


def asked(call: str) -> str:
    return call.split(f"-c {ROOT}/constraints.txt ")[1]


def pinned() -> str:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def test_a_local_cpu_build_is_taken(tmp_path: Path) -> None:
    calls = install(tmp_path, local=True, index=False)
    assert [asked(call) for call in calls] == [f"--no-deps {pinned()}+cpu", f"--editable {ROOT}"]


def test_then_the_index_of_pytorch_is_asked(tmp_path: Path) -> None:
    calls = install(tmp_path, local=False, index=True)
    assert asked(calls[1]) == f"--no-deps --index-url {CPU_INDEX} {pinned()}+cpu"
    assert asked(calls[2]) == f"--editable {ROOT}"
    assert len(calls) == 3


def test_the_ordinary_index_is_the_last_resort(tmp_path: Path) -> None:
    calls = install(tmp_path, local=False, index=False, extra="dev")
    assert ["+cpu" in call for call in calls] == [True, True, False]
    assert asked(calls[2]) == f"--editable {ROOT}[dev]"


def test_a_gpu_gets_the_ordinary_build(tmp_path: Path) -> None:
    calls = install(tmp_path, local=True, index=True, gpu=True)
    assert [asked(call) for call in calls] == [f"--editable {ROOT}"]


def test_an_old_python_is_refused_with_advice(tmp_path: Path) -> None:
    older = "import sys; sys.version_info = (3, 10, 14); exec(sys.argv[1])"
    old = executable(tmp_path / "python", f"#!/usr/bin/env bash\nexec {sys.executable} -c '{older}' \"$2\"\n")
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    done = subprocess.run(
        [str(tmp_path / "bash"), str(ROOT / "tools/install.sh"), str(tmp_path / "venv")],
        env={"PATH": str(tmp_path), "PYTHON": str(old)},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "Python 3.11 or newer" in done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_nothing_is_installed_twice(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    executable(tmp_path / "tools/install.sh", '#!/usr/bin/env bash\necho "installs $*"; mkdir -p $1/bin\n')
    for program in ("ojak", "python"):
        executable(tmp_path / ".venv/bin" / program, f'#!/usr/bin/env bash\necho "{program} $*"\n')

    def make(target: str) -> list[str]:
        done = subprocess.run(
            ["make", "-s", target], cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60
        )
        return done.stdout.splitlines()

    assert make("demo") == ["installs .venv", "ojak run recipes/quickstart.yaml"]
    assert make("demo") == ["ojak run recipes/quickstart.yaml"]
    assert make("test")[0] == "installs .venv dev"
    assert [line.split()[0] for line in make("test")] == ["python"]
    os.utime(tmp_path / "pyproject.toml", (2**33, 2**33))
    assert make("test")[:2] == ["installs .venv", "installs .venv dev"]
