"""Embedding models: what a folder may hold, and what comes out."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ojak.errors import InputRefused, OjakError, UsageError
from ojak.model.hub import find
from ojak.similarity import embedding
from ojak.similarity.embedding import Embedder, check_folder, neighbors

TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
DENSE = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}


def folder_of(tmp_path: Path, modules: Any, **files: Any) -> Path:
    (tmp_path / "modules.json").write_text(json.dumps(modules), "utf-8")
    empty = struct.pack("<Q", 2) + b"{}"
    for place in ("", "2_Dense"):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "model.safetensors").write_bytes(empty)
    for name, content in files.items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(content), "utf-8")
    return tmp_path


def test_a_plain_model_is_let_in(tmp_path: Path) -> None:
    activation = {"activation_function": "torch.nn.modules.activation.Tanh"}
    check_folder(folder_of(tmp_path, [TRANSFORMER, POOLING, DENSE], **{"2_Dense__config": activation}))


@pytest.mark.parametrize(
    ("modules", "files", "why"),
    [
        ([{**TRANSFORMER, "type": "os.system"}], {}, "os.system"),
        ([{**TRANSFORMER, "type": "custom.Transformer"}], {}, "custom.Transformer"),
        ([{**TRANSFORMER, "type": "sentence_transformers.models.Router"}], {}, "Router"),
        ([TRANSFORMER, {**POOLING, "type": "sentence_transformers.x.y.z.u.v.Pooling"}], {}, "Pooling"),
        ([{**TRANSFORMER, "path": "../elsewhere"}], {}, "outside"),
        ([{**TRANSFORMER, "path": "/etc"}], {}, "outside"),
        ([TRANSFORMER, DENSE], {"2_Dense__config": {"activation_function": "os.abort"}}, "os.abort"),
        (
            [TRANSFORMER, DENSE],
            {"2_Dense__config": {"activation_function": "torch.hub.load"}},
            "torch.hub.load",
        ),
        ([{**TRANSFORMER, "path": "3_Empty"}], {}, "no weights in safetensors"),
        ([TRANSFORMER], {"adapter_config": {"base_model_name_or_path": "x"}}, "adapter"),
        ({"0": TRANSFORMER}, {}, "not a list"),
        ([], {}, "not a list"),
        (["Transformer"], {}, "not a list"),
    ],
)
def test_what_could_run_code_is_refused(
    tmp_path: Path, modules: Any, files: dict[str, Any], why: str
) -> None:
    with pytest.raises(InputRefused, match=why):
        check_folder(folder_of(tmp_path, modules, **files))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [TRANSFORMER])
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputRefused, match="safetensors"):
        check_folder(folder)


def test_a_folder_without_modules_is_one_transformer(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match="safetensors"):
        check_folder(tmp_path)
    with pytest.raises(InputRefused, match="not a folder"):
        check_folder(tmp_path / "nothing")
    (tmp_path / "modules.json").write_text("{", "utf-8")
    with pytest.raises(InputRefused, match="cannot be read"):
        check_folder(tmp_path)


def test_a_missing_extra_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(UsageError, match="sentence-transformers"):
        Embedder.open()


def test_no_bar_is_drawn_while_weights_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import logging

    seen: list[bool] = []

    def load(*_: Any, **__: Any) -> Any:
        seen.append(logging.is_progress_bar_enabled())
        return SimpleNamespace(eval=Fake)

    monkeypatch.setattr(embedding, "_loader", lambda: load)
    shown = logging.is_progress_bar_enabled()
    Embedder.open(str(folder_of(tmp_path, [TRANSFORMER])))
    assert (seen, logging.is_progress_bar_enabled()) == ([False], shown)


class Fake:
    """Stands for a loaded model: a vector for each text from the counts of its letters."""

    def get_embedding_dimension(self) -> int:
        return 3

    def encode(self, texts: list[str], **options: Any) -> np.ndarray[Any, Any]:
        assert options["normalize_embeddings"]
        assert all(text.encode("utf-8") is not None for text in texts)
        self.seen = [*getattr(self, "seen", []), *texts]
        return np.array([[text.count(letter) for letter in "abc"] for text in texts], dtype=np.float64)


def test_rows_have_length_one_whatever_the_model_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "_CHUNK", 2)
    model = Fake()
    matrix = Embedder(model, "fake", "0").encode(iter(["aab", "", "\ud800c", "a" * 100_000]))
    assert matrix.dtype == np.float32
    assert np.linalg.norm(matrix, axis=1) == pytest.approx(1)
    assert matrix[2].tolist() == [0, 0, 1]
    assert max(map(len, model.seen)) == embedding._MOST_CHARACTERS
    assert Embedder(model, "fake", "0").encode([]).shape == (0, 3)


@pytest.mark.real
def test_the_shipped_model_puts_paraphrases_together() -> None:
    """Cosines against transformers' own, computed from the same weights by mean pooling."""
    pytest.importorskip("sentence_transformers")
    import torch
    import transformers

    try:
        folder = find(embedding.DEFAULT)
    except OjakError as error:
        pytest.skip(f"the model is not to be had here: {error.what}")
    texts = [
        "How do birds find their way in winter?",
        "Bake a cake with apples.",
        "In winter, how do birds navigate?",
        "Give me a recipe for an apple cake.",
    ]
    embedder = Embedder.open(device="cpu")
    matrix = embedder.encode(texts)
    assert (matrix.shape, embedder.width) == ((4, 384), 384)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    mean = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    assert matrix == pytest.approx(mean.numpy(), abs=1e-5)
    assert neighbors(matrix).index.tolist() == [2, 3, 0, 1]
