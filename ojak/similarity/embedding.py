"""What texts mean, as vectors: an embedding model, and how near its vectors lie to each other.

Distances are cosine distances (1 - cosine of the angle), thresholds are cosines. The squared Euclidean distance that
FAISS gives for unit vectors, which Magpie's filters use, is twice the cosine distance: its 0.05 is a cosine of 0.975.

The model is loaded by sentence-transformers (extra `embed`), which is imported on first use. A model's folder may
hold weights in safetensors, and modules of a short list that run no code from the folder; others are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ojak.errors import InputRefused, UsageError
from ojak.similarity import approximate, vectors
from ojak.similarity.vectors import Neighbors

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    Matrix = NDArray[np.float32]
    Rows = NDArray[np.int64]

__all__ = [
    "DEFAULT", "EXACT_UP_TO", "Embedder", "Neighbors", "clusters", "earlier_neighbors", "neighbors", "repeat_counts",
]  # fmt: skip

DEFAULT = "all-minilm-l6-v2"
EXACT_UP_TO = 100_000
_CHUNK = 4_096  # texts at once; sorted by length within, so that batches hold texts of like length
_BATCH = 64
_MOST_CHARACTERS = 8_000  # of a text: more than any of these models reads
# The modules of an embedding model that hold numbers alone, by the last part of their type.
_MODULES = {"Transformer", "Pooling", "Normalize", "Dense", "LayerNorm"}
_WITH_WEIGHTS = {"Transformer", "Dense", "LayerNorm"}
_MODULE_TYPE = re.compile(r"sentence_transformers(?:\.[a-z_]{1,40}){1,4}\.([A-Z][A-Za-z]{1,40})")
_ACTIVATION = re.compile(r"torch\.nn\.modules\.(?:activation|linear)\.[A-Z][A-Za-z]{1,40}")


class Embedder:
    """A sentence embedding model. `name` and `sha256` say which; `width` is the length of its vectors."""

    def __init__(self, model: Any, name: str, sha256: str) -> None:
        self._model = model
        self.name, self.sha256 = name, sha256
        self.width = int(model.get_embedding_dimension())

    @classmethod
    def open(
        cls,
        name: str = DEFAULT,
        *,
        device: str | None = None,
        accept_license: Collection[str] = (),
        offline: bool | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> Embedder:
        """A model by a name of ojak's, a folder, or a name on the hub (org/name).

        device: as torch names it; None takes the best there is. Raises UsageError (no such model; the extra is
        missing), EngineUnavailable (no source answers), InputRefused (the folder holds what is not allowed).
        """
        from ojak.model import hub
        from ojak.model.files import combined_sha256

        load = _loader()
        folder = hub.find(name, accept_license=accept_license, offline=offline, notify=notify, nested=True)
        check_folder(folder)
        with _no_bars():
            model = load(
                str(folder),
                device=device,
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"use_safetensors": True},
            )
        weights = [*folder.rglob("*.safetensors"), *folder.rglob("*.json")]
        return cls(model.eval(), name, combined_sha256(weights, folder))

    def encode(self, texts: Iterable[str]) -> Matrix:
        """One vector of length 1 for each text (float32, shape: [texts, width]).

        Long texts are cut at the length that the model reads. Equal texts have equal vectors up to rounding, which
        depends on the texts they share a batch with.
        """
        import numpy as np

        parts = [self._encode(chunk) for chunk in _chunks(texts)]
        return np.concatenate(parts) if parts else np.empty((0, self.width), dtype=np.float32)

    def _encode(self, texts: Sequence[str]) -> Matrix:
        """sentence-transformers' `encode`. A zero vector, which has no direction, becomes the first axis."""
        import numpy as np

        found = self._model.encode(
            texts,
            batch_size=_BATCH,
            show_progress_bar=False,
            convert_to_numpy=True,
            normalize_embeddings=True,
        )
        matrix = np.nan_to_num(np.asarray(found, dtype=np.float32), posinf=0.0, neginf=0.0)
        lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
        matrix[lengths[:, 0] < 1e-6] = np.eye(1, self.width, dtype=np.float32)
        matrix /= np.where(lengths < 1e-6, np.float32(1), lengths)
        return matrix


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts as the tokenizer can take them, some at a time: lone surrogates are no characters to it."""
    rest = iter(texts)
    while chunk := list(islice(rest, _CHUNK)):
        yield [t[:_MOST_CHARACTERS].encode("utf-8", "replace").decode("utf-8") for t in chunk]


def _loader() -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise UsageError(
            "embeddings need sentence-transformers, which is not installed", fix='pip install "ojak[embed]"'
        ) from None
    return SentenceTransformer


@contextmanager
def _no_bars() -> Iterator[None]:
    """transformers draws a bar of its own on stderr while it loads weights; not so in here."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


# ------------------------------------------------------------------------------------------------- what a folder holds


