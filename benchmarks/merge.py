"""Merging two models of 270M parameters: `ojak merge` beside mergekit's command, in turn, on the same folders.

Two models are made from `--model` by adding small random numbers to its weights, each stored as bfloat16. Measured are
the whole command, and the merging alone: of ojak its own figure, of mergekit the time from the first to the last sign
of its progress bar. ojak's includes the waiting until the weights are on the disk. Peak memory is that of the command,
and beyond what the same interpreter takes that has only imported what merges; it is held against the largest tensors of
all inputs together. Results are compared tensor by tensor. mergekit (LGPL) is run, never imported.

The exit code says only whether everything ran and the results agree.
"""

import argparse
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import harness

PEERS_HOME = pathlib.Path(os.environ.get("PEERS_HOME") or harness.RESULTS.parent.parent)
AIM, MEMORY_AIM = 3.0, 1.2
BAR = b"Executing graph"
TOLERANCE = 2.0**-8  # two roundings to bfloat16 differ by one unit in the last place
IDLE = "import resource, ojak.cli.merge, ojak.merge.run; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
Line = dict[str, Any]
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Way:
    """A method under ojak's name with its flags, and as mergekit is asked for it."""

    flags: tuple[str, ...]
    peer: str
    parameters: dict[str, Any]
    base: bool = True
    of_model: dict[str, Any] | None = None


WAYS = {
    "linear": Way(("--method", "linear"), "linear", {}, base=False),
    "task": Way(("--method", "task"), "task_arithmetic", {"normalize": False}),
    "slerp": Way(("--method", "slerp", "--angle", "tensor"), "nuslerp", {"nuslerp_flatten": True}),
    "ties": Way(
        ("--method", "ties", "--density", "0.2"), "ties", {"normalize": True}, of_model={"density": 0.2}
    ),
}


def make_models(args: argparse.Namespace, folder: pathlib.Path) -> None:
    """The base and two models near it. Raises harness.RunFailed."""
    import torch
    from safetensors.torch import load_file, save_file

    if (folder / "b").exists():
        return
    base = [
        *args.ojak,
        "export",
        args.model,
        "--format",
        "hf",
        "--type",
        "bf16",
        "--out",
        str(folder / "base"),
    ]
    harness.run(base)
    for seed, name in enumerate("ab"):
        shutil.copytree(folder / "base", folder / f"{name}.part")
        tensors, random = load_file(folder / "base/model.safetensors"), torch.Generator().manual_seed(seed)
        for key, tensor in tensors.items():
            noise = torch.randn(tensor.shape, generator=random) * (0.02 * tensor.float().std())
            tensors[key] = (tensor.float() + noise).to(tensor.dtype)
        save_file(tensors, folder / f"{name}.part/model.safetensors", metadata={"format": "pt"})
        (folder / f"{name}.part").rename(folder / name)


def run_ojak(args: argparse.Namespace, way: Way, folder: pathlib.Path) -> Line:
    """One `ojak merge`. Raises harness.RunFailed."""
    out = folder / "ojak"
    shutil.rmtree(out, ignore_errors=True)
    words = [
        *args.ojak,
        "merge",
        str(folder / "a"),
        str(folder / "b"),
        *way.flags,
        "--out",
        str(out),
        "--json",
    ]
    begin = os.times()
    done = harness.run([*words, *(["--base", str(folder / "base")] if way.base else [])], env=args.env)
    found = harness.json_object(done.stdout)
    return {
        "wall_s": done.wall_s, "cpu_s": _children_cpu(begin), "merging_s": found["merging_seconds"],
        "peak_rss_bytes": done.peak_rss_bytes,
    }  # fmt: skip


def run_mergekit(args: argparse.Namespace, way: Way, folder: pathlib.Path) -> Line:
    """One `mergekit-yaml`. Raises harness.RunFailed."""
    out, recipe = folder / "mergekit", folder / "mergekit.json"
    shutil.rmtree(out, ignore_errors=True)
    models = [
        {"model": str(folder / name), "parameters": {"weight": 0.5, **(way.of_model or {})}} for name in "ab"
    ]
    asked = {"merge_method": way.peer, "models": models, "parameters": way.parameters, "dtype": "float32"}
    asked |= {"out_dtype": "bfloat16", **({"base_model": str(folder / "base")} if way.base else {})}
    recipe.write_text(json.dumps(asked), encoding="utf-8")  # JSON is YAML
    command = [str(args.peers / "mergekit-yaml"), str(recipe), str(out)]
    begin, start = os.times(), time.perf_counter()
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=args.env, start_new_session=True
    )
    assert process.stderr is not None
    seen: list[float] = []
    said = b""
    while chunk := os.read(process.stderr.fileno(), 65536):
        said = (said + chunk)[-4000:]
        if BAR in chunk:
            seen.append(time.perf_counter())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or len(seen) < 2:
        raise harness.RunFailed(
            f"mergekit ended with {process.returncode}: {said.decode(errors='replace')[-1500:]}"
        )
    return {
        "wall_s": time.perf_counter() - start, "cpu_s": _children_cpu(begin), "merging_s": seen[-1] - seen[0],
        "peak_rss_bytes": usage.ru_maxrss * 1024,
    }  # fmt: skip


def _children_cpu(begin: os.times_result) -> float:
    """CPU seconds of the commands that ended since: other programs on the machine do not change them."""
    now = os.times()
    return now.children_user + now.children_system - begin.children_user - begin.children_system


