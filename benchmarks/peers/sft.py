"""Finetuning of SmolLM2-135M-Instruct with a peer, on given instruction rows. One JSON line.

Every peer gets the same rows in Alpaca's prompt format (its two preambles), for one epoch, with AdamW at the same rate,
from the same bf16 weights. Only its training loop is timed: the first step is in, loading and tokenising are not.
"""

import argparse
import contextlib
import csv
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import common

TASK = "Below is an instruction that describes a task"
ANSWER = "Write a response that appropriately completes the request."
IGNORED = -100

Rows = list[dict[str, str]]


@dataclass(slots=True)
class Run:
    """What a peer did: tokens without padding, those its loss covers, places with padding where it tells them."""

    steps: int
    tokens: int
    supervised_tokens: int
    seconds: float
    losses: list[float]
    positions: int | None = None
    versions: dict[str, str] = field(default_factory=dict)


def prompt(row: dict[str, str]) -> str:
    """Alpaca's prompt, up to where the answer begins."""
    if row.get("input"):
        head = f"{TASK}, paired with an input that provides further context. {ANSWER}"
        return f"{head}\n\n### Instruction:\n{row['instruction']}\n\n### Input:\n{row['input']}\n\n### Response:\n"
    return f"{TASK}. {ANSWER}\n\n### Instruction:\n{row['instruction']}\n\n### Response:\n"


class Counting:
    """A collator that counts what it hands the model."""

    def __init__(self, collator: Callable[[Any], Any]) -> None:
        self.collator = collator
        self.steps = self.tokens = self.supervised = self.positions = 0

    def __call__(self, rows: Any) -> Any:
        batch = self.collator(rows)
        mask = batch.get("attention_mask")
        places = batch["input_ids"].numel()
        self.steps += 1
        self.positions += places
        self.tokens += places if mask is None else int(mask.sum())
        self.supervised += int((batch["labels"][:, 1:] != IGNORED).sum())
        return batch


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """(tokenizer, model)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.float32 if args.amp else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(common.hf_dir(), dtype=dtype, attn_implementation="sdpa")
    return AutoTokenizer.from_pretrained(common.hf_dir()), model


def lora(args: argparse.Namespace) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=args.rank,
        lora_alpha=args.rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def settings(args: argparse.Namespace, out: pathlib.Path) -> dict[str, Any]:
    """What Trainer and SFTTrainer are told alike: their defaults, but for what the job needs."""
    return {
        "output_dir": str(out),
        "num_train_epochs": 1,
        "per_device_train_batch_size": args.batch,
        "learning_rate": args.lr,
        "optim": "adamw_torch_fused",
        "bf16": args.amp,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": args.seed,
        "dataloader_pin_memory": False,
    }


def timed(trainer: Any, args: argparse.Namespace) -> Run:
    counting = trainer.data_collator = Counting(trainer.data_collator)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    if args.save:
        trainer.model.save_pretrained(args.save)
        common_tokenizer().save_pretrained(args.save)
    versions = common.versions("torch", "transformers", "accelerate", "peft", "datasets", "trl")
    return Run(
        counting.steps, counting.tokens, counting.supervised, seconds, losses, counting.positions, versions
    )


def common_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(common.hf_dir())


def trl(args: argparse.Namespace, rows: Rows, out: pathlib.Path) -> Run:
    """SFTTrainer on prompts and completions, loss on the completions; with --packing best-fit packs, two a step."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    tokenizer, model = load(args)
    config: Any = SFTConfig(**settings(args, out), max_length=args.max_len, packing=args.packing)
    if args.packing:
        config.per_device_train_batch_size = 2  # as many tokens as 8 rows
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": prompt(r), "completion": r["output"]} for r in rows]),
        processing_class=tokenizer,
        peft_config=lora(args) if args.lora else None,
    )
    return timed(trainer, args)


