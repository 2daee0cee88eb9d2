"""Decoding far into a text: ring buffers for local layers against caches that keep everything, and against the ideal.

Each form decodes in a process of its own, from caches filled with random numbers up to `--context` tokens (the speed of
a step depends on how much is read, not on what it says), so that 16k tokens need not be read first. What both forms
write is the same: tests/model/test_cache.py.

On a CPU, compared is the CPU time of the thread that leads the work, which other programs on the machine change least.

The ideal of memory is the entries that the layers must keep: a local layer its window, a global one all of the context.
The ideal of speed is that of a step which reads every byte that it needs once: all weights, and for each text the keys
and values of those entries. It is the ratio of the bytes, which a machine reaches where memory is what it waits for.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
from datetime import UTC, datetime
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import harness

FORMS = ("rings", "full")
MIB = 1 << 20


def decode(args: argparse.Namespace) -> dict[str, Any]:
    """One form in this process: mean seconds of a step, bytes of the cache, what decoding took beside the weights."""
    import torch

    from ojak.model.cache import CacheShape, DecodeAttend, SlotCache
    from ojak.model.fuse import ready
    from ojak.model.load import load_model
    from ojak.model.memory import forget_peak, held_bytes, peak_bytes

    class Everything(CacheShape):
        """Room for all of the context in every layer."""

        def ring(self, window: int | None) -> int:
            return self.capacity

    model = load_model(args.model, accept_license=args.accept_license)
    ready(model.decoder)
    forget_peak()
    before = held_bytes(model.device)
    form = CacheShape if args.form == "rings" else Everything
    shape = form(slots=args.slots, capacity=args.context + 1 + args.steps, prefix_capacity=0)
    cache = SlotCache(model.config, shape, model.dtype, model.device)
    cache.fit(args.context)
    for kept in (*cache.k, *cache.v):
        kept.normal_()
    spans = torch.zeros(args.slots, 2, dtype=torch.int64, device=model.device)
    clock = time.perf_counter if model.device.type == "cuda" else time.thread_time
    seconds = []
    with torch.inference_mode():
        ids_BT = torch.ones(1, args.slots, dtype=torch.int64, device=model.device)
        for place in range(args.context, shape.capacity):
            begun = clock()
            cache.fit(place + 1)
            own_N = torch.full((args.slots,), place, device=model.device)
            attend = DecodeAttend(cache, own_N, spans)
            x_BTD = model.decoder.hidden(ids_BT, own_N[None], attend)
            ids_BT = model.decoder.logits(x_BTD).argmax(-1)
            _ = ids_BT[0, 0].item()  # waits for a GPU
            seconds.append(clock() - begun)
    return {
        "seconds": statistics.fmean(seconds[1:]),  # with one growth of the cache in every 32 steps
        "cache_bytes": sum(kept.nbytes for kept in (*cache.k, *cache.v)),
        "memory_bytes": peak_bytes(model.device) - before,
        "needed": needed_bytes(model, args.context),
    }


def needed_bytes(model: Any, context: int) -> dict[str, int]:
    """What a step must read once: all weights, and of one text the entries that each form of cache must keep."""
    from ojak.model.cache import entry_bytes

    config, entry = model.config, entry_bytes(model.config, model.dtype)
    windows = [config.window(layer) for layer in range(config.num_hidden_layers)]
    return {
        "weights": sum(each.numel() * each.element_size() for each in set(model.decoder.parameters())),
        "rings": sum(min(context, window or context) for window in windows) * entry,
        "full": len(windows) * context * entry,
    }


def measured(args: argparse.Namespace, slots: int) -> dict[str, Any]:
    """Both forms in turn, `--rounds` times; figures and ratios. Raises harness.RunFailed."""
    runs: dict[str, list[dict[str, Any]]] = {form: [] for form in FORMS}
    env = harness.child_environment(args.threads, device=args.device, tuned_malloc=False)
    for _ in range(args.rounds):
        for form in FORMS:
            words = [sys.executable, __file__, "--form", form, "--slots", str(slots), "--model", args.model]
            words += ["--context", str(args.context), "--steps", str(args.steps)]
            words += [word for name in args.accept_license for word in ("--accept-license", name)]
            runs[form].append(harness.json_object(harness.run(words, env=env, limit_s=900.0).stdout))
    step = {form: min(run["seconds"] for run in runs[form]) for form in FORMS}
    needed = runs["rings"][0]["needed"]
    read = {form: needed["weights"] + slots * needed[form] for form in FORMS}
    cache = {form: runs[form][0]["cache_bytes"] for form in FORMS}
    memory = {form: min(run["memory_bytes"] for run in runs[form]) for form in FORMS}
    return {
        "slots": slots,
        "tokens_s": {form: round(slots / step[form], 2) for form in FORMS},
        "cache_mib": {form: round(cache[form] / MIB, 1) for form in FORMS},
        "peak_beside_weights_mib": {form: round(memory[form] / MIB, 1) for form in FORMS},
        "read_gb_s": {form: round(read[form] / step[form] / 1e9, 2) for form in FORMS},
        "speed_ratio": round(step["full"] / step["rings"], 3),
        "speed_ideal": round(read["full"] / read["rings"], 3),
        "cache_ratio": round(cache["full"] / cache["rings"], 3),
        "cache_ideal": round(needed["full"] / needed["rings"], 3),
        "steps_s": {form: harness.spread([run["seconds"] for run in runs[form]]) for form in FORMS},
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="gemma-3-270m")
    parser.add_argument("--accept-license", action="append", default=[])
    parser.add_argument("--context", type=int, default=16_384)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--texts", type=int, nargs="+", default=[1, 4, 8], help="texts decoded at once")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--results", type=pathlib.Path, help="folder to keep the figures in (default: only printed)"
    )
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)  # of a child
    parser.add_argument("--slots", type=int, default=1, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.form:
        print(json.dumps(decode(args)))
        return
    try:
        found = [measured(args, slots) for slots in args.texts]
    except harness.RunFailed as error:
        sys.exit(f"long_context: {error}")
    header = ("texts", "tok/s rings", "full", "ratio", "ideal", "cache MiB rings", "full", "ratio", "ideal")
    rows = [
        (
            str(each["slots"]), f"{each['tokens_s']['rings']:.1f}", f"{each['tokens_s']['full']:.1f}",
            f"{each['speed_ratio']:.2f}", f"{each['speed_ideal']:.2f}", f"{each['cache_mib']['rings']:.1f}",
            f"{each['cache_mib']['full']:.1f}", f"{each['cache_ratio']:.2f}", f"{each['cache_ideal']:.2f}",
        )
        for each in found
    ]  # fmt: skip
    print(harness.table(header, rows))
    if args.results:
        machine, now = harness.machine(), datetime.now(UTC)
        path = args.results / f"long-context-{now:%Y-%m-%d}-{harness.slug(machine['cpu'])}.json"
        sections = {
            "at": now.isoformat(timespec="seconds"),
            "machine": machine,
            "model": args.model,
            "context": args.context,
            "decode": found,
        }
        harness.update_results(path, sections)
        print(json.dumps({"results": str(path)}))


if __name__ == "__main__":
    main()
