"""A small HTTP client for the commands, on the standard library: it starts quicker than any other.

    with Client(Target("http://127.0.0.1:8080")) as client:
        reply = client.request("GET", "/v1/kv/a")

Whatever goes wrong is raised as one of `raftkv_core.errors`, so that exit codes say what became of the data.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote_from_bytes, urlsplit

import msgspec

from raftkv_core import errors
from raftkv_core.errors import (
    ConfigError,
    InvalidRequest,
    OutcomeUnknown,
    RaftkvError,
    Refused,
    RequestError,
    Unavailable,
)

__all__ = ["Client", "KeyNotFound", "Reply", "Target", "key_path"]

_SAFE: Final = frozenset({"GET", "HEAD"})


class KeyNotFound(Refused):
    """There is no such key."""

    code = "key_not_found"


@dataclass(frozen=True)
class Target:
    """Where to send requests, and with which credentials."""

    url: str
    token_file: Path | None = None
    ca_file: Path | None = None
    """Certificates (PEM) to trust instead of the system's."""
    timeout_s: float = 10.0


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


def key_path(key: bytes) -> str:
    return "/v1/kv/" + quote_from_bytes(key, safe="")


class Client:
    """One connection, made when it is needed."""

    def __init__(self, target: Target) -> None:
        """Raises ConfigError for a URL or a file that cannot be used."""
        self._url = target.url.rstrip("/")
        self._connection = _connection(self._url, target)
        self._headers = {"accept": "application/json"}
        if target.token_file is not None:
            self._headers["authorization"] = f"Bearer {_token(target.token_file)}"

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """A reply below 300. Raises KeyNotFound, or what the node's problem document says."""
        if self._connection.sock is None:
            try:
                self._connection.connect()
            except OSError as error:
                raise Unavailable(
                    f"nothing answers at {self._url} ({error}); start a node with `raftkv up`, or name one with --url"
                ) from error
        try:
            self._connection.request(method, path, body, {**self._headers, **(headers or {})})
            response = self._connection.getresponse()
            reply = Reply(
                response.status, {name.lower(): text for name, text in response.getheaders()}, response.read()
            )
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            what = f"{self._url} did not answer ({error or type(error).__name__})"
            if method in _SAFE:
                raise Unavailable(f"{what}; try again") from error
            raise OutcomeUnknown(f"{what}; the change may have been made, look before you make it again") from error
        if reply.status < 300:
            return reply
        raise _error(reply, self._url)

    def document(self, path: str, accept: str = "application/json") -> Any:
        """A JSON or msgpack document."""
        reply = self.request("GET", path, headers={"accept": accept})
        decode = msgspec.msgpack.decode if accept.endswith("msgpack") else msgspec.json.decode
        try:
            return decode(reply.body)
        except msgspec.DecodeError as error:
            raise _no_node(self._url, reply) from error


def _connection(url: str, target: Target) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = 0
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or parts.path or parts.query:
        raise ConfigError(f"expected a URL like http://127.0.0.1:8080, not {url!r}")
    if parts.scheme == "http":
        return http.client.HTTPConnection(parts.hostname, port, timeout=target.timeout_s)
    try:
        context = ssl.create_default_context(cafile=target.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{target.ca_file}: {error}; expected certificates in PEM form") from error
    return http.client.HTTPSConnection(parts.hostname, port, timeout=target.timeout_s, context=context)


def _token(path: Path) -> str:
    try:
        lines = [line.strip() for line in path.read_text("ascii").splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"token file {path}: {error}") from error
    tokens = [line for line in lines if line and not line.startswith("#")]
    if not tokens:
        raise ConfigError(f"token file {path} holds no token")
    return tokens[0]


def _error(reply: Reply, url: str) -> RaftkvError:
    """The problem that a node reported, as the error that its store raised."""
    try:
        problem = msgspec.json.decode(reply.body)
        code, detail, outcome = str(problem["code"]), str(problem["detail"]), problem["outcome"]
        retryable = bool(problem["retryable"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return _no_node(url, reply)
    if code == KeyNotFound.code:
        return KeyNotFound(detail)
    kind: type[RequestError] = Refused
    if outcome == "unknown":
        kind = OutcomeUnknown
    elif reply.status in _KINDS:
        kind = _KINDS[reply.status]
    return kind(detail, code=code, retryable=retryable)


_KINDS: Final[Mapping[int, type[RequestError]]] = {
    **dict.fromkeys((400, 401, 403, 404, 405, 406, 413, 415, 421, 431), InvalidRequest),
    408: Unavailable,
    410: errors.Compacted,
    429: errors.Overloaded,
    503: Unavailable,
    507: errors.NoSpace,
}


def _no_node(url: str, reply: Reply) -> RaftkvError:
    return RaftkvError(f"{url} does not answer like a RaftKV node (HTTP {reply.status}); check --url")
