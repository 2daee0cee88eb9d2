"""System turns: domains, languages, a user's own text."""

from __future__ import annotations

import pytest

from ojak.errors import UsageError
from ojak.synthesize.systems import DOMAINS, LANGUAGES, system_text


def test_nothing_asked_leaves_the_model_its_own() -> None:
    assert system_text(None, None) is None
    assert system_text("", None) is None


def test_a_text_of_ones_own_is_kept_as_it_is() -> None:
    assert system_text("You sell\n  bicycles.", None) == "You sell\n  bicycles."


def test_domain_and_language_go_together() -> None:
    assert system_text("@math", None) == DOMAINS["@math"]
    assert system_text(None, "ko") == LANGUAGES["ko"]
    assert system_text("@code", "de") == f"{DOMAINS['@code']} {LANGUAGES['de']}"


@pytest.mark.parametrize(
    ("system", "language"), [("@cooking", None), (None, "xx"), ("@Math", None), (None, "")]
)
def test_unknown_ones_are_refused_with_the_known(system: str | None, language: str | None) -> None:
    with pytest.raises(UsageError, match="is not known") as caught:
        system_text(system, language)
    assert "@math" in caught.value.fix or "de" in caught.value.fix
