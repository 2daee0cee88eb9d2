"""A real instruct model that was never trained for it makes pairs out of a text, in words and in shots."""

from __future__ import annotations

from pathlib import Path

import pytest

from ojak.artifact import publish
from ojak.augment.config import AugmentConfig
from ojak.augment.run import augment_data
from ojak.records import Document

TEXTS = (
    "The honey bee lives in colonies of up to sixty thousand workers. A queen lays two thousand eggs a day in early "
    "summer. Workers tell each other where flowers are by a dance on the comb. In winter the bees form a cluster.",
    "The bridge over the Varn was opened in 1874. It is 210 metres long and made of iron. The engineer was Tomas "
    "Kell, who built eleven bridges in his life. Since 1990 only walkers and cyclists may use it.",
)


@pytest.mark.real
def test_smollm2_writes_pairs_that_are_read(tmp_path: Path) -> None:
    made = publish(
        tmp_path / "in",
        kind="corpus",
        config={},
        records=[Document(f"d{n}", text) for n, text in enumerate(TEXTS)],
    )
    config = AugmentConfig(synthesizer="smollm2-135m-instruct", shots=2, max_tokens=120, verify=False)
    found = augment_data(made, tmp_path / "out", config)
    assert found.stats["format"] == "asked"
    assert found.stats["pairs"] >= 2 and found.stats["asked_after_others"] == 1
    first, second = found.records()
    assert isinstance(first, Document) and isinstance(second, Document)
    assert first.meta["group"] == second.meta["group"]
    for document in (first, second):
        for pair in document.meta["pairs"]:
            assert pair["question"] in document.meta["augmented"]
