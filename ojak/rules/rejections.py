"""Rejections: what makes a sampled instruction or response unfit. Each returns its evidence, or None."""

from __future__ import annotations

import re

from ojak.rules.rule import MAX_CHARACTERS, WIDE, Draft, asks, is_english, plain, word_count, words

_TOKENS = r"<[|\uff5c][a-z_\u2581]{2,40}[|\uff5c]?>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>|\|im_(?:start|end)\|"
_RESPONSE_ROLE = re.compile(_TOKENS + r"|^[ \t]{0,4}(?:assistant|user)[ \t]{0,4}$", re.MULTILINE)
_ROLE = re.compile(
    _TOKENS
    + r"""
      | ^[ \t]{0,4}(?:assistant|user|system|model)[ \t]{0,4}[:]?[ \t]{0,4}$
      | ^\#{1,4}[ ](?:response|assistant|human|user|instruction)\b[ \t]{0,4}[:]?[ \t]{0,4}$""",
    re.VERBOSE | re.IGNORECASE | re.MULTILINE,
)
_SPEAKER = re.compile(
    r"^[ \t]{0,4}[*]{0,2}(?:assistant|ai assistant|chatbot|ai)[*]{0,2}:", re.IGNORECASE | re.MULTILINE
)
_PASTED_CHAT = re.compile(
    r"\b(?:conversation|dialogue?|chat|transcript|script|role[- ]?play)\b", re.IGNORECASE
)
_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufdd0-\ufdef\ufff9-\uffff\ue000-\uf8ff]"
)
_VOICE = re.compile(
    r"""\A(?:sure|certainly|absolutely|of[ ]course|no[ ]problem)[,!.][ ]{0,3}(?:here|i\b|i'|let|below|this)
      | \A(?:as|i'm|i[ ]am)[ ](?:just[ ]|only[ ])?an?[ ](?:ai|artificial[ ]intelligence|(?:large[ ])?language[ ]model)
        (?:[ ](?:assistant|language[ ]model|model|chatbot))?(?:,[ ](?:i\b|i'|my\b)|[.!]|[ ](?:designed|trained|created))
      | \A(?:i'd|i[ ]would)[ ]be[ ](?:very[ ]|more[ ]than[ ])?(?:happy|glad|delighted|pleased)[ ]to\b
      | \A(?:i'm|i[ ]am)[ ](?:happy|glad|ready)[ ]to[ ](?:help|assist)
      | \A(?:i'm[ ]sorry|i[ ]am[ ]sorry|sorry|i[ ]apologi[sz]e)[^.?\n]{0,60}
        \bi[ ]?(?:cannot|can't|'m[ ]unable|am[ ]unable|am[ ]not[ ]able)
      | \A(?:you're|you[ ]are)[ ](?:very[ ]|most[ ])?welcome[.!]
      | \A(?:thank[ ]you|thanks)[ ]for[ ](?:your[ ](?:question|message|interest|inquiry|request)|reaching|contacting)
      | \A(?:that's[ ]an?[ ])?(?:great|excellent|good|interesting)[ ]question\b
      | [?][ ]{1,2}(?:absolutely|definitely|certainly)(?:[ ]not)?[,.!]""",
    re.VERBOSE | re.IGNORECASE,
)
_OFFER = re.compile(
    r"""\b(?:how|what)[ ](?:can|may|could)[ ]i[ ](?:help|assist|do[ ]for)[ ]you\b
      | \bi(?:'m|[ ]am)[ ]here[ ]to[ ](?:help|assist)\b
      | (?:\A|[.!?\n][ ]{0,3})can[ ]i[ ](?:help|assist)[ ]you\b""",
    re.VERBOSE | re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"""\A[\s*"]{0,8}[^.!?\n]{0,80}\b(?:i|we)(?:'m|'re|[ ]am|[ ]are)?[ ](?:just[ ]|simply[ ])?
    (?:can't|cannot|can[ ]not|won't|will[ ]not|unable[ ]to|not[ ]able[ ]to|must[ ]decline|don't[ ]feel[ ]comfortable
    |not[ ]comfortable)
    [ ](?:with[ ]|to[ ])?(?:\w{1,15}[ ]){0,2}?
    (?:help|assist\w*|provid\w+|fulfil\w*|comply|engage|creat\w+|discuss\w*|answer\w*|shar\w+|generat\w+|writ\w+
    |support|participate|do[ ](?:that|this)|that|this)\b""",
    re.VERBOSE | re.IGNORECASE,
)
_TRAILING_COLON = re.compile(r"[:\uff1a][\s*_`\"']*\Z")
_POINTS_AT_CONTENT = re.compile(
    r"\b(?:(?:the|these|this|my) (?:following|given|above|provided)(?: \w{1,20}){0,2} (?:text|passage|paragraph|"
    r"sentences?|article|code|snippet|poem|lists?|words|data|table|equation|expression|story|email|essay|document|"
    r"conversation|dialogue|statements?|phrases?)|(?:the|a|my|have \w{1,20})(?: [\w-]{1,20}){0,2} below)\b",
    re.IGNORECASE,
)
_HOLDS_CONTENT = re.compile(r"[:\"\u201c`\n=\[{(<]|\d|'[^'\n]{1,200}'(?!\w)")
_MID_SENTENCE = re.compile(r"[,;)\]}\u2026%&/]|\.{2,}|[-\u2013\u2014] |[a-z]+(?:'[a-z]{1,2})?(?=[ ,.!;:]|\Z)")
_OPEN_END = re.compile(r"(?:[,;(\[{\u2014-]|(?<![.!?:] )\b(?:the|an|and|or|of|your|because|if|than))\Z")
_STATEMENT = re.compile(
    r"(?:the|an?|this|that|these|those|he|she|it|they|there|his|her|its|their|it's|there's|in|on|at|after|during|"
    r"since|although|while|because|as)\b",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"```|[{};=<>]\s*$|\b(?:def|class|import|SELECT|function)\b|[\w)\]] ?= ?[\w(\[]", re.MULTILINE
)
_MOST_TOKENS = 20_000  # a loop that matters reaches the end of the text
_LONG_RUN = re.compile(r"([^\W\d_])\1{14}|([!?\u2026])\2{11}")
_SCRIPTS = {
    "Latin": re.compile("[A-Za-z\u00c0-\u024f]"),
    "Greek": re.compile("[\u0370-\u03ff]"),
    "Cyrillic": re.compile("[\u0400-\u052f]"),
    "Hebrew": re.compile("[\u0590-\u05ff]"),
    "Arabic": re.compile("[\u0600-\u06ff\u0750-\u077f]"),
    "Indic": re.compile("[\u0900-\u0dff]"),
    "Thai": re.compile("[\u0e00-\u0eff]"),
    "Wide": re.compile("[\u3040-\u30ff\u3400-\u9fff]"),
    "Hangul": re.compile("[\uac00-\ud7af]"),
}
_JOINED = ("Latin", "Greek", "Cyrillic", "Hebrew", "Indic", "Thai")  # scripts that do not share one word
_VOWEL_LESS = re.compile(r"\b[b-df-hj-np-tv-xz]{6,}\b")
_LONG_WORD = re.compile(r"(?<![\w/.@:%+=-])[a-z]{36,}(?![\w/.@:%+=-])", re.IGNORECASE)


