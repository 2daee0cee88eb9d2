"""Runs to report on: real artifacts on disk with invented rows, as a Magpie run and its neighbours would leave them."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import model_runs
import pytest

from ojak.artifact import Artifact, publish
from ojak.records import Conversation, Rejected

sys.path[:0] = [str(Path(__file__).parent.parent / name) for name in ("train", "model")]  # for real tiny runs

GRID = [[t, p] for t in (1.0, 1.1, 1.2) for p in (1.0, 0.995, 0.99)]
REQUESTS = [
    "Write a short story about {a}.",
    "Write a polite email that asks a neighbour about {a}.",
    "What is the difference between {a} and {b}?",
    "How do I look after {a} in winter?",
    "Why do people who live near the sea care so much about {a}?",
    "Create a weekly plan for someone who has just discovered {a}. It should leave the weekends free.",
    "Explain how {a} came to be, for a child of ten.",
    "Summarize the arguments for and against {a}:\n\n1. It costs little.\n2. It takes time.\n3. Nobody has measured {b}.",
    "Can you write a Python function that sorts a list of names by their length? Show how it is called.",
    "Design a board game around {a} and {b}.",
    "List five questions that a reporter might ask an expert on {a}.",
    "I have a list of prices and want to know which item is the cheapest. Write a function for that.",
    "Describe {a} without using the letter e.",
    "Compare {a} with {b} in a table.",
    "Translate this sentence into Korean: the bridge is made of {a}.",
    "Is {a} good for {b}?",
    "Suggest three titles for an essay on {a}.",
]
TOPICS = [
    "tide tables", "sourdough bread", "paper maps", "night trains", "beekeeping", "public libraries", "slow travel",
    "bicycle repair", "mountain weather", "street markets", "old photographs", "rain gardens", "chess openings",
    "lighthouses", "hand-drawn animation", "wild mushrooms", "school lunches", "birdsong", "tiny houses",
]  # fmt: skip
SENTENCES = [
    "The short answer is that {a} reward patience more than equipment.",
    "Most people begin with a book or a friend, and only later notice how much there is to see.",
    "A good first step is to write down what you already know about {a}, however little it seems.",
    "It helps to compare {a} with {b}: both look simple from a distance, and neither is.",
    "There are three things to keep in mind: cost, time, and the season.",
    "In older sources {a} appear under other names, which is why a search often finds nothing.",
    "That said, opinions differ, and an expert may well disagree.",
    "If something goes wrong, stop, take a note of what you did last, and go back one step.",
    "By the end of the first month it should feel like a habit and no longer like work.",
]
CODE = "```python\ndef by_length(names: list[str]) -> list[str]:\n    return sorted(names, key=len)\n\n\nprint(by_length(['Ada', 'Grace', 'Barbara']))\n```"
REASONS = {
    "duplicate_near": "Write a short story about lighthouses.",
    "duplicate_exact": "What is the difference between birdsong and beekeeping?",
    "instruction_assistant_voice": "Sure, here is a list of ideas for your trip. First, decide how long you want to be away.",
    "instruction_cut": "Write an essay about the history of night trains in which you compare the lines of three countries and",
    "instruction_fragment": "and the other one, which is why",
    "instruction_content_missing": "Summarize the following passage in two sentences:",
    "instruction_repeats": "the sea the sea the sea the sea the sea the sea the sea the sea",
    "response_repeats": "Name a few lighthouses.",
    "response_echo": "Describe old photographs without using the letter e.",
}
SHARES = [30, 12, 22, 14, 10, 9, 5, 8, 4]


def _meta(row: int, rng: random.Random, tokens: dict[str, int]) -> dict[str, Any]:
    temperature, top_p = GRID[row % len(GRID)]
    return {
        "method": "magpie",
        "row": row,
        "engine": "native",
        "model": "smollm2-135m-instruct",
        "model_sha256": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "dtype": "bfloat16",
        "seed": {side: rng.getrandbits(48) for side in tokens},
        "sampling": {
            "instruction": {"temperature": temperature, "top_p": top_p},
            "response": {"temperature": 0.0, "top_p": 1.0},
        },
        "finish_reason": {side: "stop" for side in tokens},
        "tokens": tokens,
        "edits": ["whitespace"] if row % 9 == 0 else [],
    }


def conversation(row: int, rng: random.Random) -> Conversation:
    """An accepted pair that reads like one."""
    a, b = rng.sample(TOPICS, 2)
    template = rng.choice(REQUESTS)
    sentences = rng.choices(SENTENCES, k=max(1, int(rng.lognormvariate(1.5, 0.6))))
    answer = " ".join(sentences).format(a=a, b=b)
    if "function" in template:
        answer = f"Here is one way to do it:\n\n{CODE}\n\nThe sort is stable: names of equal length keep their order."
    elif rng.random() < 0.3:
        answer = "\n".join(f"{i}. {s.format(a=a, b=b)}" for i, s in enumerate(sentences, 1))
    question = template.format(a=a, b=b)
    tokens = {"instruction": len(question) // 4 + 2, "response": len(answer) // 4 + 1}
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return Conversation(f"run-{row:07d}", turns, "magpie", _meta(row, rng, tokens))  # pyright: ignore[reportArgumentType]


def rejected_row(row: int, rng: random.Random) -> Rejected:
    """A row that a rule turned away; hotter sampling gives more broken ones, cooler more duplicates."""
    reason = rng.choices(list(REASONS), SHARES)[0]
    tokens = {"instruction": 24} | ({"response": 200} if reason.startswith("response") else {})
    stage = "response" if "response" in tokens else "instruction"
    return Rejected(f"run-{row:07d}", reason, stage, REASONS[reason], [], "magpie", _meta(row, rng, tokens))


def magpie_rows(rows: int, seed: int = 7) -> tuple[list[Conversation], list[Rejected]]:
    """About three quarters accepted, fewer at high temperature."""
    rng = random.Random(seed)
    kept: list[Conversation] = []
    lost: list[Rejected] = []
    for row in range(rows):
        temperature, top_p = GRID[row % len(GRID)]
        if rng.random() < 0.74 - 1.3 * (temperature - 1.1) - 20 * (top_p - 0.995) + 0.1 * (row < 40):
            kept.append(conversation(row, rng))
        else:
            lost.append(rejected_row(row, rng))
    return kept, lost


CONFIG: dict[str, Any] = {
    "model": "smollm2-135m-instruct", "rows": 324, "seed": 7, "system": None, "language": None, "grid": "default",
    "max_instruction_tokens": 256, "max_response_tokens": 512,
}  # fmt: skip
STATS: dict[str, Any] = {
    "completion_tokens": 41_250, "instruction_tokens": 8_900, "response_tokens": 32_350, "seconds": 42.6,
    "tokens_per_s": 968.3, "engine": {"slots": 256, "dtype": "bfloat16", "device": "cpu", "shapes": [1, 16, 64, 256]},
    "hardware": {"cpu": "Xeon at 2.1 GHz, AVX-512 bf16", "cores": 2, "gpu": None, "torch": "2.13.0"},
    "probe": {"sampled": 8, "whole": 8}, "grid": GRID,
}  # fmt: skip


def stats_of(
    kept: Sequence[Conversation], lost: Sequence[Rejected], tokens_per_s: float = 968.0
) -> dict[str, Any]:
    """The stats of a run that generated just these rows."""
    sides = {
        side: sum(row.meta["tokens"].get(side, 0) for row in [*kept, *lost])
        for side in ("instruction", "response")
    }
    total = sum(sides.values())
    counts = {
        "completion_tokens": total,
        "instruction_tokens": sides["instruction"],
        "response_tokens": sides["response"],
    }
    return {**STATS, **counts, "seconds": total / tokens_per_s, "tokens_per_s": tokens_per_s}


@pytest.fixture
def make_artifact(tmp_path: Path) -> Callable[..., Artifact]:
    """A function that publishes rows as a Magpie artifact under the test's folder."""

    def make(
        records: Sequence[Conversation] = (),
        rejected: Sequence[Rejected] = (),
        name: str = "magpie",
        **more: Any,
    ) -> Artifact:
        settings: dict[str, Any] = {"kind": "magpie", "config": CONFIG, "stats": STATS, **more}
        return publish(tmp_path / "run" / name, records=records, rejected=rejected, **settings)

    return make


