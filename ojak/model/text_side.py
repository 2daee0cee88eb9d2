"""What of a model's files is text: tokenizer, chat template, ids that end a text. For a model that runs elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from ojak.model import checkpoint, gguf_tokenizer, hub
from ojak.model.gguf_validate import validate
from ojak.model.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TextSide:
    """`stop_ids` end a turn or a text; `chat_template` is None for a base model."""

    tokenizer: Tokenizer
    chat_template: str | None
    stop_ids: tuple[int, ...]


def read_text_side(
    name_or_path: str, *, accept_license: Collection[str] = (), notify: Callable[[str], None] | None = None
) -> TextSide:
    """The text side of a known model, a GGUF file, a Hugging Face folder (no weights needed) or a hub name.

    Of a hub's repository only its JSON files and its template are fetched. Raises what `hub.find` raises, and
    InputRefused for a tokenizer that is not read.
    """
    path = hub.find(name_or_path, accept_license=accept_license, notify=notify, weights=False)
    return _of_folder(path) if path.is_dir() else _of_gguf(path)


def local_text_side(name: str) -> TextSide | None:
    """The text side of the model of this name, if its files are on this machine already."""
    known = hub.KNOWN.get(name)
    if known and hub.info(name)["path"] is None:
        return None
    if known or Path(name).expanduser().exists():
        return read_text_side(name, accept_license=[known.license] if known else ())
    return None


def _of_folder(folder: Path) -> TextSide:
    config = checkpoint.read_object(folder / "config.json")
    tokenizer = Tokenizer.from_folder(folder, config)
    return TextSide(
        tokenizer, checkpoint.read_chat_template(folder), checkpoint.read_stop_ids(folder, config, tokenizer)
    )


def _of_gguf(path: Path) -> TextSide:
    metadata = validate(path).metadata
    tokenizer = gguf_tokenizer.build(metadata)
    template = metadata.get("tokenizer.chat_template")
    return TextSide(
        tokenizer,
        template if isinstance(template, str) else None,
        gguf_tokenizer.stop_ids(metadata, tokenizer),
    )
