"""Named profiles: which rules a document must pass, and every threshold with where it comes from.

The rules are datatrove's filter classes, in the order of FineWeb's script (Penedo et al. 2024, arXiv 2406.17557;
datatrove `examples/fineweb.py`). `web` is FineWeb as it was made. `docs` is for technical text, where half of what
marks a bad web page is a code block, a table or a list: values of our own are marked so. `none` only reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ojak._files import sha256_file
from ojak.corpus.config import CorpusConfig

Profile = Literal["web", "docs", "none"]

GOPHER = "Rae et al. 2021, arXiv 2112.11446, table A1"
GOPHER_QUALITY = "Rae et al. 2021, arXiv 2112.11446, appendix A.1"
C4 = "Raffel et al. 2020, JMLR 21(140), section 2.2"
FINEWEB = "Penedo et al. 2024, arXiv 2406.17557"
FINEWEB_CODE = "datatrove 0.10.1 (the paper's text says 0.1, its appendix 0.01)"
OFF = None  # for datatrove's Gopher filters, too: a threshold that is None is not asked


@dataclass(frozen=True, slots=True)
class Threshold:
    """One value of one filter: `name` is datatrove's argument. own: why `docs` has another value than `web`."""

    stage: str
    name: str
    web: Any
    docs: Any
    source: str
    own: str = ""


_CODE_REPEATS = "signatures, prompts and table rules repeat"
_CODE_SIGNS = "comments and prompts are made of these signs"

THRESHOLDS: tuple[Threshold, ...] = (
    Threshold("language", "least_sure", 0.65, 0.0, FINEWEB, "code is in no language, and is not English for it"),
    Threshold("gopher_repetition", "dup_line_frac", 0.3, 0.3, GOPHER),
    Threshold("gopher_repetition", "dup_para_frac", 0.3, 0.3, GOPHER),
    Threshold("gopher_repetition", "dup_line_char_frac", 0.2, 0.3, GOPHER, _CODE_REPEATS),
    Threshold("gopher_repetition", "dup_para_char_frac", 0.2, 0.2, GOPHER),
    Threshold("gopher_repetition", "top_n_grams", ((2, 0.2), (3, 0.18), (4, 0.16)),
              ((2, 0.4), (3, 0.36), (4, 0.32)), GOPHER, "in a short entry a phrase that comes twice is a sixth of it"),
    Threshold("gopher_repetition", "dup_n_grams",
              ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10)),
              ((5, 0.30), (6, 0.28), (7, 0.26), (8, 0.24), (9, 0.22), (10, 0.20)), GOPHER, _CODE_REPEATS),
    Threshold("gopher_quality", "min_doc_words", 50, 20, GOPHER_QUALITY, "an entry of a reference is short"),
    Threshold("gopher_quality", "max_doc_words", 100_000, 1_000_000, GOPHER_QUALITY, "a manual is a book"),
    Threshold("gopher_quality", "min_avg_word_length", 3, 2, GOPHER_QUALITY, "names in code are short"),
    Threshold("gopher_quality", "max_avg_word_length", 10, 12, GOPHER_QUALITY, "or very long"),
    Threshold("gopher_quality", "max_symbol_word_ratio", 0.1, OFF, GOPHER_QUALITY, _CODE_SIGNS),
    Threshold("gopher_quality", "max_bullet_lines_ratio", 0.9, 0.9, GOPHER_QUALITY),
    Threshold("gopher_quality", "max_ellipsis_lines_ratio", 0.3, 0.3, GOPHER_QUALITY),
    Threshold("gopher_quality", "max_non_alpha_words_ratio", 0.8, 0.3, GOPHER_QUALITY, _CODE_SIGNS),
    Threshold("gopher_quality", "min_stop_words", 2, 2, GOPHER_QUALITY),
    # In `docs` C4's filter does not run: it strips the blanks in front of each line, which are Python's syntax.
    Threshold("c4", "filter_no_terminal_punct", False, OFF, "arXiv 2406.17557: it drops 30 %"),
    Threshold("c4", "min_num_sentences", 5, OFF, C4, "an entry of a reference is short"),
    Threshold("c4", "min_words_per_line", 3, OFF, C4, "so are lines of code"),
    Threshold("c4", "max_word_length", 1000, OFF, C4),
    Threshold("c4", "filter_lorem_ipsum", True, OFF, C4),
    Threshold("c4", "filter_javascript", True, OFF, C4, "a language that is written about"),
    Threshold("c4", "filter_curly_bracket", True, OFF, C4, "a dictionary, a format, half of all languages"),
    Threshold("c4", "filter_policy", True, OFF, C4),
    Threshold("c4", "remove_citations", True, OFF, C4, "[1] is a list"),
    Threshold("fineweb", "line_punct_thr", 0.12, 0.0, FINEWEB, "lines of code end in anything"),
    Threshold("fineweb", "short_line_thr", 0.67, 1.0, FINEWEB, "so are lines of code"),
    Threshold("fineweb", "short_line_length", 30, 30, FINEWEB),
    Threshold("fineweb", "char_duplicates_ratio", 0.01, 0.2, FINEWEB_CODE, _CODE_REPEATS),
    Threshold("fineweb", "new_line_ratio", 0.3, math.inf, FINEWEB_CODE, "code has a line for each few words"),
    Threshold("minhash", "bands", 14, 14, "arXiv 2406.17557: 112 hashes, 14 buckets of 8"),
    Threshold("minhash", "values", 8, 8, "the same"),
    Threshold("minhash", "words", 5, 5, "the same: 5-grams of words"),
    Threshold("minhash", "least_jaccard", 0.7, 0.7,
              "ours: FineWeb joins what shares a bucket, which half of the pairs at 0.72 do; see docs/corpus.md"),
)  # fmt: skip
FILTERS = ("gopher_repetition", "gopher_quality", "c4", "fineweb")  # in FineWeb's order
STAGES = ("read", "language", *FILTERS, "minhash", "educational")  # of the funnel
LANGUAGES: Mapping[Profile, tuple[str, ...]] = {"web": ("en",), "docs": (), "none": ()}
# FineWeb replaces e-mail addresses and public IP addresses.
PERSONAL_DATA: Mapping[Profile, tuple[str, ...]] = {
    "web": ("email", "ip"),
    "docs": ("email", "ip"),
    "none": (),
}


