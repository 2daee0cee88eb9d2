"""HTTP to one origin, from a thread of its own: deadlines, caps on what comes back, no redirects, no proxies.

Every failure leaves here as a `Trouble` in words of our own: no header, no key and no exception of the HTTP library
goes further.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
import zlib
from collections.abc import Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx2
import orjson

from ojak.engines.endpoint_key import Key
from ojak.engines.endpoint_retry import Policy, Trouble, read_retry_after
from ojak.engines.endpoint_url import Address, is_blocked

RESOLVE_EVERY_S = 60.0
SHOWN = 200  # characters of a server's own words in a message of ours
DENIED = frozenset({401, 402, 403, 404, 405, 501})
BROKEN = frozenset({408, 409, 425})
CROWDED = frozenset({429, 502, 503, 504, 529})
CLOSE_S = 5.0
GZIP_OR_ZLIB = 47  # zlib finds out which of the two it is

T = TypeVar("T")


class Wire:
    """A context manager: inside it, `run` and `submit` work on coroutines such as `ask` in the wire's thread."""

    def __init__(self, address: Address, key: Key, policy: Policy) -> None:
        self.address, self.key, self.policy = address, key, policy
        self.attempts = 0
        self._resolved: tuple[float, list[str]] = (0.0, [])

    def __enter__(self) -> Self:
        _hush()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ojak-endpoint", daemon=True)
        self._thread.start()
        self._client = self.run(self._open())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.run(self._close())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, waited for."""
        future = self.submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON that the server answers: to a POST of `body`, to a GET where there is none. Raises Trouble."""
        self.attempts += 1
        try:
            async with asyncio.timeout(self.policy.total_s):
                status, headers, content = await self._exchange(path, body)
        except (TimeoutError, httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, OSError) as error:
            trouble = self._broken(error)
        else:
            return self._read(status, headers, content)
        raise trouble  # out here, so that it does not carry the library's error, which holds the request and its key

    def _broken(self, error: Exception) -> Trouble:
        """What went wrong on the way, in our words."""
        match error:
            case httpx2.ConnectTimeout():
                return Trouble("broken", f"no connection within {self.policy.connect_s:g} s", crowds=True)
            case httpx2.TimeoutException():
                return Trouble("slow", f"nothing came for {self.policy.read_s:g} s", crowds=True)
            case httpx2.ConnectError():
                return Trouble("broken", "the connection was refused or failed", crowds=True)
            case TimeoutError():
                return Trouble("slow", f"no whole answer within {self.policy.total_s:g} s", crowds=True)
            case _:
                return Trouble("broken", f"the connection broke ({type(error).__name__})")

    async def _open(self) -> httpx2.AsyncClient:
        policy = self.policy
        timeout = httpx2.Timeout(policy.read_s, connect=policy.connect_s, pool=None)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=policy.most)
        # trust_env off: no proxy sees the prompts, and no .netrc adds a password.
        return httpx2.AsyncClient(timeout=timeout, limits=limits, follow_redirects=False, trust_env=False)

    async def _close(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), CLOSE_S)
        await self._client.aclose()
        await self._loop.shutdown_asyncgens()

    async def _exchange(self, path: str, body: dict[str, Any] | None) -> tuple[int, httpx2.Headers, bytes]:
        """One request to the first of the host's machines that can be connected to."""
        places = await self._places()
        for place in places[:-1]:
            try:
                return await self._attempt(place, path, body)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                continue
        return await self._attempt(places[-1], path, body)

    async def _attempt(
        self, place: str, path: str, body: dict[str, Any] | None
    ) -> tuple[int, httpx2.Headers, bytes]:
        """The connection goes to the very address that was checked, so that the name cannot point elsewhere by then."""
        address = self.address
        netloc = Address(address.scheme, place, address.port).netloc
        request = self._client.build_request(
            "GET" if body is None else "POST",
            f"{address.scheme}://{netloc}{address.path}{path}",
            content=None if body is None else orjson.dumps(body),
            headers={
                "host": address.netloc,
                "accept": "application/json",
                "accept-encoding": "identity",
                "user-agent": "ojak",
                **({} if body is None else {"content-type": "application/json"}),
                **self.key.headers,
            },
            extensions={"sni_hostname": address.host},
        )
        response = await self._client.send(request, stream=True)
        try:
            return response.status_code, response.headers, await self._content(response)
        finally:
            await response.aclose()

    async def _places(self) -> list[str]:
        """The host's numeric addresses, none of them blocked; looked up anew every minute."""
        host = self.address.host
        looked_up, places = self._resolved
        if places and time.monotonic() - looked_up < RESOLVE_EVERY_S:
            return places
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host, self.address.port, type=socket.SOCK_STREAM
            )
        except (OSError, UnicodeError):
            raise Trouble("broken", f"the name {host} cannot be resolved") from None
        places = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if not places or any(is_blocked(place) for place in places):
            raise Trouble("denied", f"{host} leads to a link-local or metadata address, which is never asked")
        self._resolved = time.monotonic(), places
        return places

    async def _content(self, response: httpx2.Response) -> bytes:
        """The body, unpacked if it is packed; neither form may be larger than the policy's cap."""
        cap = self.policy.reply_bytes
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", "deflate"):
            raise Trouble("broken", "an answer in an encoding that was not asked for")
        unpack = None if encoding == "identity" else zlib.decompressobj(GZIP_OR_ZLIB)
        received, content = 0, bytearray()
        async for piece in response.aiter_raw():
            received += len(piece)
            try:
                content += piece if unpack is None else unpack.decompress(piece, cap + 1 - len(content))
            except zlib.error:
                raise Trouble("broken", "an answer that cannot be unpacked") from None
            if max(received, len(content)) > cap:
                raise Trouble("final", f"an answer of more than {cap:,} bytes")
        if unpack is not None and not unpack.eof:
            raise Trouble("broken", "an answer that ends early")
        return bytes(content)

    def _read(self, status: int, headers: httpx2.Headers, content: bytes) -> Any:
        if status != httpx2.codes.OK:
            raise self._trouble(status, headers, content)
        if "json" not in headers.get("content-type", "").lower():
            raise Trouble("broken", "an answer that is not JSON by its content type")
        try:
            found = self.key.redact(content)
        except (ValueError, TypeError):  # not JSON, or nested without end
            raise Trouble("broken", "an answer that is not JSON") from None
        if isinstance(found, dict) and found.get("error"):
            raise Trouble("broken", f"an answer that says: {self._words(found)}")
        return found

    def _trouble(self, status: int, headers: httpx2.Headers, content: bytes) -> Trouble:
        try:
            words = self._words(self.key.redact(content))
        except (ValueError, TypeError):
            words = ""
        what = f"HTTP {status}" + (f" ({words})" if words else "")
        if 300 <= status < 400:
            return Trouble("denied", f"{what}, a redirect; none is followed", status=status)
        if status in DENIED:
            withheld = f"; {self.key.withheld}" if self.key.withheld else ""
            return Trouble("denied", what + withheld, status=status)
        retry_after_s = read_retry_after(headers.get("retry-after"))
        crowds = status in CROWDED
        if status == 429:
            return Trouble("busy", what, status=status, retry_after_s=retry_after_s, crowds=crowds)
        if status >= 500 or status in BROKEN:
            return Trouble("broken", what, status=status, retry_after_s=retry_after_s, crowds=crowds)
        return Trouble("final", what, status=status)

    @staticmethod
    def _words(found: Any) -> str:
        """The server's own message, short, on one line."""
        error = (
            found.get("error", found.get("message", found.get("detail"))) if isinstance(found, dict) else None
        )
        text = error.get("message") if isinstance(error, dict) else error
        if not isinstance(text, str):
            return ""
        plain = "".join(c if c.isprintable() else " " for c in text)
        return " ".join(plain.split())[:SHOWN]


def _hush() -> None:
    """Keeps the HTTP library from logging headers, which a server may fill with the key that it was sent."""
    for name in ("httpcore2", "httpx2"):
        logger = logging.getLogger(name)
        if logger.getEffectiveLevel() < logging.INFO:
            logger.setLevel(logging.INFO)