def check_folder(folder: Path) -> None:
    """Raises InputRefused unless loading the model in `folder` reads numbers and runs no code of its own."""
    if not folder.is_dir():
        raise _refused(folder, "it is not a folder of a sentence-transformers model")
    for module in _modules(folder):
        _check_module(folder, module)


def _modules(folder: Path) -> list[dict[str, Any]]:
    """The entries of modules.json; a model without is one Transformer."""
    if not (folder / "modules.json").exists():
        return [{"type": "sentence_transformers.models.Transformer", "path": ""}]
    found = _json(folder / "modules.json")
    if not isinstance(found, list) or not found or not all(isinstance(each, dict) for each in found):
        raise _refused(folder, "modules.json is not a list of modules")
    return found


def _check_module(folder: Path, module: dict[str, Any]) -> None:
    kind, path = str(module.get("type")), str(module.get("path", ""))
    match = _MODULE_TYPE.fullmatch(kind)
    if not match or match[1] not in _MODULES:
        raise _refused(folder, f"it asks for the module {kind[:100]!r}")
    place = (folder / path).resolve()
    if not place.is_relative_to(folder.resolve()):
        raise _refused(folder, f"the module {path[:100]!r} lies outside of it")
    if match[1] in _WITH_WEIGHTS and not any(place.glob("*.safetensors")):
        raise _refused(folder, f"there are no weights in safetensors in {path or '.'!r}")
    if (place / "adapter_config.json").exists():
        raise _refused(folder, "it is an adapter for another model")
    settings = _json(place / "config.json") if (place / "config.json").exists() else {}
    activation = settings.get("activation_function") if isinstance(settings, dict) else None
    if match[1] == "Dense" and activation is not None and not _ACTIVATION.fullmatch(str(activation)):
        raise _refused(folder, f"it asks for the function {str(activation)[:100]!r}")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _refused(path.parent, f"{path.name} cannot be read ({str(error)[:200]})") from error


def _refused(folder: Path, why: str) -> InputRefused:
    return InputRefused(
        f"{folder} is refused as an embedding model",
        why=why,
        fix=f"take a sentence-transformers model with weights in safetensors and no code, such as {DEFAULT}",
    )


# ----------------------------------------------------------------------------------------------- how near vectors lie


def neighbors(
    matrix: Matrix, *, exact_up_to: int = EXACT_UP_TO, recall: float = 0.99, seed: int = 0
) -> Neighbors:
    """The nearest other row of each row (cosine distance).

    matrix: float32 [rows, width], rows of length 1. Up to `exact_up_to` rows all pairs are compared, and ties go to
    the first row in row order; above it an index is asked, tuned to `recall`, and what it reaches is measured.
    Raises UsageError.
    """
    vectors.check_unit_rows(matrix)
    if len(matrix) <= exact_up_to:
        return vectors.nearest(matrix)
    return approximate.nearest(matrix, recall=recall, seed=seed)


def repeat_counts(
    matrix: Matrix, threshold: float, *, exact_up_to: int = EXACT_UP_TO, recall: float = 0.99, seed: int = 0
) -> Rows:
    """[rows]: how many other rows have a cosine of at least `threshold` with each row. Raises UsageError.

    Above `exact_up_to` rows only those that the index compares are counted.
    """
    _check(matrix, threshold)
    if len(matrix) <= exact_up_to:
        return vectors.repeats(matrix, threshold)
    return approximate.repeats(matrix, threshold, recall=recall, seed=seed)


def earlier_neighbors(
    matrix: Matrix, within: float, *, exact_up_to: int = EXACT_UP_TO, recall: float = 0.99, seed: int = 0
) -> Rows:
    """[rows]: the nearest of the earlier rows at a cosine distance of less than `within`, -1 for none. Raises
    UsageError.

    Above `exact_up_to` rows only those that the index compares are seen.
    """
    _check(matrix, 1 - within)
    if len(matrix) <= exact_up_to:
        return vectors.earlier(matrix, within)
    return approximate.earlier(matrix, within, recall=recall, seed=seed)


def clusters(
    matrix: Matrix, threshold: float, *, exact_up_to: int = EXACT_UP_TO, recall: float = 0.99, seed: int = 0
) -> Rows:
    """[rows]: the first row of each row's cluster. Rows with a cosine of at least `threshold` are in one cluster,
    and so are those that other rows connect (union-find). Raises UsageError.

    Above `exact_up_to` rows only pairs that the index compares are joined.
    """
    _check(matrix, threshold)
    if len(matrix) <= exact_up_to:
        return vectors.clustered(matrix, threshold)
    return approximate.clustered(matrix, threshold, recall=recall, seed=seed)


def _check(matrix: Matrix, threshold: float) -> None:
    vectors.check_unit_rows(matrix)
    if not -1 <= threshold <= 1:
        raise UsageError(
            f"a threshold of {threshold} is no cosine",
            why="cosines are between -1 and 1; equal directions have 1",
            fix="try 0.975, which Magpie's filters use (a squared distance of 0.05)",
        )
