"""The frame of every page: templates that escape all they are given, and a style sheet that the page's policy knows."""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from ojak.report import text

if TYPE_CHECKING:
    import jinja2

HERE = Path(__file__).parent


@functools.cache
def environment() -> jinja2.Environment:
    """The only place where the report's own, trusted templates are loaded."""
    import jinja2

    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "visible": text.visible,
        "plain": text.plain,
        "number": text.number,
        "percent": text.percent,
        "duration": text.duration,
        "size": text.size,
        "humanize": text.humanize,
        "setting": text.setting,
    }
    return found


def styled(*names: str) -> dict[str, Any]:
    """The style sheets `names` joined, and the hash under which the page's policy lets them in, and nothing else."""
    style = "\n".join((HERE / name).read_text(encoding="utf-8") for name in names)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return {"style": Markup(style), "style_hash": digest}  # our own files, not a row's text
