"""The Magpie job with a peer: N sampled instructions, each answered, by SmolLM2-135M-Instruct. One JSON line.

Per row: the model continues its own pre-query prefix (system turn, then an open user turn) at temperature 1.0
and top-p 1.0 with the whole vocabulary; what it writes, stripped, is the instruction. It then answers that
instruction through its chat template, greedily. Tokens count up to and including the stop token, none after.
"""

import argparse
import importlib
import json
import pathlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import common
import llama_server

# One sampler each: the other steps of llama.cpp's default chain would change nothing at these settings.
SAMPLE = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "samplers": ["temperature"]}
GREEDY = {"temperature": 0.0, "samplers": ["temperature"]}
FIXED_PROMPT_TOKENS = 64  # both prompts' template text is shorter than this

Complete = Callable[[str, int, int, dict[str, Any]], tuple[str, int]]  # prompt, limit, seed, sampling


@dataclass(frozen=True, slots=True)
class Row:
    """One pair, with the tokens generated for each side."""

    instruction: str
    instruction_tokens: int
    response: str = ""
    response_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """What a peer did: its rows, the seconds of generation without loading, and what its line says of it."""

    rows: list[Row]
    seconds: float
    settings: dict[str, Any]
    versions: dict[str, str]
    peak_rss_bytes: int


def main() -> None:
    args = parse_arguments()
    run = PEERS[args.peer](args)
    if args.rows:
        rows = [asdict(row) for row in run.rows]
        pathlib.Path(args.rows).write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    print(json.dumps(result_line(args, run)))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", required=True, choices=list(PEERS))
    parser.add_argument("--n", type=int, default=64, help="rows")
    parser.add_argument("--max-instruction", type=int, default=64, help="tokens")
    parser.add_argument("--max-response", type=int, default=160, help="tokens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--parallel", type=int, default=32, help="slots of llamacpp-batch and llamacpp-native"
    )
    parser.add_argument("--batch", type=int, default=64, help="transformers: rows per generate()")
    parser.add_argument("--device", default="cpu", help="transformers: cpu or cuda")
    parser.add_argument(
        "--llama-weights", choices=["q4_1", *common.FILE_TYPES], help="default: the peer's own"
    )
    parser.add_argument("--server", type=pathlib.Path, default=common.SERVER, help="llamacpp-native's binary")
    parser.add_argument("--rows", help="also write the rows to this JSON file")
    return parser.parse_args()


def result_line(args: argparse.Namespace, run: Run) -> dict[str, Any]:
    asked = sum(row.instruction_tokens for row in run.rows)
    answered = sum(row.response_tokens for row in run.rows)
    return {
        "peer": args.peer,
        "rows": len(run.rows),
        "empty": sum(not row.instruction for row in run.rows),
        "completion_tokens": asked + answered,
        "instruction_tokens": asked,
        "response_tokens": answered,
        "seconds": round(run.seconds, 3),
        "tokens_per_s": round((asked + answered) / run.seconds, 1),
        "rows_per_s": round(len(run.rows) / run.seconds, 3),
        "peak_rss_bytes": run.peak_rss_bytes,
        "settings": {**run.settings, "threads": args.threads, "seed": args.seed},
        "versions": run.versions,
    }


def llamacpp_loop(args: argparse.Namespace) -> Run:
    """xllamacpp's wheel, one request after another, the shipped file: a notebook's loop, less its HTTP."""
    return llamacpp_wheel(args, parallel=1, weights=args.llama_weights or "q4_1")


def llamacpp_batch(args: argparse.Namespace) -> Run:
    """xllamacpp's wheel with continuous batching."""
    return llamacpp_wheel(args, parallel=args.parallel, weights=args.llama_weights or "q8_0")


def llamacpp_wheel(args: argparse.Namespace, parallel: int, weights: str) -> Run:
    xllamacpp: Any = importlib.import_module("xllamacpp")  # a compiled module, of which no types are known
    params = xllamacpp.CommonParams()
    params.model.path = str(common.gguf_as(weights))
    params.n_parallel = parallel
    params.n_ctx = context_tokens(args, parallel)
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads
    params.cache_ram_mib = 0  # no copies of finished slots: nothing here would be reused from them
    params.fit_params = False
    params.verbosity = 0
    server = xllamacpp.Server(params)

    def complete(prompt: str, limit: int, seed: int, sampling: dict[str, Any]) -> tuple[str, int]:
        body = {"prompt": prompt, "max_tokens": limit, "seed": seed, "cache_prompt": True, **sampling}
        out = server.handle_completions(body)
        if isinstance(out, str | bytes):
            out = json.loads(out)
        if "choices" not in out:
            raise RuntimeError(f"llama.cpp: {out}")
        return out["choices"][0]["text"], out["usage"]["completion_tokens"]

    rows, seconds = magpie_rows(complete, args, parallel)
    settings = {"weights": weights, "parallel": parallel}
    return Run(rows, seconds, settings, common.versions("xllamacpp"), common.own_peak_rss())


