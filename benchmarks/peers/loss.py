"""One way to the cross-entropy of an output layer and its gradients, timed; run by a Python that has it.

The same random inputs for all. Prints one JSON line: wall and CPU seconds of each repetition, the bytes it took at its
most beyond inputs, loss and norms of the gradients.
"""

import argparse
import json
import pathlib
import resource
import time

import torch
import torch.nn.functional as F
from torch import Tensor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum")


def plain_float32_logits(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """As transformers has it."""
    return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")


def torch_chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, weight, targets, reduction="sum", options=options)


def trl(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from trl.kernels import ChunkedLogProbFunction

    found = ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, 32768, None, 1.0, ())
    return -found[0].sum()


def ojak(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from ojak.train.loss import chunked_cross_entropy

    return chunked_cross_entropy(hidden, weight, targets)[0]


WAYS = {
    each.__name__.replace("_", "-"): each for each in (plain, plain_float32_logits, torch_chunked, trl, ojak)
}


def inputs(args: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states as a norm leaves them, an output layer as a trained one, targets."""
    random, dtype = torch.Generator().manual_seed(0), DTYPES[args.dtype]
    hidden = torch.empty(args.rows, args.width, dtype=dtype).normal_(generator=random)
    weight = torch.empty(args.vocabulary, args.width, dtype=dtype).normal_(std=0.05, generator=random)
    targets = torch.randint(0, args.vocabulary, (args.rows,), generator=random)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def resident() -> int:
    return int(pathlib.Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


def used() -> tuple[float, float]:
    """CPU seconds of this process, of its leading thread."""
    return time.process_time(), time.thread_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--vocabulary", type=int, required=True)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    way = WAYS[args.way]
    few = torch.ones(2, 8, requires_grad=True), torch.ones(9, 8, requires_grad=True), torch.tensor([1, 2])
    way(*few).backward()  # loads the code
    hidden, weight, targets = inputs(args)
    before, seconds, busy, leading = resident(), [], [], []
    for _ in range(args.repeats + 1):  # the first takes the memory, and is thrown away
        hidden.grad = weight.grad = None
        begin, cpu = time.perf_counter(), used()
        total = way(hidden, weight, targets) / args.rows
        total.backward()
        seconds.append(time.perf_counter() - begin)
        busy.append(used()[0] - cpu[0])
        leading.append(used()[1] - cpu[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    norms = [float(torch.linalg.vector_norm(each.grad, dtype=torch.float64)) for each in (hidden, weight)]
    line = {"seconds": seconds[1:], "cpu_s": busy[1:], "leading_s": leading[1:], "extra_bytes": peak - before}
    print(json.dumps({**line, "loss": float(total), "gradient_norms": norms, "torch": torch.__version__}))


if __name__ == "__main__":
    main()
