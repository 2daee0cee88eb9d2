"""lm-evaluation-harness on our engine: its own figures, local rows, no code of a task's, nothing left behind."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from typer.testing import CliRunner, Result

from ojak.artifact import verify
from ojak.cli.app import app
from ojak.cli.evaluate import _rows
from ojak.errors import InputRefused, OjakError, UsageError
from ojak.evaluate import harness
from ojak.evaluate.config import EvaluateConfig
from ojak.evaluate.harness_tasks import read_tasks

OPENBOOK = Path(__file__).resolve().parents[3] / "shared/data/bench/llmadapters_openbookqa_test.json"
CHOICE = """
task: colours
include: shared/common.yaml
output_type: multiple_choice
doc_to_text: "Q: {{question}}\\nA:"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
READ = """
task: reading
include: shared/common.yaml
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}} {{question}}"
metric_list:
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
"""
WRITE = """
task: writing
include: shared/common.yaml
output_type: generate_until
num_fewshot: 1
doc_to_text: "Q: {{question}}\\nA:"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["e"], max_gen_toks: 12}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
COMMON = """
dataset_path: json
test_split: test
dataset_kwargs: {data_files: {test: rows.jsonl}}
"""


def rows(count: int = 9) -> list[dict[str, Any]]:
    """Questions with four answers; the last is longer than the model reads."""
    words = ("red", "green", "dark blue", "white")
    return [
        {
            "question": f"Which colour has number {n * n}?" + " Say it." * (90 if n == 8 else n % 3),
            "choices": words,
            "answer": n % 4,
        }
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.model(scale=0.3).save(tmp_path_factory.mktemp("harness") / "model"))


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    folder = tmp_path / "tasks"
    (folder / "shared").mkdir(parents=True)
    for name, text in (("colours", CHOICE), ("reading", READ), ("writing", WRITE), ("shared/common", COMMON)):
        (folder / f"{name}.yaml").write_text(text, "utf-8")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()), "utf-8")
    return folder


def ojak(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def evaluate(model: str, tasks: Path, names: str, *more: str) -> Result:
    return ojak(
        "evaluate", model, "--harness", names, "--harness-tasks", str(tasks), "--dtype", "float32", *more
    )


def both(model: str, tasks: list[dict[str, Any]], folder: Path) -> tuple[Any, Any]:
    """What our interface and lm-eval's own give."""
    (folder / "asked.json").write_text(json.dumps(tasks), "utf-8")
    command = ["harness_oracle.py", model, str(folder / "asked.json"), str(folder / "found.json")]
    environment = harness._environment(folder)
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[2]), environment.get("PYTHONPATH", "")]
    )
    done = subprocess.run(
        [sys.executable, *command],
        cwd=Path(__file__).parent,
        env=environment,
        capture_output=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    found = json.loads((folder / "found.json").read_text("utf-8"))
    return found["ours"], found["theirs"]


def numbers(value: Any) -> list[float]:
    """All numbers in nested lists, in order; truth values as they are."""
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [float(value)] if isinstance(value, int | float) else []


@pytest.mark.slow
def test_the_figures_are_those_of_lm_evals_own_interface(model: str, tasks: Path, tmp_path: Path) -> None:
    ours, theirs = both(model, read_tasks(tasks, ["colours", "reading", "writing"]), tmp_path)
    assert ours["figures"]["colours"]["acc,none"] == theirs["figures"]["colours"]["acc,none"]
    assert ours["figures"]["colours"].keys() == theirs["figures"]["colours"].keys()
    for task in ("colours", "reading"):
        assert len(numbers(ours["answers"][task])) >= 9
        assert numbers(ours["answers"][task]) == pytest.approx(
            numbers(theirs["answers"][task]), rel=1e-7, abs=1e-4
        )
    assert ours["answers"]["writing"] == theirs["answers"]["writing"]
    assert len({str(each) for each in ours["answers"]["writing"]}) > 1


@pytest.mark.slow
@pytest.mark.skipif(not OPENBOOK.is_file(), reason="the shared data are not here")
def test_the_figures_on_real_questions_are_those_of_lm_evals_own_interface(
    model: str, tmp_path: Path
) -> None:
    questions = json.loads(OPENBOOK.read_text("utf-8"))[:40]
    (tmp_path / "rows.json").write_text(json.dumps(questions), "utf-8")
    (tmp_path / "book.yaml").write_text(
        "task: book\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\n"
        "dataset_kwargs: {data_files: {test: rows.json}}\n"
        "doc_to_text: '{{instruction}}'\ndoc_to_choice: [answer1, answer2, answer3, answer4]\n"
        "doc_to_target: '{{answer[-1] | int - 1}}'\n",
        "utf-8",
    )
    ours, theirs = both(model, read_tasks(tmp_path, ["book"]), tmp_path)
    assert ours["figures"] == theirs["figures"]
    assert len(numbers(ours["answers"]["book"])) == 40 * 4 * 2
    assert numbers(ours["answers"]["book"]) == pytest.approx(numbers(theirs["answers"]["book"]), abs=1e-4)


@pytest.mark.slow
def test_a_run_gives_figures_keeps_them_and_leaves_nothing_else(
    model: str, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    before = set(tasks.rglob("*"))
    out = tmp_path / "out"
    result = evaluate(
        model, tasks, "colours,reading", "--limit", "6", "--against", model, "--out", str(out), "--json"
    )
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    right = told["harness"]["colours"]["acc"]
    assert right["value"] * 6 == pytest.approx(round(right["value"] * 6))
    assert right["stderr"] is not None
    assert told["harness"]["reading"]["bits_per_byte"]["value"] > 0
    assert told["identity"]["dtype"] == "float32"
    assert told["against"]["harness"] == told["harness"]
    assert told["difference"] == {"harness: colours: acc": [0.0] * 3, "harness: colours: acc_norm": [0.0] * 3}
    artifact = verify(out)
    assert artifact.stats["harness"] == told["harness"]
    left = [path for folder in (home, temporary) for path in folder.rglob("*") if path.is_file()]
    assert all(path.is_relative_to(home / ".cache/ojak/hashes") for path in left)  # our own notes on files
    assert set(tasks.rglob("*")) == before


def test_the_figures_are_shown_with_their_errors() -> None:
    acc, perplexity = {"value": 0.5, "stderr": 0.1}, {"value": 12.0, "stderr": None}
    rows = dict(
        _rows({"harness": {"colours": {"acc": acc, "perplexity": perplexity, "f1": {**acc, "value": None}}}})
    )
    assert rows == {
        "harness: colours: acc": "0.5 ± 0.1 (standard error)",
        "harness: colours: perplexity": "12",
        "harness: colours: f1": "- ± 0.1 (standard error)",
    }


@pytest.mark.slow
def test_a_template_that_reaches_for_python_is_stopped(model: str, tasks: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    attack = f"{{{{ cycler.__init__.__globals__.os.system('touch {trace}') }}}}"
    (tasks / "colours.yaml").write_text(CHOICE.replace("Q: {{question}}", attack), "utf-8")
    result = evaluate(model, tasks, "colours")
    assert result.exit_code == 1
    assert "lm-evaluation-harness ended with code 1" in result.stderr and "SecurityError" in result.stderr
    assert not trace.exists()


def test_a_process_that_fails_is_told_with_its_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "CHILD", "ojak.nothing")
    with pytest.raises(OjakError, match="ended with code 1") as caught:
        harness._asked(tmp_path, {})
    assert caught.value.why.endswith("No module named ojak.nothing")


def test_an_error_of_ours_comes_through_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], *_: Any) -> int:
        Path(command[-1]).write_text(json.dumps({"error": ["InputRefused", "no", "because", "do"]}), "utf-8")
        return 0

    monkeypatch.setattr(harness, "_run", run)
    with pytest.raises(InputRefused, match="no") as caught:
        harness._asked(tmp_path, {})
    assert (caught.value.why, caught.value.fix) == ("because", "do")


