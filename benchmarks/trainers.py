"""Who takes part in the training benchmark, and how each is run: the same rows, one JSON line each."""

import json
import pathlib
import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import harness

PEERS = pathlib.Path(__file__).resolve().parent / "peers"
REQUIRED = ("steps", "tokens", "supervised_tokens", "seconds", "tokens_per_s", "loss_first", "loss_last")
OURS = ("ojak", "ojak-bf16-states", "ojak-apart", "ojak-lora")
MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True, slots=True)
class Trainer:
    """A contender: what it competes in, its further arguments, the ratios aimed at (allocator as it comes, tuned)."""

    kind: str
    arguments: tuple[str, ...]
    default: bool = True
    aims: tuple[float, float] | None = None


TRAINERS = {
    "litgpt": Trainer("full", ("--peer", "litgpt"), aims=(2.0, 1.5)),
    "hf-trainer": Trainer("full", ("--peer", "hf-trainer"), aims=(2.0, 1.5)),
    "hf-trainer-amp": Trainer("full", ("--peer", "hf-trainer", "--amp"), default=False),
    "trl": Trainer("full", ("--peer", "trl"), aims=(2.0, 1.5)),
    "trl-packing": Trainer("full", ("--peer", "trl", "--packing"), default=False),
    "ojak": Trainer("full", ()),
    "ojak-bf16-states": Trainer("full", ("--set", "optimizer.state_dtype=bfloat16")),
    "ojak-apart": Trainer("full", ("--set", "share_prefixes=false")),
    "hf-trainer-lora": Trainer("lora", ("--peer", "hf-trainer", "--lora"), aims=(1.5, 1.5)),
    "trl-lora": Trainer("lora", ("--peer", "trl", "--lora"), default=False),
    "ojak-lora": Trainer("lora", ("--lora",)),
}


@dataclass(frozen=True, slots=True)
class Job:
    """What every contender is asked to do, and with what."""

    data: pathlib.Path
    rows: int
    held_out: int
    batch: int
    max_len: int
    lr: float
    threads: int
    ojak: tuple[str, ...]
    peers_python: pathlib.Path
    env: Mapping[str, str]

    def write_rows(self, folder: pathlib.Path, seed: int) -> tuple[pathlib.Path, pathlib.Path]:
        """(rows to learn from, rows to measure by) as JSON files: shuffled by the seed; the measured are the same."""
        every = json.loads(self.data.read_text(encoding="utf-8"))
        measured, learnt = every[-self.held_out :], every[: -self.held_out]
        random.Random(seed).shuffle(learnt)
        paths = folder / "learnt.json", folder / "held-out.json"
        for path, chosen in zip(paths, (learnt[: self.rows], measured), strict=True):
            path.write_text(json.dumps(chosen), encoding="utf-8")
        return paths

    def run(self, name: str, seed: int, save: pathlib.Path | None = None) -> dict[str, Any]:
        """One run of a contender in a folder of its own. Raises harness.RunFailed."""
        trainer = TRAINERS[name]
        with tempfile.TemporaryDirectory(prefix="ojak-bench-") as parent:
            folder = pathlib.Path(parent)
            rows, _ = self.write_rows(folder, seed)
            command = (
                self._ours(trainer.arguments, rows, save or folder / "out")
                if name in OURS
                else self._peer(trainer.arguments, rows, seed, save)
            )
            done = harness.run(command, env=self.env)
            line = _checked(done)
            if name in OURS:
                line["computed_share"] = _computed_share((save or folder / "out") / "metrics.jsonl")
            return line

    def _peer(
        self, arguments: Sequence[str], rows: pathlib.Path, seed: int, save: pathlib.Path | None
    ) -> list[str]:
        command = [str(self.peers_python), str(PEERS / "sft.py"), *arguments, "--rows", str(rows)]
        command += ["--batch", str(self.batch), "--max-len", str(self.max_len), "--lr", str(self.lr)]
        command += ["--threads", str(self.threads), "--seed", str(seed)]
        return [*command, *(["--save", str(save)] if save else [])]

    def _ours(self, arguments: Sequence[str], rows: pathlib.Path, out: pathlib.Path) -> list[str]:
        """Trainer's settings where they shape the weights: a line down to zero, no warm-up, its betas, no decay."""
        command = [*self.ojak, "train", "finetune", "--model", MODEL, "--data", str(rows), "--out", str(out)]
        command += ["--style", "alpaca", "--batch", str(self.batch), "--max-len", str(self.max_len)]
        command += [
            "--lr",
            str(self.lr),
            "--json",
            "--set",
            "schedule.name=linear",
            "--set",
            "schedule.warmup=0",
        ]
        command += ["--set", "schedule.final=0", "--set", "optimizer.weight_decay=0"]
        return [*command, "--set", "optimizer.betas=[0.9,0.999]", *arguments]

    def held_out_losses(self, folders: Sequence[pathlib.Path], folder: pathlib.Path) -> dict[str, float]:
        """The loss of each model on the measured rows, by one program for all. Raises harness.RunFailed."""
        _, measured = self.write_rows(folder, 0)
        command = [str(self.peers_python), str(PEERS / "held_out.py"), str(measured), *map(str, folders)]
        return harness.json_object(harness.run(command, env=self.env).stdout)

    def version(self) -> str:
        """What `ojak --version` prints. Raises harness.RunFailed."""
        return harness.run([*self.ojak, "--version"], env=self.env, limit_s=60.0).stdout.strip()


def _checked(done: harness.Finished) -> dict[str, Any]:
    line = harness.json_object(done.stdout)
    lacking = [name for name in REQUIRED if line.get(name) is None]
    if lacking or not line["seconds"]:
        raise harness.RunFailed(f"the result lacks {', '.join(lacking) or 'time'}: {line}")
    line.setdefault("peak_rss_bytes", done.peak_rss_bytes)
    return {**line, "wall_s": round(done.wall_s, 3)}


def _computed_share(path: pathlib.Path) -> float | None:
    """Of the tokens, the share that was computed: the rest had begun as another row did."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "computed_share" in line]
    return round(sum(line["computed_share"] for line in steps) / len(steps), 4) if steps else None