def too_long(draft: Draft) -> str | None:
    return f"{len(draft.text)} characters" if len(draft.text) > MAX_CHARACTERS else None


def empty(draft: Draft) -> str | None:
    return None if draft.text.strip() else "no text"


def length_cut(draft: Draft) -> str | None:
    """A rule that dropped an answer also dropped the cut end: what is left is whole."""
    return "stopped by the token limit" if draft.finish_reason == "length" and not draft.cut else None


def special_token(draft: Draft) -> str | None:
    return next((token for token in draft.special_tokens if token in draft.text), None)


def role_leak(draft: Draft) -> str | None:
    return _found(_ROLE, draft) or _unless_chat(_SPEAKER, draft)


def response_role_leak(draft: Draft) -> str | None:
    """Fewer forms than in an instruction: an answer may well have a heading "Response"."""
    return _found(_RESPONSE_ROLE, draft)


def control_characters(draft: Draft) -> str | None:
    return _found(_CONTROL, draft)


def assistant_voice(draft: Draft) -> str | None:
    return _found(_VOICE, draft) or _unless_chat(_OFFER, draft)


def declines(text: str) -> bool:
    return _REFUSAL.match(plain(text[:400])) is not None


def _unless_chat(pattern: re.Pattern[str], draft: Draft) -> str | None:
    """What `pattern` finds, unless the text says that it holds a conversation: users paste those, too."""
    return None if _PASTED_CHAT.search(draft.text) else _found(pattern, draft)


def _found(pattern: re.Pattern[str], draft: Draft) -> str | None:
    found = pattern.search(plain(draft.text))
    return found.group()[:80] if found else None


