"""Checkpoints: all of one comes back, the newest whole one wins and says why, hostile ones are passed over."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_states import SHAPES, company, forge_header, forge_state, resign, same, save, state
from safetensors.torch import load_file
from tiny import model as tiny_model

from ojak.errors import ResourceExhausted, ResumeRefused, VerificationFailed
from ojak.model import checkpoint
from ojak.model.config import config_to_hf
from ojak.model.load import load_model
from ojak.train import checkpoints
from ojak.train.checkpoint_form import MANIFEST
from ojak.train.checkpoints import newest_valid, rehearse, save_checkpoint, steps

MASTER, OPTIMIZER = "master-rank0of1.safetensors", "optimizer-rank0of1.safetensors"
FILES = (
    "model.safetensors",
    MASTER,
    OPTIMIZER,
    "ema-rank0of1.safetensors",
    "state.json",
    "config.json",
    MANIFEST,
)


def test_a_state_comes_back_bit_by_bit(tmp_path: Path) -> None:
    save(tmp_path, 7)
    found, reasons = newest_valid(tmp_path, like=state(0))
    assert same(found, state(7))
    assert reasons == ["going on from step-0000007, the newest checkpoint that is whole"]
    fresh = state(0)
    assert found is not None
    fresh.take(found)
    assert same(fresh, state(7))


def test_the_files_are_those_of_the_library(tmp_path: Path) -> None:
    """The oracle is safetensors' own reader, which checks for holes and overlaps."""
    save(tmp_path, 7)
    assert {path.name for path in (tmp_path / "step-0000007").iterdir()} == set(FILES)
    for file, prefix in (("model.safetensors", ""), (MASTER, "master.")):
        held = load_file(tmp_path / "step-0000007" / file)
        assert held.keys() == {f"{prefix}{name}" for name in SHAPES}
        assert all(torch.equal(tensor, state(7).tensors[name]) for name, tensor in held.items())


def test_a_checkpoint_of_a_model_is_a_model_folder(tmp_path: Path) -> None:
    made = tiny_model("qwen2")
    weights = dict(made.decoder.named_parameters())

    def beside(folder: Path) -> None:
        stops = {"eos_token_id": list(made.stop_ids)}
        checkpoint.write_json(folder / "config.json", config_to_hf(made.config))
        checkpoint.save_text_side(folder, {}, made.tokenizer, None, stops)

    place = save_checkpoint(tmp_path, state(3, tensors=weights), company=beside)
    again = load_model(place, dtype="float32", device="cpu")
    assert again.stop_ids == made.stop_ids
    assert all(torch.equal(weight, weights[name]) for name, weight in again.decoder.named_parameters())


def test_without_any_there_is_none_and_it_is_said(tmp_path: Path) -> None:
    assert newest_valid(tmp_path / "none") == (None, [f"there is no whole checkpoint in {tmp_path / 'none'}"])


