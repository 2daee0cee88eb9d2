"""The least time that decoding can take on this machine, term by term, from its measured rates.

Measures the matrix rate (bf16 and float32) and the memory bandwidth, then counts what one decode step of a
batch must do: the operations of each matrix product over the rate, and the bytes that must cross the memory
bus over the bandwidth. A term costs the larger of the two (they can overlap); the floor is the sum of the
terms. Beside it stands each term as torch runs it today at exactly that shape ("at shape"), which splits the
gap between the floor and a measured run in two: what torch's kernels lose at these shapes, and all the rest
(norms, scheduling, empty slots, Python).
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import harness

BYTES = {"bfloat16": 2, "float32": 4}
BANDWIDTH_BYTES = 512 << 20  # far larger than any last-level cache
SQUARES = (1024, 2048)  # besides the decoder's shapes, where the matrix rate is looked for


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's sizes; the defaults are SmolLM2-135M's (embeddings tied)."""

    hidden: int = 576
    intermediate: int = 1536
    heads: int = 9
    kv_heads: int = 3
    head_dim: int = 64
    layers: int = 30
    vocab: int = 49152

    def products(self) -> dict[str, tuple[int, int, int]]:
        """Each matrix product of a step as (inputs, outputs, how many times)."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "qkv": (self.hidden, q + 2 * kv, self.layers),
            "attention output": (q, self.hidden, self.layers),
            "gate and up": (self.hidden, 2 * self.intermediate, self.layers),
            "down": (self.intermediate, self.hidden, self.layers),
            "lm head": (self.hidden, self.vocab, 1),
        }


@dataclass(frozen=True, slots=True)
class Job:
    """What a mean row looks like, in tokens, and how many rows are decoded together."""

    batch: int = 256
    prefix: int = 31  # the pre-query prefix, computed once for all rows
    between: int = 5  # template tokens from the end of the instruction to the response
    instruction: float = 40.0
    response: float = 130.0

    @property
    def generated(self) -> float:
        return self.instruction + self.response

    def mean_context(self) -> float:
        """Cached positions that a decode step reads for a row, on average over the row's steps."""
        asking = self.prefix + self.instruction / 2
        answering = self.prefix + self.instruction + self.between + self.response / 2
        return (asking * self.instruction + answering * self.response) / self.generated


@dataclass(frozen=True, slots=True)
class Rates:
    """What the machine does: operations per second in matrix products, bytes per second read from memory."""

    matrix: float
    bandwidth: float


@dataclass(frozen=True, slots=True)
class Term:
    """A part of a decode step: its work, its least time, its time as torch runs it (None: not measured)."""

    name: str
    operations: float
    bytes: float
    floor_ms: float
    at_shape_ms: float | None = None


