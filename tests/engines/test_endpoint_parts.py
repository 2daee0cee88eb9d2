"""Addresses that are asked and those that never are, keys, waits and the number of requests under way."""

from __future__ import annotations

import asyncio
import copy
import pickle
import random
import time
from collections import Counter
from email.utils import formatdate
from typing import Any

import orjson
import pytest

from ojak.engines.endpoint_dialects import fold
from ojak.engines.endpoint_key import Key
from ojak.engines.endpoint_retry import Pace, Policy, Trouble, persist, read_retry_after
from ojak.engines.endpoint_url import is_blocked, parse_address, without_userinfo
from ojak.engines.endpoint_wire import Wire
from ojak.errors import UsageError
from ojak.synthesize.config import MagpieConfig

SECRET = "canary-0123456789"
HERE = parse_address("http://127.0.0.1:8080")
THERE = parse_address("https://api.example.com")


# -- addresses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://localhost:8000/v1/", "http://localhost:8000"),
        ("http://localhost:8000/v1/completions", "http://localhost:8000"),
        ("http://localhost:11434/api/generate", "http://localhost:11434"),
        ("https://API.Example.com/openai/v1", "https://api.example.com/openai"),
        ("https://api.example.com:443", "https://api.example.com"),
        ("http://user:secret@host:1/?key=secret#secret", "http://host:1"),
        ("http://[::1]:8080/v1", "http://[::1]:8080"),
        ("  http://127.0.0.1:80  ", "http://127.0.0.1"),
    ],
)
def test_an_address_is_read(url: str, expected: str) -> None:
    assert parse_address(url).url == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://host",
        "file:///etc/passwd",
        "http://",
        "http://:80",
        "http://host:port",
        "http://host:99999",
        "http://host:0",
        "http://ho st",
        "http://host\r\nX: y",
        "http://h\u00f6st",
        "http://host\\other",
        "http://[::1",
        "http://-host",
        "http://169.254.169.254/latest/meta-data",
        "http://[fe80::1]",
        "http://[::ffff:169.254.169.254]",
        "http://[fd00:ec2::254]",
        "http://[64:ff9b::a9fe:a9fe]",
        "http://100.100.100.200",
        "http://224.0.0.1",
    ],
)
def test_an_address_is_refused(url: str) -> None:
    with pytest.raises(UsageError):
        parse_address(url)


