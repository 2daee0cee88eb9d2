"""Checks of sampled text that need no model, as data: each rule has a reason code, an action and a why.

A model asked only for a user turn (Magpie: Xu et al. 2024, arXiv:2406.08464) now and then writes something else: a
fragment, the answer, the next turn's header, a loop. `sanitize` repairs or rejects such an instruction and names
every rule that acted; `check_response` does the same for the answer to it, without repairs. Three things are kept
apart on purpose: nothing is thrown away (the caller keeps the raw text), an instruction may have several lines
(pasted code, tables, constraints after the question), and the finish reason counts as evidence.

The word lists are English. Rules that need them ask first whether the text is English, so other languages pass.
Every rule takes time linear in the text, and none but the first looks at more than `MAX_CHARACTERS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from ojak.rules import edits, rejections
from ojak.rules.rule import MAX_CHARACTERS, Draft, Rule

__all__ = [
    "MAGPIE_RULES",
    "MAX_CHARACTERS",
    "RESPONSE_RULES",
    "Draft",
    "Labelled",
    "Measured",
    "Rule",
    "Sanitized",
    "check_response",
    "is_refusal",
    "measure",
    "sanitize",
]

_ROUNDS = 10  # an edit may uncover another: a number, then a label, then quotation marks

MAGPIE_RULES: tuple[Rule, ...] = (
    Rule("whitespace", "strip", "blanks around it, empty lines in a row", "they say nothing", edits.tidy),
    Rule(
        "answer",
        "cut",
        "after a request, a line that starts an answer ('Answer:', '## Step 1', 'Sure,') and all below it",
        "the model went on and answered itself; the request above is whole",
        edits.cut_answer,
    ),
    Rule(
        "enumerator",
        "strip",
        "the number or bullet of a single item",
        "a list of one",
        edits.strip_enumerator,
    ),
    Rule(
        "emphasis", "strip", "bold marks around all of it", "markup of an imagined list", edits.strip_emphasis
    ),
    Rule(
        "label",
        "strip",
        "'Question:', '**Prompt:**', '## Task' in front",
        "users do not label their requests",
        edits.strip_label,
    ),
    Rule(
        "quotes",
        "strip",
        "quotation marks around all of it",
        "users do not quote themselves",
        edits.strip_quotes,
    ),
    Rule(
        "instruction_too_long",
        "reject",
        f"more than {MAX_CHARACTERS:,} characters",
        "no request is; bounds the time of every other rule",
        rejections.too_long,
    ),
    Rule("instruction_empty", "reject", "nothing, or blanks", "nothing to answer", rejections.empty),
    Rule(
        "instruction_cut",
        "reject",
        "stopped by the token limit, and no rule cut it back to a whole request",
        "half a request; a larger limit would let it finish",
        rejections.length_cut,
    ),
    Rule(
        "instruction_special_token",
        "reject",
        "one of the tokenizer's special tokens, as text",
        "it would end or open a turn when the row is rendered",
        rejections.special_token,
    ),
    Rule(
        "instruction_role_leak",
        "reject",
        "a turn header of any chat format ('assistant' alone on a line, '### Response', '[INST]')",
        "the model wrote the next turn, too",
        rejections.role_leak,
    ),
    Rule(
        "instruction_control_characters",
        "reject",
        "control characters, U+FFFD, lone surrogates, private use, text direction overrides",
        "broken decoding, or text that shows as something else",
        rejections.control_characters,
    ),
    Rule(
        "instruction_too_short",
        "reject",
        "fewer than two words, or only punctuation",
        "no request can be understood from it",
        rejections.too_short,
    ),
    Rule(
        "instruction_repeats",
        "reject",
        "the same words at least four times in a row, or few different word sequences",
        "the model fell into a loop",
        rejections.repeats,
    ),
    Rule(
        "instruction_mixed_scripts",
        "reject",
        "words made of two alphabets, or four scripts in one text",
        "high temperature: languages run into each other",
        rejections.mixes_scripts,
    ),
    Rule(
        "instruction_gibberish",
        "reject",
        "hardly any letters, words without vowels, words without end",
        "high temperature: not language",
        rejections.gibberish,
    ),
    Rule(
        "instruction_assistant_voice",
        "reject",
        "speaks as the assistant ('Sure, here is', 'As an AI, I', 'How can I help you')",
        "the model answered instead of asking",
        rejections.assistant_voice,
    ),
    Rule(
        "instruction_content_missing",
        "reject",
        "ends with a colon, or points at a text that is not there",
        "it cannot be answered without that content",
        rejections.no_content,
    ),
    Rule(
        "instruction_fragment",
        "reject",
        "ends in the middle of a sentence, or starts in one and asks nothing",
        "part of a longer text",
        rejections.fragment,
    ),
    Rule(
        "instruction_no_request",
        "reject",
        "an English statement that asks nothing, orders nothing and does not speak of its writer",
        "a piece of a document, not a user's turn",
        rejections.no_request,
    ),
)

RESPONSE_RULES: tuple[Rule, ...] = (
    Rule("response_empty", "reject", "nothing, or blanks", "nothing to learn", rejections.empty),
    Rule(
        "response_cut",
        "reject",
        "stopped by the token limit",
        "half an answer; a larger limit would let it finish",
        rejections.length_cut,
    ),
    Rule(
        "response_special_token",
        "reject",
        "one of the tokenizer's special tokens, as text",
        "it would end or open a turn when the row is rendered",
        rejections.special_token,
    ),
    Rule(
        "response_too_long",
        "reject",
        f"more than {MAX_CHARACTERS:,} characters",
        "bounds the time of the rules below",
        rejections.too_long,
    ),
    Rule(
        "response_role_leak",
        "reject",
        "a turn header of a chat format",
        "the model wrote the user's next turn, too",
        rejections.response_role_leak,
    ),
    Rule(
        "response_control_characters",
        "reject",
        "control characters, U+FFFD, lone surrogates, private use, text direction overrides",
        "broken decoding, or text that shows as something else",
        rejections.control_characters,
    ),
    Rule(
        "response_repeats",
        "reject",
        "the same words at least four times in a row, or few different word sequences",
        "the model fell into a loop",
        rejections.repeats,
    ),
    Rule(
        "response_echo",
        "reject",
        "the instruction again, and next to nothing more",
        "it answers nothing",
        rejections.echo,
    ),
)


@dataclass(frozen=True, slots=True)
class Sanitized:
    """`text` after the edits named in `edits`; `reason` is the code of the rule that rejected it, or None."""

    text: str
    edits: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text with a person's verdict; `why` is their reason in a word ("cut", "nonsense"; "" where kept)."""

    text: str
    finish_reason: str
    keep: bool
    why: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """How the rules do against labels. Precision and recall are those of rejection, in [0, 1]."""

    precision: float
    recall: float
    by_rule: dict[str, tuple[int, int]]  # reason code -> (rejected rightly, rejected)
    missed: dict[str, tuple[int, int]]  # the person's why -> (not rejected, all)


