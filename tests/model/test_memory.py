"""What memory is free, and that generation takes no more than was planned."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

from ojak.engines import native
from ojak.engines.native import NativeEngine, plan_memory
from ojak.errors import ResourceExhausted
from ojak.model import load, memory
from ojak.model.cache import SlotCache
from ojak.model.generate import LADDER
from ojak.model.load import build
from ojak.model.memory import available_bytes, peak_rss_bytes
from ojak.model.source import Source

CPU = torch.device("cpu")
MIB = 1 << 20


@pytest.fixture(scope="module")
def model() -> load.Model:
    return tiny.model("gemma3")


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(native, "available_bytes", lambda _device: free)


def test_free_memory_is_a_plausible_number() -> None:
    assert 64 * MIB < available_bytes(CPU) < 1 << 50
    assert 10 * MIB < peak_rss_bytes() < 1 << 50


def test_the_smaller_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_meminfo", lambda: 700)
    monkeypatch.setattr(memory, "_cgroup", lambda: 500)
    assert available_bytes(CPU) == 500
    monkeypatch.setattr(memory, "_cgroup", lambda: 900)
    assert available_bytes(CPU) == 700


def test_the_control_group_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "Path", lambda text: tmp_path if "cgroup" in str(text) else Path(text))
    assert memory._cgroup() > 1 << 60
    (tmp_path / "memory.max").write_text("max\n", "ascii")
    (tmp_path / "memory.current").write_text("300\n", "ascii")
    assert memory._cgroup() > 1 << 60
    (tmp_path / "memory.max").write_text("1000\n", "ascii")
    assert memory._cgroup() == 700
    (tmp_path / "memory.current").write_text("1300\n", "ascii")
    assert memory._cgroup() == 0


def test_cached_files_do_not_count_as_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's weights were just read from a file: all of it lies in the page cache and in `memory.current`."""
    monkeypatch.setattr(memory, "Path", lambda text: tmp_path if "cgroup" in str(text) else Path(text))
    (tmp_path / "memory.max").write_text("1000\n", "ascii")
    (tmp_path / "memory.current").write_text("900\n", "ascii")
    (tmp_path / "memory.stat").write_text("anon 200\nactive_file 150\ninactive_file 550\n", "ascii")
    assert memory._cgroup() == 650
    (tmp_path / "memory.stat").write_text("anon 200\ninactive_file 5000\n", "ascii")
    assert memory._cgroup() == 1000
    for unusable in ("anon 200\n", "inactive_file much\n", "what\n"):
        (tmp_path / "memory.stat").write_text(unusable, "ascii")
        assert memory._cgroup() == 100


@pytest.mark.parametrize("slots", [1, 2, 3, 4])
def test_little_memory_gives_a_few_slots_that_work(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tiny.model("gemma3")
    per_row = plan_memory(made, 40, 1).slot_bytes
    budget = native.SCRATCH_BYTES + slots * per_row + per_row // 2
    with_free(monkeypatch, int(budget / native.CACHE_SHARE))
    requests = [
        native.Request(prompt=tuple(range(n, n + 2 + 3 * n)), max_tokens=6, seed=n, tag=n) for n in range(7)
    ]
    engine = NativeEngine(made)
    found = {done.request.tag: done.token_ids for done in engine.generate(iter(requests), longest=40)}
    assert engine.stats()["slots"] == max(size for size in LADDER if size <= slots)
    with_free(monkeypatch, 64 << 30)
    wide = {
        done.request.tag: done.token_ids
        for done in NativeEngine(made, slots=8).generate(iter(requests), longest=40)
    }
    assert found == wide


@pytest.mark.parametrize(("slots", "lanes"), [(1, 1), (2, 2), (3, 2), (4, 4)])
def test_lanes_of_a_slot_or_two_work(slots: int, lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LEAST_LANE", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: lanes)
    requests = [native.Request(prompt=(n, 5, 6), max_tokens=4, tag=n) for n in range(9)]
    engine = NativeEngine(tiny.model("llama"), slots=slots)
    assert len(list(engine.generate(iter(requests), longest=10))) == 9
    assert engine.stats()["lanes"] == lanes
    assert slots <= engine.stats()["slots"] <= slots + 1


@pytest.mark.parametrize("free", [300 * MIB, 500 * MIB, 600 * MIB, 64 << 30])
@pytest.mark.parametrize("longest", [10, 500, 30_000])
def test_a_plan_stays_within_its_share(
    model: load.Model, free: int, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free(monkeypatch, free)
    try:
        plan = plan_memory(model, longest)
    except ResourceExhausted:
        assert free == 300 * MIB
        return
    assert plan.total_bytes <= free * native.CACHE_SHARE
    assert plan.shape.slots in LADDER
    assert plan.shape.slots <= native.MOST_SLOTS["cpu"]
    assert plan.shape.capacity == longest
    cache_bytes = plan.shape.slots * plan.shape.bytes_per_slot(model.config, model.dtype)
    assert cache_bytes < plan.total_bytes
    if free > 1 << 30 and longest < 1000:
        assert plan.shape.slots == native.MOST_SLOTS["cpu"]


def test_less_memory_means_fewer_slots(model: load.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = []
    for free in (440 * MIB, 500 * MIB, 800 * MIB, 4000 * MIB):
        with_free(monkeypatch, free)
        slots.append(plan_memory(model, 20_000).shape.slots)
    assert slots == sorted(slots)
    assert slots[0] < slots[-1]


def test_the_planned_cache_is_what_is_taken(model: load.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 64 << 30)
    plan = plan_memory(model, 100, 5)
    cache = SlotCache(model.config, plan.shape, model.dtype, CPU)
    rooms = [room for name, rooms in vars(cache).items() if name.endswith("_room") for room in rooms]
    assert sum(room.nbytes for room in rooms) == 5 * plan.shape.bytes_per_slot(model.config, model.dtype)
    assert plan.shape.slots == 5


def test_too_little_memory_is_refused_with_what_to_do(
    model: load.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_free(monkeypatch, MIB)
    with pytest.raises(ResourceExhausted, match="memory") as refused:
        plan_memory(model, 100)
    assert "MiB" in str(refused.value)
    assert refused.value.exit_code == 6


def test_an_engine_survives_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Too long a request does not spoil the engine for the next one."""
    made = tiny.model("llama", dtype=torch.bfloat16, max_position_embeddings=1 << 20)
    engine = NativeEngine(made, slots=2)
    with_free(monkeypatch, 64 << 30)
    request = native.Request(prompt=(1, 2, 3), max_tokens=5)
    first = next(engine.generate(iter([request]), longest=8))
    with_free(monkeypatch, MIB)
    with pytest.raises(ResourceExhausted):
        engine.generate(iter([request]), longest=100_000)
    with_free(monkeypatch, 64 << 30)
    assert next(engine.generate(iter([request]), longest=20)).token_ids == first.token_ids


def test_weights_that_do_not_fit_are_refused(model: load.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "available_bytes", lambda _device: 1000)
    source = Source(
        name="tiny",
        path=Path("tiny"),
        config={},
        tensors=lambda: iter(model.decoder.state_dict().items()),
        tokenizer=model.tokenizer,
        chat_template=None,
        stop_ids=(),
        sha256="",
        quantization=None,
        license=None,
    )
    with pytest.raises(ResourceExhausted, match="does not fit"):
        build(model.config, source, torch.float32, CPU)
