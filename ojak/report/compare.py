"""Two or more data sets side by side on one self-contained page: sizes, lengths, labels, a map, coverage, variety.

What Magpie's paper shows of its own data beside others (arXiv 2406.08464, table 1 and figures 2 to 8), for any files.
The page has figures and numbers only, no row's text; names and labels pass through Jinja's autoescape, and the page's
policy forbids every load and every script.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ojak._code import version
from ojak._files import disk_errors, write_atomic
from ojak._progress import silent
from ojak.errors import EngineUnavailable, InputRefused, TargetExists, UsageError
from ojak.report import compare_charts as charts
from ojak.report import variety
from ojak.report.html import environment, styled
from ojak.report.sets import LABEL_FIELDS, MOST_SAMPLED, Count, DataSet, count_words, named, read_set

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

Notify = Callable[[str], None]
EMBEDDINGS = "map, nearest neighbours and coverage"


@dataclass(frozen=True, slots=True)
class CompareConfig:
    """cosine: from which on instructions cover each other. tokenizer: whose tokens are counted; None: words.

    projection: "auto" takes t-SNE where scikit-learn is there and the points are at most 12,000, otherwise PCA.
    seed: which instructions are drawn, and t-SNE's.
    """

    cosine: float = 0.5
    projection: Literal["auto", "pca", "tsne"] = "auto"
    tokenizer: str | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Where the page is, the numbers of each set, and what the page had to leave out: part -> why."""

    page: Path
    facts: list[dict[str, Any]]
    left_out: dict[str, str] = field(default_factory=dict)


def write_comparison(
    sets: Sequence[str],
    out: Path,
    config: CompareConfig | None = None,
    *,
    replace: bool = False,
    notify: Notify = silent,
) -> Comparison:
    """Write the page `out` about `sets`: paths, or NAME=PATH, of artifacts or files of any format that is read.

    Raises TargetExists where there is a page already and not `replace`; UsageError for fewer than two or more than
    eight sets, or t-SNE without scikit-learn; InputRefused for what cannot be read or holds no instruction;
    ResourceExhausted on a full disk.
    """
    config = config or CompareConfig()
    places = named(sets)
    with disk_errors(out):
        if out.exists() and not replace:
            raise TargetExists(f"{out} is there already", fix="name another page, or pass --overwrite")
    variety.choose(config.projection, 0)  # refused before anything is read
    count, unit = _counter(config.tokenizer)
    read = []
    for name, path in places:
        notify(f"reading {name}")
        read.append(read_set(name, path, count, seed=config.seed))
    varied = _variety(read, config.seed)
    near, why = _nearness(read, varied.equal, config, notify)
    left_out = {EMBEDDINGS: why} if why else {}
    facts = _facts(read, unit, varied, near)
    html = render(read, unit, config, varied, near, facts, left_out)
    write_atomic(out, html.encode())
    return Comparison(out, facts, left_out)


def _counter(tokenizer: str | None) -> tuple[Count, str]:
    """How lengths are counted, and in what: the tokens of a model's tokenizer, or words."""
    if tokenizer is None:
        return count_words, "words"
    from ojak.model.load import read_source

    found = read_source(tokenizer).tokenizer

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in found.encode_batch(texts, special=False)]

    return count, "tokens"


@dataclass(slots=True)
class Variety:
    """Curves of each set over its shuffled sample; `equal`: the size of the smallest sample."""

    equal: int
    distinct: dict[int, list[list[tuple[int, float]]]]
    repeats: list[list[tuple[int, float]]]


def _variety(sets: Sequence[DataSet], seed: int) -> Variety:
    equal = min(len(each.sample) for each in sets)
    texts = [variety.shuffled(each.sample, seed) for each in sets]
    distinct = {n: [variety.distinct_curve(each, n, equal) for each in texts] for n in (1, 2, 3)}
    return Variety(equal, distinct, [variety.repeat_curve(each, equal) for each in texts])


@dataclass(slots=True)
class Nearness:
    """What embeddings say. distances: to the nearest other instruction of the same set; equal_distances: the same
    among so many of each set as the smallest has. coverage[a][b]: the share of a that is near one of b; of a itself,
    near another one."""

    model: str
    map: variety.Map
    distances: list[Vector]
    equal_distances: list[Vector]
    coverage: list[list[float]]


def _nearness(
    sets: Sequence[DataSet], equal: int, config: CompareConfig, notify: Notify
) -> tuple[Nearness | None, str]:
    """The measures that need embeddings, or why there are none."""
    how = variety.choose(config.projection, sum(len(each.sample) for each in sets))
    try:
        from ojak.similarity.embedding import Embedder

        embedder = Embedder.open()
    except ImportError as error:
        return None, f"{error}; `pip install 'ojak[embed]'` brings what it needs"
    except (UsageError, InputRefused, EngineUnavailable) as error:
        return None, "; ".join(filter(None, (error.what, error.why, error.fix)))
    matrices = []
    for each in sets:
        notify(f"embedding {len(each.sample):,} instructions of {each.name}")
        matrices.append(embedder.encode(each.sample))
    distances = [_distances(matrix) for matrix in matrices]
    fewer = [_drawn(matrix, equal, config.seed) for matrix in matrices]
    return Nearness(
        embedder.name,
        variety.project(matrices, how, config.seed),
        distances,
        [_distances(matrix) for matrix in fewer],
        _coverage(matrices, distances, config.cosine),
    ), ""


