"""`ojak merge` as it is typed, and a sweep: figures that are evaluate's own, a page, and going on where it stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ojak.cli.app import app
from ojak.errors import ResumeRefused, TargetExists, UsageError
from ojak.evaluate.config import EvaluateConfig
from ojak.evaluate.run import evaluate_model
from ojak.merge.config import MergeConfig
from ojak.merge.run import check_merge
from ojak.stages import sweeping
from ojak.stages.sweeping import SweepConfig, dominates, single_models, sweep_merges

TEXTS = (["the bridge of crows", "a small model"], ["<b>numbers</b> 1 2 3", "and more of them"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    for number, texts in enumerate(TEXTS):
        lines = [json.dumps({"text": text}) for text in texts]
        (folder / f"<i>{number}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    return [str(path) for path in sorted(folder.iterdir())]


def sweep(
    family: Path, out: Path, data: list[str], method: str = "liti", names: str = "a", **more: Any
) -> SweepConfig:
    weights = (1.0,) if method == "liti" else None
    models = tuple(str(family / name) for name in names)
    merge = MergeConfig(models=models, base=str(family / "base"), method=method, weights=weights, out=out)  # type: ignore[arg-type]
    return SweepConfig(merge=merge.model_copy(update=more), data=tuple(data), points=(0, 0.5, 1))


def test_the_verb_merges_and_refuses(family: Path, tmp_path: Path) -> None:
    words = [
        "merge",
        str(family / "a"),
        str(family / "b"),
        "--method",
        "slerp",
        "--out",
        str(tmp_path / "out"),
    ]
    with_base = [*words, "--base", str(family / "base"), "--weight", "1", "--weight", "3", "--json"]
    done = CliRunner().invoke(app, with_base)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["method"], found["dtypes"]) == ("slerp", ["F32"])
    check_merge(tmp_path / "out")
    assert CliRunner().invoke(app, with_base).exit_code == 2
    wrong = CliRunner().invoke(app, [*words[:-1], str(tmp_path / "none")])
    assert wrong.exit_code == 2
    assert "give base" in wrong.output
    assert not (tmp_path / "none").exists()


def test_a_sweep_measures_as_evaluate_does_and_draws_it(
    family: Path, tmp_path: Path, data: list[str]
) -> None:
    found = sweep_merges(sweep(family, tmp_path / "out", data))
    assert [point["value"] for point in found["points"]] == [0, 0.5, 1]
    for name, point in (("base", 0), ("a", 2)):
        for number, path in enumerate(data):
            alone = evaluate_model(EvaluateConfig(model=str(family / name), data=path))
            measured = found["points"][point]["figures"][number]["perplexity"]
            assert measured == pytest.approx([alone["perplexity"], *alone["perplexity_interval"]])
    values = [[each["perplexity"][0] for each in point["figures"]] for point in found["points"]]
    for point, own in zip(found["points"], values, strict=True):
        assert point["front"] is not any(dominates(other, own) for other in values)
    page = (tmp_path / "out/index.html").read_text("utf-8")
    assert page.count("<circle") == 3
    assert "<i>" not in page and "&lt;i&gt;" in page
    assert "http" not in page.replace("http-equiv", "")
    left = {path.name for path in (tmp_path / "out").iterdir()} - {".lock", ".lock.json"}
    assert left == {"index.html", "manifest.json"}
    with pytest.raises(TargetExists):
        sweep_merges(sweep(family, tmp_path / "out", data))


def test_a_finished_sweep_stays_until_the_one_that_replaces_it_is_done(
    family: Path, tmp_path: Path, data: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    sweep_merges(sweep(family, out, data[:1]))
    kept = {name: (out / name).read_bytes() for name in ("index.html", "manifest.json")}
    with pytest.raises(UsageError, match="no model"):
        sweep_merges(sweep(family, out, data[:1], names="z", overwrite=True))
    assert {name: (out / name).read_bytes() for name in kept} == kept

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    other = sweep(family, out, data[1:], overwrite=True)
    monkeypatch.setattr(sweeping, "write_atomic", _until(2, sweeping.write_atomic, killed))
    with pytest.raises(KeyboardInterrupt):  # after the first point, which was kept
        sweep_merges(other)
    monkeypatch.undo()
    assert {name: (out / name).read_bytes() for name in kept} == kept
    found = sweep_merges(other)
    assert json.loads((out / "manifest.json").read_bytes())["result"]["points"] == found["points"]
    assert not (out / sweeping.POINTS).exists()


def _until(number: int, call: Any, then: Any) -> Any:
    """`call` before the `number`-th time, `then` from it on."""
    left = [call] * (number - 1)

    def either(*args: Any) -> Any:
        return (left.pop() if left else then)(*args)

    return either


def test_a_sweep_stays_out_of_a_model_s_folder(family: Path, tmp_path: Path, data: list[str]) -> None:
    shutil.copytree(family / "base", tmp_path / "model")
    with pytest.raises(TargetExists, match=r"config\.json"):
        sweep_merges(sweep(family, tmp_path / "model", data))
    assert not (tmp_path / "model/manifest.json").exists()


def test_a_merge_that_is_far_off_is_measured_too(family: Path, tmp_path: Path, data: list[str]) -> None:
    """A perplexity beyond all floats is a point of the picture, no OverflowError."""
    words = ["merge", str(family / "a"), "--base", str(family / "base"), "--method", "task", "--sweep"]
    words += ["--at", "1", "--at", "1e6", "--data", data[0], "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "4.6e+299" in done.stdout and "000000" not in done.stdout
    page = (tmp_path / "out/index.html").read_text("utf-8")
    assert "nan" not in page.partition("<svg")[2].partition("</svg>")[0]
    assert "inf" not in page.partition("<svg")[2].partition("</svg>")[0]


def test_a_sweep_goes_on_where_it_was_stopped(
    family: Path, tmp_path: Path, data: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sweep(family, tmp_path / "out", data[:1], "slerp", "ab")
    measure, asked = sweeping._figures, []

    def stops(of: SweepConfig, model: str, *rest: Any) -> Any:
        asked.append(Path(model).name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return measure(of, model, *rest)

    monkeypatch.setattr(sweeping, "_figures", stops)
    with pytest.raises(KeyboardInterrupt):
        sweep_merges(config)
    assert not (tmp_path / "out" / sweeping.POINT).exists()
    with pytest.raises(ResumeRefused):
        sweep_merges(sweep(family, tmp_path / "out", data[1:], "slerp", "ab"))
    found = sweep_merges(config)
    assert asked == [".point", ".point", ".point", ".point", "base"]  # the second was begun twice
    assert found == {
        **sweep_merges(sweep(family, tmp_path / "again", data[:1], "slerp", "ab")),
        "out": found["out"],
        "page": found["page"],
    }
    assert [single["name"].rpartition("/")[2] for single in found["singles"]] == ["base"]


def test_what_a_grid_covers_is_not_measured_twice() -> None:
    def merge(method: str, models: tuple[str, ...], **more: Any) -> MergeConfig:
        return MergeConfig(models=models, method=method, out=Path("o"), **more)  # type: ignore[arg-type]

    assert single_models(merge("liti", ("a",), base="b", weights=(1.0,)), (0, 1)) == []
    assert single_models(merge("slerp", ("a", "b"), base="c"), (0, 0.5)) == ["b", "c"]
    assert single_models(merge("ties", ("a", "b"), base="c"), (0, 1)) == ["a", "b"]
    with pytest.raises(UsageError, match="two models"):
        sweeping.swept(merge("linear", ("a", "b", "c")))
