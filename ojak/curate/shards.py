"""Rows with their annotations, on disk while a stage works on them: what was paid for survives a kill.

    .curate-<key>/shard-000000.parquet   some rows (at most 2,048) with tags, scores and findings
    .curate-<key>/shard-000000.npy       their embeddings, where there are any
    .curate-<key>/shard-000000.json      what was counted of them; written last, so it says that the shard is whole

The key is a hash of the input, the annotators and the code: a shard of other settings is never taken for ours.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ojak._files import disk_errors, remove, write_atomic
from ojak._progress import Listener, Progress, silent
from ojak._tables import read_parquet, write_table
from ojak.curate.filters import is_judged, label_of
from ojak.curate.scores import DIFFERENCE, GRADER, JUDGE, REWARD, REWARD_MODEL, Annotator
from ojak.curate.view import View
from ojak.errors import InputRefused, VerificationFailed
from ojak.records import AnyRecord, Conversation, dump_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROWS_PER_SHARD = 2048
MOST_CHARACTERS = 8 * 2**20  # of a block of rows in memory
MOST_MAKERS = 16  # different judges of one value that are told apart
LENGTH_BYTES = 4
UNKNOWN = ""  # the maker of a value of which nobody says who made it
_MAKER_KEYS = {REWARD: REWARD_MODEL, DIFFERENCE: REWARD_MODEL, "scores.judge_score": GRADER}


@dataclass
class Survey:
    """What was counted of annotated rows: how many, how many have each value, and who made those that are judged."""

    rows: int = 0
    having: Counter[str] = field(default_factory=Counter)
    makers: dict[str, set[str]] = field(default_factory=dict)

    def add(self, view: View, needs: Sequence[str]) -> None:
        """Count a row."""
        self.rows += 1
        for need in needs:
            place, _, name = need.partition(".")
            if (label_of(view, name) if place == "tags" else view.get(need)) is None:
                continue
            self.having[need] += 1
            if is_judged(need):
                self._note(need, _maker(view, need))

    def merge(self, other: Survey) -> None:
        """Take in what was counted elsewhere."""
        self.rows += other.rows
        self.having.update(other.having)
        for need, makers in other.makers.items():
            for maker in makers:
                self._note(need, maker)

    def _note(self, need: str, maker: str) -> None:
        known = self.makers.setdefault(need, set())
        known.add(maker if maker in known or len(known) < MOST_MAKERS else UNKNOWN)

    def to_json(self) -> dict[str, Any]:
        makers = {need: sorted(found) for need, found in self.makers.items()}
        return {"rows": self.rows, "having": dict(self.having), "makers": makers}

    @classmethod
    def of_json(cls, value: dict[str, Any]) -> Survey:
        makers = {need: set(found) for need, found in value["makers"].items()}
        return cls(value["rows"], Counter(value["having"]), makers)


def _maker(view: View, need: str) -> str:
    """The identity of the model that made a judged value, as JSON text."""
    key = _MAKER_KEYS.get(need, JUDGE)
    found = view.makers.get(key) or view.conversation.meta.get(key)
    return dump_json(found) if isinstance(found, dict) else UNKNOWN


class Shards:
    """The annotated rows of one stage of the kind `kind`, in the folder `out`; at most `rows` of them in a shard."""

    def __init__(
        self,
        out: Path,
        key: dict[str, Any],
        needs: Sequence[str],
        *,
        kind: str = "curate",
        rows: int | None = None,
    ) -> None:
        digest = hashlib.sha256(dump_json({**key, "needs": list(needs)}).encode("utf-8", "surrogatepass"))
        self._prefix = f".{kind}-"
        self.folder = out / f"{self._prefix}{digest.hexdigest()[:16]}"
        self._out, self._needs, self._rows = out, tuple(needs), rows or ROWS_PER_SHARD
        self._sizes: list[int] = []
        self.survey = Survey()
        self._find()

    def __len__(self) -> int:
        """How many rows are there."""
        return self.survey.rows

    def _path(self, number: int, suffix: str) -> Path:
        return self.folder / f"shard-{number:06d}.{suffix}"

    def _find(self) -> None:
        """Take up the shards that an earlier run left whole."""
        while (note := self._path(len(self._sizes), "json")).is_file():
            try:
                found = Survey.of_json(json.loads(note.read_bytes()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise VerificationFailed(f"{note} is damaged", fix=f"remove {self.folder}") from error
            self._sizes.append(found.rows)
            self.survey.merge(found)

    def complete(
        self,
        records: Iterable[AnyRecord],
        annotators: Sequence[Annotator],
        *,
        rows_total: int = 0,
        after: Callable[[], None] | None = None,
        tell: Callable[[str], None] = silent,
        progress: Listener | None = None,
    ) -> None:
        """Annotate the records that are not there yet. `rows_total`: how many there are in all, 0 if not known;
        `after` is called when a shard is written."""
        if len(self):
            tell(f"{len(self):,} rows were annotated before; going on after them")
        done, began = len(self), time.perf_counter()
        state = Progress(rows_total=max(rows_total, done), rows_done=done, phase="annotating", reads=True)
        for rows in self.fill(records, annotators):
            if after:
                after()
            state.rows_done, state.rows_total = rows, max(rows, state.rows_total)
            per_row = (time.perf_counter() - began) / max(1, rows - done)
            state.eta_s = per_row * (state.rows_total - rows) if rows_total else None
            if progress:
                progress.update(state)

    def fill(self, records: Iterable[AnyRecord], annotators: Sequence[Annotator]) -> Iterator[int]:
        """Annotate the records that are not there yet, shard by shard; yields the number of rows after each."""
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for block in _blocks(islice(iter(records), len(self), None), self._rows):
                for annotator in annotators:
                    annotator.annotate(block)
                self._write(block)
                yield len(self)

    def _write(self, block: Sequence[View]) -> None:
        number, found = len(self._sizes), Survey()
        for view in block:
            found.add(view, self._needs)
        for suffix in ("parquet", "npy"):
            self._path(number, suffix).unlink(missing_ok=True)  # of a shard that was not finished
        write_table(self._path(number, "parquet"), Conversation, (view.record() for view in block))
        vectors = [view.vector for view in block if view.vector is not None]
        if vectors:
            import numpy as np

            np.save(self._path(number, "npy"), np.stack(vectors))
        write_atomic(self._path(number, "json"), json.dumps(found.to_json()).encode())
        self._sizes.append(len(block))
        self.survey.merge(found)

    def views(self) -> Iterator[View]:
        """The rows in order."""
        for number in range(len(self._sizes)):
            for record in read_parquet(self._path(number, "parquet"), own=True):
                assert isinstance(record, Conversation)
                yield View.of(record)

    def vectors(self) -> NDArray[np.float32] | None:
        """[rows, width] the embeddings, mapped from a file; None where there are none."""
        import numpy as np

        if not self._sizes or not self._path(0, "npy").is_file():
            return None
        width = np.load(self._path(0, "npy"), mmap_mode="r").shape[1]
        path = self.folder / "vectors.f32"
        whole = np.memmap(path, dtype=np.float32, mode="w+", shape=(len(self), width))
        begin = 0
        for number, size in enumerate(self._sizes):
            whole[begin : begin + size] = np.load(self._path(number, "npy"))
            begin += size
        return whole

    def remove(self) -> None:
        """Remove the working folders of this output, those of other settings, too."""
        for folder in self._out.glob(f"{self._prefix}*"):
            remove(folder)


class RowTexts:
    """A short text for some of the rows, in a file: `rows` numbers in memory say where each begins."""

    def __init__(self, path: Path, rows: int) -> None:
        import numpy as np

        self._path = path
        self._begins = np.full(rows, -1, dtype=np.int64)
        self._file: IO[bytes] | None = None
        self._end = 0

    def put(self, row: int, text: str) -> None:
        """Keep the text of a row; the first one that is put stays."""
        if self._begins[row] >= 0:
            return
        self._file = self._file or self._path.open("w+b")
        data = text.encode("utf-8", "surrogatepass")
        self._file.seek(self._end)
        self._file.write(len(data).to_bytes(LENGTH_BYTES, "little") + data)
        self._begins[row], self._end = self._end, self._end + LENGTH_BYTES + len(data)

    def get(self, row: int) -> str | None:
        """The text of a row; None where none was put."""
        begin = int(self._begins[row])
        if begin < 0 or self._file is None:
            return None
        self._file.seek(begin)
        length = int.from_bytes(self._file.read(LENGTH_BYTES), "little")
        return self._file.read(length).decode("utf-8", "surrogatepass")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _blocks(records: Iterable[AnyRecord], most: int) -> Iterator[list[View]]:
    """Views of the records, as many together as a shard holds."""
    block: list[View] = []
    characters = 0
    for record in records:
        if not isinstance(record, Conversation):
            raise InputRefused(
                f"row {record.id!r} is a {type(record).__name__}",
                why="curation chooses among conversations",
                fix="give an artifact or a file of conversations",
            )
        block.append(View.of(record, fresh=True))
        characters += sum(len(turn["content"]) for turn in record.messages)
        if len(block) >= most or characters >= MOST_CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block