def too_short(draft: Draft) -> str | None:
    return draft.text if word_count(draft.text) < 2 else None


def no_content(draft: Draft) -> str | None:
    """Points at content that is not there, unless it is to be filled in (see `_wants_filling`)."""
    if found := _TRAILING_COLON.search(draft.text[-200:]):
        return None if _wants_filling(draft.text) else found.group()
    found = _POINTS_AT_CONTENT.search(draft.text)
    if found is None or len(draft.text) - found.end() > 90 or _HOLDS_CONTENT.search(draft.text):
        return None
    return found.group()


def _wants_filling(text: str) -> bool:
    """A short label below a question ("A:") or a longer text ("Summary:"), a form of several lines, an analogy."""
    head, _, last = text.rstrip().rpartition("\n")
    form = sum(line.rstrip().endswith(":") for line in text.split("\n")) >= 3
    label = word_count(last) <= 3 and (word_count(head) >= 20 or head.rstrip().endswith("?"))
    return form or label or "::" in last


def fragment(draft: Draft) -> str | None:
    """Ends in the middle of a sentence, or starts in one and asks nothing."""
    if found := _OPEN_END.search(draft.text[-60:]):
        return found.group()
    found = _MID_SENTENCE.match(draft.text)
    return found.group() if found and is_english(draft.text) and not asks(draft.text) else None


def no_request(draft: Draft) -> str | None:
    text = draft.text
    if not _STATEMENT.match(text) or asks(text) or _CODE.search(text) or not is_english(text):
        return None
    return text[:80]


def repeats(draft: Draft) -> str | None:
    """A letter held down, or words that loop: the same up to 32 tokens at least four times in a row and for at
    least 12 words and 30 % of the text; or, in longer texts, few different runs of four words."""
    if found := _LONG_RUN.search(draft.text):
        return found.group()
    tokens = _tokens(draft.text)[-_MOST_TOKENS:]
    for period in range(1, 33):
        run = _longest_run(tokens, period)
        if run >= max(3 * period, 12) and run >= 0.3 * len(tokens):
            return f"a run of {run + period} words repeats every {period}"
    grams = list(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))
    if len(grams) >= 60 and len(set(grams)) < 0.4 * len(grams):
        return f"{len(set(grams))} different runs of four words among {len(grams)}"
    return None


def _tokens(text: str) -> list[str]:
    """Lower-case words that hold a letter (tables of numbers may repeat), each kana or Han sign on its own."""
    spaced = WIDE.sub(r" \g<0> ", text.lower())
    return [word for word in words(spaced) if not word.isdigit()]


def _longest_run(tokens: list[str], period: int) -> int:
    """The most tokens in a row that each equal the token `period` before them."""
    best = run = 0
    for now, before in zip(tokens[period:], tokens, strict=False):
        run = run + 1 if now == before else 0
        best = max(best, run)
    return best


def mixes_scripts(draft: Draft) -> str | None:
    """Words made of two alphabets, or four scripts and more in one text (a list of languages aside)."""
    if draft.text.isascii():
        return None
    foreign = [word for word in words(draft.text) if not word.isascii()]
    mixed = [word for word in foreign if sum(len(_SCRIPTS[s].findall(word)) >= 2 for s in _JOINED) >= 2]
    if len(mixed) >= 2:
        return " ".join(mixed[:3])
    found = [
        name
        for name, pattern in _SCRIPTS.items()
        if name != "Greek" and len(pattern.findall(draft.text)) >= 2
    ]
    return " ".join(found) if len(found) >= 4 else None


def gibberish(draft: Draft) -> str | None:
    """Signs without words, words without vowels, words without end. Code and base64 often look so: they are let
    through where they are marked as code."""
    text = draft.text
    if _CODE.search(text):
        return None
    solid = "".join(text.split())
    letters = sum(character.isalnum() for character in solid)
    if len(solid) >= 20 and letters < 0.35 * len(solid):
        return text[:80]
    odd = [*_VOWEL_LESS.findall(text), *_LONG_WORD.findall(text)]
    return " ".join(odd[:3]) if len(odd) >= 2 and len(odd) > 0.1 * len(words(text)) else None


def echo(draft: Draft) -> str | None:
    """The instruction again, with next to nothing after it."""
    asked, answered = (" ".join(text.casefold().split()) for text in (draft.instruction, draft.text))
    if not asked or not answered.startswith(asked):
        return None
    return asked[:80] if len(answered) - len(asked) <= len(asked) / 3 else None
