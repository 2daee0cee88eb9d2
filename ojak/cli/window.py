"""Calls behind `ojak evaluate --window-sweep`: settings from flags, the table, and the page beside the artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ojak.cli.terminal import one_line, say, write, write_json
from ojak.errors import UsageError

MIB = 1 << 20
HEADER = ("context", "window", "perplexity", "95 %", "cache MiB", "peak MiB", "prefill tok/s", "decode tok/s")


@dataclass(frozen=True, slots=True)
class Sweep:
    """The flags that belong to --window-sweep, as they were given."""

    windows: str | None
    contexts: str | None
    tokens: int | None
    softcaps: bool

    def refuse(self) -> None:
        """Raises UsageError if any is given: without --window-sweep it would be passed over."""
        given = {
            "--windows": self.windows,
            "--contexts": self.contexts,
            "--tokens": self.tokens,
            "--softcaps": self.softcaps or None,
        }
        for flag, value in given.items():
            if value is not None:
                raise UsageError(
                    f"{flag} belongs to --window-sweep", fix="add --window-sweep, or leave it out"
                )

    def settings(self) -> dict[str, Any]:
        """Those that were given, for WindowConfig."""
        found: dict[str, Any] = {"softcaps": self.softcaps}
        for name, text in (("windows", self.windows), ("contexts", self.contexts)):
            if text is not None:
                found[name] = _numbers(f"--{name}", text)
        return found | ({} if self.tokens is None else {"tokens": self.tokens})


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(
            f"{flag} {text[:80]!r} is no list of whole numbers", fix=f"for example {flag} 256,512"
        )
    return tuple(map(int, parts))


def run_sweep(sweep: Sweep, others: Sequence[object], out: Path | None, as_json: bool, **flags: Any) -> None:
    """Measures, writes the page into `out` and prints the table. `others`: flags that do not go with a sweep."""
    from ojak.cli.work import made_of
    from ojak.evaluate.window import sweep_windows
    from ojak.evaluate.window_config import WindowConfig

    if flags["data"] is None:
        raise UsageError("--window-sweep is measured on long text", fix="give --data")
    if any(value is not None for value in others):
        raise UsageError(
            "--window-sweep is a measurement of its own",
            fix="leave out --measure, --harness, --harness-tasks, --against, --probe, --judge, --trust-anyway, --limit,"
            " --template-of, --max-tokens and --checks",
        )
    values = {**flags, "data": str(flags["data"]), **sweep.settings()}
    found = sweep_windows(made_of(WindowConfig, "evaluate", **values), out, notify=say)
    if out is not None:
        from ojak.report.window import write_window_page

        found["page"] = str(write_window_page(out))
    if as_json:
        write_json(found)
    else:
        _show(found)


def _show(found: Mapping[str, Any]) -> None:
    layers = f"{found['local_layers']} of {found['layers']} layers are local, with a window of {found['window']:,} (*)"
    write(f"{one_line(found['model'])}: {layers}; {found['tokens']:,} tokens predicted in each row")
    rows = [HEADER, *map(_row, found["cells"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    for row in rows:
        write("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    if "page" in found:
        write(found["page"])


def _row(cell: Mapping[str, Any]) -> tuple[str, ...]:
    from ojak.report.text import fixed

    window = "all" if cell["window"] is None else f"{cell['window']:,}"
    low, high = cell["perplexity_interval"]
    return (
        f"{cell['context']:,}",
        window + ("" if cell["softcaps"] else " uncapped") + (" *" if cell["trained"] else ""),
        fixed(cell["perplexity"], 2),
        f"{fixed(low, 2)} to {fixed(high, 2)}",
        f"{cell['cache_bytes'] / MIB:,.1f}",
        f"{cell['memory_bytes'] / MIB:,.0f}",
        f"{cell['prefill_tokens_s']:,.0f}",
        f"{cell['decode_tokens_s']:,.1f}",
    )
