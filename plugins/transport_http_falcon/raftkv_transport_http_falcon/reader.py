"""From bytes to whole HTTP/1.1 requests, with every limit on the way.

    reader.feed(data)      # calls back with each request that is whole; raises Problem for what cannot be read

llhttp, inside httptools, is strict: doubled, negative or huge Content-Length, both it and Transfer-Encoding,
bare line feeds and the like are refused there. Limits on size, number and time are held here. A reader is in one
of these phases, each with its own deadline:

    IDLE    between requests (keepalive_s; before the first one header_timeout_s)
    HEAD    in a request line or headers (header_timeout_s)
    BODY    in a body (body_timeout_s)
    READY   a request is whole and being answered (deadlines are the application's)
    DEAF    nothing more is read
"""

from __future__ import annotations

import asyncio
import logging
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import unquote

import httptools

from raftkv_transport_http_falcon.exchange import Scope
from raftkv_transport_http_falcon.problems import Problem

if TYPE_CHECKING:
    from raftkv_transport_http_falcon.hub import Hub

__all__ = ["Phase", "Reader", "Receiver"]

_READ_BYTES: Final = 256 << 10
"""The most that one read brings; a head is bounded exactly once it is whole, and before by this much more."""
_WIRE_FACTOR: Final = 8
"""Chunks of one byte cost six on the wire; more overhead than this is abuse."""
_HOP_BY_HOP: Final = frozenset({b"connection", b"upgrade", b"http2-settings"})
_SPECIAL: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})

_logger = logging.getLogger("raftkv.http")


class Phase(IntEnum):
    """See the module."""

    IDLE = 0
    HEAD = 1
    BODY = 2
    READY = 3
    DEAF = 4


IDLE, HEAD, BODY, READY, DEAF = Phase


class Receiver(Protocol):
    """What a reader calls."""

    def take(self, scope: Scope, body: bytes, *, keep_alive: bool, reserved: int) -> None:
        """A request is whole. `reserved`: what its body counts for in `Hub.bodies_bytes`, the taker's from now on."""

    def go_on(self) -> None:
        """The client waits for `100 Continue` before it sends the body."""


