"""Personal data in text: e-mail and IP addresses, phone and card numbers, bank accounts, identity numbers.

Each detector is a pattern for the form and, where the number has one, its check: Luhn for cards (ISO/IEC 7812),
modulo 97 for IBAN (ISO 13616), issued areas for US social security numbers, the date and the check digit for Korean
resident numbers, public ranges for IP addresses. A form without a check (phone numbers) is taken only where the form
itself says it: a plus sign, a trunk zero with the usual groups, an area code in brackets. Every pattern takes time
linear in the text. Names and street addresses need a model and are not looked for.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from datetime import date
from itertools import chain

from ojak.rules.found import Found, redacted, without_overlaps

__all__ = ["KINDS", "Found", "find_personal_data", "redact"]

# Signs that stand for others of the same length: full-width digits and signs, dashes, hard blanks.
_PLAIN = {
    **{0xFF10 + digit: ord("0") + digit for digit in range(10)},
    **dict.fromkeys([0x2010, 0x2011, 0x2012, 0x2013, 0x2212, 0xFF0D], ord("-")),
    **dict.fromkeys([0x00A0, 0x2007, 0x2009, 0x202F, 0x3000], ord(" ")),
    0xFF20: ord("@"),
    0xFF0E: ord("."),
    0xFF0B: ord("+"),
}
_ANY = re.compile("[0-9@]")  # every kind has one of these
_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9_][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9][A-Za-z0-9-]{0,62}\.){1,8}[A-Za-z]{2,24}"
    r"(?![A-Za-z0-9-])"
)
_IPV4 = re.compile(r"(?<![\w.])(?<!::)(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\w|\.\d)", re.ASCII)
_IPV6 = re.compile(
    r"(?<![\w:.])[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]{1,34}(?:\.[0-9]{1,3}){0,3}(?![\w:]|\.\d)", re.ASCII
)
_VERSION = re.compile(r"(?:\bv|\bver|version|release|firmware|section|chapter|§)[ .:]{0,2}\Z", re.IGNORECASE)
_CARD = re.compile(
    r"""(?<![\w.+-])(?:
        [0-9]{13,19}
      | [0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}
      | [0-9]{4}([ -])[0-9]{6}\2[0-9]{4,5})(?![\w]|[.-][0-9])""",
    re.VERBOSE | re.ASCII,
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?=[ ]?[A-Z0-9]{4})")
_IBAN_LENGTHS = """
    AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24
    FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32
    LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24
    RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30
