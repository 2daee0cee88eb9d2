"""Where an endpoint is: its address, read from what a person wrote, and the machines that are never asked."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from ojak.errors import UsageError

PORTS = {"http": 80, "https": 443}
# What people copy along with the address: the routes are found by the program.
ROUTE = re.compile(
    r"(/v1)?(/(chat/)?completions|/models)?/*$|/api(/(generate|chat|tags|version))?/*$|/completion/*$"
)
HOST = re.compile(r"[a-z0-9]([a-z0-9._-]{0,251}[a-z0-9])?\.?|[0-9a-f:.]{2,45}")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")  # of the environment, in which a key may be
USERINFO = re.compile(r"(?<=//)[^/?#]*@")
# Where clouds hand out their machines' credentials, beside the link-local 169.254.169.254.
METADATA = frozenset({"fd00:ec2::254", "100.100.100.200", "192.0.0.192", "168.63.129.16"})
NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Address:
    """An endpoint's scheme, host, port, and the path before its routes ("" or "/openai")."""

    scheme: str
    host: str
    port: int
    path: str = ""

    @property
    def netloc(self) -> str:
        """Host and port as a Host header has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.netloc}"

    @property
    def url(self) -> str:
        return self.origin + self.path

    @property
    def is_loopback(self) -> bool:
        """Whether it is on this machine, told by its name alone."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def without_userinfo(url: str) -> str:
    """The address without a name and a password in it, and without query and fragment: what may be shown and kept."""
    return USERINFO.sub("", url.strip().partition("#")[0].partition("?")[0])


def parse_address(url: str) -> Address:
    """Reads an address; a name and password in it, a query and a route at its end are left out.

    Raises UsageError for another scheme than http or https, for what is no address, and for addresses that are blocked.
    """
    shown = without_userinfo(url)
    parts = _split(shown)
    host = _host(parts, shown)
    if is_blocked(host):
        raise UsageError(
            f"{shown[:200]!r} is not asked",
            why="link-local and metadata addresses hand out credentials of machines",
        )
    port = parts.port
    assert parts.scheme in PORTS
    path = ROUTE.sub("", parts.path).rstrip("/")
    return Address(parts.scheme, host, PORTS[parts.scheme] if port is None else port, path)


def _split(shown: str) -> SplitResult:
    try:
        parts = urlsplit(shown)
        fine = parts.scheme in PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, brackets that do not close
        fine, parts = False, urlsplit("")
    if not fine or not shown.isascii() or re.search(r"[\s\x00-\x20\x7f\\]", shown):
        raise UsageError(
            f"{shown[:200]!r} is no address of an endpoint", fix="write http://HOST:PORT or https://HOST"
        )
    return parts


def _host(parts: SplitResult, shown: str) -> str:
    host = (parts.hostname or "").lower()
    if not HOST.fullmatch(host):
        raise UsageError(
            f"{shown[:200]!r} has no usable host name", fix="write http://HOST:PORT or https://HOST"
        )
    return host


def is_blocked(host: str) -> bool:
    """Whether `host` is a numeric address that is never asked: link-local, multicast or one of `METADATA`."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_blocked(str(inner))
    return address.is_link_local or address.is_multicast or str(address) in METADATA