def compare(folder: pathlib.Path, density: float | None = None) -> Line:
    """How far the two results are apart: of the largest entry of each tensor, and the share of entries that differ.

    density: of ties. Where a change is as large as the least that is kept, which of the equal ones stay is free:
    mergekit keeps as many as the density says, ojak all. These entries are counted apart.
    """
    import torch
    from safetensors.torch import load_file

    of = {
        who: {n: t for path in (folder / who).glob("*.safetensors") for n, t in load_file(path).items()}
        for who in ("ojak", "mergekit", *(("a", "b", "base") if density else ()))
    }
    ours, theirs = of["ojak"], of["mergekit"]
    if ours.keys() != theirs.keys():
        raise harness.RunFailed(f"other tensors: {sorted(ours.keys() ^ theirs.keys())[:5]}")
    worst, differing, total, free = 0.0, 0, 0, 0
    for name, tensor in ours.items():
        apart = (tensor.float() - theirs[name].float()).abs()
        total += apart.numel()
        if density:
            at_the_edge = torch.zeros_like(apart, dtype=torch.bool)
            for model in "ab":
                change = (of[model][name].float() - of["base"][name].float()).abs()
                at_the_edge |= change == change.flatten().topk(int(density * change.numel())).values[-1]
            free += int(at_the_edge.sum())
            apart[at_the_edge] = 0.0
        worst = max(worst, float(apart.max() / theirs[name].float().abs().max()))
        differing += int(torch.count_nonzero(apart))
    edge = {"entries_at_the_edge": free / total} if density else {}
    return {"worst": worst, "entries_that_differ": differing / total, **edge}


def in_a_process(call: Callable[..., Result], *given: object) -> Result:
    """What `call` gives, in a process of its own: a command's peak memory counts what its parent held at the start."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *given).result()


def measure(args: argparse.Namespace, name: str, folder: pathlib.Path) -> Line:
    """Both in turn, as often as asked. Raises harness.RunFailed."""
    way, runs = WAYS[name], {"ojak": list[Line](), "mergekit": list[Line]()}
    for turn in range(args.rounds):
        harness.say(f"{name}, round {turn + 1}")
        runs["ojak"].append(run_ojak(args, way, folder))
        runs["mergekit"].append(run_mergekit(args, way, folder))
    ratios = {
        key: harness.spread([m[key] / o[key] for o, m in zip(runs["ojak"], runs["mergekit"], strict=True)])
        for key in ("wall_s", "cpu_s", "merging_s")
    }
    largest = (3 if way.base else 2) * _largest_bytes(folder / "a")
    peak = max(run["peak_rss_bytes"] for run in runs["ojak"]) - args.idle_bytes
    return {
        "runs": runs, "mergekit_over_ojak": ratios, "aim": AIM,
        "beyond_the_interpreter_bytes": peak, "largest_tensors_bytes": largest,
        "memory_share": round(peak / largest, 3), "memory_aim": MEMORY_AIM,
        "results": in_a_process(compare, folder, (way.of_model or {}).get("density")),
    }  # fmt: skip


def _largest_bytes(folder: pathlib.Path) -> int:
    with (folder / "model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    return max(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values())


def table(found: Line) -> str:
    rows: list[list[str]] = []
    for name, line in found.items():
        ratio = line["mergekit_over_ojak"]
        rows.append([
            name, *(f"{ratio[key]['median']:.1f} ({ratio[key]['min']:.1f}-{ratio[key]['max']:.1f})" for key in ratio),
            f"{line['memory_share']:.2f}", f"{line['results']['worst']:.1e}",
            f"{line['results']['entries_that_differ']:.1e}",
        ])  # fmt: skip
    header = (
        "method",
        "whole command",
        "its CPU seconds",
        "merging alone",
        "memory",
        "worst",
        "entries apart",
    )
    return harness.table(header, rows)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--model", default="gemma-3-270m", help="what the two models are made from")
    add("--only", nargs="+", choices=WAYS, default=list(WAYS))
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=2)
    add("--scratch", type=pathlib.Path, help="where models are made and kept (default: a temporary folder)")
    add("--peers", type=pathlib.Path, default=PEERS_HOME / ".peers" / "bin", help="where mergekit-yaml is")
    add("--results", type=pathlib.Path, help="folder to keep the figures in (default: only printed)")
    args = parser.parse_args(argv)
    args.ojak = [sys.executable, "-m", "ojak"]
    args.env = harness.child_environment(args.threads, device="cpu", tuned_malloc=False)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    machine, found, failures = harness.machine(), dict[str, Line](), list[str]()
    with tempfile.TemporaryDirectory(prefix="ojak-merge-") as temporary:
        folder = args.scratch or pathlib.Path(temporary)
        in_a_process(make_models, args, folder)
        idle = harness.run([sys.executable, "-c", IDLE], env=args.env).stdout
        args.idle_bytes = int(idle) * 1024
        for name in args.only:
            try:
                found[name] = measure(args, name, folder)
            except harness.RunFailed as error:
                failures.append(f"{name}: {error}")
                continue
            if found[name]["results"]["worst"] > TOLERANCE:
                failures.append(f"{name}: results differ by {found[name]['results']['worst']:.1e}")
            print(table({name: found[name]}), flush=True)
            if args.results:
                now = datetime.now(UTC)
                path = args.results / f"merge-{now:%Y-%m-%d}-{harness.slug(machine['cpu'])}.json"
                head = {"benchmark": "merge", "machine": machine, "at": now.isoformat(timespec="seconds")}
                harness.update_results(path, {**head, "threads": args.threads, "methods": found})
    for failure in failures:
        harness.say(f"failed: {failure}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
