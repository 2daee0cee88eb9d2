"""The process in which lm-evaluation-harness runs: `python -m ojak.evaluate.harness_child REQUEST RESULT`.

It reads a request, one JSON object, and writes a result, another one; what lm-eval prints goes to stderr. `harness.py`
starts it. Nothing is cached: neither answers (`use_cache`) nor requests (`cache_requests`), which lm-eval pickles.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ojak.errors import InputRefused, OjakError
from ojak.sources import evenly

if TYPE_CHECKING:
    from ojak.evaluate.harness_model import HarnessModel


def main(request: Path, result: Path) -> int:
    """Answers a request; an error of ojak's is part of the result, with the name of its class."""
    asked = json.loads(request.read_text("utf-8"))
    with contextlib.redirect_stdout(sys.stderr):
        try:
            found = answered(asked)
        except OjakError as error:
            found = {"error": [type(error).__name__, error.what, error.why, error.fix]}
    result.write_text(json.dumps(found), "utf-8")
    return 0


def answered(asked: Mapping[str, Any]) -> dict[str, Any]:
    """{"identity": of the engine, "tasks": {task: {metric: {"value", "stderr", "values"}}}}."""
    from ojak.engines.native import NativeEngine
    from ojak.evaluate.harness_model import HarnessModel
    from ojak.model.load import load_model

    _check_metrics(asked["tasks"])
    model = load_model(
        asked["model"], dtype=asked["dtype"], accept_license=asked["accept_license"],
        notify=_say,
    )  # fmt: skip
    lm = HarnessModel(NativeEngine(model))
    return {"identity": lm.engine.identity, "tasks": run_tasks(lm, asked["tasks"], asked["limit"])}


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def run_tasks(lm: HarnessModel, tasks: list[dict[str, Any]], limit: int | None) -> dict[str, Any]:
    """The figures of each task, with lm-eval's own seeds; of a task of more than `limit` rows so many, taken evenly."""
    from lm_eval import defaults
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    _sandbox_templates()
    random.seed(defaults.DEFAULT_RANDOM_SEED)
    np.random.seed(defaults.DEFAULT_OTHER_SEED)
    loaded = TaskManager(include_defaults=False).load(tasks)
    chosen: dict[str, list[int]] = {}  # where all rows are taken, naming them would take their number squared
    for name, task in loaded["tasks"].items():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=defaults.DEFAULT_OTHER_SEED)
        rows = len(task.eval_docs)
        if limit is not None and limit < rows:
            chosen[name] = [*evenly(rows, limit)]
    found: Any = evaluate(lm=lm, task_dict=loaded, samples=chosen)
    return {name: _figures(found["results"][name], found["samples"][name]) for name in loaded["tasks"]}


def _sandbox_templates() -> None:
    """lm-eval renders the templates of tasks, which are programs, without a sandbox: a task may come from anybody."""
    from jinja2 import BaseLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from lm_eval import utils

    sandboxed = ImmutableSandboxedEnvironment(
        loader=BaseLoader(), undefined=StrictUndefined, keep_trailing_newline=True
    )
    sandboxed.filters.update(utils.env.filters)
    utils.env = sandboxed


def _check_metrics(tasks: list[dict[str, Any]]) -> None:
    """lm-eval looks for a metric that it does not have on the hub."""
    from lm_eval.api import metrics, registry

    known = sorted(registry.metric_registry.keys())
    assert metrics  # importing it fills the registry
    for task in tasks:
        for metric in task.get("metric_list") or ():
            if metric.get("metric") not in known:
                raise InputRefused(
                    f"the task {task['task']!r} asks for the metric {str(metric.get('metric'))[:80]!r}",
                    why=f"lm-eval has: {', '.join(known)}",
                )


def _figures(found: Mapping[str, Any], samples: list[Mapping[str, Any]]) -> dict[str, Any]:
    """lm-eval's "metric,filter" with its standard error, and the rows' own values where they are numbers."""
    figures: dict[str, Any] = {}
    for key, value in found.items():
        metric, comma, way = key.partition(",")
        if not comma or metric.endswith("_stderr"):
            continue
        own = [row[metric] for row in samples if row["filter"] == way and metric in row]
        figures[metric if way == "none" else key] = {
            "value": _number(value),
            "stderr": _number(found.get(f"{metric}_stderr,{way}")),
            "values": [float(each) for each in own] if all(map(_is_number, own)) else [],
        }
    return figures


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number)


def _number(value: Any) -> float | None:
    """None where there is none: lm-eval says "N/A" where it works out no standard error."""
    return float(value) if _is_number(value) and math.isfinite(value) else None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
