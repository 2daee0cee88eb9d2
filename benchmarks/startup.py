"""How long `import ojak` and `ojak --help` take, and that they load no torch. The aim: under 400 ms each.

Says nothing about right or wrong by its exit code, unless a command fails or torch is loaded.
"""

import argparse
import json
import os
import pathlib
import sys
from datetime import UTC, datetime
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import harness

AIM_MS = 400.0
NO_TORCH = "import sys, ojak; sys.exit('import ojak loads torch' if 'torch' in sys.modules else 0)"


def commands(ojak: pathlib.Path) -> dict[str, list[str]]:
    """What is timed; bare Python is there to show what of the time is ours."""
    return {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import ojak": [sys.executable, "-c", "import ojak"],
        "ojak --help": [str(ojak), "--help"],
    }


def measure(ojak: pathlib.Path, repeats: int) -> dict[str, dict[str, Any]]:
    """Wall milliseconds of each command, in turn; a first round, which fills the caches, is thrown away."""
    times: dict[str, list[float]] = {name: [] for name in commands(ojak)}
    for turn in range(repeats + 1):
        for name, command in commands(ojak).items():
            wall = harness.run(command, limit_s=60.0).wall_s
            if turn:
                times[name].append(wall * 1e3)
    return {name: harness.spread(found) for name, found in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--ojak", type=pathlib.Path, default=pathlib.Path(sys.executable).parent / "ojak")
    parser.add_argument(
        "--results", type=pathlib.Path, help="folder to keep the figures in (default: only printed)"
    )
    args = parser.parse_args()
    try:
        harness.run([sys.executable, "-c", NO_TORCH], limit_s=60.0)
        found = measure(args.ojak, args.repeats)
    except harness.RunFailed as error:
        sys.exit(f"startup: {error}")
    rows = [
        (name, f"{each['median']:.0f}", f"{each['min']:.0f}-{each['max']:.0f}")
        for name, each in found.items()
    ]
    print(harness.table(("command", "median, ms", "range"), rows))
    print(
        f"\naim: under {AIM_MS:.0f} ms each; {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} a minute"
    )
    if args.results:
        machine = harness.machine()
        now = datetime.now(UTC)
        path = args.results / f"startup-{now:%Y-%m-%d}-{harness.slug(machine['cpu'])}.json"
        harness.update_results(
            path, {"at": now.isoformat(timespec="seconds"), "machine": machine, "ms": found}
        )
        print(json.dumps({"results": str(path)}))


if __name__ == "__main__":
    main()
