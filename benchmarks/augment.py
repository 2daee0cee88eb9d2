"""Pairs a second: `ojak augment` with its own engine, and the same command over llama.cpp's server, in turn.

    PEERS_HOME=... python benchmarks/augment.py --documents 48 --results benchmarks/results

Both run the same weights, exported as a GGUF file of bfloat16, on the same CPUs over the same documents: Python's own
language reference, as `pydoc` carries it. Asked greedily, they write nearly the same; tokens and pairs are those of
each run. Loading is left out. `benchmarks/peers/setup.sh native` compiles the server.
"""

import argparse
import json
import os
import pathlib
import pydoc_data.topics
import sys
import tempfile
from datetime import UTC, datetime
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "peers"))

import llama_server

import contenders
import harness

HERE = pathlib.Path(__file__).resolve().parent
SERVER = pathlib.Path(os.environ.get("PEERS_HOME", HERE.parent)) / ".peers-native" / "bin" / "llama-server"
NATIVE, LLAMA = "ojak's engine", "llama.cpp's server"


def documents(path: pathlib.Path, count: int, characters: int) -> pathlib.Path:
    """Pieces of the language reference as JSON lines."""
    texts = [text.strip() for _, text in sorted(pydoc_data.topics.topics.items())]
    pieces = [text[:characters] for text in texts if len(text) >= characters][:count]
    path.write_text("".join(json.dumps({"text": piece}) + "\n" for piece in pieces), "utf-8")
    return path


class Bench:
    """The runs of one invocation, in the folder `work`."""

    def __init__(self, args: argparse.Namespace, work: pathlib.Path) -> None:
        self.args, self.work, self.number = args, work, 0
        self.env = harness.child_environment(args.threads, device="cpu", tuned_malloc=False)
        self.model = work / "model.gguf"
        command = ["export", args.model, "--format", "gguf", "--type", "bf16", "--out", str(self.model)]
        harness.run([*contenders.default_ojak(), *command], env=self.env)
        self.data = documents(work / "texts.jsonl", args.documents, args.characters)

    def run(self, *more: str) -> dict[str, Any]:
        """One `ojak augment`. Raises harness.RunFailed."""
        self.number += 1
        command = [
            *contenders.default_ojak(),
            "augment",
            str(self.data),
            "--out",
            str(self.work / f"out{self.number}"),
        ]
        command += ["--max-tokens", str(self.args.max_tokens), "--no-verify", "--json", *more]
        facts = harness.json_object(harness.run(command, env=self.env).stdout)
        names = {"pairs_per_s": "pairs", "documents_per_s": "documents", "tokens_per_s": "completion_tokens"}
        return facts | {rate: round(facts[name] / facts["seconds"], 3) for rate, name in names.items()}

    def native(self) -> dict[str, Any]:
        return self.run("--synthesizer", str(self.model))

    def llama(self) -> dict[str, Any]:
        """The server runs for one measurement, so that the other has the CPUs to itself."""
        parallel, threads = self.args.parallel, str(self.args.threads)
        context = parallel * (self.args.characters // 2 + 200 + self.args.max_tokens)
        arguments = ["--model", str(self.model), "--ctx-size", str(context), "--parallel", str(parallel)]
        arguments += ["--threads", threads, "--threads-batch", threads, "--threads-http", str(parallel + 2)]
        arguments += ["--cache-ram", "0", "--fit", "off", "--no-webui", "--offline"]
        with llama_server.LlamaServer(SERVER, arguments) as server:
            return self.run(
                "--synthesizer", "model", "--engine", "endpoint", "--url", f"http://127.0.0.1:{server.port}",
                "--tokenizer", str(self.model),
            )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--documents", type=int, default=48)
    parser.add_argument("--characters", type=int, default=1500, help="of each document")
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--parallel", type=int, default=16, help="slots of the server")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--results", type=pathlib.Path, help="folder to keep the figures in")
    args = parser.parse_args()
    harness.keep_to_cores(args.threads)
    runs: dict[str, list[dict[str, Any]]] = {NATIVE: [], LLAMA: []}
    with tempfile.TemporaryDirectory(prefix="ojak-bench-") as folder:
        bench = Bench(args, pathlib.Path(folder))
        for turn in range(args.repeats):
            for name, measure in ((NATIVE, bench.native), (LLAMA, bench.llama)):
                runs[name].append(measure())
                harness.say(f"{turn + 1}: {name}: {runs[name][-1]['pairs_per_s']} pairs/s")
    rates = ("pairs_per_s", "documents_per_s", "tokens_per_s")
    found = {
        name: {rate: harness.spread([run[rate] for run in each]) for rate in rates}
        for name, each in runs.items()
    }
    lines = [(name, *(f"{each[rate]['median']:,.2f}" for rate in rates)) for name, each in found.items()]
    print(harness.table(("engine", "pairs/s", "documents/s", "tokens/s"), lines))
    if args.results:
        settings = {name: value for name, value in vars(args).items() if name != "results"}
        facts = {"date": datetime.now(UTC).isoformat(), "machine": harness.machine(), "settings": settings}
        path = args.results / f"augment-{datetime.now(UTC):%Y-%m-%d}.json"
        path.write_text(json.dumps({**facts, "rates": found, "runs": runs}, indent=1), "utf-8")
        print(path)


if __name__ == "__main__":
    main()