"""
_IBAN_LENGTH = {each[:2]: int(each[2:]) for each in _IBAN_LENGTHS.split()}
_SSN = re.compile(
    r"(?<![\w.-])(?!000|666|9)[0-9]{3}([ -])(?!00)[0-9]{2}\1(?!0000)[0-9]{4}(?![\w-]|\.\d)", re.ASCII
)
_RRN = re.compile(r"(?<![\w.-])[0-9]{6}[ ]?-?[ ]?[1-8][0-9]{6}(?![\w-]|\.\d)", re.ASCII)
_RRN_WEIGHTS = (2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5)
_RRN_RANDOM_SINCE = date(2020, 10, 1)  # numbers issued since then have no check digit
_INTERNATIONAL = re.compile(
    r"(?<![\w+.-])(?:\+|00(?=[1-9]))[0-9](?:[ ./-]?[(]?[0-9][)]?){5,13}[ ./-]?[0-9](?![\w]|[.-]\d)", re.ASCII
)


def _area(digits: str, after: str = "[ .-]") -> str:
    """An area code: in brackets, or with a sign after it."""
    return rf"(?:[(]{digits}[)][ ]?|{digits}{after})"


_NATIONAL = re.compile(
    rf"""(?<![\w.+/-])(?:
        (?:1[ .-])?{_area("[2-9][0-9]{2}")}[2-9][0-9]{{2}}[ .-][0-9]{{4}}          # North America
      | {_area("01[016789]")}[0-9]{{3,4}}[ .-][0-9]{{4}} | 01[016789][0-9]{{7,8}}  # Korea, mobile
      | {_area("0(?:2|[3-6][1-5]|70|50[0-9])")}[0-9]{{3,4}}[ .-][0-9]{{4}}         # Korea
      | {_area("0[1-9][0-9]{0,3}", "-")}[0-9]{{1,4}}-[0-9]{{4}}                    # Japan
      | 1[3-9][0-9][ -][0-9]{{4}}[ -][0-9]{{4}}                                    # China, mobile
      | {_area("020", "[ ]")}[0-9]{{4}}[ ][0-9]{{4}}                               # United Kingdom
      | {_area("01[0-9]{2,3}", "[ ]")}[0-9]{{3}}[ ]?[0-9]{{3,4}}
      | 07[0-9]{{3}}[ ]?[0-9]{{3}}[ ]?[0-9]{{3}}
      | 0[1-9](?:[ ][0-9]{{2}}){{4}} | 0[1-9](?:\.[0-9]{{2}}){{4}}                 # France
      | 0[1-9](?:-[0-9]{{2}}){{4}} | 0[67][0-9]{{8}}
      | 0[1-9][0-9]{{1,4}}[ ]?[/-][ ]?[0-9]{{4,8}}                                 # Germany
      | {_area("0[1-9][0-9]{1,3}", "[ ]")}[0-9]{{5,8}}
      | 04[0-9]{{2}}[ -][0-9]{{3}}[ -][0-9]{{3}}                                   # Australia
      | [(]0[2378][)][ ]?[0-9]{{4}}[ -]?[0-9]{{4}}
      )(?![\w]|[.-]\d)""",
    re.VERBOSE | re.ASCII,
)
_COUNTRY_CODE = re.compile(  # of ITU-T E.164, by their first digits; those of two digits are whole
    r"[17]|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]"
    r"|(?:2[1-69]|3[578]|42|50|59|6[789]|8[0578]|9[679])[0-9]"
)
_LEAST_DIGITS, _MOST_DIGITS = 8, 15  # of an international number (ITU-T E.164)


def find_personal_data(text: str) -> list[Found]:
    """Where `text` holds personal data, in order of place, without overlaps. Kinds are those of `KINDS`."""
    if not text.isascii():
        text = text.translate(_PLAIN)
    if not _ANY.search(text):
        return []
    return without_overlaps(chain.from_iterable(finder(text) for finder in _FINDERS.values()))


def redact(text: str) -> str:
    """`text` with each piece of personal data replaced by its kind in brackets, "[email]"."""
    return redacted(text, find_personal_data(text))


def _matches(
    kind: str, pattern: re.Pattern[str], holds: Callable[[re.Match[str]], bool]
) -> Callable[[str], Iterator[Found]]:
    """A detector: the places of `pattern` whose match holds."""

    def find(text: str) -> Iterator[Found]:
        return (Found(kind, *match.span()) for match in pattern.finditer(text) if holds(match))

    return find


def _digits(text: str) -> str:
    return "".join(character for character in text if character.isdigit())


def _is_email(match: re.Match[str]) -> bool:
    local = match.group().partition("@")[0]
    return ".." not in local and not local.endswith(".")


def _is_public_ip(match: re.Match[str]) -> bool:
    """Neither private, reserved nor set aside for examples, and not the number of a version or a section."""
    try:
        address = ipaddress.ip_address(match.group())
    except ValueError:
        return False
    if address.version == 6:
        return address.is_global and int(address) >> 125 == 1  # 2000::/3, all that is given out
    before = match.string[max(0, match.start() - 12) : match.start()]
    return address.is_global and not address.is_multicast and not _VERSION.search(before)


def _is_card(match: re.Match[str]) -> bool:
    digits = _digits(match.group())
    return _has_issuer(digits) and len(set(digits)) > 1 and _luhn(digits)


def _has_issuer(digits: str) -> bool:
    """Whether number and length go together: Visa, Mastercard, American Express, Diners, JCB, Discover, UnionPay,
    Maestro."""
    lead, size = int(digits[:4]), len(digits)
    return (
        (digits[0] == "4" and size in (13, 16, 19))
        or (size == 16 and (5100 <= lead <= 5599 or 2221 <= lead <= 2720))
        or (size == 15 and lead // 100 in (34, 37))
        or (size == 14 and (3000 <= lead <= 3059 or lead // 100 in (36, 38, 39)))
        or (16 <= size <= 19 and (3528 <= lead <= 3589 or lead == 6011 or 6440 <= lead <= 6599))
        or (16 <= size <= 19 and lead // 100 == 62)
        or (size >= 16 and lead in (5018, 5020, 5038, 5893, 6304, 6759, 6761, 6762, 6763))
    )


def _luhn(digits: str) -> bool:
    """The sum of the digits, every second from the right doubled, ends in 0."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(doubled) + sum(int(digit) for digit in digits[-1::-2])) % 10 == 0


