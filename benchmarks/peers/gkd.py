"""Steps of TRL's GKDTrainer on given batches: a student in a folder, SmolLM2-135M-Instruct its teacher. One JSON line.

Forward KL (beta 0) on the rows themselves (lmbda 0), AdamW, bf16 weights. Each step's time is the CPU time of the
thread that works, from the trainer's beginning of the step to its end.
"""

import argparse
import contextlib
import json
import pathlib
import sys
import tempfile
import time
from typing import Any

import common

IGNORED = -100


def collate(rows: list[dict[str, Any]]) -> Any:
    """Rows as padded tensors."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, fill: int) -> Any:
        return torch.tensor([row[name] + [fill] * (longest - len(row[name])) for row in rows])

    ids = padded("input_ids", 0)
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    mask = (torch.arange(longest)[None] < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": padded("labels", IGNORED)}


def run(args: argparse.Namespace, out: str) -> list[float]:
    """Seconds of each step, the batches in their order."""
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    batches = json.loads(pathlib.Path(args.batches).read_text(encoding="utf-8"))
    seconds: list[float] = []
    begins: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            begins.append(time.thread_time())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            seconds.append(time.thread_time() - begins[-1])

    class InOrder(GKDTrainer):
        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    student, teacher = (
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, attn_implementation="sdpa")
        for path in (args.student, common.hf_dir())
    )
    config: Any = GKDConfig(
        output_dir=out, per_device_train_batch_size=len(batches[0]), num_train_epochs=1, learning_rate=1e-6,
        optim="adamw_torch_fused", bf16=False, gradient_checkpointing=False, logging_steps=1, save_strategy="no",
        report_to="none", disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False, lmbda=0.0, beta=0.0,
        temperature=1.0,
    )  # fmt: skip
    trainer = InOrder(
        model=student, teacher_model=teacher, args=config, data_collator=collate,
        train_dataset=Dataset.from_list([row for batch in batches for row in batch]),
        processing_class=AutoTokenizer.from_pretrained(common.hf_dir()), callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--student", required=True)
    parser.add_argument("--batches", required=True, help="JSON: lists of {input_ids, labels}, a list a step")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory(prefix="peer-gkd-") as out, contextlib.redirect_stdout(sys.stderr):
        seconds = run(args, out)
    line = {"peer": "trl-gkd", "seconds": seconds, "peak_rss_bytes": common.own_peak_rss()}
    print(json.dumps({**line, "versions": common.versions("torch", "transformers", "trl")}))


if __name__ == "__main__":
    main()
