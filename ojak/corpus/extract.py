"""Bytes to text: what a page, a PDF, a Word file or plain text says, and its title where it has one.

Runs in the limited process (`worker.py`). A library may raise anything on a damaged file; all of it means that the
document cannot be read.
"""

from __future__ import annotations

import importlib.util
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ojak._child import told

MOST_TITLE = 300
MOST_PAGES = 20_000
MOST_UNZIPPED_BYTES = 512 * 2**20
MOST_ZIP_RATIO = 200  # Word files unpack to ten or twenty times their size
FREE_BYTES = 16 * 2**20
BOMS = ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"),
        (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))  # fmt: skip
_HEADING = re.compile(r"\s{0,200}#[ \t]{1,8}([^\n]{1,300})")


class Unreadable(Exception):
    """A document that is none; `reason` is its code."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Extracted:
    """A document's text, with the ends of its lines as "\\n", and its title or ""."""

    text: str
    title: str = ""


def extract(kind: str, data: bytes) -> Extracted:
    """The text of a document of a kind ("text", "row", "markdown", "html", "pdf", "docx"). Raises Unreadable."""
    if not data.strip():
        raise Unreadable("empty")
    try:
        found = READERS[kind](data)
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # whatever a parser raises is the document's fault
        raise Unreadable("damaged", told(error)) from error
    text = _unicode(found.text)
    if not text.strip():
        raise Unreadable("no_text", "it holds no text (a scan, or a page of scripts)")
    return Extracted(text, " ".join(_unicode(found.title).split())[:MOST_TITLE])


def check_libraries() -> None:
    """Raises ImportError, naming the first library that is missing. They are loaded when a document asks for them."""
    for name in ("docx", "pypdf", "trafilatura", "lxml_html_clean"):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"{name} is not installed")


def _unicode(text: str) -> str:
    """Text that can be stored: halves of surrogate pairs, which some parsers give, are replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _text(data: bytes) -> Extracted:
    encoding = next((name for mark, name in BOMS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise Unreadable("not_utf8", f"byte {error.start}: {error.reason}") from error
    if "\0" in text:
        raise Unreadable("binary", "it holds NUL characters")
    return Extracted(_lines(text))


def _row(data: bytes) -> Extracted:
    """The text of a row, as it is."""
    return Extracted(data.decode("utf-8", "replace"))


def _markdown(data: bytes) -> Extracted:
    text = _text(data).text
    heading = _HEADING.match(text)
    return Extracted(text, heading[1].strip(" #") if heading else "")


def _html(data: bytes) -> Extracted:
    """The main text of a page, by trafilatura with FineWeb's settings: precision before recall, no comments.

    But for its memory of paragraphs of earlier pages, which would let the order of pages shape the result.
    """
    from trafilatura import extract as main_text
    from trafilatura import load_html

    tree = load_html(data)
    if tree is None:
        raise Unreadable("damaged", "no page can be made of it")
    title = tree.findtext(".//title") or ""
    text = main_text(tree, favor_precision=True, include_comments=False, deduplicate=False)
    return Extracted(text or "", title)


def _pdf(data: bytes) -> Extracted:
    """The text of the pages, in their order, a blank line between them."""
    import pypdf

    reader = pypdf.PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
        raise Unreadable("encrypted", "it has a password")
    pages = [page.extract_text() for _, page in zip(range(MOST_PAGES), reader.pages, strict=False)]
    title = reader.metadata.title if reader.metadata else None
    return Extracted(_lines("\n\n".join(pages)), title if isinstance(title, str) else "")


def _docx(data: bytes) -> Extracted:
    """Paragraphs, and the rows of tables with a tab between their cells, in the order of the document."""
    import docx

    _check_zip(data)
    document = docx.Document(io.BytesIO(data))
    return Extracted("\n".join(_blocks(document)), document.core_properties.title or "")


def _blocks(document: object) -> Iterator[str]:
    from docx.table import Table

    for block in document.iter_inner_content():  # type: ignore[attr-defined]
        if isinstance(block, Table):
            for row in block.rows:
                yield "\t".join(cell.text for cell in row.cells)
        else:
            yield block.text


def _check_zip(data: bytes) -> None:
    """Raises Unreadable for an archive that unpacks to more than a document does."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > min(MOST_UNZIPPED_BYTES, max(FREE_BYTES, MOST_ZIP_RATIO * len(data))):
        raise Unreadable("unpacking", f"it unpacks to {unpacked / 2**20:,.0f} MiB")


READERS: dict[str, Callable[[bytes], Extracted]] = {
    "text": _text,
    "row": _row,
    "markdown": _markdown,
    "html": _html,
    "pdf": _pdf,
    "docx": _docx,
}