def _ibans(text: str) -> Iterator[Found]:
    """As many letters and digits as the country's numbers have, single blanks between them left out."""
    for match in _IBAN.finditer(text):
        length = _IBAN_LENGTH.get(match.group()[:2])
        end = _end_of(text, match.start(), length) if length else None
        if end and _mod_97(text[match.start() : end].replace(" ", "")) == 1:
            yield Found("iban", match.start(), end)


def _end_of(text: str, start: int, length: int) -> int | None:
    """Where `length` capital letters and digits from `start` on end; None if there are fewer, or more."""
    place, count = start, 0
    while count < length:
        character = text[place : place + 1]
        if character == " " and text[place - 1] != " ":
            place += 1
            continue
        if not (character.isascii() and (character.isdigit() or character.isupper())):
            return None
        place, count = place + 1, count + 1
    return None if text[place : place + 1].isalnum() and text[place].isascii() else place


def _mod_97(iban: str) -> int:
    """The number with its first four signs at the end, letters read as 10 to 35."""
    return int("".join(str(int(sign, 36)) for sign in iban[4:] + iban[:4])) % 97


def _is_rrn(match: re.Match[str]) -> bool:
    """A date of birth in the century that the seventh digit names, and the check digit of citizens (1-4) or foreigners
    (5-8); those born since October 2020 have none, and are known by the hyphen alone."""
    digits = _digits(match.group())
    century = 1900 if digits[6] in "1256" else 2000
    try:
        born = date(century + int(digits[:2]), int(digits[2:4]), int(digits[4:6]))
    except ValueError:
        return False
    total = sum(weight * int(digit) for weight, digit in zip(_RRN_WEIGHTS, digits, strict=False))
    check = ((11 if digits[6] in "1234" else 13) - total % 11) % 10
    return check == int(digits[12]) or (born >= _RRN_RANDOM_SINCE and "-" in match.group())


def _is_international(match: re.Match[str]) -> bool:
    """A country code that exists, and as many digits as a number may have. Zeros in front say little: after "00" the
    digits must be in groups."""
    text = match.group()
    digits = _digits(text).removeprefix("00") if text.startswith("00") else _digits(text)
    known = _COUNTRY_CODE.match(digits) is not None
    grouped = text[0] == "+" or not text.isdigit()
    balanced = text.count("(") == text.count(")")
    return known and grouped and balanced and _LEAST_DIGITS <= len(digits) <= _MOST_DIGITS


def _is_national(match: re.Match[str]) -> bool:
    text = match.group()
    return text.count("(") == text.count(")") and 9 <= len(_digits(text)) <= 11


def _always(_match: re.Match[str]) -> bool:
    return True


# In order of rank: where two overlap, the earlier kind has it.
_FINDERS: dict[str, Callable[[str], Iterator[Found]]] = {
    "email": _matches("email", _EMAIL, _is_email),
    "iban": _ibans,
    "card": _matches("card", _CARD, _is_card),
    "korean_resident_number": _matches("korean_resident_number", _RRN, _is_rrn),
    "us_ssn": _matches("us_ssn", _SSN, _always),
    "ipv6": _matches("ip", _IPV6, _is_public_ip),
    "ipv4": _matches("ip", _IPV4, _is_public_ip),
    "international": _matches("phone", _INTERNATIONAL, _is_international),
    "national": _matches("phone", _NATIONAL, _is_national),
}
KINDS = ("email", "phone", "ip", "card", "iban", "us_ssn", "korean_resident_number")
