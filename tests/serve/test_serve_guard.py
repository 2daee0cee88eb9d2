"""Hostile requests: other hosts, web pages, wrong keys, bodies that are too large, too deep, too slow, or no JSON."""

from __future__ import annotations

import itertools
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from serving import Running, until

from ojak.errors import UsageError
from ojak.model.load import Model
from ojak.serve import guard
from ojak.serve import server as server_module
from ojak.serve.guard import MOST_BODY_BYTES, MOST_DEPTH, checked_key, depth_exceeds

KEY = "sk-canary-12345"
ROUTES = [
    ("GET", "/health"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tiny"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
]
SMALL = {"model": "tiny", "prompt": "a", "max_tokens": 1, "messages": [{"role": "user", "content": "a"}]}


def body_of(path: str) -> dict[str, Any] | None:
    """The smallest request that a route serves."""
    unwanted = {"/v1/completions": "messages", "/v1/chat/completions": "prompt"}.get(path)
    return {k: v for k, v in SMALL.items() if k != unwanted} if unwanted else None


def test_the_list_of_routes_is_whole(server: Running) -> None:
    guarded: Any = server.service.config.app
    routes = guarded.app.routes
    assert {route.path.replace("{name:path}", "tiny") for route in routes} == {path for _, path in ROUTES}


def raw(running: Running, text: str, seconds: float = 20.0) -> str:
    """What comes back for bytes sent as they are; the connection is left open by us."""
    with socket.create_connection(("127.0.0.1", running.port), timeout=seconds) as connection:
        connection.sendall(text.replace("\n", "\r\n").encode("latin-1"))
        pieces = []
        while piece := connection.recv(65536):
            pieces.append(piece)
            if b"\r\n\r\n" in piece:
                break
    return b"".join(pieces).decode("latin-1")


# -- who asks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_answers_to_its_own_name_only(server: Running, method: str, path: str) -> None:
    good = [f"127.0.0.1:{server.port}", f"localhost:{server.port}", f"LOCALHOST:{server.port}"]
    bad = [
        "evil.com", f"evil.com:{server.port}", f"127.0.0.1.evil.com:{server.port}", "localhost", "127.0.0.1",
        "localhost:1", f"[::1]:{server.port}", f"localhost.:{server.port}", f"127.1:{server.port}", "",
        f"user@127.0.0.1:{server.port}", f"0.0.0.0:{server.port}",
    ]  # fmt: skip
    for host in good:
        assert server.ask(method, path, body_of(path), {"Host": host})[0] == 200
    for host in bad:
        status, headers, body = server.ask(method, path, body_of(path), {"Host": host})
        assert (status, body["error"]["code"]) == (421, "wrong_host"), host
        assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize("hosts", [[], ["Host: 127.0.0.1:{p}", "Host: evil.com"]])
def test_one_host_must_be_given(server: Running, hosts: list[str]) -> None:
    lines = "".join(f"{host.format(p=server.port)}\n" for host in hosts)
    for version in ("1.0", "1.1"):
        assert raw(server, f"GET /v1/models HTTP/{version}\n{lines}\n").split()[1] in ("400", "421")


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_web_pages_are_refused(server: Running, method: str, path: str) -> None:
    own = f"http://127.0.0.1:{server.port}"
    foreign: list[dict[str, str]] = [
        {"Origin": "null"}, {"Origin": "http://evil.com"}, {"Origin": f"https://127.0.0.1:{server.port}"},
        {"Origin": f"{own}.evil.com"}, {"Origin": "http://localhost:1"}, {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"},
        {"Origin": own, "Sec-Fetch-Site": "cross-site"},
    ]  # fmt: skip
    for headers in foreign:
        status, told, body = server.ask(method, path, body_of(path), headers)
        assert (status, body["error"]["code"]) == (403, "foreign_origin"), headers
        assert not [name for name in told if name.startswith("access-control")]
    for headers in ({"Origin": own}, {"Sec-Fetch-Site": "none"}, {"Sec-Fetch-Site": "same-origin"}):
        assert server.ask(method, path, body_of(path), headers)[0] == 200


def test_no_page_is_told_that_it_may_ask(server: Running) -> None:
    for _, path in ROUTES:
        status, headers, _ = server.ask("OPTIONS", path, headers={"Access-Control-Request-Method": "POST"})
        assert status == 405
        assert not [name for name in headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_what_a_page_can_send_unasked_is_no_body(server: Running, kind: str) -> None:
    raw_body = json.dumps(body_of("/v1/completions")).encode()
    status, _, body = server.ask("POST", "/v1/completions", raw_body, {"Content-Type": kind})
    assert (status, body["error"]["type"]) == (415, "invalid_request_error")
    fine = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert server.ask("POST", "/v1/completions", raw_body, fine)[0] == 200
    packed = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    assert server.ask("POST", "/v1/completions", raw_body, packed)[0] == 415


# -- keys ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def locked(model: Model) -> Iterator[Running]:
    with Running(model, key=KEY) as running:
        yield running


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_wants_the_key(locked: Running, method: str, path: str) -> None:
    for value in (
        None,
        "",
        KEY,
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        "Bearer ",
        "Bearer é",
        f"Basic {KEY}",
    ):
        headers = {} if value is None else {"Authorization": value}
        status, told, body = locked.ask(method, path, body_of(path), headers)
        assert (status, body["error"]["code"]) == (401, "invalid_api_key"), value
        assert told["www-authenticate"] == "Bearer"
        assert KEY not in json.dumps(body)
    assert locked.ask(method, path, body_of(path), {"Authorization": f"Bearer {KEY}"})[0] == 200


def test_the_client_sends_the_key(locked: Running) -> None:
    assert locked.client(api_key=KEY).completions.create(model="tiny", prompt="a").choices
    with pytest.raises(openai.AuthenticationError):
        locked.client().models.list()


def test_an_unknown_path_is_guarded_too(locked: Running) -> None:
    assert locked.ask("GET", "/nowhere")[0] == 401
    assert locked.ask("GET", "/nowhere", headers={"Authorization": f"Bearer {KEY}"})[0] == 404


@pytest.mark.parametrize("key", ["", " ", "a b", "a\n", "é", "\x7f"])
def test_a_key_that_no_header_can_carry(key: str) -> None:
    with pytest.raises(UsageError, match="OJAK_SERVE_KEY"):
        checked_key(key)


def test_keys_that_can_be_used() -> None:
    assert checked_key("sk-1") == "sk-1"
    assert checked_key(None) is None


# -- bodies -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [b"", b"{", b"[]", b'"a"', b"null", b"\xff{}", b'{"prompt": NaN}', b'{"a": "\\ud800"}', b"[" * 100_000],
    ids=lambda sent: str(sent[:12]),
)
def test_what_is_no_json_object(server: Running, sent: bytes) -> None:
    status, _, body = server.ask("POST", "/v1/completions", sent, {"Content-Type": "application/json"})
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    assert set(body["error"]) == {"message", "type", "param", "code"}


def test_depth_is_counted() -> None:
    def nested(depth: int) -> Any:
        return {} if depth == 1 else {"a": 1, "b": [nested(depth - 2)]} if depth > 2 else [{}]

    for depth in (1, 2, 3, 4, 7):
        value = nested(depth)
        assert not depth_exceeds(value, depth)
        assert depth_exceeds(value, depth - 1)


def test_a_body_that_is_too_deep(server: Running) -> None:
    for depth, wanted in ((MOST_DEPTH - 1, "unknown parameter"), (MOST_DEPTH, "levels deep")):
        text = '{"prompt": "a", "zzz": ' + "[" * depth + "]" * depth + "}"
        status, _, body = server.ask(
            "POST", "/v1/completions", text.encode(), {"Content-Type": "application/json"}
        )
        assert status == 400
        assert wanted in body["error"]["message"]


def test_a_body_that_is_too_large(server: Running) -> None:
    head = {"Content-Type": "application/json"}
    exact = b'{"prompt": "' + b"a" * (MOST_BODY_BYTES - 14) + b'"}'
    assert len(exact) == MOST_BODY_BYTES
    assert server.ask("POST", "/v1/completions", exact, head)[2]["error"]["code"] == "context_length_exceeded"
    status, _, body = server.ask("POST", "/v1/completions", exact + b" ", head)
    assert (status, body["error"]["code"]) == (413, "body_too_large")
    pieces = (exact[i : i + 65536] for i in itertools.chain(range(0, len(exact), 65536), range(2)))
    status, _, body = server.ask("POST", "/v1/completions", pieces, head)  # chunked: its length is not told
    assert (status, body["error"]["code"]) == (413, "body_too_large")


def test_a_body_that_does_not_come(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
    head = f"Host: 127.0.0.1:{server.port}\nContent-Type: application/json\nContent-Length: 50\n"
    assert raw(server, f'POST /v1/completions HTTP/1.1\n{head}\n{{"a":').split()[1] == "408"
    assert server.ask("GET", "/health")[0] == 200


# -- connections --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", ["", "GET /v1/models HT", "GET /v1/models HTTP/1.1\nHost: 127.0"])
def test_a_head_that_does_not_come(server: Running, sent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HEADER_SECONDS", 0.3)
    begin = time.monotonic()
    try:
        assert raw(server, sent) == ""
    except ConnectionError:
        pass
    assert 0.2 < time.monotonic() - begin < 10


def test_after_an_answer_patience_is_as_short(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HEADER_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(f"GET /health HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n\r\n".encode())
        answer = b""
        while not answer.endswith(b"}"):  # head and body may come apart
            answer += connection.recv(65536)
        assert b"200 OK" in answer
        connection.sendall(b"GET /hea")  # a second request that never ends
        try:
            assert connection.recv(65536) == b""
        except ConnectionError:
            pass


def test_heads_have_a_size(server: Running) -> None:
    head = f"GET /health HTTP/1.1\nHost: 127.0.0.1:{server.port}\nX-Long: "
    assert raw(server, f"{head}{'a' * 1000}\n\n").split()[1] == "200"
    for size in (17_000, 100_000, 1_000_000):
        try:
            assert raw(server, f"{head}{'a' * size}\n\n").split()[1] in ("400", "431")
        except ConnectionError:
            pass
    target = f"/v1/models/{'a' * 17_000}"
    assert raw(server, f"GET {target} HTTP/1.1\nHost: 127.0.0.1:{server.port}\n\n").split()[1] in (
        "400",
        "431",
    )


@pytest.mark.parametrize(
    "sent", ["\n\n\n", "GET\n\n", "GET / HTTP/9.9\n\n", "\x00\x01\n\n", "GET /\x80 HTTP/1.1\n\n"], ids=repr
)
def test_what_is_no_http(server: Running, sent: str) -> None:
    try:
        assert raw(server, sent, 2.0).split()[1:2] in (["400"], ["421"], [])
    except (ConnectionError, TimeoutError):
        pass
    assert server.ask("GET", "/health")[0] == 200


def test_connections_have_a_number(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MOST_CONNECTIONS", 3)
    with Running(model) as running:
        held = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(3)]
        until(lambda: len(running.service.server_state.connections) == 3)
        with pytest.raises(ConnectionError):
            running.ask("GET", "/health")
        for each in held:
            each.close()
        until(lambda: not running.service.server_state.connections)
        assert running.ask("GET", "/health")[0] == 200


def test_websockets_are_not_spoken(server: Running) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "a",
        "Sec-WebSocket-Version": "13",
    }
    assert (
        server.ask("GET", "/v1/models", headers=upgrade)[0] == 200
    )  # an ordinary answer: the wish is ignored


def test_paths_that_are_not_there(server: Running) -> None:
    for path in (
        "/",
        "/v1",
        "/v1/",
        "/v1/models/",
        "/v1/chat",
        "/v1/models/..%2f",
        "/v1/../health",
        "/V1/models",
    ):
        status, headers, body = server.ask("GET", path)
        assert status == 404, path
        assert body["error"]["code"] in ("unknown_url", "model_not_found")
        assert headers["x-content-type-options"] == "nosniff"
    assert server.ask("GET", "/v1/completions")[0] == 405
    assert server.ask("DELETE", "/v1/models")[0] == 405
