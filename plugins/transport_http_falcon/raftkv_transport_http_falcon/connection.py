"""HTTP/1.1 on one connection: parses with httptools, holds every limit, and hands whole requests on.

uvicorn's own protocol bounds neither headers nor bodies nor time, and costs twice as much per request (20 µs
against 10 µs on the machine this was measured on), so this is written against asyncio alone. llhttp, inside
httptools, is strict: doubled, negative or huge Content-Length, both it and Transfer-Encoding, bare line feeds
and the like never get here.

A connection's reader is in one of these phases, each with its own deadline:

    IDLE    between requests (keepalive_s; before the first one header_timeout_s)
    HEAD    in a request line or headers (header_timeout_s)
    BODY    in a body (body_timeout_s)
    READY   a request is whole and being answered (deadlines are the application's)
    DEAF    no more is read; what comes is thrown away until the client closes (linger)
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import unquote

import httptools

from raftkv_core.errors import RequestOutcome
from raftkv_transport_http_falcon.exchange import BODY, Application, Exchange, Scope, closing_response
from raftkv_transport_http_falcon.problems import Problem

if TYPE_CHECKING:
    from raftkv_transport_http_falcon.hub import Hub

__all__ = ["Connection"]

IDLE, HEAD, BODY_PHASE, READY, DEAF = range(5)

_ASGI: Final = {"version": "3.0", "spec_version": "2.3"}
_LINGER_S: Final = 2.0
_LINGER_BYTES: Final = 8 << 20
_READ_BYTES: Final = 256 << 10
"""The most that one read brings; a head is bounded exactly once it is whole, and before by this much more."""
_WIRE_FACTOR: Final = 8
"""Chunks of one byte cost six on the wire; more overhead than this is abuse."""
_HOP_BY_HOP: Final = frozenset({b"connection", b"upgrade", b"http2-settings"})
_SPECIAL: Final = frozenset({b"host", b"content-length", b"transfer-encoding", b"expect"})

_logger = logging.getLogger("raftkv.http")


class Connection(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_application",
        "_base_scope",
        "_body",
        "_body_bytes",
        "_chunked",
        "_content_length",
        "_deadline",
        "_drain_waiter",
        "_exchange",
        "_expect",
        "_fields",
        "_head_bytes",
        "_hosts",
        "_is_tls",
        "_keep_alive",
        "_limits",
        "_next_is_due",
        "_parser",
        "_phase",
        "_queue",
        "_read_bytes",
        "_reserved",
        "_scope",
        "_server_state",
        "_target",
        "_unread",
        "_upgrading",
        "_wire_bytes",
        "_write_deadline",
        "hub",
        "is_lost",
        "is_write_paused",
        "loop",
        "transport",
    )

    def __init__(self, hub: Hub, loop: asyncio.AbstractEventLoop) -> None:
        self.hub = hub
        self.loop = loop
        self.is_lost = False
        self.is_write_paused = False
        self._limits = hub.limits
        self._server_state = hub.server_state
        self._parser: Any = httptools.HttpRequestParser(self)
        self._phase = IDLE
        self._exchange: Exchange | None = None
        self._queue: deque[Exchange | bytes] = deque()
        self._deadline = 0.0
        self._write_deadline = 0.0
        self._drain_waiter: asyncio.Future[None] | None = None
        self._next_is_due = False
        self._reserved = 0

    # the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._is_tls = transport.get_extra_info("sslcontext") is not None
        server = transport.get_extra_info("sockname")
        self._application: Application = self.hub.application_at(server)
        self._base_scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "1.1",
            "server": server[:2],
            "client": transport.get_extra_info("peername")[:2],
            "scheme": "https" if self._is_tls else "http",
            "root_path": "",
        }
        connections = self._server_state.connections
        connections.add(cast(Any, self))  # the server asks them for nothing but shutdown()
        self._deadline = self.loop.time() + self._limits.header_timeout_s
        if len(connections) > self._limits.connections_max:
            self.hub.metrics.refused_connections += 1
            self._refuse(
                503, "too_many_connections", "this worker has as many connections as it may; try again", True
            )

    def connection_lost(self, _error: Exception | None) -> None:
        self.is_lost = True
        self._server_state.connections.discard(self)
        self._wake_drain()
        self.hub.bodies_bytes -= self._reserved
        for exchange in (self._exchange, *self._queue):
            if not isinstance(exchange, Exchange):
                continue
            self.hub.bodies_bytes -= exchange.reserved
            if (task := exchange.abandon()) is not None:
                self._server_state.tasks.add(task)  # the server waits for these before it stops
                task.add_done_callback(self._server_state.tasks.discard)
        self._queue.clear()
        self._parser = None

    def eof_received(self) -> bool:
        """A client may shut its side down and still wait for the answer."""
        exchange = self._exchange
        if exchange is None or exchange.state == Exchange.STREAMING or self._is_tls:
            return False
        exchange.keep_alive = False
        self._go_deaf(0.0)
        return True

    def pause_writing(self) -> None:
        self.is_write_paused = True
        self._write_deadline = self.loop.time() + self._limits.write_timeout_s
        self._unread = self.transport.get_write_buffer_size()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.is_write_paused = False
        self._wake_drain()
        if self._phase == IDLE:
            self._deadline = self.loop.time() + self._limits.keepalive_s
        if not self._queue:
            self._resume_reading()
        elif self._exchange is None:
            self._start_next_soon()

    async def drained(self) -> None:
        """Return when the client has read enough, or is gone."""
        self._drain_waiter = self.loop.create_future()
        await self._drain_waiter

    def _wake_drain(self) -> None:
        if self._drain_waiter is not None and not self._drain_waiter.done():
            self._drain_waiter.set_result(None)

    def data_received(self, data: bytes) -> None:
        if self._phase == DEAF:
            self._head_bytes += len(data)
            if self._head_bytes > _LINGER_BYTES:
                self.transport.abort()
            return
        self._read_bytes = len(data)
        self._feed(data)
        if self._phase == HEAD:
            self._head_bytes += self._read_bytes
            if self._head_bytes > self._limits.header_bytes_max + _READ_BYTES:
                self._refuse_with(self._header_too_large())
            elif not self._deadline:
                self._deadline = self.loop.time() + self._limits.header_timeout_s
        elif self._phase == BODY_PHASE:
            self._wire_bytes += len(data)
            if self._wire_bytes > _WIRE_FACTOR * self._limits.body_bytes_max:
                self._refuse_with(self._body_too_large())
            elif not self._deadline:
                self._deadline = self.loop.time() + self._limits.body_timeout_s

    def _feed(self, data: bytes) -> None:
        """What the parser makes of it comes back as calls of the `on_` methods."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_without_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, Problem):
                _logger.error("a request could not be taken", exc_info=cause)
                cause = Problem(500, "internal_error", "the request could not be taken; see the node's log")
            self._refuse_with(cause)
        except httptools.HttpParserError as error:
            if self._phase != DEAF:  # bytes after a request that closes are nobody's
                self._refuse(400, "malformed_request", f"this is not a valid HTTP/1.1 request: {error}")

    # the parser's side

    def on_message_begin(self) -> None:
        if self._phase == DEAF:
            raise Problem(
                400, "connection_closing", "nothing is read after the request that closes"
            )  # nobody sees it
        self._phase = HEAD
        self._deadline = 0.0
        self._head_bytes = 0
        self._wire_bytes = 0
        self._hosts = 0
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._content_length = 0
        self._chunked = False
        self._expect = False
        self._upgrading = False
        self._body: bytes | list[bytes] = b""
        self._body_bytes = 0

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._phase != HEAD:
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
        self._set_target(scope)
        self._scope = scope
        self._upgrading = parser.should_upgrade()
        self._phase = BODY_PHASE
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

    def _set_target(self, scope: Scope) -> None:
        """Split what follows the method. It may be a whole URL, whose authority is then ignored."""
        target = self._target
        if not target.startswith(b"/"):
            scheme, separator, rest = target.partition(b"://")
            if not separator or scheme.lower() not in (b"http", b"https"):
                if target != b"*":
                    raise Problem(400, "bad_target", "the request target is a path that begins with /")
            else:
                slash = rest.find(b"/")
                target = b"/" if slash < 0 else rest[slash:]
        if b"#" in target:
            raise Problem(400, "bad_target", "write # as %23 in a request target")
        raw_path, _, query = target.partition(b"?")
        path = raw_path.decode("ascii")
        scope["path"] = unquote(path) if "%" in path else path
        scope["raw_path"] = raw_path
        scope["query_string"] = query

    def _begin_body(self) -> None:
        self._deadline = 0.0
        if self._content_length > self._limits.body_bytes_max:
            raise self._body_too_large()
        self._reserve(self._content_length)
        if self._expect and self._exchange is None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, part: bytes) -> None:
        self._body_bytes += len(part)
        if self._chunked:
            if self._body_bytes > self._limits.body_bytes_max:
                raise self._body_too_large()
            self._reserve(len(part))
        if not self._body:
            self._body = part
        elif isinstance(self._body, list):
            self._body.append(part)
        else:
            self._body = [self._body, part]

    def _reserve(self, size: int) -> None:
        """Bodies of all connections together are bounded too."""
        hub = self.hub
        if hub.bodies_bytes + size > self._limits.bodies_bytes_max:
            raise Problem(503, "overloaded", "too many request bodies are under way; try again", retryable=True)
        hub.bodies_bytes += size
        self._reserved += size

    def on_message_complete(self) -> None:
        if self._upgrading:
            return  # see _go_on_without_upgrade
        self._phase = READY
        self._deadline = 0.0
        body = self._body
        if isinstance(body, list):
            body = b"".join(body)
        self._scope[BODY] = body
        self._fields = []
        self._body = b""
        exchange = Exchange(self, self._scope, body, keep_alive=self._keep_alive, reserved=self._reserved)
        self._reserved = 0
        if not self._keep_alive:
            self._go_deaf(0.0)
        if self._exchange is None and not self._queue and not self.is_write_paused:
            self._exchange = exchange
            exchange.start(self._application)
        else:
            self._queue.append(exchange)
            self.transport.pause_reading()

    def _go_on_without_upgrade(self, rest: bytes) -> None:
        """llhttp leaves HTTP behind at an upgrade, and then skips the request's body. We upgrade to nothing, so
        the request is read again without the offer (Java's client makes one with every request)."""
        lines = [b"%b %b HTTP/1.1\r\n" % (self._scope["method"].encode(), self._target)]
        lines += [b"%b: %b\r\n" % field for field in self._fields if field[0] not in _HOP_BY_HOP]
        self._parser = httptools.HttpRequestParser(self)
        self._feed(b"".join(lines) + b"\r\n" + rest)

    # answers

    def finished(self, exchange: Exchange) -> None:
        """`exchange` wrote the last of its response."""
        self._exchange = None
        self._server_state.total_requests += 1
        self.hub.bodies_bytes -= exchange.reserved
        if not exchange.keep_alive:
            self._close()
        elif self._queue:
            self._start_next_soon()
        elif self._phase == READY:
            self._phase = IDLE
            self._deadline = self.loop.time() + self._limits.keepalive_s

    def fail(self, exchange: Exchange) -> None:
        """The application ended without a complete response."""
        if self.is_lost:
            return
        if exchange.state == Exchange.STREAMING:
            self.transport.abort()
            return
        outcome: RequestOutcome = (
            "not_applied" if exchange.scope["method"] in ("GET", "HEAD", "OPTIONS") else "unknown"
        )
        problem = Problem(500, "internal_error", "the request failed; see the node's log", outcome=outcome)
        self.hub.bodies_bytes -= exchange.reserved
        self._say_last(closing_response(problem, self.hub.standing_headers()))

    def _start_next_soon(self) -> None:
        """Not at once: an exchange may be finished when `start` returns, and a long queue would nest."""
        if not self._next_is_due:
            self._next_is_due = True
            self.loop.call_soon(self._start_next)

    def _start_next(self) -> None:
        self._next_is_due = False
        if self.is_lost or self.is_write_paused or self._exchange is not None or not self._queue:
            return
        following = self._queue.popleft()
        if isinstance(following, bytes):
            self._say_last(following)
            return
        if not self._queue and self._phase != DEAF:
            self._resume_reading()
        self._exchange = following
        following.start(self._application)

    def _refuse(self, status: int, code: str, detail: str, retryable: bool = False) -> None:
        self._refuse_with(Problem(status, code, detail, retryable=retryable))

    def _refuse_with(self, problem: Problem) -> None:
        """Answer what cannot be read any further, after the answers that are still due."""
        if self._phase == DEAF:
            return
        self.hub.metrics.observe(0, problem.status, 0.0)
        response = closing_response(problem, self.hub.standing_headers())
        self._go_deaf(0.0)
        if self._exchange is None and not self._queue:
            self._say_last(response)
        else:
            self._queue.append(response)

    def _say_last(self, response: bytes) -> None:
        """Write, and close once the client has had time to read it: closing over unread input would reset the
        connection, and the client might never see the answer."""
        self._exchange = None
        self.transport.write(response)
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._go_deaf(_LINGER_S)
            self._resume_reading()
        else:
            self._close()

    def _resume_reading(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    def _go_deaf(self, linger_s: float) -> None:
        self._phase = DEAF
        self._head_bytes = 0
        self._deadline = self.loop.time() + linger_s if linger_s else 0.0

    def _close(self) -> None:
        self._go_deaf(self._limits.write_timeout_s)
        self.transport.close()

    # the hub's and the server's side

    def expire(self, now: float) -> None:
        """Called now and then: act on a deadline that has passed."""
        if self.is_write_paused:
            self._expire_write(now)
        elif not self._deadline or now < self._deadline:
            return
        elif self._phase == IDLE:
            self._close()
        elif self._phase == DEAF:
            self.transport.abort()
        elif self._phase == HEAD:
            seconds = self._limits.header_timeout_s
            self._refuse(408, "header_timeout", f"the headers did not arrive within {seconds:g} s", True)
        else:
            seconds = self._limits.body_timeout_s
            self._refuse(408, "body_timeout", f"the body did not arrive within {seconds:g} s", True)

    def _expire_write(self, now: float) -> None:
        """The client has to go on reading, however slowly."""
        unread = self.transport.get_write_buffer_size()
        if unread < self._unread:
            self._write_deadline = now + self._limits.write_timeout_s
            self._unread = unread
        elif now >= self._write_deadline:
            self.transport.abort()

    def shutdown(self) -> None:
        """The server stops: idle connections and streams end now, a request under way gets its answer."""
        exchange = self._exchange
        if exchange is None:
            self._close()
        elif exchange.state == Exchange.STREAMING:
            exchange.abandon()
            self._close()
        else:
            exchange.keep_alive = False

    def _header_too_large(self) -> Problem:
        return Problem(
            431,
            "header_too_large",
            f"at most {self._limits.headers_max} headers and {self._limits.header_bytes_max} bytes of them are taken",
        )

    def _body_too_large(self) -> Problem:
        return Problem(413, "body_too_large", f"a request body has at most {self._limits.body_bytes_max} bytes")
