"""What a teacher costs a training step: from a cache, read online, and in TRL's GKD; and the memory of the loss.

One student (15 of SmolLM2-135M-Instruct's 30 layers) makes steps on the same batches in turn: by cross-entropy, by what
a cache holds (k = 50), with the teacher reading along. Then TRL's GKDTrainer makes the same steps on the same tokens,
the teacher online (it has no other way), forward KL, in the peers' venv. Times are CPU seconds of the working thread,
on one thread, so that other work on the machine counts little. Nothing is asserted: the exit code is 1 only when a
contender failed. Results go to benchmarks/results/.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
import time
from datetime import UTC, datetime
from typing import Any

import harness

HERE = pathlib.Path(__file__).resolve().parent
PEERS_HOME = pathlib.Path(os.environ.get("PEERS_HOME", HERE.parent))
TEACHER, LAYERS, TOP_K, MAX_LEN = "smollm2-135m-instruct", 15, 50, 512
AIM = 1.15
LOSS_SHAPES = (
    (256, 49_152),
    (1024, 49_152),
    (256, 262_144),
    (1024, 262_144),
)  # rows, tokens of the vocabulary
WIDTH = 576

Line = dict[str, Any]


def prepared(folder: pathlib.Path, data: pathlib.Path, args: argparse.Namespace) -> Any:
    """A trainee at its first step, with the cache in `folder`."""
    from ojak.model.shrink import shrink_model
    from ojak.train.config import TrainConfig
    from ojak.train.distil_config import DistilCacheConfig, DistilConfig
    from ojak.train.distil_make import cache_teacher
    from ojak.train.processes import ALONE
    from ojak.train.setup import prepare

    shrink_model(TEACHER, folder / "student", layers=LAYERS)
    cache = DistilCacheConfig(
        teacher=TEACHER, data=(str(data),), out=folder / "cache", top_k=TOP_K, max_len=MAX_LEN
    )
    told = cache_teacher(cache)
    config = TrainConfig(
        objective="distil", model=str(folder / "student"), data=(str(data),), out=folder / "out",
        distil=DistilConfig(teacher=str(folder / "cache")), max_len=MAX_LEN, batch=args.batch,
    )  # fmt: skip
    return prepare(config, ALONE, harness.say), told


def ours(folder: pathlib.Path, data: pathlib.Path, args: argparse.Namespace) -> Line:
    """The steps of ojak: seconds of each by contender, every batch by each of them before the next one."""
    from ojak.train.objectives import Material, objective

    trainee, told = prepared(folder, data, args)
    material = Material(trainee.model, trainee.rows, trainee.processes, harness.say)
    plain = trainee.config.model_copy(update={"objective": "finetune"})
    block = trainee.config.distil.model_copy(update={"teacher": TEACHER})
    online = trainee.config.model_copy(update={"distil": block})
    learn = {
        "plain": objective(plain, material), "cached": trainee.objective, "online": objective(online, material)
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in learn}
    tokens: list[int] = []
    rows: list[list[Line]] = []
    for number, (_, _, batches) in zip(range(args.repeats + 1), trainee.batches(), strict=False):
        for name, each in learn.items():
            taken = step(trainee, each, batches[0])
            if number:  # the first is a warm-up
                seconds[name].append(taken)
        tokens += [batches[0].tokens] if number else []
        rows.append([_row(trainee.rows[row]) for row in batches[0].rows])
        harness.say(f"  batch {number}: " + ", ".join(f"{n} {s[-1]:.2f} s" for n, s in seconds.items() if s))
    (folder / "batches.json").write_text(json.dumps(rows), encoding="utf-8")
    return {"seconds": seconds, "tokens": tokens, "cache": {**told.to_dict(), "out": None}}


def _row(row: Any) -> Line:
    ids, mask = row
    labels = [int(i) if learnt else -100 for i, learnt in zip(ids, mask, strict=True)]
    return {"input_ids": [int(i) for i in ids], "labels": labels}


def step(trainee: Any, learn: Any, batch: Any) -> float:
    """CPU seconds of a whole step: loss, gradients, update."""
    begin = time.thread_time()
    loss = learn(trainee.decoder, batch)
    (loss.sum / max(1, loss.supervised)).backward()
    trainee.optimizer.finish()
    trainee.optimizer.square_norm()
    trainee.optimizer.step(1e-6, 1.0, 1.0)
    return time.thread_time() - begin


def loss_bytes() -> list[Line]:
    """The most bytes that the loss and its gradients hold at once, beyond what they are made of, at several shapes."""
    import torch

    from ojak.train.distil_loss import SparseTeacher, distil_loss
    from ojak.train.live_bytes import Peaks

    found: list[Line] = []
    for count, vocabulary in LOSS_SHAPES:
        hidden = torch.randn(count, WIDTH, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn(vocabulary, WIDTH, dtype=torch.bfloat16, requires_grad=True)
        logs = torch.full((count, TOP_K), -6.0)
        teacher = SparseTeacher(torch.arange(TOP_K).expand(count, -1), logs, torch.full((count,), -0.2))
        with Peaks(torch.device("cpu")) as peaks:
            total, _ = distil_loss(hidden, weight, torch.zeros(count, dtype=torch.int64), teacher)
            total.backward()
        whole = count * vocabulary * 4
        line = {
            "rows": count,
            "vocabulary": vocabulary,
            "peak_bytes": max(peaks.found),
            "logits_float32": whole,
        }
        found.append({**line, "weight_bytes": weight.nbytes})
    return found


def peer(folder: pathlib.Path, args: argparse.Namespace) -> Line:
    """TRL's steps on the same tokens. Raises harness.RunFailed."""
    command = [str(args.peers_python), str(HERE / "peers" / "gkd.py"), "--student", str(folder / "student")]
    command += ["--batches", str(folder / "batches.json"), "--threads", str(args.threads)]
    env = harness.child_environment(args.threads, device="cpu", tuned_malloc=True)
    return harness.json_object(harness.run(command, env=env).stdout)


