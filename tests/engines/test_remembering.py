"""An engine with a memory: nothing finished is asked again, and the answers are those of the engine alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny

from ojak.engines import remembering as module
from ojak.engines.base import Scored
from ojak.engines.native import NativeEngine
from ojak.engines.remembering import remembering
from ojak.engines.scripted import ScriptedEngine
from ojak.errors import VerificationFailed
from ojak.model import score
from ojak.model.request import Completion, Request

OTHERS: list[dict[str, Any]] = [{"seed": 9}, {"stop_strings": ("x",)}, {"logprobs": True}, {"prompt": "q"}]


class Counting(ScriptedEngine):
    """Counts what it is asked; ends with Ctrl-C after `most` answers or windows."""

    def __init__(self, most: int = 10**9) -> None:
        super().__init__(slots=3)
        self.most, self.done, self.read = most, 0, 0

    def generate(self, requests: Iterator[Request | None], *, longest: int) -> Iterator[Completion]:
        for completion in super().generate(requests, longest=longest):
            self._count()
            yield completion

    def score(self, texts: Iterable[Scored]) -> Iterator[tuple[float, ...]]:
        self._count()
        for found in super().score(texts):
            self.read += 1
            yield found

    def _count(self) -> None:
        if self.done == self.most:
            raise KeyboardInterrupt
        self.done += 1


def asked(count: int = 12, **more: Any) -> list[Request]:
    return [
        Request(**{"prompt": f"number {n}", "max_tokens": 20, "seed": n, "tag": n, **more})
        for n in range(count)
    ]


def texts(count: int) -> list[Scored]:
    return [Scored(f"a prompt {n // 2} of words", f"words {n}") for n in range(count)]


def told(completions: Iterable[Completion]) -> dict[Any, Completion]:
    found = {done.request.tag: done for done in completions}
    assert found
    return found


def test_what_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    path, wanted = tmp_path / "new" / "r.sqlite", told(Counting().generate(iter(asked()), longest=50))
    with pytest.raises(KeyboardInterrupt), remembering(Counting(5), path) as memory:
        list(memory.generate(iter(asked()), longest=50))
    again, heard = Counting(), []
    with remembering(again, path, lambda count, new: heard.append((count, new))) as memory:
        assert told(memory.generate(iter(asked()), longest=50)) == wanted
        assert again.done == 7
        assert sorted(heard) == [(1, False)] * 5 + [(1, True)] * 7
        assert told(memory.generate(iter(asked()), longest=50)) == wanted
        assert again.done == 7
    assert not list(path.parent.iterdir()), "the work is done"


@pytest.mark.parametrize("other", OTHERS)
def test_another_request_is_asked(tmp_path: Path, other: dict[str, Any]) -> None:
    engine = Counting()
    with remembering(engine, tmp_path / "r") as memory:
        list(memory.generate(iter(asked(1)), longest=50))
        list(memory.generate(iter(asked(1, **other)), longest=50))
        assert engine.done == 2


def test_an_answer_that_a_smaller_cap_cut_is_asked_again(tmp_path: Path) -> None:
    engine = Counting()
    with remembering(engine, tmp_path / "r") as memory:
        (cut,) = memory.generate(iter(asked(1, max_tokens=2)), longest=50)
        (whole,) = memory.generate(iter(asked(1)), longest=50)
    assert (cut.finish_reason, whole.finish_reason, engine.done) == ("length", "stop", 2)


def test_failures_are_asked_again(tmp_path: Path) -> None:
    class Failing(Counting):
        def _complete(self, request: Request) -> Completion:
            return Completion(request=request, text="", token_ids=(), finish_reason="failed", error="no")

    engine = Failing()
    with remembering(engine, tmp_path / "r") as memory:
        for _ in range(2):
            assert [done.error for done in memory.generate(iter(asked(2)), longest=50)] == ["no", "no"]
        assert engine.done == 4


def test_windows_that_were_read_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 10)
    wanted = list(Counting().score(texts(25)))
    with pytest.raises(KeyboardInterrupt), remembering(Counting(2), tmp_path / "r") as memory:
        list(memory.score(texts(25)))
    again, heard = Counting(), []
    with remembering(again, tmp_path / "r", lambda count, new: heard.append((count, new))) as memory:
        assert list(memory.score(texts(25))) == wanted
    assert again.read == 5
    assert heard == [(5, False), (5, False), (3, True)], "prompts, not texts"


def test_numbers_that_are_none_are_not_kept(tmp_path: Path) -> None:
    class Broken(Counting):
        def score(self, texts: Iterable[Scored]) -> Iterator[tuple[float, ...]]:
            self.read += 1
            yield from ((float("nan"), -1.0) for _ in texts)

    engine = Broken()
    with remembering(engine, tmp_path / "r") as memory:
        assert str([*memory.score(texts(1)), *memory.score(texts(1))]) == "[(nan, -1.0), (nan, -1.0)]"
        assert engine.read == 2


def test_a_window_is_what_the_native_engine_reads_together() -> None:
    assert module.WINDOW == score.WINDOW


def test_native_numbers_are_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (module, score):
        monkeypatch.setattr(place, "WINDOW", 4)
    engine = NativeEngine(tiny.model("llama"), slots=2)
    many = [Scored("ab" * (n % 3 + 1), f"c{n}") for n in range(10)]
    wanted = list(engine.score(many))
    with remembering(engine, tmp_path / "r") as memory:
        assert list(memory.score(many)) == wanted == list(memory.score(many))


def test_nothing_is_left_where_nothing_was_finished(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), remembering(Counting(0), tmp_path / "r") as memory:
        list(memory.generate(iter(asked()), longest=50))
    assert not list(tmp_path.iterdir())


def test_it_can_be_emptied(tmp_path: Path) -> None:
    engine = Counting()
    with remembering(engine, tmp_path / "r") as memory:
        for _ in range(2):
            list(memory.generate(iter(asked(3)), longest=50))
            memory.forget()
    assert engine.done == 6


def test_a_file_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r").write_text("what is this" * 100)
    with pytest.raises(VerificationFailed), remembering(Counting(), tmp_path / "r"):
        raise AssertionError("it was opened")