@pytest.mark.parametrize("file", FILES)
def test_a_flipped_byte_in_any_file_is_seen_and_the_one_before_is_used(tmp_path: Path, file: str) -> None:
    save(tmp_path, 1, 2)
    path = tmp_path / "step-0000002" / file
    whole = path.read_bytes()
    for at in sorted({0, 9, len(whole) // 2, len(whole) - 1}):
        if at < len(whole):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            found, reasons = newest_valid(tmp_path, like=state(0))
            assert same(found, state(1)), at
            assert reasons[0].startswith(f"step-0000002 is passed over: {file}")
            assert reasons[1].startswith("going on from step-0000001")
    path.write_bytes(whole)
    assert same(newest_valid(tmp_path, like=state(0))[0], state(2))


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("left", [None, 0, 0.5, -1])
def test_a_lost_or_cut_file_is_seen(tmp_path: Path, file: str, left: float | None) -> None:
    save(tmp_path, 1, 2)
    path = tmp_path / "step-0000002" / file
    whole = path.read_bytes()
    if left is None:
        path.unlink()
    else:
        path.write_bytes(whole[:-1] if left < 0 else whole[: int(len(whole) * left)])
    found, reasons = newest_valid(tmp_path, like=state(0))
    assert same(found, state(1))
    assert file in reasons[0]


def test_when_all_are_damaged_none_is_taken(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    for place in steps(tmp_path):
        (place / MASTER).write_bytes(b"")
    found, reasons = newest_valid(tmp_path, like=state(0))
    assert found is None
    assert [line.split()[0] for line in reasons[:2]] == ["step-0000002", "step-0000001"]
    assert reasons[2].startswith("there is no whole checkpoint")


def test_two_whole_ones_are_kept_and_a_damaged_one_is_not_counted(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    assert [place.name for place in steps(tmp_path)] == ["step-0000003", "step-0000002"]
    (tmp_path / "step-0000003" / MASTER).write_bytes(b"damaged")
    save(tmp_path, 4)
    assert [int(place.name[5:]) for place in steps(tmp_path)] == [4, 3, 2]
    save(tmp_path, 5)
    assert [int(place.name[5:]) for place in steps(tmp_path)] == [5, 4]
    assert {path.name for path in tmp_path.iterdir()} == {"step-0000005", "step-0000004"}


def test_a_step_that_is_there_stays_unless_it_is_damaged(tmp_path: Path) -> None:
    save(tmp_path, 1)
    before = (tmp_path / "step-0000001" / MASTER).stat().st_ino
    save(tmp_path, 1)
    assert (tmp_path / "step-0000001" / MASTER).stat().st_ino == before
    (tmp_path / "step-0000001" / MASTER).write_bytes(b"")
    save(tmp_path, 1)
    assert same(newest_valid(tmp_path, like=state(0))[0], state(1))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_never_saved(tmp_path: Path, wrong: float) -> None:
    save(tmp_path, 1)
    diverged = state(2)
    diverged.tensors["optimizer.model.norm.weight.exp_avg"][2] = wrong
    with pytest.raises(VerificationFailed, match=r"step 2 is not saved: optimizer.model.norm.weight.exp_avg"):
        save_checkpoint(tmp_path, diverged)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]
    assert same(newest_valid(tmp_path, like=state(0))[0], state(1))


def test_other_settings_end_a_resume_and_are_named(tmp_path: Path) -> None:
    save(tmp_path, 1)
    other = state(0, config={"lr": 1e-4, "optimizer": {"name": "adamw"}, "ema": 0.9, "data": ("a.json",)})
    with pytest.raises(ResumeRefused, match="other settings") as caught:
        newest_valid(tmp_path, like=other)
    assert caught.value.why == "ema was not there, is 0.9; lr was 0.001, is 0.0001"
    assert caught.value.exit_code == 4
    with pytest.raises(ResumeRefused, match="other data"):
        newest_valid(tmp_path, like=state(0, rows_sha256="s" * 64))


def _drop(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda header: header.pop(name)


def _transpose(header: dict[str, Any]) -> None:
    header["master.model.embed_tokens.weight"]["shape"].reverse()


def _beyond(header: dict[str, Any]) -> None:
    header["master.model.norm.weight"]["data_offsets"][1] += 1 << 40


def _absurd(place: Path) -> None:
    path = place / MASTER
    path.write_bytes((1 << 62).to_bytes(8, "little") + path.read_bytes()[8:])
    resign(place)


def _link_file(place: Path) -> None:
    (place / MASTER).rename(place.parent / "elsewhere")
    (place / MASTER).symlink_to(place.parent / "elsewhere")


def _link_folder(place: Path) -> None:
    place.rename(place.parent / "elsewhere")
    place.symlink_to(place.parent / "elsewhere")


def _pipe(place: Path) -> None:
    (place / MASTER).unlink()
    os.mkfifo(place / MASTER)


def _strange_name(place: Path) -> None:
    text = (place / MANIFEST).read_text("utf-8")
    (place / MANIFEST).write_text(text.replace(MASTER, "../../passwd"), "utf-8")


def _pickle(place: Path) -> None:
    (place / "optimizer.pt").write_bytes(b"cos\nsystem\n")
    resign(place)


def _nan(place: Path) -> None:
    text = (place / "state.json").read_text("utf-8")
    assert '"seconds": 3.0' in text
    _text(place, text.replace('"seconds": 3.0', '"seconds": NaN'))


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "an absurd header": (_absurd, "not a sound safetensors file"),
    "a missing tensor": (lambda p: forge_header(p / MASTER, _drop("master.model.norm.weight")), "missing"),
    "a turned shape": (lambda p: forge_header(p / MASTER, _transpose), "does not hold the tensors"),
    "a tensor beyond the file": (lambda p: forge_header(p / MASTER, _beyond), "does not lie where"),
    "a linked file": (_link_file, "is a link"),
    "a linked folder": (_link_folder, "is a link"),
    "a pipe": (_pipe, "is missing"),
    "a name that leads out": (_strange_name, MANIFEST),
    "a pickle": (_pickle, "'optimizer.pt', unknown"),
    "no number": (_nan, "state.json"),
    "deep JSON": (lambda p: _text(p, "[" * 100_000), "state.json"),
    "another step": (lambda p: forge_state(p, lambda s: s.update(step=900)), "of step 900"),
    "absurdly many processes": (lambda p: forge_state(p, lambda s: s.update(processes=99_999)), "99999 processes"),
    "a step below 0": (lambda p: forge_state(p, lambda s: s.update(step=-1)), "step"),
    "a text for a number": (lambda p: forge_state(p, lambda s: s.update(tokens="7")), "tokens"),
    "an unknown field": (lambda p: forge_state(p, lambda s: s.update(rng="x")), "rng"),
    "too few tensors": (lambda p: forge_state(p, lambda s: s["tensors"].pop("model.norm.weight")), "does not hold"),
    "a huge shape": (
        lambda p: forge_state(p, lambda s: s["tensors"]["model.norm.weight"].update(shape=[1 << 60])),
        "does not hold",
    ),
}  # fmt: skip


def _text(place: Path, text: str) -> None:
    (place / "state.json").write_text(text, "utf-8")
    resign(place)


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_checkpoint_is_passed_over_with_its_reason(tmp_path: Path, case: str) -> None:
    save(tmp_path, 1, 2)
    act, reason = HOSTILE[case]
    act(tmp_path / "step-0000002")
    found, reasons = newest_valid(tmp_path, like=state(0))
    assert same(found, state(1))
    assert reason in reasons[0]


def test_a_checkpoint_of_another_model_is_passed_over(tmp_path: Path) -> None:
    save(tmp_path, 1)
    other = state(0)
    other.tensors["model.norm.weight"] = torch.zeros(5)
    found, reasons = newest_valid(tmp_path, like=other)
    assert found is None
    assert (
        "does not fit the model: its 'model.norm.weight' is BF16 [4]; the run has ('F32', (5,))" in reasons[0]
    )


def test_a_rehearsal_leaves_nothing_and_tells_the_size(tmp_path: Path) -> None:
    size = rehearse(tmp_path / "c", state(0), company=company)
    assert list((tmp_path / "c").iterdir()) == []
    save(tmp_path / "c", 1)
    assert abs(size - sum(path.stat().st_size for path in (tmp_path / "c/step-0000001").iterdir())) < 64


def test_a_rehearsal_sees_that_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = rehearse(tmp_path, state(0))
    monkeypatch.setattr(checkpoints, "free_bytes", lambda _: 2 * size - 1)
    with pytest.raises(ResourceExhausted, match="no room") as caught:
        rehearse(tmp_path, state(0), keep=2)
    assert "checkpoint.keep" in caught.value.fix
    rehearse(tmp_path, state(0), keep=1)
    save(tmp_path, 1)  # one of the two is there already
    rehearse(tmp_path, state(0), keep=2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]