def hf_trainer(args: argparse.Namespace, rows: Rows, out: pathlib.Path) -> Run:
    """Trainer with padding to the longest row of a batch."""
    from datasets import Dataset
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer, model = load(args)
    if args.lora:
        from peft import get_peft_model

        model = get_peft_model(model, lora(args))
    trainer = Trainer(
        model=model,
        args=TrainingArguments(**settings(args, out)),
        train_dataset=Dataset.from_list([encoded(tokenizer, row, args.max_len) for row in rows]),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    return timed(trainer, args)


def encoded(tokenizer: Any, row: dict[str, str], max_len: int) -> dict[str, list[int]]:
    """Ids and labels of a row: its answer and the end of text are learnt."""
    asked = tokenizer(prompt(row))["input_ids"]
    answer = [*tokenizer(row["output"])["input_ids"], tokenizer.eos_token_id]
    ids, labels = (asked + answer)[:max_len], ([IGNORED] * len(asked) + answer)[:max_len]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def litgpt(args: argparse.Namespace, rows: Rows, out: pathlib.Path) -> Run:
    """litgpt.finetune.full as its command runs it; the time is the sum of its own times of iterations."""
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.data import JSON
    from litgpt.finetune.full import setup

    folder = out / "data"
    folder.mkdir()
    (folder / "train.json").write_text(json.dumps(rows), encoding="utf-8")
    (folder / "val.json").write_text(json.dumps(rows[:1]), encoding="utf-8")
    data: Any = JSON(json_path=folder, mask_prompt=True, prompt_style="alpaca", num_workers=0)
    checkpoint = common.litgpt_dir()
    sys.argv = ["litgpt", "finetune_full", str(checkpoint)]  # it parses the command line again to save it
    setup(
        checkpoint_dir=checkpoint,
        out_dir=out / "litgpt",
        precision="bf16-true",
        devices=1,
        data=data,
        train=TrainArgs(
            save_interval=None,
            log_interval=1,
            global_batch_size=args.batch,
            micro_batch_size=args.batch,
            lr_warmup_steps=1,
            epochs=1,
            max_seq_length=args.max_len,
        ),
        eval=EvalArgs(interval=10**9, max_new_tokens=1, max_iters=1, final_validation=False),
        optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": args.lr, "fused": True}},
        logger_name="csv",
        seed=args.seed,
    )
    dataset = data.train_dataset
    items = [dataset[i] for i in range(len(dataset))]
    metrics = next((out / "litgpt").rglob("metrics.csv"))
    with metrics.open(encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line.get("iter_time")]
    return Run(
        len(lines),
        sum(len(item["input_ids"]) for item in items),
        sum(int((item["labels"][1:] != IGNORED).sum()) for item in items),
        sum(float(line["iter_time"]) for line in lines),
        [float(line["loss"]) for line in lines],
        versions=common.versions("torch", "litgpt", "lightning"),
    )


PEERS: dict[str, Callable[[argparse.Namespace, Rows, pathlib.Path], Run]] = {
    "trl": trl,
    "hf-trainer": hf_trainer,
    "litgpt": litgpt,
}


def main() -> None:
    args = parse_arguments()
    import torch

    torch.set_num_threads(args.threads)
    rows = json.loads(pathlib.Path(args.rows).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="peer-sft-") as folder, contextlib.redirect_stdout(sys.stderr):
        run = PEERS[args.peer](args, rows, pathlib.Path(folder))
    print(json.dumps(result_line(args, rows, run)))


def result_line(args: argparse.Namespace, rows: Rows, run: Run) -> dict[str, Any]:
    return {
        "peer": args.peer,
        "rows": len(rows),
        "steps": run.steps,
        "tokens": run.tokens,
        "supervised_tokens": run.supervised_tokens,
        "positions": run.positions,
        "seconds": round(run.seconds, 3),
        "tokens_per_s": round(run.tokens / run.seconds, 1),
        "loss_first": run.losses[0],
        "loss_last": run.losses[-1],
        "peak_rss_bytes": common.own_peak_rss(),
        "settings": {
            "batch": args.batch,
            "max_len": args.max_len,
            "lr": args.lr,
            "threads": args.threads,
            "precision": "bf16 autocast" if args.amp else "bf16",
            "packing": args.packing,
            "rank": args.rank if args.lora else None,
        },
        "versions": run.versions,
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", required=True, choices=list(PEERS))
    parser.add_argument("--rows", required=True, help="a JSON list of {instruction, input, output}")
    parser.add_argument("--max-len", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--packing", action="store_true", help="trl: pack rows, best fit, no padding")
    parser.add_argument("--amp", action="store_true", help="fp32 weights under bf16 autocast")
    parser.add_argument("--lora", action="store_true", help="LoRA on all linear layers (trl, hf-trainer)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--save", help="trl, hf-trainer: write the trained model to this folder")
    args = parser.parse_args()
    if args.packing and args.peer != "trl":
        parser.error("--packing is trl's")
    if args.peer == "litgpt" and (args.lora or args.amp or args.save):
        parser.error("--lora, --amp and --save are for trl and hf-trainer")
    return args


if __name__ == "__main__":
    main()
