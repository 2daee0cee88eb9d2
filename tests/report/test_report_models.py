"""The report of training and evaluation: curves, tables with intervals, answers side by side, and odd or hostile folders."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import model_runs
import numpy as np
import pytest
from test_report import PAYLOADS, TAGS, Reader

from ojak.artifact import Artifact, publish
from ojak.errors import InputRefused, UsageError
from ojak.report import render, text, write_report
from ojak.report.arms import answer, arm_of, read_arms
from ojak.report.curves import Axes, mean_curve
from ojak.report.metrics import metric
from ojak.report.side_by_side import SHOWN, read_answers
from ojak.report.training import MAX_POINTS, MAX_RUNS, read_curves, read_training

HEADINGS = re.compile(r'<h2 id="[\w-]+">(.*?)</h2>')


def words(html: str) -> str:
    """The text of a page, its cells and lines apart."""
    return Reader(re.sub(r"(</(?:td|th|dt|dd|li|p|caption)>)", r"\1 ", html)).text


def page(folder: Path, tmp_path: Path) -> str:
    return write_report(folder, tmp_path / "report", replace=True).read_text(encoding="utf-8")


# What the page says


def test_a_run_without_magpie_tells_of_arms_and_rows(chapter7: Path, tmp_path: Path) -> None:
    html = page(chapter7, tmp_path)
    shown = words(html)
    assert HEADINGS.findall(html) == [
        "Training", "The arms compared", "The same request, answered by each", "The rows", "Provenance",
    ]  # fmt: skip
    assert "gemma-3-270m, trained in 4 ways" in shown and "training runs 12" in shown
    assert "Thin lines are the seeds" in shown and "asked itself" not in shown
    assert "5 train, 1 validation, 1 test" in shown and "instruction-data.json" in shown
    for setting, values in (("style", "alpaca phi3 alpaca alpaca"), ("lora.r", "– – – 16")):
        assert f"{setting} {values}" in shown
    assert "seed 0 1" not in shown  # what differs by seed is no difference between arms
    manifests = {Artifact.open(chapter7 / "rows").manifest_sha256}
    assert all(digest in shown for digest in manifests)


def test_measures_stand_with_intervals_and_verdicts_in_words(chapter7: Path, tmp_path: Path) -> None:
    shown = words(page(chapter7, tmp_path))
    stats = json.loads((chapter7 / "evaluate" / "manifest.json").read_text())["stats"]
    for arm in ("base", "alpaca", "lora"):
        found = stats["arms"][arm]["bits_per_byte"]
        low, mean, high = (f"{found[name]:.3f}" for name in ("low", "mean", "high"))
        assert f"{arm} {mean} {low} to {high}" in shown
    lora = stats["differences"]["lora"]["bits_per_byte"]
    assert f"+{lora['value']:.3f} +{lora['low']:.3f} to +{lora['high']:.3f} decided: worse" in shown
    phi3 = stats["differences"]["phi3"]["bits_per_byte"]
    assert not phi3["decided"]
    sign = "+" if phi3["value"] > 0 else "\u2212"
    assert re.search(rf"{re.escape(sign)}{abs(phi3['value']):.3f} \S+ to \S+ not decided", shown)
    assert "93." in shown and " points" in shown  # shares are percent, their differences points


def test_the_question_of_noise_is_answered_by_counting(chapter7: Path, tmp_path: Path) -> None:
    stats = json.loads((chapter7 / "evaluate" / "manifest.json").read_text())["stats"]
    cost = {"seconds", "peak_memory_mb"}
    flags = [
        item["decided"]
        for arm, line in stats["differences"].items()
        for name, item in line.items()
        if name not in cost and arm != "base"
    ]
    shown = words(page(chapter7, tmp_path))
    assert f"{sum(flags)} of {len(flags)} differences from alpaca in quality are more than noise" in shown
    assert "the 3 seeds of an arm (Student\u2019s t)" in shown
    assert f"Of {len(flags)} differences that are none, about {0.05 * len(flags):.1f}" in shown
    assert re.search(r"lora: worse in bits per byte, ", shown)
    assert re.search(
        r"differences in time and memory are more than noise.*lora: less in training time, peak memory", shown
    )


def test_nothing_decided_is_said_plainly(tmp_path: Path) -> None:
    folder = model_runs.comparison(tmp_path / "evaluate", ["base", "alpaca"], "base", answers=False)
    manifest = json.loads((folder / "manifest.json").read_text())
    for line in manifest["stats"]["differences"].values():
        for item in line.values():
            item["decided"] = False
    (folder / "manifest.json").write_text(json.dumps(manifest))
    shown = words(page(folder, tmp_path))
    assert "No. None of the 6 differences between before and after is more than noise." in shown
    assert "decided:" not in shown and "not decided" in shown


def test_before_and_after_follow_the_story_of_the_data(run_folder: Path, tmp_path: Path) -> None:
    html = page(model_runs.quickstart_models(run_folder), tmp_path)
    headings = HEADINGS.findall(html)
    assert headings.index("What it took") < headings.index("Training") < headings.index("Before and after")
    assert headings[-2:] == ["The same request, answered by each", "Provenance"]
    read = Reader(html)
    assert "asked itself 324 questions" in read.text and 'href="#model-compared"' in html
    table = html[html.index("<caption>Before and after training") :]
    cells = words(table[: table.index("</table>")])
    assert re.search(
        r"Bits per byte of held-out answers; lower is better 1\.6\d\d .* 0\.8\d\d .* decided: better", cells
    )
    assert (
        "Validation loss" not in cells and "Validation loss" in read.text
    )  # it has no before; it stands with the costs
    assert "Each model was trained once" in read.text and "Student" not in read.text


def test_the_same_folders_give_the_same_page(chapter7: Path, tmp_path: Path) -> None:
    assert page(chapter7, tmp_path) == page(chapter7, tmp_path)


def test_a_single_training_folder_and_several_side_by_side(tmp_path: Path) -> None:
    model_runs.training_run(tmp_path / "sets" / "ours")
    alone = words(page(tmp_path / "sets" / "ours", tmp_path))
    assert "gemma-3-270m, trained" in alone and "Rings: the loss on validation rows" in alone
    assert "How the arms differ" not in alone
    model_runs.training_run(tmp_path / "sets" / "theirs", level=1.4, config={"data": ["alpaca"]})
    both = words(page(tmp_path / "sets", tmp_path))
    assert "trained in 2 ways" in both and "data ['rows'] ['alpaca']" in both


def test_losses_of_different_kinds_are_said_not_to_compare(tmp_path: Path) -> None:
    said = "Not compared with each other: lines of arms that differ in"
    taught: dict[str, Any] = {"objective": "distil", "distil": {"teacher": "t", "loss": "forward-kl"}}
    model_runs.training(tmp_path / "kinds", {"told": {}, "taught": {"config": taught, "level": 0.3}})
    shown = words(page(tmp_path / "kinds", tmp_path))
    assert f"{said} objective, distil." in shown and "at the end, by cross-entropy, whatever" in shown
    model_runs.training(tmp_path / "rates", {"slow": {}, "fast": {"config": {"lr": 1e-4}}})
    shown = words(page(tmp_path / "rates", tmp_path))
    assert said not in shown and "Rings: the loss on validation rows at the end." in shown


def test_a_real_run_is_told_with_its_own_numbers(tmp_path: Path) -> None:
    import tiny_run

    from ojak.train.run import train

    config = tiny_run.config(tmp_path, out="run", epochs=3, val_share=0.2, evaluate={"every_steps": 3})
    result = train(config)
    html = page(config.out, tmp_path)
    shown = words(html)
    curves = read_curves(config.out / "metrics.jsonl")
    losses, checks = curves["loss"], curves["val_loss"]
    assert len(losses) == result.steps and len(checks) == 3 and result.loss_last is not None
    assert f"run: from {losses[0].value:.3f} to {result.loss_last:.3f}" in shown
    assert "Loss on validation rows" in shown
    assert f"{result.loss_first:.3f} {result.loss_last:.3f} {result.val_loss:.3f}" in shown
    assert text.number(result.supervised_tokens) in shown


# Answers


def test_the_same_request_stands_with_every_first_answer(chapter7: Path, tmp_path: Path) -> None:
    html = page(chapter7, tmp_path)
    shown = words(html)
    assert "of each arm, its first seed answers" in shown
    begin = html.index('<summary><span class="heading" dir="auto">Name the author')
    one = Reader(html[begin : html.index("</details>", begin)]).text
    order = [one.index(name) for name in ("Reference", "base", "alpaca", "phi3", "masked", "lora")]
    assert order == sorted(order)
    assert "Jane Austen." in one and "cheetah" in one and "(1)" not in one
    assert "chrF 31.2" in one
    begin = html.index("Write three words that begin")
    other = Reader(html[begin : html.index("</details>", begin)]).text
    assert "Reference" not in other and "follows the instruction" in other


def test_an_answer_to_another_request_is_none(tmp_path: Path) -> None:
    folder = tmp_path / "evaluate"
    model_runs.answered(folder / "base", "An old answer.", [("What is it?", "This.")])
    model_runs.answered(folder / "new-seed-3", "A new answer.", [("What was it?", "That.")])
    model_runs.answered(folder / "new-seed-12", "A later seed.", [("What is it?", "This.")])
    found = read_answers(folder, ["new"])
    (asked,) = found.asked
    assert found.models == ["base", "new"] and [said.turn is None for said in asked.answers] == [False, True]


def test_requests_with_a_reference_come_first_and_leave_room(tmp_path: Path) -> None:
    requests = [(f"Request {n}?", f"Answer {n}." if n < 50 else "") for n in range(100)]
    model_runs.answered(tmp_path / "evaluate" / "base", "Yes.", requests)
    found = read_answers(tmp_path / "evaluate", [])
    known = [asked.reference is not None for asked in found.asked]
    assert (
        len(known) == SHOWN and sum(known) == 8 and known == sorted(known, reverse=True) and found.rows == 100
    )
    assert read_answers(tmp_path / "evaluate", [], seed=1).asked != found.asked


def test_the_right_answer_to_a_fact_is_not_shown_as_a_models_own(tmp_path: Path) -> None:
    from ojak.evaluate.probe import rows
    from ojak.judge.facts import Fact, Recalled

    folder = model_runs.comparison(tmp_path / "evaluate", ["base", "alpaca"], "base", seeds=1, answers=False)
    fact = Fact("a/river", "Quenby lies on the river", "Ulm", ("Oos", "Ems"), "cloze")
    for name, recalled in {"base": (-9.0, 2, False, 3), "alpaca-seed-0": (-0.5, 2, True, 1)}.items():
        publish(
            tmp_path / "evaluate" / name,
            kind="evaluate",
            records=rows([Recalled(fact, *recalled)]),
            config={},
        )
    found = read_answers(tmp_path / "evaluate", ["new"])
    (asked,) = found.asked
    assert (
        asked.fact and asked.reference is not None and [said.turn for said in asked.answers] == [None, None]
    )
    assert [said.notes for said in asked.answers] == [
        ["would not write it", "2 wrong answers likelier", "\u22124.50 nats a token"],
        ["would write it", "no wrong answers likelier", "\u22120.25 nats a token"],
    ]
    shown = words(page(folder, tmp_path))
    assert "The right answer Ulm" in shown and "base would not write it" in shown
    assert "A fact is not answered but scored" in shown and "(not answered)" not in shown
    assert "Ulm" not in words(page(folder / "base", tmp_path))


def test_damaged_answers_are_left_out_and_named(chapter7: Path, tmp_path: Path) -> None:
    data = next((chapter7 / "evaluate" / "phi3-seed-0").glob("data/*.parquet"))
    data.write_bytes(data.read_bytes()[:-1])
    shown = words(page(chapter7, tmp_path))
    assert "The answers in phi3-seed-0 are left out" in shown


def test_names_of_folders_of_answers() -> None:
    assert (
        arm_of("base") == ("base", 0)
        and arm_of("a-seed-7") == ("a", 7)
        and arm_of("a-seed-x") == ("a-seed-x", 0)
    )
    assert arm_of("a-seed-1-seed--2") == ("a-seed-1", -2)


# Curves


def test_the_mean_runs_through_the_middle_of_its_seeds() -> None:
    one = [(0.0, 4.0), (10.0, 2.0), (20.0, 1.0)]
    other = [(5.0, 3.0), (15.0, 1.0)]
    found = mean_curve([one, other])
    assert found[0][0] == 5.0 and found[-1][0] == 15.0
    for x, y in found:
        expected = (np.interp(x, [0, 10, 20], [4, 2, 1]) + np.interp(x, [5, 15], [3, 1])) / 2
        assert y == pytest.approx(expected)
    assert mean_curve([one]) == one


def test_all_of_a_curve_lies_inside_its_axes() -> None:
    rng = random.Random(0)
    for scale in (1e-6, 0.01, 1.0, 300.0, 1e9):
        curve = [(rng.uniform(0, 1e6 * scale), rng.gauss(2, 1) * scale) for _ in range(50)]
        axes = Axes.of(curve)
        for x, y in map(axes.place, curve):
            assert 40 <= x <= 450 and 12 <= y <= 196
        ticks = axes.y_ticks()
        assert 2 <= len(ticks) <= 6 and len({tick.label for tick in ticks}) == len(ticks)


def test_many_steps_are_thinned_to_means(tmp_path: Path) -> None:
    model_runs.training_run(tmp_path / "long", steps=1234)
    (run,) = read_training([tmp_path / "long"]).runs
    losses = read_curves(tmp_path / "long" / "metrics.jsonl")["loss"]
    assert run.together == 13 and len(run.losses) == -(-1234 // 13) <= MAX_POINTS
    assert run.losses[0].value == pytest.approx(np.mean([point.value for point in losses[:13]]))
    assert run.losses[0].step == 7
    assert "Each point is the mean of 13 steps." in page(tmp_path / "long", tmp_path)


def test_what_is_known_by_heart_is_drawn_over_training(tmp_path: Path) -> None:
    model_runs.training_run(tmp_path / "run", steps=40)
    with (tmp_path / "run" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        for step, share in ((0, 0.25), (20, 0.5), (40, 0.875)):
            figures = {
                "probe_qa_accuracy": share,
                "probe_qa_logprob": -3.0,
                "probe_stated_logprob": -4 * (1 - share),
            }
            file.write(json.dumps({"step": step, "supervised_tokens": 100 * step, **figures}) + "\n")
    (run,) = read_training([tmp_path / "run"]).runs
    assert [point.value for point in run.known["qa_accuracy"]] == [0.25, 0.5, 0.875] and not run.more
    html = page(tmp_path / "run", tmp_path)
    shown = words(html)
    assert "Facts known by heart: qa" in shown and "share of right answers" in shown
    assert "Share of right answers over supervised tokens. run: from 0.250 to 0.875" in html
    # Where no wrong answers stand beside the right ones, how likely these are; never both.
    assert "Facts known by heart: stated" in shown and "Nats a token over supervised tokens" in html
    assert shown.count("Facts known by heart: qa The numbers") <= 1 and "from -3.000" not in html


def test_metrics_that_are_none_are_passed_over(tmp_path: Path) -> None:
    lines = [
        b'{"step": 1, "loss": 2.0, "supervised_tokens": 10}', b"not json", b"[1]", b'{"step": "2", "loss": 1.0}',
        b'{"step": 2, "loss": "1.9"}', b'{"step": 2, "loss": 1.5, "supervised_tokens": 20}', b'{"step": -3, "loss": 9}',
        b"\xff\xfe\x00", b'{"step": 3, "val_loss": 1.7}', b'{"step": 4, "loss": NaN}', b'{"step": 5, "loss": true}',
        b'{"step": 6, "loss": 1e999}', b'{"a": "' + b"x" * 200_000 + b'"}', b'{"step": 7, "lo',
    ]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    curves = read_curves(tmp_path / "metrics.jsonl")
    losses, checks = curves["loss"], curves["val_loss"]
    assert [(point.step, point.tokens, point.value) for point in losses] == [(1, 10, 2.0), (2, 20, 1.5)]
    assert [(point.step, point.tokens, point.value) for point in checks] == [(3, 20, 1.7)]
    assert read_curves(tmp_path / "missing.jsonl") == {}


# Odd and hostile folders


def test_runs_outside_their_folder_are_not_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    model_runs.training_run(secret, level=7.77)
    folder = model_runs.training(tmp_path / "train", {"a": {}}, seeds=[0])
    (folder / "link").symlink_to(secret)
    runs = [
        {"arm": f"x{n}", "seed": 0, "folder": name, "result": {}}
        for n, name in enumerate(
            ["../secret", str(secret), "link", "a/../../secret", "", ".", "\x00", "y" * 5000]
        )
    ]
    runs += [{"arm": "../secret", "seed": 0}, {"arm": "a", "seed": 0, "folder": "a/seed-0"}, 7, None, {}]
    publish(folder, kind="train", records=[], config={}, stats={"runs": runs}, replace=True)
    assert [run.arm for run in read_training([folder]).runs] == ["a"]


def test_more_runs_and_arms_than_a_page_holds(tmp_path: Path) -> None:
    folder = model_runs.training(
        tmp_path / "train", {f"arm{n}": {"steps": 3} for n in range(12)}, seeds=range(6)
    )
    html = page(folder, tmp_path)
    shown = words(html)
    assert f"{72 - MAX_RUNS} more runs have no room" in shown
    assert "The curves are those of the first 8 arms." in shown and "s8" not in re.findall(r"\bs\d+\b", html)


def test_random_manifests_never_break_the_page(chapter7: Path, tmp_path: Path) -> None:
    rng = random.Random(5)
    junk: list[Any] = [
        None,
        True,
        -1,
        1e308,
        "x",
        [],
        [None],
        {},
        {"a": [{}]},
        {"mean": "b", "low": []},
        [[1]],
    ]

    def spoiled(value: Any, depth: int) -> Any:
        if rng.random() < 0.12 * depth:
            return rng.choice(junk)
        if isinstance(value, dict):
            return {key: spoiled(item, depth + 1) for key, item in value.items()}
        return [spoiled(item, depth + 1) for item in value] if isinstance(value, list) else value

    places = [chapter7 / name / "manifest.json" for name in ("train", "evaluate", "train/phi3/seed-0")]
    kept = {place: json.loads(place.read_text()) for place in places}
    for _ in range(25):
        for place, manifest in kept.items():
            keys = ("stats", "config", "result")
            spoilt = {key: spoiled(value, 0) if key in keys else value for key, value in manifest.items()}
            place.write_text(json.dumps(spoilt))
        assert Reader(page(chapter7, tmp_path)).tags["h1"] == 1


def test_infinite_numbers_and_no_numbers_are_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "evaluate"
    folder.mkdir()
    arms = '{"a": {"chrf": {"mean": NaN}, "stopped": {"mean": 0.5, "low": -Infinity, "high": 1, "values": [NaN, 0.5]}}}'
    (folder / "manifest.json").write_text(
        f'{{"kind": "comparison", "stats": {{"arms": {arms}, "against": "a"}}}}'
    )
    found = read_arms(folder)
    assert [each.name for each in found.metrics] == ["stopped"]
    assert found.measured["a"]["stopped"].interval is None and found.measured["a"]["stopped"].values == (0.5,)
    assert "50.0 %" in words(page(folder, tmp_path))


def test_nothing_to_tell_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    publish(folder, kind="train", records=[], config={}, stats={"runs": []})
    with pytest.raises(InputRefused, match="nothing to report on"):
        page(folder, tmp_path)
    for name in ("one", "two"):
        model_runs.comparison(tmp_path / "run" / name, ["base", "alpaca"], "base", answers=False)
    with pytest.raises(UsageError, match="2 comparisons"):
        page(tmp_path / "run", tmp_path)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """Each payload as the name of an arm, of a measure and of a setting, as answer, request and reference."""
    run, load = tmp_path / "hostile", "".join(PAYLOADS)
    folder = run / "train"
    runs = []
    for n, name in enumerate(PAYLOADS):
        model_runs.training_run(
            folder / f"r{n}", steps=4, config={name: load, "model": name, "style": f"{n}{name}"}
        )
        runs.append({"arm": name, "seed": name, "folder": f"r{n}", "result": {"steps": name}})
    publish(folder, kind="train", records=[], config={}, stats={"runs": runs})
    line = {name: {"mean": n, "low": n - 1, "high": n + 1, "values": [n]} for n, name in enumerate(PAYLOADS)}
    gone = {name: {"value": 1.0, "low": 0.5, "high": 2.0, "decided": True} for name in PAYLOADS}
    stats = {
        "metrics": PAYLOADS, "arms": {name: line for name in PAYLOADS}, "against": PAYLOADS[0],
        "differences": {name: gone for name in PAYLOADS},
    }  # fmt: skip
    publish(run / "evaluate", kind="comparison", records=[], config={}, stats=stats)
    for name in ("base", "x-seed-0"):
        requests = [(name, name) for name in PAYLOADS]
        model_runs.answered(run / "evaluate" / name, load, requests, finish_reason=load)
    odd = '<img src=x onerror="alert(1)">'
    shutil.copytree(run / "evaluate" / "base", run / "evaluate" / odd)
    return run


def test_hostile_names_and_answers_are_only_text(hostile: Path, tmp_path: Path) -> None:
    html = page(hostile, tmp_path)
    read = Reader(html)
    assert set(read.tags) <= {*TAGS, "circle"}
    assert not [name for _, name, _ in read.attributes if name.startswith("on") or name in ("style", "src")]
    assert [(tag, value) for tag, name, value in read.attributes if name == "href"] == [("link", "data:,")]
    assert text.plain(html) == html
    for load in PAYLOADS:
        if "```" not in load:
            assert " ".join(text.plain(load).split())[:60] in read.text


def test_huge_answers_keep_the_page_small(tmp_path: Path) -> None:
    requests = [("<&>" * 30_000 + str(n), "\u202e" * 50_000) for n in range(30)]
    for name in ("base", *(f"arm{n}-seed-0" for n in range(12))):
        model_runs.answered(tmp_path / "evaluate" / name, "<" * 100_000, requests)
    model_runs.comparison(tmp_path / "evaluate", ["base", "alpaca"], "base", answers=False)
    html = page(tmp_path / "evaluate", tmp_path)
    assert len(html.encode()) < 5_000_000 and "more characters" in html


# For every reader


def test_the_page_is_structured_for_every_reader(chapter7: Path, tmp_path: Path) -> None:
    html = page(chapter7, tmp_path)
    read = Reader(html)
    assert read.tags["h1"] == 1 and read.tags["table"] == read.tags["caption"]
    drawn = re.findall(r"<svg\b[^>]*>(?:(?!</svg>).)*", html, re.DOTALL)
    assert drawn and all('aria-hidden="true"' in svg or "<title" in svg for svg in drawn)
    ids = [value for _, name, value in read.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    named = [
        part for _, name, value in read.attributes if name == "aria-labelledby" for part in value.split()
    ]
    assert set(named) <= set(ids)
    heads = re.findall(r"<thead>(.*?)</thead>", html, re.DOTALL)
    assert all("<td" not in head and 'scope="col"' in head for head in heads)
    bodies = re.findall(r"<tbody>(.*?)</tbody>", html, re.DOTALL)
    assert all(body.count("<tr") == body.count('<th scope="row"') for body in bodies)
    policy = re.search(r"default-src 'none'; style-src 'sha256-[\w+/=]+'", html)
    assert policy and "<script" not in html


def test_unknown_measures_are_shown_without_a_verdict_of_worth(tmp_path: Path) -> None:
    stats = {
        "metrics": ["own_measure"], "against": "base",
        "arms": {arm: {"own_measure": {"mean": 3.14159, "values": [3.14159]}} for arm in ("base", "x")},
        "differences": {"x": {"own_measure": {"value": -2.5, "decided": True}}},
    }  # fmt: skip
    publish(tmp_path / "evaluate", kind="comparison", records=[], config={}, stats=stats)
    shown = words(page(tmp_path / "evaluate", tmp_path).partition("<body>")[2])
    assert "Own measure 3.142 3.142 \u22122.5 decided: lower" in shown
    assert "better" not in shown and "worse" not in shown


def test_measures_of_facts_say_what_they_are() -> None:
    found = {name: metric(f"probe_{name}") for name in ("qa_logprob", "qa_exact", "by-heart_accuracy", "odd")}
    assert [each.title for each in found.values()] == [
        "Facts, qa: log-probability", "Facts, qa: written", "Facts, by heart: chosen", "Probe odd",
    ]  # fmt: skip
    assert [each.better for each in found.values()] == [1, 1, 1, 0]
    assert found["qa_exact"].show(0.25) == "25.0\u00a0%" and found["qa_exact"].most == 1


def test_an_interval_of_a_share_ends_where_shares_do(tmp_path: Path) -> None:
    arms = {"x": {"stopped": {"mean": 0.4, "low": -3.1, "high": 3.9, "values": [0.7, 0.1]}}}
    publish(
        tmp_path / "evaluate", kind="comparison", records=[], config={}, stats={"arms": arms, "against": "x"}
    )
    assert "40.0 % 0.0 % to 100.0 %" in words(page(tmp_path / "evaluate", tmp_path))


@pytest.mark.parametrize(
    ("name", "value", "shown", "word"),
    [
        ("bits_per_byte", -0.01234, "\u22120.012", "better"),
        ("chrf", 2.25, "+2.2", "better"),
        ("reference_logprob", -0.5, "\u22120.500", "worse"),
        ("stopped", 0.031, "+3.1", "better"),
        ("repetition", 0.1, "+10.0", "worse"),
        ("seconds", -75.0, "\u22121\u00a0min 15\u00a0s", "less"),
        ("peak_memory_mb", 1000.0, "+1.0\u00a0GB", "more"),
        ("val_loss", 0.0, "0.000", "worse"),
    ],
)
def test_differences_in_words(name: str, value: float, shown: str, word: str) -> None:
    assert metric(name).difference(value) == shown
    assert not value or metric(name).verdict(value) == word


def test_cost_and_quality_are_counted_apart(chapter7: Path) -> None:
    found = read_arms(chapter7 / "evaluate")
    quality, cost = answer(found, cost=False), answer(found, cost=True)
    assert cost.total == 3 * 2 and quality.total == 3 * 7  # the untrained model is not counted
    assert [arm for arm, _ in quality.by_arm] == ["base", "phi3", "masked", "lora"]


def test_render_takes_folders_too(chapter7: Path, tmp_path: Path) -> None:
    found = render([Artifact.open(chapter7 / "rows")], [chapter7 / "train"], chapter7 / "evaluate")
    assert found == page(chapter7, tmp_path)
