"""A tiny model with a chat template on a port of its own, for the tests of this folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent.parent / "model"), str(Path(__file__).parent)]

from serving import Running, tiny_chat_model  # noqa: E402 (beside this file)

from ojak.model.load import Model  # noqa: E402


@pytest.fixture(scope="session")
def model() -> Model:
    return tiny_chat_model()


# Of a module, for it lives no longer than it is asked: as a session's it stood beside every later test of the process.
@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Running]:
    with Running(model, slots=4) as running:
        yield running
