"""How many planted wrong answers the checks of pairs find, at a fixed share of right ones that they turn away.

Right pairs are those of context-QA sets (xquad, tatqa, pubmedqa; read where they lie, never copied); wrong answers are
planted beside them (`planted_answers.py`). A check is a set of scores; a pair is turned away if one of them is below
its threshold. Thresholds are quantiles of the right pairs of one half of the texts, all at the same quantile, chosen so
that the check turns away that share of them; reported is the other half: recall for each kind, and the share of right
pairs that were turned away there, with Wilson's 95 % intervals. It asserts nothing.

    python benchmarks/verification.py --data DIR                                 the rules alone, on 1,200 pairs
    python benchmarks/verification.py --data DIR --model smollm2-135m-instruct   and a model's gains, on 60 pairs
"""

import argparse
import random
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import harness
from ojak.augment.verify import REASONS, VerifyConfig, check, rule_scores
from ojak.augment.verify_text import ground
from ojak.judge.statistics import auroc, share
from planted_answers import FILES, PLANTED, WORKED_OUT, Item, read_items, with_wrong

FALSE_REJECTS = (0.05, 0.1)
RULES = ("support", "together", "nearness")
MODEL = ("text_gain", "question_gain", "given")
EVEN = {"xquad": 0.4, "tatqa": 0.3, "pubmedqa": 0.3}
MIX = {
    "xquad": 0.7,
    "tatqa": 0.25,
    "pubmedqa": 0.05,
}  # of the pairs that a model reads: abstracts take it long
FLAGS = frozenset({"strange_number", "negation", "wrong_kind", "answer_in_question", "no_content", "refusal"})
PASSED = ("", "not_checkable")
STEPS = 40  # of the bisection for the quantile

Row = dict[str, Any]  # kind, set, half, scores, reason
Scores = dict[str, float]


def half_of(text: str, seed: int) -> int:
    """0 or 1: the half that a text and all its pairs belong to."""
    return random.Random(f"{seed} half {text[:500]}").randrange(2)


def ruled(planted: Sequence[tuple[str, Item]], seed: int) -> list[Row]:
    """A row for each pair, with the scores of the rules. A flag (a rule that is yes or no) makes support 0."""
    config = VerifyConfig(least_support=0.0, least_together=0.0, least_nearness=0.0, least_asked=0.0)
    rows = []
    for kind, item in planted:
        pair = item.pair()
        scores = {**dict.fromkeys(RULES, 1.0), **rule_scores(ground(item.text), pair)}
        if check(item.text, pair, config).reason in FLAGS:
            scores["support"] = -1.0
        reason = check(item.text, pair).reason
        rows.append(
            {
                "kind": kind,
                "set": item.set,
                "half": half_of(item.text, seed),
                "scores": scores,
                "reason": reason,
            }
        )
    return rows


def add_gains(model: str, planted: Sequence[tuple[str, Item]], rows: Sequence[Row]) -> dict[str, Any]:
    """Adds the model's scores to the rows; gives what it cost. A pair that it cannot read scores lowest."""
    from ojak.augment.verify_gain import gains
    from ojak.engines.open import EngineSpec, open_engine

    engine = open_engine(EngineSpec(model=model), chat=False)
    start, unread = time.perf_counter(), 0
    for row, gain in zip(rows, gains(engine, [(item.text, item.pair()) for _, item in planted]), strict=True):
        unread += gain is None
        row["scores"] |= gain or dict.fromkeys(MODEL, -99.0)
    return {
        **engine.identity,
        "seconds": round(time.perf_counter() - start, 1),
        "pairs": len(rows),
        "unread": unread,
    }


# ------------------------------------------------------------------------------------------------------- thresholds


def thresholds(right: Sequence[Scores], names: Sequence[str], false_rejects: float) -> Scores:
    """The same quantile of each score, as high as lets at most so many of the right pairs be turned away."""
    columns = {name: sorted(scores[name] for scores in right) for name in names}

    def at(quantile: float) -> Scores:
        return {
            name: column[min(len(column) - 1, int(quantile * len(column)))]
            for name, column in columns.items()
        }

    low, high = 0.0, 1.0
    for _ in range(STEPS):
        middle = (low + high) / 2
        fits = sum(turned_away(scores, at(middle)) for scores in right) <= false_rejects * len(right)
        low, high = (middle, high) if fits else (low, middle)
    return at(low)


def turned_away(scores: Scores, least: Scores) -> bool:
    return any(scores[name] < value for name, value in least.items())


def measured(rows: Sequence[Row], names: Sequence[str], false_rejects: float) -> Row:
    """Recall for each kind, and false rejects, on the half that the thresholds were not chosen on."""
    least = thresholds(
        [r["scores"] for r in rows if r["half"] == 0 and r["kind"] == "right"], names, false_rejects
    )
    return {
        "thresholds": least,
        **by_kind([r for r in rows if r["half"] == 1], lambda r: turned_away(r["scores"], least)),
    }


