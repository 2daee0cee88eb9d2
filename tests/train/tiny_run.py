"""Runs of a tiny model on a handful of rows: seconds, not minutes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny

from ojak.train.config import TrainConfig

ROWS = 24


def rows(count: int = ROWS) -> list[dict[str, str]]:
    """Alpaca's rows, of ragged lengths."""
    words = ("add", "name", "say", "count", "turn", "list", "spell")
    return [
        {
            "instruction": f"{words[i % 7]} {i} " + "please " * (i % 4),
            "input": f"and {i * 7}" if i % 3 == 0 else "",
            "output": f"it is {i * i}" + ", so" * (i % 5),
        }
        for i in range(count)
    ]


def data(folder: Path, count: int = ROWS) -> Path:
    path = folder / "rows.json"
    path.write_text(json.dumps(rows(count)), "utf-8")
    return path


def model(folder: Path, **options: Any) -> Path:
    """A tiny model on disk."""
    path = folder / "model"
    return path if path.exists() else tiny.model(scale=0.1, **options).save(path)


def config(folder: Path, out: str = "out", **changes: Any) -> TrainConfig:
    """Three steps an epoch, in float32, unless `changes` say otherwise."""
    settings: dict[str, Any] = {
        "model": str(model(folder)),
        "data": (str(data(folder)),),
        "out": folder / out,
        "style": "alpaca",
        "lr": 1e-2,
        "batch": 8,
        "max_len": 400,
        "dtype": "float32",
        "peak_flops": 1e12,
    }
    return TrainConfig(**(settings | changes))
