"""Two interfaces to one model side by side, in a process of its own: ours, and lm-eval's own to transformers.

    python harness_oracle.py MODEL TASKS.json OUT.json

TASKS.json: a list of tasks as `read_tasks` gives them. OUT.json: {"ours", "theirs"}, each with the figures of every task
and what was answered to each request.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def asked(lm: Any, tasks: list[Any]) -> dict[str, Any]:
    """{"figures", "answers"} of a model; answers by task, a row each."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    found: Any = simple_evaluate(model=lm, tasks=tasks, task_manager=TaskManager(include_defaults=False))
    answers = {name: [row["resps"] for row in rows] for name, rows in found["samples"].items()}
    figures = {
        name: {key: value for key, value in each.items() if "," in key}
        for name, each in found["results"].items()
    }
    return {"figures": figures, "answers": answers}


def main(model: str, tasks: Path, out: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    from ojak.engines.native import NativeEngine
    from ojak.evaluate.harness_model import HarnessModel
    from ojak.model.load import load_model

    given = tasks.read_text("utf-8")
    ours = HarnessModel(NativeEngine(load_model(model, dtype="float32")))
    interface: Any = HFLM  # its declared arguments are those of a base of it
    theirs = interface(pretrained=model, dtype="float32", device="cpu", batch_size=4)
    found = {"ours": asked(ours, json.loads(given)), "theirs": asked(theirs, json.loads(given))}
    out.write_text(json.dumps(found, default=str), "utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