def summary(found: Line) -> Line:
    """Medians and their ratios; a ratio is the median of those of each batch, which all contenders made."""
    seconds, plain = found["seconds"], found["seconds"]["plain"]
    ratios = {
        name: harness.spread([a / b for a, b in zip(each, plain, strict=True)])
        for name, each in seconds.items()
        if name != "plain"
    }
    return {
        "step_s": {name: harness.spread(each) for name, each in seconds.items()},
        "over_plain": ratios,
        "aim_cached_over_plain": AIM,
    }


def markdown(found: Line) -> str:
    rows = [
        [name, f"{each['median']:.2f} ({each['min']:.2f}-{each['max']:.2f})",
         f"{found['over_plain'][name]['median']:.3f}" if name in found["over_plain"] else ""]
        for name, each in found["step_s"].items()
    ]  # fmt: skip
    return (
        harness.table(("step", "CPU seconds, median (range)", "over plain"), rows)
        + "\n\n"
        + memory_table(found)
    )


def memory_table(found: Line) -> str:
    rows = [
        [f"{line['rows']} x {line['vocabulary']:,}", f"{line['peak_bytes'] / 2**20:.0f}",
         f"{line['weight_bytes'] / 2**20:.0f}", f"{line['logits_float32'] / 2**20:.0f}"]
        for line in found["loss_bytes"]
    ]  # fmt: skip
    head = ("rows x vocabulary", "loss, at most", "output layer", "all logits in float32")
    return f"Memory, MiB:\n\n{harness.table(head, rows)}\n"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--data", type=pathlib.Path, help="a JSON list of {instruction, input, output}")
    add("--memory", action="store_true", help="of the loss alone, without data; the day's other figures stay")
    add("--rows", type=int, default=64, help="of the data, read once by the teacher for the cache")
    add("--batch", type=int, default=8)
    add("--repeats", type=int, default=5, help="batches that are timed")
    add(
        "--threads",
        type=int,
        default=1,
        help="with more than one, CPU seconds are those of the leading thread",
    )
    add("--no-peer", action="store_true", help="leave TRL out")
    add("--peers-python", type=pathlib.Path, default=PEERS_HOME / ".peers" / "bin" / "python")
    add("--results", type=pathlib.Path, default=harness.RESULTS)
    args = parser.parse_args()
    if not (args.data or args.memory):
        parser.error("give --data, or --memory")
    return args


def main() -> int:
    args = parse_arguments()
    import torch

    torch.set_num_threads(args.threads)
    machine, started, failure = harness.machine(), datetime.now(UTC), None
    path = args.results / f"distil-{started:%Y-%m-%d}-{harness.slug(machine['cpu'] or 'unknown')}.json"
    if args.memory:
        found = {"loss_bytes": loss_bytes()}
        harness.update_results(path, found)
        print(memory_table(found))
        return 0
    with tempfile.TemporaryDirectory(prefix="ojak-bench-") as name:
        folder = pathlib.Path(name)
        data = folder / "rows.json"
        data.write_text(json.dumps(json.loads(args.data.read_text(encoding="utf-8"))[: args.rows]), "utf-8")
        found = ours(folder, data, args)
        if not args.no_peer:
            try:
                line = peer(folder, args)
                found["seconds"]["trl-gkd"] = line.pop("seconds")[1:]
                found["peer"] = line
            except harness.RunFailed as error:
                failure = str(error)
                harness.say(f"trl-gkd failed: {failure}")
    found |= summary(found) | {"loss_bytes": loss_bytes(), "failure": failure}
    settings = {name: getattr(args, name) for name in ("rows", "batch", "repeats", "threads")}
    head = {"benchmark": "distil", "machine": machine, "at": started.isoformat(timespec="seconds")}
    harness.update_results(path, {**head, "settings": settings, **found})
    print(markdown(found))
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())
