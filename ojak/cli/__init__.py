"""The command line. Each file holds a group of verbs, in the order in which data flow; `main` is the entry point."""

from __future__ import annotations


def main() -> None:
    """Run the command line on `sys.argv` and leave with its exit code (`ojak.errors` lists them)."""
    from ojak.cli.app import app
    from ojak.cli.terminal import prepare_streams

    prepare_streams()
    app(prog_name="ojak")