def test_what_is_missing_is_said_before_any_work(
    model: str, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harness, "_run", lambda *_: pytest.fail("it was started"))
    assert "--harness-tasks" in ojak("evaluate", model, "--harness", "colours").stderr
    unknown = evaluate(model, tasks, "colors")
    assert unknown.exit_code == 2 and "did you mean 'colours'" in unknown.stderr
    assert evaluate(model, tmp_path / "none", "colours").exit_code == 2
    assert evaluate("nowhere", tasks, "colours").exit_code == 2
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "lm_eval" else find(name))
    missing = evaluate(model, tasks, "colours")
    assert missing.exit_code == 2 and "ojak[eval]" in missing.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('doc_to_text: "Q: {{question}}\\nA:"', "doc_to_text: !function utils.text"), "!function"),
        (("task: colours", "task: colours\nclass: thing"), "'class'"),
        (("task: colours", "task: colours\nunsafe_code: true"), "'unsafe_code'"),
        (("task: colours", "task: colours\nprocess_docs: utils.f"), "'process_docs'"),
        (("task: colours", "task: colours\ndataset_path: org/set"), "local files"),
        (("task: colours", "task: colours\ndataset_kwargs: {data_files: none.jsonl}"), "is no file"),
        (
            ("task: colours", "task: colours\ndataset_kwargs: {data_files: 'https://x.org/a.json'}"),
            "is no file",
        ),
        (
            (
                "task: colours",
                "task: colours\ndataset_kwargs: {data_files: rows.jsonl, trust_remote_code: true}",
            ),
            "trust",
        ),
        (("metric: acc,", "metric: x, hf_evaluate: true,"), "metric of a hub"),
        (("include: shared/common.yaml", "include: colours.yaml"), "include itself"),
        (("task: colours", "task: colours\ntask: twice"), "twice"),
    ],
)
def test_a_task_is_values_and_local_files(tasks: Path, change: tuple[str, str], words: str) -> None:
    assert change[0] in CHOICE
    (tasks / "colours.yaml").write_text(CHOICE.replace(*change), "utf-8")
    with pytest.raises(InputRefused) as caught:
        read_tasks(tasks, ["colours"])
    assert words in str(caught.value)
    assert not issubclass(type(caught.value), UsageError)


def test_what_a_task_includes_stands_under_its_own_settings(tasks: Path) -> None:
    (found,) = read_tasks(tasks, ["colours", "colours"])
    assert found["dataset_path"] == "json" and "include" not in found
    assert found["dataset_kwargs"]["data_files"] == {"test": str(tasks / "rows.jsonl")}
    (tasks / "again.yaml").write_text(CHOICE, "utf-8")
    with pytest.raises(InputRefused, match="stands in two files"):
        read_tasks(tasks, ["colours"])


@pytest.mark.slow
def test_a_metric_that_lm_eval_does_not_have_is_not_looked_for(model: str, tasks: Path) -> None:
    (tasks / "colours.yaml").write_text(CHOICE.replace("metric: acc,", "metric: accuracy_of_mine,"), "utf-8")
    result = evaluate(model, tasks, "colours")
    assert result.exit_code == 9 and "'accuracy_of_mine'" in result.stderr


def test_a_folder_of_tasks_without_names_is_not_passed_over(tmp_path: Path) -> None:
    config = EvaluateConfig(model="m", harness_tasks=str(tmp_path))
    with pytest.raises(UsageError, match="which tasks"):
        harness.check_harness(config)