def values(profile: Profile, stage: str) -> dict[str, Any]:
    """datatrove's arguments of a filter in a profile; empty where the filter does not run."""
    if profile == "none":
        return {}
    found = {each.name: getattr(each, profile) for each in THRESHOLDS if each.stage == stage}
    return {} if stage == "c4" and profile == "docs" else found


def languages(config: CorpusConfig) -> tuple[str, ...]:
    """The languages that may stay; () for all."""
    return LANGUAGES[config.profile] if config.languages is None else config.languages


def personal_data(config: CorpusConfig) -> tuple[str, ...]:
    """The kinds of personal data that are replaced."""
    return PERSONAL_DATA[config.profile] if config.personal_data is None else config.personal_data


def written_out(config: CorpusConfig) -> dict[str, Any]:
    """All that shapes the result, as JSON values: for the manifest, and for the key of a run that goes on."""
    stages = {stage: values(config.profile, stage) for stage in STAGES}
    taught = {}
    if config.educational:
        scores = sha256_file(config.educational)
        taught = {
            "scores_sha256": scores,
            "least_score": config.least_score,
            "embedder": Path(config.embedder).name,
        }
    shown = {
        name: {key: _plain(value) for key, value in found.items()} for name, found in stages.items() if found
    }
    return {
        "profile": config.profile,
        "languages": list(languages(config)),
        "personal_data": list(personal_data(config)),
        "text_field": config.text_field,
        "thresholds": shown,
        **({"educational": taught} if taught else {}),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return "off" if value is OFF or value == math.inf else value