@pytest.mark.parametrize(
    "url", ["http://u:secret@host:port", "ftp://u:secret@host", "http://u:secret@ho st?k=secret"]
)
def test_no_refusal_shows_a_password(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(url)
    assert "secret" not in str(caught.value)
    with pytest.raises(UsageError) as caught:
        MagpieConfig(model="m", out="d", rows=1, engine="endpoint", url=url)  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


def test_the_settings_keep_no_password() -> None:
    config = MagpieConfig(model="m", out="d", rows=1, url="http://u:secret@host/v1?k=secret")  # type: ignore[arg-type]
    assert config.url == "http://host"
    assert without_userinfo("http://a:b@host/p?q#f") == "http://host/p"


def test_the_place_of_an_engine_shapes_no_row() -> None:
    def key(**more: Any) -> str:
        return MagpieConfig(model="m", out="d", rows=1, **more).run_key({"engine": "endpoint", "model": "m"})  # type: ignore[arg-type]

    other = key(engine="endpoint", url="http://other", tokenizer="t", key_env="K", retry_failed=True)
    assert key() == key(engine="endpoint", url="http://host") == other


@pytest.mark.parametrize("host", ["10.0.0.1", "192.168.1.4", "127.0.0.1", "::1", "8.8.8.8", "host"])
def test_other_machines_may_be_asked(host: str) -> None:
    assert not is_blocked(host)


@pytest.mark.parametrize("place", ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1%eth0"])
def test_a_name_that_leads_to_a_blocked_address_is_not_asked(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the name was at the start: each connection goes to an address that was checked."""
    with Wire(parse_address("http://some.name:80"), Key(), Policy()) as wire:

        async def lookup(*_a: object, **_k: object) -> list[Any]:
            return [(2, 1, 6, "", ("127.0.0.1", 80)), (2, 1, 6, "", (place, 80))]

        monkeypatch.setattr(wire._loop, "getaddrinfo", lookup)
        with pytest.raises(Trouble, match="never asked") as caught:
            wire.run(wire.ask("/v1/models"))
    assert caught.value.kind == "denied"


def test_the_numeric_forms_of_an_address_are_resolved_and_checked() -> None:
    for url in ("http://2852039166", "http://0xa9fea9fe", "http://0251.0376.0251.0376"):
        with (
            Wire(parse_address(url), Key(), Policy(connect_s=1)) as wire,
            pytest.raises(Trouble, match=r"never|resolved"),
        ):
            wire.run(wire.ask("/v1/models"))


# -- keys ---------------------------------------------------------------------------------------------------------------


def test_a_key_goes_to_its_origin_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OJAK_ENDPOINT_KEY", f" {SECRET}\n")
    assert Key.of(HERE).headers == {"authorization": f"Bearer {SECRET}"}
    with pytest.raises(UsageError, match="not for whom") as caught:
        Key.of(THERE)
    assert "OJAK_ENDPOINT_KEY_ORIGIN=https://api.example.com" in caught.value.fix
    monkeypatch.setenv("OJAK_ENDPOINT_KEY_ORIGIN", "https://api.example.com/v1")
    assert Key.of(THERE).headers
    assert not Key.of(HERE).headers
    for other in ("http://api.example.com", "https://api.example.com:8443", "https://api.example.com.evil"):
        withheld = Key.of(parse_address(other))
        assert not withheld.headers
        assert "was not sent" in withheld.withheld


def test_another_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", SECRET)
    assert Key.of(HERE, "MINE").headers
    assert not Key.of(HERE).headers
    with pytest.raises(UsageError, match="no key in OTHER"):
        Key.of(HERE, "OTHER")
    with pytest.raises(UsageError) as caught:
        Key.of(HERE, "sk-" + SECRET)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "value", ["a\r\nX: y" + SECRET, SECRET + " b", SECRET + "\u00e9", SECRET + "\x7f", "k" * 9000]
)
def test_what_cannot_be_sent_is_refused_and_not_shown(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OJAK_ENDPOINT_KEY", value)
    with pytest.raises(UsageError, match="OJAK_ENDPOINT_KEY") as caught:
        Key.of(HERE)
    assert value[:8] not in str(caught.value)


def test_a_key_does_not_show_itself() -> None:
    key = Key(SECRET)
    assert SECRET not in f"{key} {key!r} {[key]} {vars(type(key))}"
    for way in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            way(key)


def test_a_key_is_taken_out_of_answers_in_any_spelling() -> None:
    key = Key('ca"na\\ry-0123')
    escaped = '{"a": ["x \\u0063a\\"na\\\\ry-0123 y"], "ca\\"na\\\\ry-0123": 1}'
    found = key.redact(escaped.encode())
    assert found == {"a": ["x [key] y"], "[key]": 1}
    assert Key("EMPTY").redact(b'{"a": "EMPTY"}') == {"a": "EMPTY"}
    for bad in (b"{", b"[" * 5000 + b"]" * 5000):
        with pytest.raises((ValueError, TypeError)):
            key.redact(bad)
    assert orjson.loads(b'{"a": 1}') == key.redact(b'{"a": 1}')


# -- waits and pace -----------------------------------------------------------------------------------------------------


def test_retry_after_is_seconds_or_a_date() -> None:
    assert read_retry_after("3") == 3
    assert read_retry_after(" 0.5 ") == 0.5
    assert abs((read_retry_after(formatdate(time.time() + 30, usegmt=True)) or 0) - 30) < 2
    assert read_retry_after(formatdate(time.time() - 30, usegmt=True)) == 0
    for nonsense in (None, "", "soon", "-3", "nan", "inf", "1e9", "9" * 40, "Mon, 99 Foo 2026"):
        assert read_retry_after(nonsense) is None


def test_waits_are_drawn_from_the_whole_range_and_grow() -> None:
    random.seed(0)
    policy = Policy(base_s=1.0, cap_s=8.0)
    for repeats, most in ((0, 1.0), (2, 4.0), (3, 8.0), (30, 8.0)):
        waits = [policy.wait_s(repeats, None) for _ in range(400)]
        assert 0 <= min(waits) < 0.1 * most
        assert 0.9 * most < max(waits) <= most
    asked = [policy.wait_s(2, 5.0) for _ in range(400)]
    assert 5.0 <= min(asked) < 5.4
    assert 8.6 < max(asked) <= 9.0


def attempts(kinds: list[Any], policy: Policy) -> tuple[int, str]:
    """How often a request is sent that meets these troubles in turn, and how it ends."""
    sent = 0

    async def send() -> str:
        nonlocal sent
        sent += 1
        kind = kinds[sent - 1] if sent <= len(kinds) else None
        if kind:
            raise Trouble(kind, "no")
        return "answered"

    async def work() -> str:
        try:
            return await persist(send, policy, Pace(4), Counter())
        except Trouble as trouble:
            return trouble.kind

    ended = asyncio.run(work())
    return sent, ended


def test_each_kind_of_trouble_has_a_budget_of_its_own() -> None:
    policy = Policy(again={"busy": 3, "broken": 2, "slow": 1}, base_s=0.0)
    for kinds, expected in (
        (["busy"] * 3 + ["broken"] * 2 + ["slow"], "answered"),
        (["busy", "broken", "busy", "broken", "broken"], "broken"),
        (["busy"] * 4, "busy"),
        (["slow"] * 2, "slow"),
        (["final"], "final"),
        (["denied"], "denied"),
    ):
        assert attempts(kinds, policy)[1] == expected


def test_a_server_that_asks_for_a_day_is_not_waited_for() -> None:
    async def send() -> str:
        raise Trouble("busy", "quota", retry_after_s=86_400)

    async def work() -> None:
        with pytest.raises(Trouble):
            await asyncio.wait_for(persist(send, Policy(), Pace(4), Counter()), 1)

    asyncio.run(work())


def test_the_pace_doubles_then_halves_then_grows_by_one_a_round() -> None:
    pace = Pace(64)
    for expected in (8, 16, 32, 64, 64):
        for _ in range(pace.limit):
            pace.worked()
        assert pace.limit == expected
    pace.crowded(time.monotonic())
    assert pace.limit == 32
    pace.crowded(time.monotonic() - 1)  # sent before the cut: it says nothing new
    assert pace.limit == 32
    for _ in range(33):
        pace.worked()
    assert pace.limit == 33
    for _ in range(20):
        pace.crowded(time.monotonic())
    assert pace.limit == 1


def test_seeds_are_folded_apart() -> None:
    seeds = [random.Random(n).getrandbits(63) for n in range(2000)]
    folded = [fold(seed) for seed in seeds]
    assert len(set(folded)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in folded)