def llamacpp_native(args: argparse.Namespace) -> Run:
    """llama-server compiled for this machine, with continuous batching, over loopback HTTP."""
    weights, parallel, threads = args.llama_weights or "bf16", args.parallel, str(args.threads)
    arguments = ["--model", str(common.gguf_as(weights)), "--ctx-size", str(context_tokens(args, parallel))]
    arguments += ["--parallel", str(parallel), "--threads", threads, "--threads-batch", threads]
    arguments += ["--threads-http", str(parallel + 2)]  # one a waiting request, or the slots would not fill
    arguments += ["--cache-ram", "0", "--fit", "off", "--no-webui", "--offline"]
    with llama_server.LlamaServer(args.server, arguments) as server:
        rows, seconds = magpie_rows(server.complete, args, parallel)
        peak = server.peak_rss()
    features = llama_server.cpu_features(args.server)
    settings = {"weights": weights, "parallel": parallel, "cpu_features": features}
    return Run(rows, seconds, settings, {"llama.cpp": built_from(args.server)}, peak)


def built_from(server: pathlib.Path) -> str:
    """The package whose sources setup.sh compiled, with its version."""
    note = server.parents[1] / "built.txt"
    return note.read_text(encoding="utf-8").split()[0] if note.exists() else "unknown"


def context_tokens(args: argparse.Namespace, parallel: int) -> int:
    """llama.cpp divides the context among its slots; each must hold the longest possible row."""
    return parallel * (FIXED_PROMPT_TOKENS + args.max_instruction + args.max_response)


def magpie_rows(complete: Complete, args: argparse.Namespace, parallel: int) -> tuple[list[Row], float]:
    """All rows and the seconds they took; a row's two requests follow one another, rows overlap."""

    def row(number: int) -> Row:
        seed = args.seed * 1_000_003 + number
        text, asked = complete(common.PREFIX, args.max_instruction, seed, SAMPLE)
        instruction = text.strip()
        if not instruction:
            return Row(instruction, asked)
        prompt = common.answer_prompt(instruction)
        return Row(instruction, asked, *complete(prompt, args.max_response, 0, GREEDY))

    complete(common.PREFIX, 4, 0, SAMPLE)
    start = time.perf_counter()
    with ThreadPoolExecutor(parallel) as pool:
        rows = list(pool.map(row, range(args.n)))
    return rows, time.perf_counter() - start


def transformers(args: argparse.Namespace) -> Run:
    """`generate()` in bf16 with SDPA; the instructions of all rows first, then the answers."""
    import torch

    generator = BatchGenerator(args)
    generator.complete([common.PREFIX] * 2, 4, do_sample=True)
    torch.manual_seed(args.seed)
    start = time.perf_counter()
    sampling = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    asked = generator.complete([common.PREFIX] * args.n, args.max_instruction, **sampling)
    texts = [text.strip() for text, _ in asked]
    filled = [i for i, text in enumerate(texts) if text]
    prompts = [common.answer_prompt(texts[i]) for i in filled]
    answers = dict(zip(filled, generator.complete(prompts, args.max_response, do_sample=False), strict=True))
    seconds = time.perf_counter() - start
    rows = [Row(texts[i], asked[i][1], *answers.get(i, ("", 0))) for i in range(args.n)]
    settings = {"weights": "bf16", "batch": args.batch, "device": args.device}
    return Run(rows, seconds, settings, common.versions("torch", "transformers"), common.own_peak_rss())


class BatchGenerator:
    """transformers' `generate()` over batches of prompts of like length, to pad less."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        torch.set_num_threads(args.threads)
        folder = common.hf_dir()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa")
        self.model: Any = model.eval().to(args.device)
        self.batch, self.device = args.batch, args.device

    def complete(self, prompts: list[str], limit: int, **sampling: Any) -> list[tuple[str, int]]:
        """(text, tokens) of each prompt."""
        ids = self.tokenizer(prompts, add_special_tokens=False)["input_ids"]
        order = sorted(range(len(prompts)), key=lambda i: len(ids[i]))
        found: dict[int, tuple[str, int]] = {}
        for at in range(0, len(order), self.batch):
            part = order[at : at + self.batch]
            found.update(zip(part, self._one_batch([ids[i] for i in part], limit, sampling), strict=True))
        return [found[i] for i in range(len(prompts))]

    def _one_batch(self, ids: list[list[int]], limit: int, sampling: dict[str, Any]) -> list[tuple[str, int]]:
        import torch

        inputs = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.device)
        stops = {"eos_token_id": list(common.STOP_IDS), "pad_token_id": self.tokenizer.pad_token_id}
        with torch.inference_mode():
            out = self.model.generate(**inputs, max_new_tokens=limit, **stops, **sampling)
        return [self._until_stop(new) for new in out[:, inputs["input_ids"].shape[1] :].tolist()]

    def _until_stop(self, new: list[int]) -> tuple[str, int]:
        stops = [new.index(stop) for stop in common.STOP_IDS if stop in new]
        count = min(stops) + 1 if stops else len(new)
        return self.tokenizer.decode(new[:count], skip_special_tokens=True), count


PEERS: dict[str, Callable[[argparse.Namespace], Run]] = {
    "llamacpp-loop": llamacpp_loop,
    "llamacpp-batch": llamacpp_batch,
    "llamacpp-native": llamacpp_native,
    "transformers": transformers,
}

if __name__ == "__main__":
    main()
