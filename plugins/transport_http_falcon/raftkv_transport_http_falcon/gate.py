"""Who may come in: the credential, the Host header, and browsers that act for another site.

    gate.check(fields, "PUT")      # raises Problem 401, 403 or 421

- With tokens, every request but the health checks names one (`Authorization: Bearer …`).
- A request that changes something and that a browser sent for another site (Origin, Sec-Fetch-Site) is refused:
  a page that somebody opens must not be able to write to a store on their machine.
- On a loopback listener without tokens, Host must be an address or a known name: a page whose name was pointed
  at 127.0.0.1 (DNS rebinding) could read otherwise.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import socket
from collections.abc import Collection, Mapping
from pathlib import Path
from time import monotonic
from typing import Final

from raftkv_core.addresses import Address
from raftkv_core.errors import ConfigError
from raftkv_transport_http_falcon.problems import Problem

__all__ = ["Gate", "TokenFile"]

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_HOSTS_REMEMBERED: Final = 1_000

_logger = logging.getLogger("raftkv.http")


class TokenFile:
    """Tokens, one a line; blank lines and lines that begin with # are nothing. Read again when it changes."""

    LOOK_AGAIN_S: Final = 1.0

    def __init__(self, path: Path) -> None:
        """Raises ConfigError if there is no token to be had."""
        self._path = path
        self._looked_at = monotonic()
        try:
            self._seen = self._stamp()
            self._tokens = self._read()
        except OSError as error:
            raise ConfigError(f"token file {path}: {error.strerror}; create it, with one token a line") from error
        if not self._tokens:
            raise ConfigError(f"token file {path} holds no token; write one token a line")

    def allows(self, token: bytes) -> bool:
        now = monotonic()
        if now - self._looked_at >= self.LOOK_AGAIN_S:
            self._looked_at = now
            self._look_again()
        # a sum compares with every token, so that time says nothing about which matched
        return sum(hmac.compare_digest(token, known) for known in self._tokens) > 0

    def _look_again(self) -> None:
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                self._tokens = self._read()
                self._seen = stamp
                _logger.info("token file %s was read again: %d tokens", self._path, len(self._tokens))
        except OSError as error:
            if self._tokens:
                _logger.error("token file %s: %s; nobody is let in until it is back", self._path, error.strerror)
            self._tokens = []
            self._seen = (0, 0, 0)

    def _stamp(self) -> tuple[int, int, int]:
        stat = self._path.stat()
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def _read(self) -> list[bytes]:
        lines = (line.strip() for line in self._path.read_bytes().splitlines())
        return [line for line in lines if line and not line.startswith(b"#")]


class Gate:
    """The rules of one listener."""

    def __init__(self, bind: str, *, token_file: str = "", hosts: Collection[str] = ()) -> None:
        """`hosts`: names that Host may have beside addresses, `localhost` and this machine's own."""
        self._tokens = TokenFile(Path(token_file)) if token_file else None
        address = Address.parse(bind)
        self._checks_host = self._tokens is None and address.is_loopback
        self._names = {name.lower() for name in (*hosts, address.host, socket.gethostname(), "localhost")}
        self._good_hosts: set[bytes] = set()

    def check(
        self, fields: Mapping[bytes, bytes], method: str, *, is_open: bool = False, is_safe: bool = True
    ) -> None:
        """`is_open`: no token is asked for on this route; `is_safe`: a GET changes nothing here."""
        if self._checks_host:
            host = fields.get(b"host", b"")
            if host not in self._good_hosts:
                self._check_host(host)
        if (method not in _SAFE or not is_safe) and (b"origin" in fields or b"sec-fetch-site" in fields):
            self._check_site(fields)
        if self._tokens is not None and not is_open:
            self._check_token(self._tokens, fields)

    def _check_host(self, host: bytes) -> None:
        name = _host_name(host.decode("latin-1"))
        if name and not (_is_address(name) or name in self._names or name.endswith(".localhost")):
            raise Problem(
                421,
                "unknown_host",
                f"this listener does not answer for the name {name!r}; use its address, or add the name to hosts",
            )
        if len(self._good_hosts) < _HOSTS_REMEMBERED:
            self._good_hosts.add(host)

    def _check_site(self, fields: Mapping[bytes, bytes]) -> None:
        site = fields.get(b"sec-fetch-site", b"same-origin")
        origin = fields.get(b"origin")
        authority = None if origin is None else origin.rpartition(b"://")[2].lower()
        if site not in (b"same-origin", b"none") or authority not in (None, fields.get(b"host", b"").lower()):
            raise Problem(
                403, "cross_origin", "a web page of another origin asked for this; only the store's own may"
            )

    def _check_token(self, tokens: TokenFile, fields: Mapping[bytes, bytes]) -> None:
        scheme, _, token = fields.get(b"authorization", b"").partition(b" ")
        if scheme.lower() != b"bearer" or not tokens.allows(token.strip()):
            raise Problem(
                401,
                "unauthorized",
                "this listener asks for a token: Authorization: Bearer TOKEN",
                headers={"www-authenticate": "Bearer"},
            )


def _host_name(host: str) -> str:
    """The name in a Host header, without port and brackets, in lower case."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdecimal() else host).rstrip(".").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