def _distances(matrix: Vector) -> Vector:
    """Cosine distance of each row to the nearest other one; empty for a single row."""
    from ojak.similarity.embedding import neighbors

    return neighbors(matrix).distance if len(matrix) > 1 else matrix[:0, 0]


def _drawn(matrix: Vector, count: int, seed: int) -> Vector:
    import numpy as np

    return matrix[np.sort(np.random.default_rng(seed).choice(len(matrix), count, replace=False))]


def _coverage(matrices: Sequence[Vector], distances: Sequence[Vector], cosine: float) -> list[list[float]]:
    """[a][b]: the share of a's rows with a cosine of at least `cosine` to a row of b; of itself: to another row."""
    least = cosine - 1e-6  # equal texts may miss a cosine of 1 by a rounding
    found = [[0.0] * len(matrices) for _ in matrices]
    for a, one in enumerate(matrices):
        found[a][a] = float((1 - distances[a] >= least).mean()) if len(distances[a]) else 0.0
        for b in range(a + 1, len(matrices)):
            of_a, of_b = variety.nearest_between(one, matrices[b])
            found[a][b], found[b][a] = float((of_a >= least).mean()), float((of_b >= least).mean())
    return found


def _facts(
    sets: Sequence[DataSet], unit: str, varied: Variety, near: Nearness | None
) -> list[dict[str, Any]]:
    """The numbers of each set, as the page and `--json` give them."""
    facts = [_set_facts(index, each, unit, varied) for index, each in enumerate(sets)]
    if near is None:
        return facts
    for index, each in enumerate(facts):
        each["neighbor_distance_median"] = _median(near.distances[index])
        each["neighbor_distance_median_at_equal_size"] = _median(near.equal_distances[index])
        each["covered_by"] = {
            sets[other].name: share for other, share in enumerate(near.coverage[index]) if other != index
        }
        each["near_another_of_its_own"] = near.coverage[index][index]
    return facts


def _set_facts(index: int, each: DataSet, unit: str, varied: Variety) -> dict[str, Any]:
    distinct = {f"distinct_{n}": dict(varied.distinct[n][index])[varied.equal] for n in (1, 2, 3)}
    return {
        "name": each.name, "source": each.source, "sha256": each.sha256, "rows": each.rows,
        "skipped": each.skipped, "turns": each.turn.rows, "unit": unit, "per_turn_mean": each.turn.mean,
        "per_turn_sd": each.turn.deviation, "total": each.turn.tokens,
        "instruction_median": each.instruction.quantile(0.5), "response_median": each.response.quantile(0.5),
        "sampled": len(each.sample), "equal_size": varied.equal, **distinct,
        "repeated": varied.repeats[index][-1][1], "repeated_at_equal_size": dict(varied.repeats[index])[varied.equal],
        "opening_entropy_bits": variety.entropy(each.openings),
        "category_entropy_bits": variety.entropy(each.labels.get("task_category", Counter())),
    }  # fmt: skip


def _median(distances: Vector) -> float | None:
    import numpy as np

    return float(np.median(distances)) if len(distances) else None


def render(
    sets: Sequence[DataSet],
    unit: str,
    config: CompareConfig,
    varied: Variety,
    near: Nearness | None,
    facts: Sequence[dict[str, Any]],
    left_out: dict[str, str],
) -> str:
    """The page as HTML text; the same sets and settings give the same page. `facts`: the numbers of each set."""
    values = {
        **styled("style.css", "compare.css"),
        "version": version(),
        "sets": sets,
        "unit": unit,
        "tokenizer": config.tokenizer,
        "cosine": config.cosine,
        "seed": config.seed,
        "most_sampled": MOST_SAMPLED,
        "left_out": left_out,
        "near": near,
        "facts": facts,
        "varied": varied,
        **_figures(sets, unit, varied),
        **_maps(sets, near),
    }
    return environment().get_template("compare.html.jinja").render(values)


def _figures(sets: Sequence[DataSet], unit: str, varied: Variety) -> dict[str, Any]:
    labels = {name: [each.labels.get(name, Counter()) for each in sets] for name in LABEL_FIELDS}
    return {
        "lengths": [
            charts.length_lines("Length of instructions", unit, [each.instruction for each in sets]),
            charts.length_lines("Length of responses", unit, [each.response for each in sets]),
        ],
        "labels": [
            (title, charts.label_bars(name, labels[name]))
            for title, name in (("Quality of instructions", "input_quality"), ("Difficulty", "difficulty"))
        ],
        "categories": charts.category_grid(labels["task_category"]),
        "curves": [
            charts.curve_lines("Distinct pairs of words", "% of all pairs", varied.distinct[2]),
            charts.curve_lines("Repeats of an earlier instruction", "% of instructions", varied.repeats),
        ],
    }


def _maps(sets: Sequence[DataSet], near: Nearness | None) -> dict[str, Any]:
    if near is None:
        return {"panels": [], "distances": None, "coverage": None}
    return {
        "panels": charts.panels(near.map.points),
        "distances": charts.distance_lines(near.distances),
        "coverage": charts.coverage_grid(
            [each.name for each in sets], near.coverage, [len(each.sample) for each in sets]
        ),
    }