def sanitize(
    text: str,
    finish_reason: str = "stop",
    *,
    rules: Sequence[Rule] = MAGPIE_RULES,
    special_tokens: Collection[str] = (),
) -> Sanitized:
    """Repair or reject one sampled instruction.

    `finish_reason` is the engine's ("stop" or "length"); `special_tokens` are the tokenizer's, none of which may
    stand in the text. First the edits run, in order and again until none acts (ten rounds at most), then the
    rejections: the first that finds something decides. A rejected text is returned as the edits left it.
    """
    draft = Draft(text, finish_reason, _tokens(special_tokens))
    done: list[str] = []
    if len(text) <= MAX_CHARACTERS:
        for _ in range(_ROUNDS):
            before = draft
            draft = _edited(draft, rules, done)
            if draft == before:
                break
    return Sanitized(draft.text, tuple(done), _rejected(draft, rules))


def check_response(
    text: str,
    finish_reason: str = "stop",
    *,
    instruction: str = "",
    rules: Sequence[Rule] = RESPONSE_RULES,
    special_tokens: Collection[str] = (),
) -> str | None:
    """The code of the first of `rules` that rejects a response to `instruction`, or None. Nothing is edited."""
    return _rejected(Draft(text, finish_reason, _tokens(special_tokens), instruction), rules)


def is_refusal(text: str) -> bool:
    """Whether an English response opens by declining. A tag for the caller, no reason to reject: some should."""
    return rejections.declines(text)


def measure(labelled: Iterable[Labelled], rules: Sequence[Rule] = MAGPIE_RULES) -> Measured:
    """Precision and recall of `sanitize`'s rejections on labelled texts, over all rules and for each."""
    right: Counter[str] = Counter()
    fired: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    unfit: Counter[str] = Counter()
    for item in labelled:
        reason = sanitize(item.text, item.finish_reason, rules=rules).reason
        if reason is not None:
            fired[reason] += 1
            right[reason] += not item.keep
        if not item.keep:
            unfit[item.why] += 1
            missed[item.why] += reason is None
    hits, rejected, total = sum(right.values()), sum(fired.values()), sum(unfit.values())
    return Measured(
        precision=hits / rejected if rejected else 1.0,
        recall=hits / total if total else 1.0,
        by_rule={name: (right[name], count) for name, count in fired.items()},
        missed={why: (missed[why], count) for why, count in unfit.items()},
    )


def _tokens(special_tokens: Collection[str]) -> tuple[str, ...]:
    """Without blank ones: some tokenizers list a space or a newline among their special tokens."""
    return tuple(token for token in special_tokens if token.strip())


def _edited(draft: Draft, rules: Sequence[Rule], done: list[str]) -> Draft:
    """One round of the edits among `rules`; the names of those that acted are added to `done`, once each."""
    for rule in rules:
        left = None if rule.action == "reject" else rule.apply(draft)
        if left is None or left == draft.text:
            continue
        draft = replace(draft, text=left, cut=draft.cut or rule.action == "cut")
        if rule.name not in done:
            done.append(rule.name)
    return draft


def _rejected(draft: Draft, rules: Sequence[Rule]) -> str | None:
    return next((r.name for r in rules if r.action == "reject" and r.apply(draft) is not None), None)