def by_kind(rows: Sequence[Row], away: Callable[[Row], bool]) -> dict[str, Any]:
    """The share turned away: of right pairs by set, of wrong ones by kind."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        right = row["kind"] == "right"
        groups["false_rejects" if right else row["kind"]].append(away(row))
        if right:
            groups[f"false_rejects of {row['set']}"].append(away(row))
        else:
            groups["all kinds"].append(away(row))
    return {name: _share(sum(found), len(found)) for name, found in groups.items()}


def _share(found: int, of: int) -> dict[str, float]:
    value, low, high = share(found, of)
    return {"found": found, "of": of, "share": round(value, 4), "low": round(low, 4), "high": round(high, 4)}


def separation(rows: Sequence[Row], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """AUROC of each score, for each kind against the right pairs."""
    right = [row["scores"] for row in rows if row["kind"] == "right"]
    found: dict[str, dict[str, float]] = {}
    for name in names:
        good = [scores[name] for scores in right]
        found[name] = {
            kind: round(auroc(good, [r["scores"][name] for r in rows if r["kind"] == kind]), 3)
            for kind in PLANTED
            if any(r["kind"] == kind for r in rows)
        }
    return found


# ------------------------------------------------------------------------------------------------------- the report


def report(rows: Sequence[Row], checks: dict[str, Sequence[str]]) -> dict[str, Any]:
    """Of each set by itself, and of all: thresholds that fit short spans do not fit conclusions of abstracts."""
    names = list(dict.fromkeys(name for used in checks.values() for name in used))
    of_sets = {
        name: [row for row in rows if row["set"] == name]
        for name in dict.fromkeys(row["set"] for row in rows)
    }
    return {
        "pairs": len(rows),
        "auroc": {name: separation(own, names) for name, own in {**of_sets, "all": rows}.items()},
        "at": {
            f"{limit:g}": {
                check_: {name: measured(own, used, limit) for name, own in {**of_sets, "all": rows}.items()}
                for check_, used in checks.items()
            }
            for limit in FALSE_REJECTS
        },
    }


def defaults(rows: Sequence[Row]) -> dict[str, Any]:
    """What `check` does with its default thresholds, set by set, and how often it gave each reason to right and wrong
    pairs."""
    reasons: dict[str, dict[str, int]] = {}
    for row in rows:
        if row["reason"] in REASONS:
            side = reasons.setdefault(row["reason"], {"right": 0, "wrong": 0})
            side["right" if row["kind"] == "right" else "wrong"] += 1
    of_sets = {
        name: by_kind([row for row in rows if row["set"] == name], lambda row: row["reason"] not in PASSED)
        for name in dict.fromkeys(row["set"] for row in rows)
    }
    return {**of_sets, "reasons": reasons}


def table(found: dict[str, Any]) -> str:
    header = ("at most", "check", "set", "false rejects", *PLANTED)
    lines = []
    for limit, checks in found["at"].items():
        for name, sets in checks.items():
            for of_set, result in sets.items():
                cells = [result.get(column) for column in ("false_rejects", *PLANTED)]
                lines.append((limit, name, of_set, *(_cell(cell) for cell in cells)))
    return harness.table(header, lines)


def _cell(cell: dict[str, float] | None) -> str:
    return f"{cell['share']:.2f} ({cell['low']:.2f}-{cell['high']:.2f})" if cell else "-"


def drawn(items: Sequence[Item], count: int, seed: int, mix: dict[str, float]) -> list[Item]:
    """`count` pairs, of the sets in these shares."""
    dice = random.Random(f"{seed} drawn")
    chosen: list[Item] = []
    for name, part in mix.items():
        of_set = [item for item in items if item.set == name]
        chosen += dice.sample(of_set, min(len(of_set), round(part * count)))
    return sorted(chosen, key=lambda item: (item.set, item.text))  # those of one text together


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder with the context-QA sets")
    parser.add_argument("--model", action="append", default=[], help="a model that reads; may be repeated")
    parser.add_argument("--rows", type=int, default=1_200, help="right pairs that the rules check")
    parser.add_argument("--pairs", type=int, default=60, help="right pairs that a model reads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-file", action="store_true", help="write no result file")
    args = parser.parse_args(arguments)
    items = list(read_items(args.data))
    if not items:
        parser.error(f"none of {', '.join(FILES.values())} is in {args.data}")
    keep(args, "rules", by_rules(items, args.rows, args.seed))
    for model in args.model:
        keep(args, model, by_model(model, items, args.pairs, args.seed))
    return 0


def by_rules(items: Sequence[Item], count: int, seed: int) -> dict[str, Any]:
    start = time.perf_counter()
    usable = [item for item in items if item.set != WORKED_OUT]
    rows = ruled(with_wrong(drawn(usable, count, seed, EVEN), usable, seed), seed)
    worked_out = [("right", item) for item in items if item.set == WORKED_OUT][:count]
    return {
        **report(rows, {"rules": RULES}),
        "defaults": defaults(rows),
        "worked out": defaults(ruled(worked_out, seed)),
        "seconds": round(time.perf_counter() - start, 1),
    }


def by_model(model: str, items: Sequence[Item], count: int, seed: int) -> dict[str, Any]:
    usable = [item for item in items if item.set != WORKED_OUT]
    planted = with_wrong(drawn(usable, count, seed, MIX), usable, seed)
    rows = ruled(planted, seed)
    cost = add_gains(model, planted, rows)
    checks = {"rules": RULES, "model": MODEL, "gains": MODEL[:2], "rules and model": (*RULES, *MODEL)}
    return {**report(rows, checks), "model": cost}


def keep(args: argparse.Namespace, name: str, found: dict[str, Any]) -> None:
    """Shows what was found, and puts it into the day's result file."""
    print(
        f"{name}: {found['pairs']} pairs in {found.get('seconds') or found['model']['seconds']} s\n{table(found)}\n",
        flush=True,
    )
    if not args.no_file:
        day = datetime.now(UTC)
        path = harness.RESULTS / f"verification-{day:%Y-%m-%d}.json"
        about = {"seed": args.seed, "machine": harness.machine(), "date": f"{day:%Y-%m-%d}"}
        harness.update_results(path, {name: found, **about})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