@pytest.fixture
def run_folder(tmp_path: Path, make_artifact: Callable[..., Artifact]) -> Path:
    """A run folder with the stages pull, magpie and split, 324 sampled rows."""
    facts = {"license": "Apache-2.0", "quantization": "Q4_1", "sha256": "b179" + 60 * "0"}
    pull = make_artifact(name="pull", kind="pull", config={"model": "smollm2-135m-instruct"}, stats=facts)
    kept, lost = magpie_rows(324)
    magpie = make_artifact(kept, lost, stats=stats_of(kept, lost), inputs=[pull])
    splits = {"train": kept[: len(kept) * 9 // 10], "test": kept[len(kept) * 9 // 10 :]}
    publish(tmp_path / "run" / "split", kind="split", splits=splits, config={"test": 0.1}, inputs=[magpie])
    return tmp_path / "run"


@pytest.fixture(scope="session")
def made_chapter7(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_runs.chapter7_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def chapter7(made_chapter7: Path, tmp_path: Path) -> Path:
    """A run folder with the stages rows, train and evaluate, a copy that a test may change."""
    return Path(shutil.copytree(made_chapter7, tmp_path / "chapter7"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window; a test that asks for it is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium_path = next(filter(None, map(shutil.which, names)), None)
    if chromium_path is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=chromium_path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a page and, at the end, insists that it asked for nothing, said nothing and ran nothing."""
    events: list[str] = []
    contexts: list[Any] = []

    def open_page(path: Path, width: int = 1280, scheme: str = "light") -> Any:
        size = {"width": width, "height": 900}
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("request", lambda request: events.append(f"request {request.url}"))
        page.on("dialog", lambda dialog: (events.append(f"dialog {dialog.message}"), dialog.dismiss()))
        page.on("console", lambda message: events.append(f"console {message.text}"))
        page.on("pageerror", lambda error: events.append(f"error {error}"))
        page.on("popup", lambda _: events.append("popup"))
        page.goto(path.as_uri())
        events.remove(f"request {path.as_uri()}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert events == []
