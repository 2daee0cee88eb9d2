"""Personal data, against numbers published for tests, against arithmetic done another way, and against look-alikes."""

from __future__ import annotations

import ipaddress
import itertools
import random

import pytest

from ojak.rules.privacy import KINDS, Found, find_personal_data, redact

# Published by the payment networks and processors for tests.
CARDS = [
    "4111111111111111",
    "4012888888881881",
    "4222222222222",
    "5555555555554444",
    "5105105105105100",
    "2223003122003222",
    "378282246310005",
    "371449635398431",
    "30569309025904",
    "38520000023237",
    "6011111111111117",
    "6011000990139424",
    "3530111333300000",
    "3566002020360505",
]
# From the SWIFT registry's examples.
IBANS = [
    "DE89370400440532013000",
    "GB29NWBK60161331926819",
    "FR1420041010050500013M02606",
    "ES9121000418450200051332",
    "NL91ABNA0417164300",
    "BE68539007547034",
    "NO9386011117947",
    "CH9300762011623852957",
    "IT60X0542811101000000123456",
    "PL61109010140000071219812874",
    "AT611904300234573201",
    "SE4550000000058398257466",
    "MT84MALT011000012345MTLCAST001S",
    "BR1800360305000010009795493C1",
]
PHONES = [
    "+1 415-555-2671",
    "+14155552671",
    "+44 20 7946 0958",
    "+44 (0)20 7946 0958",
    "+82 10-1234-5678",
    "+82-2-312-3456",
    "+49 30 1234567",
    "+81 3-1234-5678",
    "+86 138 1234 5678",
    "+91 98765 43210",
    "+33 1 23 45 67 89",
    "+55 (11) 91234-5678",
    "0049 30 1234567",
    "(415) 555-2671",
    "415-555-2671",
    "415.555.2671",
    "1-415-555-2671",
    "010-1234-5678",
    "01012345678",
    "02-312-3456",
    "031-123-4567",
    "070-1234-5678",
    "(02) 312-3456",
    "03-1234-5678",
    "(03) 1234-5678",
    "090-1234-5678",
    "138-1234-5678",
    "020 7946 0958",
    "01632 960 961",
    "07700 900123",
    "01 23 45 67 89",
    "06.12.34.56.78",
    "030/1234567",
    "0171-1234567",
    "0412 345 678",
]
NOT_PERSONAL = [
    "4111111111111112",  # Luhn fails
    "1234567812345670",  # Luhn holds, but nobody issues such numbers
    "0000 0000 0000 0000",
    "DE89370400440532013001",  # modulo 97 fails
    "ZZ89370400440532013000",
    "000-12-3456",
    "666-12-3456",
    "900-12-3456",
    "123-00-4567",
    "123-45-0000",
    "900101-1234567",  # check digit fails
    "901301-1234567",  # a month 13
    "192.168.1.1",
    "10.0.0.1",
    "127.0.0.1",
    "255.255.255.255",
    "256.1.1.1",
    "1.2.3",
    "version 8.8.4.4",
    "2001:db8::1",
    "fe80::1",
    "::1",
    "std::vector::size",
    "12:30:45",
    "3.14159265358979",
    "2024-01-15",
    "15.01.2024 10:30",
    "01/02/2023",
    "1,000,000,000",
    "1700000000000",
    "978-0-306-40615-7",
    "a @ b . com",
    "@handle",
    "x = 12345 + 67890",
    "+1",
    "123-456-789",
    "555-2671",
    "2 + 12345678",
    "ab12cd34-1234-5678-9abc-123456789012",
    "1-2-3-4-5-6-7-8-9",
    "100 200 300",
    "The years 1914-1918 and 1939-1945",
    "0.0.0.0",
    "0032215864",  # a country code, but in one run of digits
    "0321-5160-5253",  # too long for a number with a trunk zero
]


def kinds(text: str) -> list[str]:
    return [found.kind for found in find_personal_data(text)]


def texts(text: str) -> list[str]:
    return [text[found.start : found.end] for found in find_personal_data(text)]


