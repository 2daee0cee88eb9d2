"""`ojak train` on the command line: settings, preview, what is printed, exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
from typer.testing import CliRunner, Result

from ojak.cli import training
from ojak.cli.app import app
from ojak.cli.train import _spread
from ojak.cli.training import Figures, check_room, line, plan_lines
from ojak.errors import ResourceExhausted, Stopped
from ojak.train.plan import Plan
from ojak.train.preview import _ends_turn

pytestmark = pytest.mark.usefixtures("folder")
FIELDS = [
    "steps", "tokens", "supervised_tokens", "seconds", "tokens_per_s", "loss_first", "loss_last", "val_loss",
    "peak_memory_mb", "out",
]  # fmt: skip
HOSTILE = "a\x1b[31mred\x1b[0m\u202eb"


@pytest.fixture
def model(folder: Path) -> str:
    tiny.model("llama", adds_bos=False).save("base")
    rows = [{"instruction": f"Say {i}.", "input": "it" * (i % 2), "output": "ok " * i} for i in range(1, 9)]
    Path("d.json").write_text(json.dumps(rows), encoding="utf-8")
    return "base"


def ojak(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def finetune(model: str, *more: str, verb: str = "finetune") -> Result:
    return ojak("train", verb, "--model", model, "--data", "d.json", "--out", "out", "--batch", "4", *more)


def test_what_came_out_is_one_object(model: str) -> None:
    result = finetune(model, "--json", "--set", "dtype=float32", "--val-data", "d.json")
    assert (result.exit_code, list(json.loads(result.stdout))) == (0, FIELDS)
    found = json.loads(result.stdout)
    assert (found["steps"], found["out"]) == (2, "out")
    assert found["val_loss"] > 0
    assert "step 2  loss" in result.stderr
    assert Path("out/model/model.safetensors").is_file()
    assert "### Response:" in Path("out/model/chat_template.jinja").read_text("utf-8")
    assert tiny.EOS in json.loads(Path("out/model/generation_config.json").read_text("utf-8"))["eos_token_id"]


def test_the_folder_is_printed_and_a_finished_run_is_not_run_again(model: str) -> None:
    Path("t.txt").write_text("some text\n" * 20, encoding="utf-8")
    command = ("train", "pretrain", "--model", model, "--data", "t.txt", "--out", "out", "--max-len", "32")
    first = ojak(*command, "--set", "dtype=float32")
    assert (first.exit_code, first.stdout) == (0, "out\n")
    assert "tokens (" in first.stderr and "loss" in first.stderr
    before = Path("out/manifest.json").stat().st_mtime_ns
    assert ojak(*command, "--set", "dtype=float32").exit_code == 0
    assert ojak(*command, "--set", "dtype=float32", "--lr", "1e-3").exit_code == 4
    assert ojak(*command, "--resume", "never").exit_code == 2
    assert Path("out/manifest.json").stat().st_mtime_ns == before


def test_a_finished_run_whose_files_are_not_there_is_not_called_done(model: str) -> None:
    assert finetune(model).exit_code == 0
    weights = Path("out/model/model.safetensors")
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    changed = finetune(model)
    assert (changed.exit_code, changed.stdout) == (7, "") and "has changed" in changed.stderr
    weights.unlink()
    assert finetune(model).exit_code == 7
    for damaged in ("{", "[]", "[" * 100_000):
        Path("out/manifest.json").write_text(damaged, encoding="utf-8")
        result = finetune(model)
        assert result.exit_code == 7 and "out/manifest.json is damaged" in result.stderr


def test_a_finished_run_of_other_data_is_refused_and_the_file_named(model: str) -> None:
    Path("e.json").write_text(json.dumps([{"instruction": "q", "output": "a"}]), encoding="utf-8")
    assert finetune(model, "--data", "e.json:2").exit_code == 0
    assert finetune(model, "--data", "e.json:2").exit_code == 0
    Path("e.json").write_text(json.dumps([{"instruction": "q", "output": "b"}]), encoding="utf-8")
    changed = finetune(model, "--data", "e.json:2")
    assert (changed.exit_code, changed.stdout) == (4, "")
    assert "e.json has changed since the run in out was finished" in changed.stderr


def test_a_plan_tells_of_a_folder_that_a_run_would_refuse(model: str) -> None:
    Path("out/model").mkdir(parents=True)
    planned = finetune(model, "--dry-run")
    assert (planned.exit_code, planned.stdout) == (2, "") and "out/model is there already" in planned.stderr
    Path("out/model").rmdir()
    Path("out").rmdir()
    Path("out").write_text("mine", "utf-8")
    assert "out is a file" in finetune(model, "--dry-run").stderr
    Path("out").unlink()
    assert finetune(model).exit_code == 0
    assert finetune(model, "--dry-run", "--lr", "0.5").exit_code == 4
    again = finetune(model, "--dry-run")
    assert again.exit_code == 0 and "this run is finished in out" in again.stderr


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_data_that_are_not_there_are_told_before_the_model_is_looked_at(
    model: str, more: tuple[str, ...]
) -> None:
    for flags in (("--val-data", "nine.json"), ("--data", "nine.json")):
        result = finetune("nowhere", *flags, *more)
        assert result.exit_code == 2 and "there is nothing at 'nine.json'" in result.stderr


@pytest.mark.parametrize("text", ["mine\n", '{"step": 1, "loss": 2.0}\n', "[1]\n", "x" * 70_000])
def test_figures_of_another_program_are_not_touched(model: str, text: str) -> None:
    Path("out").mkdir()
    Path("out/metrics.jsonl").write_text(text, "utf-8")
    result = finetune(model)
    assert result.exit_code == 2 and "out/metrics.jsonl is there already" in result.stderr
    assert Path("out/metrics.jsonl").read_text("utf-8") == text


@pytest.mark.parametrize("text", ["", '{"step": 1, "los', '{"step":1,"loss":2.0,"supervised_tokens":3}\n'])
def test_figures_of_a_run_that_was_killed_are_begun_anew(model: str, text: str) -> None:
    Path("out").mkdir()
    Path("out/metrics.jsonl").write_text(text, "utf-8")
    assert finetune(model).exit_code == 0
    lines = Path("out/metrics.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


@pytest.mark.parametrize(("name", "more"), [("model", ()), ("adapter", ("--lora",))])
def test_a_model_that_no_run_made_is_not_replaced(model: str, name: str, more: tuple[str, ...]) -> None:
    Path("out", name).mkdir(parents=True)
    Path("out", name, "mine").write_text("mine", encoding="utf-8")
    result = finetune(model, *more)
    assert result.exit_code == 2 and f"out/{name} is there already" in result.stderr
    assert Path("out", name, "mine").read_text("utf-8") == "mine"


def test_there_is_no_adapter_for_weights_that_no_file_holds(model: str) -> None:
    Path(model, "model.safetensors").unlink()
    result = finetune(model, "--lora")
    assert result.exit_code == 2 and "base has no weights that an adapter could belong to" in result.stderr


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_a_device_that_is_none_is_named(model: str, more: tuple[str, ...]) -> None:
    result = finetune(model, "--set", "device=banana", *more)
    assert result.exit_code == 2 and "the device 'banana' is not known" in result.stderr


def test_a_micro_batch_above_the_batch_is_named(model: str) -> None:
    result = finetune(model, "--set", "micro_batch=5")
    assert result.exit_code == 2
    assert "--set micro_batch cannot be 5: it is more than the batch of 4" in result.stderr


def test_lora_gives_an_adapter(model: str) -> None:
    result = finetune(model, "--lora", "--set", "lora.r=2", "--set", "dtype=float32")
    assert result.exit_code == 0, result.stderr
    assert json.loads(Path("out/adapter/adapter_config.json").read_text("utf-8"))["r"] == 2


def test_every_wrong_setting_is_named_at_once(model: str) -> None:
    wrong = ("schedule.nam=x", "lorax=3", "optimizer.name=adamv", "batch=0", "lora.r=many")
    result = finetune(model, "--epochs", "-1", *(part for text in wrong for part in ("--set", text)))
    assert (result.exit_code, result.stdout) == (2, "")
    for said in (
        "--epochs cannot be -1.0",
        "no setting '--set schedule.nam'; did you mean 'name'",
        "no setting '--set lorax'",
        "--set optimizer.name cannot be 'adamv'",
        "--set batch cannot be 0",
        "--set lora.r cannot be 'many'",
    ):
        assert said in result.stderr
    assert not Path("out").exists()


def test_data_may_be_several_after_one_flag(model: str) -> None:
    Path("e.json").write_text(json.dumps([{"instruction": "q", "output": "a"}]), encoding="utf-8")
    found = ojak(
        "train", "preview", "--data", "d.json", "e.json:2", "--model", model, "--rows", "1", "--json"
    )
    assert [row["source"] for row in json.loads(found.stdout)["rows"]] == ["d.json", "e.json"]
    assert ojak("train", "preview", "--data", "d.json", "e.jsn", "--model", model).exit_code == 2


def test_a_path_without_a_flag_is_no_data(model: str) -> None:
    stray = finetune(model, "--lora", "e.json")
    assert stray.exit_code == 2 and "e.json" in stray.stderr
    assert "PATH[:WEIGHT]]" not in ojak("train", "finetune", "--help").stdout.split("\n")[1]
    given = ["--data", "a", "b", "--lr", "1", "--data=c", "d", "--lora"]
    spread = ["--data", "a", "--data", "b", "--lr", "1", "--data=c", "--data", "d", "--lora"]
    assert list(_spread(given)) == spread


@pytest.mark.parametrize("text", ["x", "=1", "a..b=1", ".=1", ""])
def test_a_set_has_a_name_and_a_value(model: str, text: str) -> None:
    result = finetune(model, "--set", text)
    assert (result.exit_code, "not of the form name=value" in result.stderr) == (2, True)


def test_a_setting_goes_before_the_flag_and_lists_are_read() -> None:
    sets = ["lr=0.5", "mask_roles=[system]", "optimizer.betas=[0.5, 0.6]", "lora.r=3", "lora.variant=dora"]
    found = training.train_config(
        "finetune", sets, model="m", data=("d",), out=Path("o"), lr=0.1, lora={"r": 2}
    )
    assert (found.lr, found.mask_roles, found.optimizer.betas) == (0.5, ("system",), (0.5, 0.6))
    assert found.lora is not None and (found.lora.r, found.lora.variant) == (3, "dora")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--data", "none.json"), 2),
        (("--data", "d.json:0"), 2),
        (("--style", "vicuna"), 2),
        (("--style", "chat"), 9),
        (("--set", "mask_roles=[assistant, system, user]"), 9),
        (("--max-len", "5"), 9),
    ],
)
def test_what_cannot_be_learnt_from_ends_it_before_anything_is_written(
    model: str, arguments: tuple[str, ...], code: int
) -> None:
    result = finetune(model, *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert "fix:" in result.stderr
    assert not Path("out/model").exists()


def test_a_signal_ends_it_with_its_code_and_what_is_kept(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> Any:
        raise Stopped(15, "stopped after step 3", facts={"steps": 3})

    monkeypatch.setattr("ojak.train.run.train", stopped)
    result = finetune(model, "--json")
    assert result.exit_code == 143
    assert json.loads(result.stdout) == {"out": "out", "steps": 3, "stopped": "signal"}


# ------------------------------------------------------------------------------------------------------------ preview


def preview(*more: str) -> Result:
    return ojak("train", "preview", "--model", "base", "--data", "d.json", *more)


def test_a_preview_shows_what_is_learnt_and_where_it_ends(model: str) -> None:
    result = preview("--rows", "2")
    assert result.exit_code == 0, result.stderr
    shown = result.stdout.splitlines()
    assert shown[0] == "base, style alpaca, an answer ends with </s>"
    assert sum(each.startswith("── d.json, record ") for each in shown) == 2
    assert " learnt │ ok </s>" in shown and " learnt │ ok ok </s>" in shown
    assert "   read │ Below is an instruction" in result.stdout
    assert "no end of turn" not in result.stdout
    cut = preview("--rows", "1", "--max-len", "215").stdout
    assert "(no end of turn is learnt here)" in cut
    assert not (Path("home") / "tokens").exists()


def test_a_preview_as_json(model: str) -> None:
    found = json.loads(preview("--rows", "1", "--json", "--style", "plain", "--set", "mask_roles=[]").stdout)
    (row,) = found.pop("rows")
    assert found == {"model": "base", "style": "plain", "stops": ["</s>"], "refused": {}}
    assert row["runs"] == [
        {
            "learnt": False,
            "text": "S",
            "tokens": 1,
            "ends": False,
        },  # what no token stands before is no target
        {"learnt": True, "text": "ay 1.\nit\nok </s>", "tokens": 13, "ends": True},
    ]
    assert (row["tokens"], row["supervised"]) == (14, 13)


def test_blanks_after_the_end_of_a_turn_do_not_hide_it() -> None:
    pieces = {1: b"word", 2: b"<end>", 3: b" \n"}
    tokenizer: Any = SimpleNamespace(token_bytes=pieces.__getitem__)
    ended = {(1, 2): True, (1, 2, 3, 3): True, (2, 1): False, (2, 1, 3): False, (3,): False}
    assert {ids: _ends_turn(list(ids), tokenizer, (2,)) for ids in ended} == ended


def test_a_preview_of_texts_has_no_style(model: str) -> None:
    Path("d.json").write_text(json.dumps([{"text": "words"}]), encoding="utf-8")
    assert preview().exit_code == 9
    result = preview("--set", "objective=pretrain")
    assert "style none (raw text)" in result.stdout and " learnt │ ords</s>" in result.stdout


def test_a_preview_shows_hostile_text_inert_and_names_refusals(model: str) -> None:
    rows = [{"instruction": HOSTILE, "output": HOSTILE}, {"instruction": "</s>", "output": "\x1b[2J"}]
    Path("d.json").write_text(json.dumps(rows), encoding="utf-8")
    result = preview()
    assert "\x1b" not in result.stdout and "\u202e" not in result.stdout
    assert "a␛[31mred␛[0mU+202Eb" in result.stdout
    assert "1 records give no row: its text holds the special token '</s>'" in result.stdout


def test_a_preview_has_colours_where_they_are_wanted(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[32mok </s>\x1b[0m" in preview("--rows", "1").stdout


# ------------------------------------------------------------------------------------------------- figures and plans


def test_figures_are_told_now_and_then_and_at_the_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    moment = [100.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: moment[0])
    with Figures() as figures:
        for step in range(1, 9):
            figures.update({"step": step, "loss": 1.0, "tokens_per_s": 1234.5, "mfu": None, "eta_s": 61.0})
            moment[0] += 2
        figures.update({"step": 8, "val_loss": 0.5})
        figures.update({"step": 9, "loss": 0.25})
    said = capsys.readouterr().err.splitlines()
    assert [text.split("  ")[0] for text in said] == [
        "step 1",
        "step 4",
        "step 7",
        "step 8",
        "step 8",
        "step 9",
    ]
    assert said[0] == "step 1  loss 1.000  1,234 tok/s  ETA 1:01"
    assert said[4:] == ["step 8  held-out loss 0.500", "step 9  loss 0.250"]


def test_a_line_takes_any_figures() -> None:
    assert line({}) == "step ?"
    assert line({"step": "\x1b", "loss": float("nan")}) == "step ?  loss nan"


def a_plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "parameters": 1000, "learnt_parameters": 10, "rows": 3, "steps": 2, "tokens": 50, "supervised_tokens": 5,
        "seconds": 61.0, "tokens_per_s": 9.0,
        "memory_mb": {"weights": 1.0, "gradients": 0.0, "activations": 30.0, "total": 31.0, "free": 40.0},
        "disk_mb": {"model": 2.0, "total": 2.0, "free": 9.0},
    }  # fmt: skip
    return Plan(**{**values, **changes})


def test_a_plan_is_shown_largest_first_and_refused_where_it_does_not_fit() -> None:
    shown = list(plan_lines(a_plan()))
    assert shown[-2:] == [
        "memory         31 MiB of 40 free: activations 30, weights 1",
        "disk           2 MiB of 9 free: model 2",
    ]
    check_room(a_plan())
    with pytest.raises(ResourceExhausted, match="would not fit the disk"):
        check_room(a_plan(disk_mb={"model": 20.0, "total": 20.0, "free": 9.0}))


def test_a_dry_run_writes_nothing(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ojak.train.plan.plan_run", lambda config, notify: a_plan())
    assert "steps          2" in finetune(model, "--dry-run").stdout
    found = json.loads(finetune(model, "--dry-run", "--json").stdout)
    assert (found["steps"], found["fits"]) == (2, True)
    assert not Path("out").exists()
    full = a_plan(memory_mb={"weights": 9.0, "total": 9.0, "free": 1.0})
    monkeypatch.setattr("ojak.train.plan.plan_run", lambda config, notify: full)
    assert finetune(model, "--dry-run").exit_code == 6
