"""Whether a row is safe: a short list of rules, and a guard model where one is given.

The rules look for plain English requests for harm. They find little of what a guard model finds, and "safe" by rules
alone says only that nothing was found; the tag `safety_by` tells which it was.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ojak.engines.base import Engine
from ojak.judge.ask import LONGEST_STEP, shortened
from ojak.judge.prompts import Row, neutral
from ojak.model.request import Request

GUARD_TOKENS = 16
MOST_CHARS = 20_000  # of a text that the rules look at
_HOW = (
    r"\b(?:how (?:do i|to|can i|could i|would i)|teach me|help me|show me|instructions? (?:for|to|on)|steps to"
    r"|guide to|write)\b[^.?!\n]{0,80}\b"
)
_NEAR = r"\b[^.?!\n]{0,40}\b"  # in the same sentence, not far
_MAKE = r"(?:build|make|assemble|making|building|cook|synthesi[sz]e|produce)"


def _rule(*parts: str) -> re.Pattern[str]:
    return re.compile("".join(parts) + r"\b", re.IGNORECASE)


RULES = {
    "weapons": _rule(
        _HOW, _MAKE, _NEAR, r"(?:(?:pipe |dirty )?bomb|explosive|grenade|nerve agent|ghost gun)s?"
    ),
    "drugs": _rule(_HOW, _MAKE, _NEAR, r"(?:meth|methamphetamine|heroin|crack cocaine|fentanyl)"),
    "malware": _rule(_HOW, r"(?:ransomware|keylogger|computer virus|botnet|malware)"),
    "fraud": _rule(
        _HOW,
        r"(?:phishing (?:mail|e-?mail|page|site)|counterfeit money|launder money|forge (?:a|an|my) \w+",
        r"|steal (?:credit cards?|passwords?|identities|someone's \w+))",
    ),
    "self_harm": _rule(
        r"\b(?:how (?:do i|to|can i)|best way to|painless way to)",
        _NEAR,
        r"(?:kill myself|commit suicide|end my life|hurt myself|cut myself)",
    ),
    "violence": _rule(
        _HOW,
        r"(?:kill|murder|poison|kidnap)",
        _NEAR,
        r"(?:my (?:wife|husband|boss|neighbou?r|ex|mother|father)|someone|a person|people)",
    ),
    "minors": _rule(
        r"\b(?:sexual|erotic|nude|porn\w*)", _NEAR, r"(?:child(?:ren)?|minors?|under-?age|toddlers?)"
    ),
    "hate": _rule(
        _HOW,
        r"(?:exterminate|get rid of|wipe out)",
        _NEAR,
        r"(?:jews|muslims|christians|immigrants|gays|black people|white people|gypsies)",
    ),
}


def by_rules(row: Row) -> dict[str, str]:
    """The tags that the rules give: `safety`, `safety_by`, and the category where one was found."""
    text = f"{row.instruction[:MOST_CHARS]}\n{row.response[:MOST_CHARS]}"
    found = next((name for name, rule in RULES.items() if rule.search(text)), None)
    if found is None:
        return {"safety": "safe", "safety_by": "rules"}
    return {"safety": "unsafe", "safety_by": "rules", "safety_category": found}


def by_guard(engine: Engine, rows: Sequence[Row]) -> list[dict[str, str]]:
    """The verdicts of a guard model (Llama Guard's form: "safe", or "unsafe" and a line of codes).

    Its own chat template says what it is to do; it is shown the request and the answer as one turn.
    """
    around = engine.chat_prefix()
    special = tuple({*engine.special_tokens, *around.stop_strings})
    prompts = [f"{around.pre_query}{_shown(engine, row, special)}{around.post_query}" for row in rows]
    room = max((engine.count_tokens(prompt) for prompt in prompts), default=0) + GUARD_TOKENS
    requests = (
        Request(
            prompt=prompt,
            max_tokens=GUARD_TOKENS,
            stop_ids=around.stop_ids,
            stop_strings=around.stop_strings,
            tag=place,
        )
        for place, prompt in enumerate(prompts)
    )
    found: list[dict[str, str]] = [{} for _ in rows]
    for done in engine.generate(requests, longest=-(-room // LONGEST_STEP) * LONGEST_STEP):
        found[done.request.tag] = read_verdict(done.text)
    return found


def _shown(engine: Engine, row: Row, special: Sequence[str]) -> str:
    texts = [neutral(shortened(engine, text), special) for text in (row.instruction, row.response)]
    return "\n\n".join(text for text in texts if text)


def read_verdict(text: str) -> dict[str, str]:
    """The tags in what a guard model wrote; anything but its two words is `unparsed`."""
    lines = [line.strip() for line in text.strip().split("\n")]
    verdict = lines[0].casefold()
    if verdict not in ("safe", "unsafe"):
        return {"safety": "unparsed", "safety_by": "guard"}
    codes = re.findall(r"\b[SO]\d{1,2}\b", lines[1]) if verdict == "unsafe" and len(lines) > 1 else []
    category = {"safety_category": ",".join(codes)} if codes else {}
    return {"safety": verdict, "safety_by": "guard", **category}
