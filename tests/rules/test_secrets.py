"""Credentials in text. The keys here are made up, with the forms that the services document."""

from __future__ import annotations

import random
import string

import pytest

from ojak.rules.secrets import find_secrets, redact

RNG = random.Random(0)


def made(alphabet: str, count: int) -> str:
    return "".join(RNG.choices(alphabet, k=count))


WORD = string.ascii_letters + string.digits
HEX = "0123456789abcdef"
KEYS = {
    "openai_key": [f"sk-{made(WORD, 48)}", f"sk-proj-{made(WORD, 60)}"],
    "anthropic_key": [f"sk-ant-api03-{made(WORD, 80)}"],
    "huggingface_token": [f"hf_{made(string.ascii_letters, 34)}"],
    "github_token": [f"ghp_{made(WORD, 36)}", f"github_pat_{made(WORD, 22)}_{made(WORD, 59)}"],
    "gitlab_token": [f"glpat-{made(WORD, 20)}"],
    "aws_access_key": [f"AKIA{made(string.ascii_uppercase, 16)}"],
    "google_key": [f"AIza{made(WORD, 35)}"],
    "slack_token": [f"xoxb-{made(string.digits, 12)}-{made(WORD, 24)}"],
    "slack_webhook": [f"hooks.slack.com/services/T{made(WORD, 8)}/B{made(WORD, 8)}/{made(WORD, 24)}"],
    "stripe_key": [f"sk_live_{made(WORD, 24)}", f"rk_test_{made(WORD, 24)}"],
    "npm_token": [f"npm_{made(WORD, 36)}"],
    "pypi_token": [f"pypi-AgEIcHlwaS5vcmc{made(WORD, 80)}"],
    "sendgrid_key": [f"SG.{made(WORD, 22)}.{made(WORD, 43)}"],
    "telegram_token": [f"{made(string.digits[1:], 10)}:AA{made(WORD, 33)}"],
    "databricks_token": [f"dapi{made(HEX, 32)}"],
    "jwt": [f"eyJ{made(WORD, 20)}.eyJ{made(WORD, 60)}.{made(WORD, 43)}"],
}
CASES = [(kind, key) for kind, keys in KEYS.items() for key in keys]
HARMLESS = [
    "Set your api_key = 'YOUR_API_KEY_HERE' first.",
    'token: "<your token>"',
    "password = os.environ['DB_PASSWORD']",
    'api_key="${API_KEY}"',
    'secret_key = "xxxxxxxxxxxxxxxxxxxxxxxx"',
    "The secret: honesty, patience, and kindness.",
    "tokens = tokenizer.encode(text)",
    "https://example.com:8080/path?x=1",
    "git@github.com:org/repo.git",
    "A risk-free, task-oriented desk-side approach to ask-anything sessions",
    "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
    "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----",
    "sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "uuid 123e4567-e89b-12d3-a456-426614174000",
    "password: correct horse battery staple",
]


def found_texts(text: str) -> list[tuple[str, str]]:
    return [(found.kind, text[found.start : found.end]) for found in find_secrets(text)]


@pytest.mark.parametrize(("kind", "key"), CASES, ids=[kind for kind, _ in CASES])
def test_a_key_is_found_wherever_it_stands(kind: str, key: str) -> None:
    for text in (key, f"My key is {key}.", f'{{"key":"{key}"}}', f"export KEY={key}\nls", f"`{key}`"):
        assert [key in (each, each.removesuffix(".")) for _, each in found_texts(text)] == [True], text
    assert found_texts(key)[0][0] == kind


@pytest.mark.parametrize("form", ["", "RSA ", "EC ", "OPENSSH ", "ENCRYPTED "])
def test_a_private_key_is_found_as_a_whole(form: str) -> None:
    lines = "\n".join(made(WORD + "+/", 64) for _ in range(20))
    key = f"-----BEGIN {form}PRIVATE KEY-----\n{lines}\n-----END {form}PRIVATE KEY-----"
    assert found_texts(f"Here:\n{key}\nDone.") == [("private_key", key)]
    cut = key[:200]
    assert [kind for kind, _ in found_texts(cut)] == ["private_key"]


def test_a_password_in_an_address_is_found() -> None:
    text = "postgres://admin:hunter2x9@db.internal:5432/app"
    assert found_texts(text) == [("url_password", "hunter2x9")]
    assert redact(text) == "postgres://admin:[url_password]@db.internal:5432/app"


@pytest.mark.parametrize(
    "line",
    ['api_key = "{}"', "SECRET_KEY: '{}'", "db_password={}\n", '"accessKey": "{}",', "auth-token => `{}`"],
)
def test_a_random_value_of_a_setting_is_found(line: str) -> None:
    value = "f3Kq9ZtW1bXe7RmYp2Ls"
    assert found_texts(line.format(value)) == [("setting", value)]


@pytest.mark.parametrize("text", HARMLESS)
def test_what_is_no_secret_is_left(text: str) -> None:
    assert found_texts(text) == []


def test_a_finding_does_not_hold_the_secret() -> None:
    key = KEYS["openai_key"][0]
    assert key not in repr(find_secrets(f"x {key}"))
    assert redact(f"x {key} y") == "x [openai_key] y"
