"""`ojak corpus`: files of many formats in, clean documents out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ojak.cli.terminal import one_line, say, write, write_json
from ojak.cli.words import Json, place

MOST_REASONS = 12  # that are shown


def corpus(
    paths: Annotated[
        list[Path], typer.Argument(parser=place, metavar="PATH...", help="Files, and folders that are walked.")
    ],
    out: Annotated[Path, typer.Option(parser=place, metavar="DIR", help="The new folder.")],
    profile: Annotated[
        Literal["web", "docs", "none"], typer.Option(help="FineWeb's rules, rules for technical text, or none.")
    ] = "web",
    language: Annotated[
        list[str] | None,
        typer.Option(metavar="CODE", help="A language that may stay (ISO 639-1). Repeatable; web: en, else all."),
    ] = None,
    text_field: Annotated[
        str, typer.Option(metavar="NAME", help="The field or column that holds the text of a row.")
    ] = "text",
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Processes that read and filter; default: one a core.")
    ] = None,
    educational: Annotated[
        Path | None,
        typer.Option(parser=place, metavar="FILE", help='Lines {"text", "score"}: learn from them what stays.'),
    ] = None,
    least_score: Annotated[float, typer.Option(help="The score, rounded, that a document must reach.")] = 3.0,
    embedder: Annotated[
        str, typer.Option(metavar="NAME|PATH", help="The embedding model that scores are learnt on.")
    ] = "all-minilm-l6-v2",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Make a clean corpus of text, Markdown, HTML, PDF, Word, JSON lines, Parquet and WARC files.

    Each document that does not stay lies in rejected/ with the first reason. Interrupted, the same command goes on.

    Example: ojak corpus manuals/ notes.pdf --profile docs --out my-corpus
    """
    from ojak.cli.progress import Progress
    from ojak.cli.work import made_of, nothing_made
    from ojak.corpus.config import CorpusConfig
    from ojak.corpus.run import make_corpus, summary

    config = made_of(
        CorpusConfig, "corpus", paths=tuple(paths), profile=profile, text_field=text_field, workers=workers,
        languages=None if language is None else tuple(language), educational=educational, least_score=least_score,
        embedder=embedder,
    )  # fmt: skip
    with Progress() as progress:
        facts = summary(make_corpus(config, out, notify=say, progress=progress))
    if as_json:
        write_json(facts)
    else:
        for line in _funnel_lines(facts):
            say(line)
        write(out)
    if not facts["kept"]:
        raise nothing_made("documents", {**facts, "rows": facts["documents_in"]})


def _funnel_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    yield f"{facts['kept']:,} of {facts['documents_in']:,} documents kept"
    for step in facts["funnel"]:
        if step["rejected"]:
            yield f"  {step['rule']:<28} dropped {step['rejected']:,} of {step['in']:,}"
    for reason, number in sorted(facts["rejected"].items(), key=lambda item: -item[1])[:MOST_REASONS]:
        yield f"    {one_line(reason, 40):<40} {number:,}"