def luhn_by_hand(digits: str) -> bool:
    """The other way round: the check digit that the rest asks for."""
    total = 0
    for place, digit in enumerate(reversed(digits[:-1])):
        value = int(digit) * (2 if place % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return (10 - total % 10) % 10 == int(digits[-1])


def rrn(body: str) -> str:
    """A Korean resident number with its check digit, as the ministry's formula gives it."""
    total = sum((2 + place % 8) * int(digit) for place, digit in enumerate(body))
    check = (11 - total % 11) % 10 if body[6] in "1234" else (13 - total % 11) % 10
    return f"{body[:6]}-{body[6:]}{check}"


@pytest.mark.parametrize("number", CARDS)
def test_a_card_number_is_found(number: str) -> None:
    assert luhn_by_hand(number), "the oracle agrees that it is one"
    text = f"Pay with {number}, please."
    assert find_personal_data(text) == [Found("card", 9, 9 + len(number))]


@pytest.mark.parametrize("written", ["4111 1111 1111 1111", "4111-1111-1111-1111", "3782 822463 10005"])
def test_a_card_number_in_groups_is_found(written: str) -> None:
    assert texts(f"({written}) 123") == [written]
    assert kinds(written) == ["card"]


def test_one_wrong_digit_is_no_card() -> None:
    for place in range(16):
        digits = list("4111111111111111")
        digits[place] = str((int(digits[place]) + 1) % 10)
        assert kinds("".join(digits)) == []


@pytest.mark.parametrize("number", IBANS)
def test_an_account_number_is_found(number: str) -> None:
    spaced = " ".join(number[i : i + 4] for i in range(0, len(number), 4))
    assert int("".join(str(int(c, 36)) for c in number[4:] + number[:4])) % 97 == 1
    assert texts(f"IBAN {number}.") == [number]
    assert texts(f"to {spaced} BIC ABCDEFGH") == [spaced]
    assert kinds(number) == ["iban"]


@pytest.mark.parametrize("number", PHONES)
def test_a_phone_number_is_found(number: str) -> None:
    for text in (
        number,
        f"Call {number}.",
        f"tel:{number}, or later",
        f"전화는 {number}입니다",
        f"[{number}]",
    ):
        assert texts(text) == [number], text
    assert kinds(f"({number})") == ["phone"]


@pytest.mark.parametrize(
    "body", ["900101123456", "850315212345", "050720312345", "010203412345", "800101512345"]
)
def test_a_resident_number_is_found(body: str) -> None:
    number = rrn(body)
    assert texts(f"주민등록번호 {number}") == [number]
    assert kinds(number) == ["korean_resident_number"]
    assert kinds(number.replace("-", "")) == ["korean_resident_number"]
    wrong = number[:-1] + str((int(number[-1]) + 1) % 10)
    assert kinds(wrong) == []


def test_a_resident_number_of_one_born_since_the_check_digit_was_dropped() -> None:
    numbers = [f"210101-312345{digit}" for digit in range(10)]
    assert [kinds(number) for number in numbers] == [["korean_resident_number"]] * 10


@pytest.mark.parametrize("number", ["123-45-6789", "219 09 9999", "899-99-9999", "001-01-0001"])
def test_a_social_security_number_is_found(number: str) -> None:
    assert find_personal_data(f"SSN: {number}") == [Found("us_ssn", 5, 16)]


@pytest.mark.parametrize(
    "address",
    ["a@b.co", "jane.doe+news@example.com", "x_1%y@sub.domain-name.org", "J.R@a.b.c.museum", "o@1e100.net"],
)
def test_an_e_mail_address_is_found(address: str) -> None:
    assert texts(f"Write to <{address}>.") == [address]
    assert texts(f"{address}, or {address}.") == [address, address]


@pytest.mark.parametrize("text", ["a@b", "a@b.c", "a..b@c.com", "a.@c.com", "@c.com", "a@-b.com"])
def test_what_is_no_e_mail_address(text: str) -> None:
    assert kinds(text) == []


def test_public_addresses_are_those_of_the_standard_library() -> None:
    """Random addresses of both kinds, and the edges of all reserved ranges."""
    rng = random.Random(1)
    edges = [
        "10.255.255.255",
        "11.0.0.0",
        "100.64.0.1",
        "172.15.255.255",
        "172.32.0.1",
        "169.254.1.1",
        "198.51.100.1",
    ]
    v4 = [*edges, *(str(ipaddress.IPv4Address(rng.getrandbits(32))) for _ in range(300))]
    v6 = [str(ipaddress.IPv6Address((1 << 125) | rng.getrandbits(125))) for _ in range(100)]
    for address in [*v4, *v6, "2606:4700:4700::1111", "2001:4860:4860:0:0:0:0:8888", "2001:db8::8.8.8.8"]:
        parsed = ipaddress.ip_address(address)
        public = parsed.is_global and not parsed.is_multicast
        text = f"ping {address}, then wait"
        assert texts(text) == ([address] if public else []), address


@pytest.mark.parametrize("text", NOT_PERSONAL)
def test_what_looks_alike_is_left(text: str) -> None:
    assert texts(f"Here: {text} is all.") == []


def test_signs_of_other_widths_are_read() -> None:
    assert texts("\uff10\uff11\uff10\u2010\uff11\uff12\uff13\uff14\u2013\uff15\uff16\uff17\uff18") != []
    assert kinds("jane\uff20example.com") == ["email"]


def test_redacting_leaves_the_rest_and_nothing_to_find() -> None:
    text = "Ann (ann@mail.org, +1 415-555-2671) paid 4111 1111 1111 1111 from 8.8.8.8; SSN 123-45-6789."
    assert redact(text) == "Ann ([email], [phone]) paid [card] from [ip]; SSN [us_ssn]."
    assert find_personal_data(redact(text)) == []
    assert redact("Nothing here.") == "Nothing here."


def test_kinds_are_those_that_are_listed() -> None:
    text = f"{CARDS[0]} {IBANS[0]} {rrn('900101123456')} 123-45-6789 8.8.8.8 a@b.co +14155552671"
    assert set(kinds(text)) == set(KINDS)


def test_places_rise_and_do_not_overlap() -> None:
    rng = random.Random(2)
    pieces = [*CARDS, *IBANS, *PHONES, "a@b.co", "8.8.8.8", "123-45-6789", " ", ", ", "x", "1", "-", "."]
    for _ in range(300):
        found = find_personal_data("".join(rng.choices(pieces, k=8)))
        assert all(a.end <= b.start for a, b in itertools.pairwise(found))
