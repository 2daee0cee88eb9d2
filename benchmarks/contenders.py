"""Who takes part in the synthesis benchmark, and how each is run: the same job, one JSON line each."""

import json
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import harness

SYNTH = pathlib.Path(__file__).resolve().parent / "peers" / "synth.py"
REQUIRED = ("rows", "completion_tokens", "seconds", "tokens_per_s")
OJAK = "ojak"


@dataclass(frozen=True, slots=True)
class Contender:
    """A peer's settings: rows in a full and in a quick run, synth.py's arguments, and the ratio aimed at."""

    rows: int
    quick_rows: int
    arguments: tuple[str, ...] = ()
    default: bool = True
    aim: float | None = None


CPU = {
    "llamacpp-loop": Contender(64, 4, ("--peer", "llamacpp-loop"), aim=7.0),
    "llamacpp-batch": Contender(256, 16, ("--peer", "llamacpp-batch"), aim=3.5),
    "transformers": Contender(256, 16, ("--peer", "transformers", "--batch", "64")),
    "llamacpp-native": Contender(256, 16, ("--peer", "llamacpp-native", "--parallel", "32")),
    "llamacpp-native-64": Contender(
        256, 16, ("--peer", "llamacpp-native", "--parallel", "64"), default=False
    ),
    OJAK: Contender(512, 32),
}
CUDA = {
    "transformers": Contender(512, 32, ("--peer", "transformers", "--batch", "256", "--device", "cuda")),
    OJAK: Contender(2048, 64),
}
BEST_OF = ("transformers", "llamacpp-native", "llamacpp-native-64")  # the aim below is over the best of these
BEST_AIM = 2.5


@dataclass(frozen=True, slots=True)
class Job:
    """What every contender is asked to do, and with what."""

    max_instruction: int
    max_response: int
    threads: int
    model: str
    ojak: tuple[str, ...]
    peers_python: pathlib.Path
    env: Mapping[str, str]
    scratch: pathlib.Path | None = None

    def run_peer(self, arguments: Sequence[str], rows: int, seed: int) -> dict[str, Any]:
        """One run of synth.py in the peers' venv. Raises harness.RunFailed."""
        limits = ["--max-instruction", str(self.max_instruction), "--max-response", str(self.max_response)]
        size = ["--n", str(rows), "--seed", str(seed), "--threads", str(self.threads)]
        command = [str(self.peers_python), str(SYNTH), *arguments, *limits, *size]
        return _checked(harness.run(command, env=self.env))

    def run_ojak(self, rows: int, seed: int, *, parent: pathlib.Path | None = None) -> dict[str, Any]:
        """One `ojak synthesize magpie` into a fresh folder under `parent`, removed afterwards.

        Raises harness.RunFailed.
        """
        with tempfile.TemporaryDirectory(prefix="ojak-bench-", dir=parent or self.scratch) as folder:
            out = pathlib.Path(folder) / "data"
            line = _checked(harness.run(self.ojak_command(rows, seed, out), env=self.env))
            return {**_from_manifest(out), **line}

    def ojak_command(self, rows: int, seed: int, out: pathlib.Path) -> list[str]:
        limits = ["--max-instruction-tokens", str(self.max_instruction)]
        limits += ["--max-response-tokens", str(self.max_response), "--grid", "1.0:1.0"]
        job = ["--model", self.model, "--rows", str(rows), "--seed", str(seed), "--out", str(out), "--json"]
        return [*self.ojak, "synthesize", "magpie", *job, *limits]

    def version(self) -> str:
        """What `ojak --version` prints. Raises harness.RunFailed."""
        return harness.run([*self.ojak, "--version"], env=self.env, limit_s=60.0).stdout.strip()

    def pull(self) -> None:
        """Puts the model into ojak's cache, so that no timed run fetches it. Raises harness.RunFailed."""
        harness.run([*self.ojak, "models", "pull", self.model], env=self.env)


def _checked(done: harness.Finished) -> dict[str, Any]:
    """The run's own figures, with the wall time and the peak memory seen from outside where it says none."""
    line = harness.json_object(done.stdout)
    lacking = [name for name in REQUIRED if name not in line]
    if lacking:
        raise harness.RunFailed(f"the result lacks {', '.join(lacking)}: {line}")
    if not line["completion_tokens"] or not line["seconds"]:
        raise harness.RunFailed(f"the run generated nothing: {line}")
    line.setdefault("peak_rss_bytes", done.peak_rss_bytes)
    line.setdefault("rows_per_s", round(line["rows"] / line["seconds"], 3))
    return {**line, "wall_s": round(done.wall_s, 3)}


def _from_manifest(out: pathlib.Path) -> dict[str, Any]:
    """What the artifact says of the run: tokens of each side, engine settings, the machine's torch."""
    path = out / "manifest.json"
    if not path.exists():
        return {}
    stats = json.loads(path.read_text(encoding="utf-8")).get("stats", {})
    kept = ("instruction_tokens", "response_tokens", "engine", "hardware", "probe")
    return {name: stats[name] for name in kept if name in stats}


def default_ojak() -> tuple[str, ...]:
    """The `ojak` command beside this Python, else this Python's module."""
    beside = pathlib.Path(sys.executable).parent / "ojak"
    return (str(beside),) if beside.exists() else (sys.executable, "-m", "ojak")


def memory_folder() -> pathlib.Path | None:
    """A folder that no disk stands behind, or None."""
    shared = pathlib.Path("/dev/shm")
    return shared if shared.is_dir() and shutil.disk_usage(shared).free > 1 << 30 else None