class Reader:
    """The reading half of a connection. `phase` and `deadline` (loop time, 0 for none) are its owner's to look at,
    and to set when a request was answered."""

    __slots__ = (
        "_base_scope",
        "_body",
        "_body_bytes",
        "_chunked",
        "_content_length",
        "_expect",
        "_fields",
        "_head_bytes",
        "_hosts",
        "_hub",
        "_keep_alive",
        "_limits",
        "_loop",
        "_parser",
        "_read_bytes",
        "_receiver",
        "_scope",
        "_target",
        "_upgrading",
        "_wire_bytes",
        "deadline",
        "phase",
        "reserved",
    )

    def __init__(self, receiver: Receiver, hub: Hub, loop: asyncio.AbstractEventLoop, base_scope: Scope) -> None:
        """`base_scope`: what the scope of each request begins with."""
        self._receiver = receiver
        self._hub = hub
        self._limits = hub.limits
        self._loop = loop
        self._base_scope = base_scope
        self._parser: Any = httptools.HttpRequestParser(self)
        self.phase = IDLE
        self.deadline = loop.time() + self._limits.header_timeout_s
        self.reserved = 0
        """Of the body that is being read."""

    def close(self) -> None:
        """Nothing is fed any more; parser and reader let go of each other."""
        self.phase = DEAF
        self._parser = None

    def feed(self, data: bytes) -> None:
        """Take what was received. Raises Problem; afterwards the connection cannot be read any further."""
        self._read_bytes = len(data)
        self._parse(data)
        if self.phase == HEAD:
            self._head_bytes += self._read_bytes
            if self._head_bytes > self._limits.header_bytes_max + _READ_BYTES:
                raise self._header_too_large()
            if not self.deadline:
                self.deadline = self._loop.time() + self._limits.header_timeout_s
        elif self.phase == BODY:
            self._wire_bytes += len(data)
            if self._wire_bytes > _WIRE_FACTOR * self._limits.body_bytes_max:
                raise self._body_too_large()
            if not self.deadline:
                self.deadline = self._loop.time() + self._limits.body_timeout_s

    def too_slow(self) -> Problem:
        """What to say when the deadline of a head or a body has passed."""
        if self.phase == HEAD:
            code, seconds = "header_timeout", self._limits.header_timeout_s
        else:
            code, seconds = "body_timeout", self._limits.body_timeout_s
        return Problem(408, code, f"the request did not arrive within {seconds:g} s", retryable=True)

    def _parse(self, data: bytes) -> None:
        """What the parser makes of it comes back as calls of the `on_` methods."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if isinstance(cause, Problem):
                raise cause from None
            _logger.error("a request could not be taken", exc_info=cause)
            raise Problem(500, "internal_error", "the request could not be taken; see the node's log") from cause
        except httptools.HttpParserError as error:
            if self.phase != DEAF:  # bytes after a request that closes are nobody's
                raise Problem(400, "malformed_request", f"this is not a valid HTTP/1.1 request: {error}") from error

    # called by the parser

    def on_message_begin(self) -> None:
        if self.phase == DEAF:  # the owner drops this: the last request was taken
            raise Problem(400, "connection_closing", "nothing is read after the request that closes")
        self.phase = HEAD
        self.deadline = 0.0
        self._head_bytes = 0
        self._wire_bytes = 0
        self._hosts = 0
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._content_length = 0
        self._chunked = False
        self._expect = False
        self._upgrading = False
        self._body: bytes | bytearray = b""
        self._body_bytes = 0

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.phase != HEAD:
            return  # a trailer; its bytes are counted with the body's
        name = name.lower()
        self._fields.append((name, value))
        if name in _SPECIAL:
            self._on_special(name, value)

    def _on_special(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            self._hosts += 1
        elif name == b"content-length":
            self._content_length = int(value)
        elif name == b"transfer-encoding":
            if value.lower() != b"chunked":
                raise Problem(501, "transfer_encoding", "the only Transfer-Encoding understood is chunked")
            self._chunked = True
        elif value.lower() == b"100-continue":
            self._expect = self._parser.get_http_version() == "1.1"
        else:
            raise Problem(417, "expectation_failed", "the only expectation met is 100-continue")

    def on_headers_complete(self) -> None:
        self._check_head()
        parser = self._parser
        method = parser.get_method()
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise Problem(505, "http_version", "speak HTTP/1.1")
        if method == b"CONNECT":
            raise Problem(405, "method_not_allowed", "this is no proxy", headers={"allow": "GET, PUT, DELETE, POST"})
        if self._hosts != 1 and (self._hosts or version == "1.1"):
            raise Problem(400, "bad_host", "a request has exactly one Host header")
        if self._chunked and version == "1.0":
            raise Problem(400, "malformed_request", "HTTP/1.0 knows no Transfer-Encoding")
        self._keep_alive = parser.should_keep_alive() and version == "1.1"
        scope: Scope = self._base_scope.copy()
        if version != "1.1":
            scope["http_version"] = version
        scope["method"] = method.decode("ascii")
        scope["headers"] = self._fields
        _set_target(scope, self._target)
        self._scope = scope
        self._upgrading = parser.should_upgrade()
        self.phase = BODY
        if (self._content_length or self._chunked) and not self._upgrading:
            self._begin_body()

    def _check_head(self) -> None:
        """Only headers that arrived with a lot of other bytes have to be measured."""
        limits = self._limits
        if len(self._fields) > limits.headers_max:
            raise self._header_too_large()
        if self._head_bytes + self._read_bytes > limits.header_bytes_max:
            size = len(self._target) + sum(len(name) + len(value) + 4 for name, value in self._fields)
            if size > limits.header_bytes_max:
                raise self._header_too_large()

    def _begin_body(self) -> None:
        self.deadline = 0.0
        if self._content_length > self._limits.body_bytes_max:
            raise self._body_too_large()
        self._reserve(self._content_length)
        if self._expect:
            self._receiver.go_on()

    def on_body(self, part: bytes) -> None:
        self._body_bytes += len(part)
        if self._chunked:
            if self._body_bytes > self._limits.body_bytes_max:
                raise self._body_too_large()
            self._reserve(len(part))
        if not self._body:
            self._body = part
        else:
            if not isinstance(self._body, bytearray):
                self._body = bytearray(self._body)
            self._body += part

    def _reserve(self, size: int) -> None:
        """Bodies of all connections together are bounded too."""
        hub = self._hub
        if hub.bodies_bytes + size > self._limits.bodies_bytes_max:
            raise Problem(503, "overloaded", "too many request bodies are under way; try again", retryable=True)
        hub.bodies_bytes += size
        self.reserved += size

    def on_message_complete(self) -> None:
        if self._upgrading:
            return  # see _go_on_without_upgrade
        self.phase = READY if self._keep_alive else DEAF
        self.deadline = 0.0
        body, self._body = self._body, b""
        reserved, self.reserved = self.reserved, 0
        self._receiver.take(self._scope, bytes(body), keep_alive=self._keep_alive, reserved=reserved)

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """llhttp leaves HTTP behind at an upgrade, and then skips the request's body. We upgrade to nothing, so
        the request is read again without the offer (Java's client makes one with every request)."""
        lines = [b"%b %b HTTP/1.1\r\n" % (self._scope["method"].encode(), self._target)]
        lines += [b"%b: %b\r\n" % field for field in self._fields if field[0] not in _HOP_BY_HOP]
        self._parser = httptools.HttpRequestParser(self)
        self._parse(b"".join(lines) + b"\r\n" + rest)

    def _header_too_large(self) -> Problem:
        limits = self._limits
        detail = f"at most {limits.headers_max} headers and {limits.header_bytes_max} bytes of them are taken"
        return Problem(431, "header_too_large", detail)

    def _body_too_large(self) -> Problem:
        return Problem(413, "body_too_large", f"a request body has at most {self._limits.body_bytes_max} bytes")


def _set_target(scope: Scope, target: bytes) -> None:
    """Split what follows the method. It may be a whole URL, whose authority is then ignored."""
    if not target.startswith(b"/"):
        target = _path_of(target)
    if b"#" in target:
        raise Problem(400, "bad_target", "write # as %23 in a request target")
    raw_path, _, query = target.partition(b"?")
    path = raw_path.decode("ascii")
    scope["path"] = unquote(path) if "%" in path else path
    scope["raw_path"] = raw_path
    scope["query_string"] = query


def _path_of(target: bytes) -> bytes:
    scheme, separator, rest = target.partition(b"://")
    if separator and scheme.lower() in (b"http", b"https"):
        slash = rest.find(b"/")
        return b"/" if slash < 0 else rest[slash:]
    if target == b"*":  # of OPTIONS
        return target
    raise Problem(400, "bad_target", "the request target is a path that begins with /")
