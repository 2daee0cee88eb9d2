"""The synthesis benchmark's result sections as markdown."""

from collections.abc import Mapping
from typing import Any

import floor
import harness

Section = Mapping[str, Any]
MIB = 2**20


def render(sections: Section) -> str:
    """Every section that is there, in a fixed order."""
    return "\n\n".join(NOTES[name](sections[name]) for name in NOTES if name in sections)


def comparison(section: Section) -> str:
    header = (
        "contender",
        "rows",
        "tokens/s, median (range)",
        "tokens/row",
        "peak RSS, MiB",
        "ojak over it",
        "aim",
    )
    lines = [harness.table(header, [_contender(section, name) for name in section["tokens_per_s"]])]
    if best := section["ratios"].get("best of these"):
        lines.append(
            f"ojak over the best batched peer, {best['of']}: {_spread(best)} (aim {best['aim']:.1f})"
        )
    if ours := [line for line in section["runs"].get("ojak", []) if line]:
        lines.append(_memory(max(ours, key=lambda line: line["peak_rss_bytes"])))
    if not section["complete"]:
        lines.append("The benchmark was cut short: fewer rounds than asked for.")
    return "\n\n".join(lines)


def _contender(section: Section, name: str) -> tuple[str, ...]:
    lines = [line for line in section["runs"][name] if line]
    tokens = sum(line["completion_tokens"] for line in lines) / sum(line["rows"] for line in lines)
    peak = max(line["peak_rss_bytes"] for line in lines) / MIB
    ratio = section["ratios"].get(name)
    aim = f"{ratio['aim']:.1f}" if ratio and ratio["aim"] else ""
    speed = _spread(section["tokens_per_s"][name], digits=0)
    over = _spread(ratio) if ratio else ""
    return name, str(lines[0]["rows"]), speed, f"{tokens:.0f}", f"{peak:.0f}", over, aim


def _memory(line: Section) -> str:
    peak, planned = line["peak_rss_bytes"], line.get("planned_bytes")
    if planned is None:
        return f"ojak's peak memory: {peak / MIB:.0f} MiB (it printed no planned_bytes)"
    return (
        f"ojak's peak memory: {peak / MIB:.0f} MiB of {planned / MIB:.0f} MiB planned ({peak / planned:.0%})"
    )


def scaling(section: Section) -> str:
    if "ratio" not in section:
        return "scaling: not measured"
    return f"rows/s, {' over '.join(section['runs'])}: {_spread(section['ratio'], digits=3)}"


def ledger(section: Section) -> str:
    if section.get("share") is None:
        return f"ledger: not measured ({section.get('why', 'a run failed')})"
    return f"ledger: {section['share']:.2%} of the time ({section['method']})"


def first_token(section: Section) -> str:
    if "one_row_wall_s" not in section:
        return "start to first token: not measured"
    counted = section.get("first_token_s")
    shown = f"{_spread(counted)} s" if counted else "not printed by ojak"
    whole = _spread(section["one_row_wall_s"])
    return f"start to first token: {shown}; a one-row run from start to end: {whole} s"


def floors(section: Section) -> str:
    """The floor's tables; the first format is the one that the run is set against."""
    if "error" in section:
        return "floor: not measured"
    job = floor.Job(**section["job"])
    formats = enumerate(section["formats"])
    return "\n\n".join(
        floor.report(each, job, None if i else section["measured_tokens_per_s"]) for i, each in formats
    )


def _spread(found: Section, digits: int = 2) -> str:
    return f"{found['median']:.{digits}f} ({found['min']:.{digits}f}-{found['max']:.{digits}f})"


NOTES = {
    "comparison": comparison,
    "partial": comparison,
    "scaling": scaling,
    "ledger": ledger,
    "first_token": first_token,
    "floor": floors,
}