def best_seconds(work: Callable[[], object], *, device: str, budget_s: float) -> float:
    """The median of the fastest third of the calls that fit into `budget_s`; the first two are left out."""
    import torch

    times: list[float] = []
    until = time.perf_counter() + budget_s
    while len(times) < 5 or time.perf_counter() < until:
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    kept = sorted(times[2:])
    return statistics.median(kept[: max(1, len(kept) // 3)])


class Bench:
    """Times torch's own operations at a decoder's shapes, in one number format on one device."""

    def __init__(self, shape: Shape, job: Job, dtype: str, device: str, budget_s: float) -> None:
        import torch

        self.torch, self.shape, self.job = torch, shape, job
        self.dtype, self.device, self.budget_s = getattr(torch, dtype), device, budget_s

    def _random(self, *sizes: int) -> Any:
        return self.torch.randn(*sizes, device=self.device, dtype=self.torch.float32).to(self.dtype)

    def _seconds(self, work: Callable[[], object]) -> float:
        return best_seconds(work, device=self.device, budget_s=self.budget_s)

    def bandwidth(self) -> float:
        """Bytes per second of a sum over an array that no cache holds."""
        array = self.torch.ones(BANDWIDTH_BYTES // 4, device=self.device)
        return BANDWIDTH_BYTES / self._seconds(array.sum)

    def product_seconds(self, inputs: int, outputs: int, times: int) -> float:
        """All `times` products of a step, each with its own weights: they come from memory, as in a step."""
        x = self._random(self.job.batch, inputs)
        weights = [self._random(outputs, inputs) for _ in range(times)]

        def step() -> None:
            for weight in weights:
                self.torch.nn.functional.linear(x, weight)

        return self._seconds(step)

    def square_rate(self, side: int) -> float:
        a, b = self._random(side, side), self._random(side, side)
        return 2 * side**3 / self._seconds(lambda: self.torch.nn.functional.linear(a, b))

    def attention_seconds(self) -> float:
        """Attention of one new token a row over the mean context, all layers: the faster of two SDPA forms.

        One shares each key head among its query heads by SDPA's own flag, the other hands SDPA the query
        heads of a key head as if they were positions, which for a single new token is the same.
        """
        shape, job = self.shape, self.job
        sizes = (job.batch, shape.kv_heads, max(1, round(job.mean_context())), shape.head_dim)
        caches = [(self._random(*sizes), self._random(*sizes)) for _ in range(shape.layers)]
        attend = self.torch.nn.functional.scaled_dot_product_attention
        apart = self._random(job.batch, shape.heads, 1, shape.head_dim)
        together = apart.view(job.batch, shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim)

        def shared() -> None:
            for keys, values in caches:
                attend(apart, keys, values, enable_gqa=True)

        def grouped() -> None:
            for keys, values in caches:
                attend(together, keys, values)

        return min(self._seconds(shared), self._seconds(grouped))

    def sampling_seconds(self) -> float:
        """Inverse-CDF draws for the share of steps that sample, the largest logit for the greedy ones."""
        logits = self._random(self.job.batch, self.shape.vocab)

        def draw() -> None:
            sums = self.torch.softmax(logits.float(), -1).cumsum(-1)
            uniform = self.torch.rand(self.job.batch, 1, device=self.device)
            self.torch.searchsorted(sums, uniform)

        asked = self.job.instruction / self.job.generated
        return asked * self._seconds(draw) + (1 - asked) * self._seconds(lambda: logits.argmax(-1))


def step_terms(shape: Shape, job: Job, rates: Rates, width: int, at_shape: dict[str, float]) -> list[Term]:
    """The terms of a step of `job.batch` rows. `width`: bytes of a number; `at_shape`: seconds by name."""
    work = {
        name: (2.0 * job.batch * inputs * outputs * times, float(inputs * outputs * times * width))
        for name, (inputs, outputs, times) in shape.products().items()
    }
    positions = job.batch * shape.layers * job.mean_context()
    query_width, cache_width = shape.heads * shape.head_dim, 2 * shape.kv_heads * shape.head_dim
    work["attention"] = (4.0 * positions * query_width, positions * cache_width * width)
    work["sampling"] = (0.0, 2.0 * job.batch * shape.vocab * width)  # the logits, written once and read once
    terms = [_term(name, *amounts, rates, at_shape.get(name)) for name, amounts in work.items()]
    return [*terms, prefill_term(shape, job, rates)]


def prefill_term(shape: Shape, job: Job, rates: Rates) -> Term:
    """The prompt tokens that a row needs beyond the shared prefix, spread over its decode steps.

    Only the template's tokens between instruction and response: a row that kept the cache of its instruction
    would need no more. The lm head is left out: one position a prompt needs it.
    """
    per_token = sum(
        2.0 * i * o * times for name, (i, o, times) in shape.products().items() if name != "lm head"
    )
    return _term("prefill", per_token * job.between / job.generated * job.batch, 0.0, rates, None)


def _term(name: str, operations: float, moved: float, rates: Rates, seconds: float | None) -> Term:
    floor = max(operations / rates.matrix, moved / rates.bandwidth)
    return Term(name, operations, moved, floor * 1e3, None if seconds is None else seconds * 1e3)


def measure(shape: Shape, job: Job, dtype: str, device: str, budget_s: float) -> dict[str, Any]:
    """Rates, terms and the floor in tokens per second for one number format."""
    bench = Bench(shape, job, dtype, device, budget_s)
    at_shape = {name: bench.product_seconds(*sizes) for name, sizes in shape.products().items()}
    rates_seen = [
        2.0 * job.batch * inputs * outputs * times / at_shape[name]
        for name, (inputs, outputs, times) in shape.products().items()
    ]
    rates_seen += [bench.square_rate(side) for side in SQUARES]
    rates = Rates(matrix=max(rates_seen), bandwidth=bench.bandwidth())
    at_shape["attention"] = bench.attention_seconds()
    at_shape["sampling"] = bench.sampling_seconds()
    terms = step_terms(shape, job, rates, BYTES[dtype], at_shape)
    floor_ms = sum(term.floor_ms for term in terms)
    shaped_ms = sum(term.floor_ms if term.at_shape_ms is None else term.at_shape_ms for term in terms)
    return {
        "dtype": dtype,
        "matrix_gflops": round(rates.matrix / 1e9, 1),
        "bandwidth_gb_per_s": round(rates.bandwidth / 1e9, 2),
        "terms": [asdict(term) for term in terms],
        "step_ms": {"floor": floor_ms, "at_shape": shaped_ms},
        "tokens_per_s": {"floor": job.batch / floor_ms * 1e3, "at_shape": job.batch / shaped_ms * 1e3},
    }


def report(found: dict[str, Any], job: Job, measured: float | None) -> str:
    """The terms of one number format as a markdown table, with the measured rate where it is known."""
    rows = [
        (
            term["name"],
            f"{term['operations'] / 1e9:.2f}",
            f"{term['bytes'] / 1e6:.1f}",
            f"{term['floor_ms']:.2f}",
            "" if term["at_shape_ms"] is None else f"{term['at_shape_ms']:.2f}",
        )
        for term in found["terms"]
    ]
    rate, step = found["tokens_per_s"], found["step_ms"]
    rows.append(("a step", "", "", f"{step['floor']:.2f}", f"{step['at_shape']:.2f}"))
    rows.append(("tokens/s", "", "", f"{rate['floor']:.0f}", f"{rate['at_shape']:.0f}"))
    head = f"{found['dtype']}, batch {job.batch}, mean context {job.mean_context():.0f}: "
    head += f"{found['matrix_gflops']} Gflop/s, {found['bandwidth_gb_per_s']} GB/s"
    lines = [head, "", harness.table(("term", "Gflop", "MB", "floor, ms", "at shape, ms"), rows)]
    if measured:
        lines += ["", gap(rate, measured)]
    return "\n".join(lines)


def gap(rate: dict[str, float], measured: float) -> str:
    """What of the floor a measured rate reaches, and where the rest goes."""
    ours, kernels = measured / rate["floor"], rate["at_shape"] / rate["floor"]
    return (
        f"measured {measured:.0f} tokens/s: {ours:.0%} of the floor. torch's kernels at these shapes reach "
        f"{kernels:.0%} of it, and the run {measured / rate['at_shape']:.0%} of what those kernels would "
        "(the rest: norms, rotary embedding, prompts, empty slots, scheduling, Python)"
    )


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    usual = Job()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=usual.batch, help="rows decoded together")
    parser.add_argument("--instruction-tokens", type=float, default=usual.instruction, help="mean of a row")
    parser.add_argument("--response-tokens", type=float, default=usual.response, help="mean of a row")
    parser.add_argument("--dtype", nargs="+", choices=list(BYTES), default=list(BYTES))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=2.0, help="seconds for each thing measured")
    parser.add_argument("--measured", type=float, help="tokens/s of a run, to set beside the floor")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_arguments(argv)
    import torch

    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    job = Job(batch=args.batch, instruction=args.instruction_tokens, response=args.response_tokens)
    found = [measure(Shape(), job, dtype, args.device, args.budget) for dtype in args.dtype]
    result = {"job": asdict(job), "threads": args.threads, "torch": torch.__version__, "formats": found}
    if args.json:
        print(json.dumps(result))
        return
    print("\n\n".join(report(each, job, args.measured) for each in found))


if __name__ == "__main__":
    main()
