"""One client connection: requests from its reader go to the application, answers go back in order.

uvicorn's own protocol bounds neither headers nor bodies nor time, and costs twice as much per request (20 µs
against 10 µs on the machine this was measured on), so this is written against asyncio alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final, cast

from raftkv_core.errors import RequestOutcome
from raftkv_transport_http_falcon.exchange import BODY, Application, Exchange, Scope, closing_response
from raftkv_transport_http_falcon.problems import Problem
from raftkv_transport_http_falcon.reader import Phase, Reader

if TYPE_CHECKING:
    from raftkv_transport_http_falcon.hub import Hub

__all__ = ["Connection"]

_ASGI: Final = {"version": "3.0", "spec_version": "2.3"}
_LINGER_S: Final = 2.0
_LINGER_BYTES: Final = 8 << 20
IDLE, READY, DEAF = Phase.IDLE, Phase.READY, Phase.DEAF


class Connection(asyncio.Protocol):
    """See the module. At most one exchange runs; requests that were sent before it was answered wait in a queue,
    and nothing more is read meanwhile, nor while the client leaves answers unread."""

    __slots__ = (
        "_application",
        "_deaf_bytes",
        "_drain_waiter",
        "_exchange",
        "_is_tls",
        "_limits",
        "_next_is_due",
        "_queue",
        "_reader",
        "_server_state",
        "_unread",
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
        self._exchange: Exchange | None = None
        self._queue: deque[Exchange | bytes] = deque()
        self._next_is_due = False
        self._drain_waiter: asyncio.Future[None] | None = None
        self._write_deadline = 0.0
        self._deaf_bytes = 0

    # called by the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._is_tls = transport.get_extra_info("sslcontext") is not None
        server = transport.get_extra_info("sockname")
        self._application: Application = self.hub.application_at(server)
        base_scope = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": "1.1",
            "server": server[:2],
            "client": transport.get_extra_info("peername")[:2],
            "scheme": "https" if self._is_tls else "http",
            "root_path": "",
        }
        self._reader = Reader(self, self.hub, self.loop, base_scope)
        connections = self._server_state.connections
        connections.add(cast(Any, self))  # the server asks them for nothing but shutdown()
        if len(connections) > self._limits.connections_max:
            self.hub.metrics.refused_connections += 1
            detail = "this worker has as many connections as it may; try again"
            self._refuse(Problem(503, "too_many_connections", detail, retryable=True))

    def connection_lost(self, _error: Exception | None) -> None:
        self.is_lost = True
        self._server_state.connections.discard(self)
        self._wake_drain()
        self.hub.bodies_bytes -= self._reader.reserved
        for exchange in (self._exchange, *self._queue):
            if not isinstance(exchange, Exchange):
                continue
            self.hub.bodies_bytes -= exchange.reserved
            if (task := exchange.abandon()) is not None:
                self._server_state.tasks.add(task)  # the server waits for these before it stops
                task.add_done_callback(self._server_state.tasks.discard)
        self._queue.clear()
        self._reader.close()

    def data_received(self, data: bytes) -> None:
        if self._reader.phase == DEAF:
            self._deaf_bytes += len(data)
            if self._deaf_bytes > _LINGER_BYTES:
                self.transport.abort()
            return
        try:
            self._reader.feed(data)
        except Problem as problem:
            self._refuse(problem)

    def eof_received(self) -> bool:
        """A client may shut its side down and still wait for the answer."""
        exchange = self._exchange
        if exchange is None or exchange.state == Exchange.STREAMING or self._is_tls:
            return False
        exchange.keep_alive = False
        self._go_deaf()
        return True

    def pause_writing(self) -> None:
        self.is_write_paused = True
        self._write_deadline = self.loop.time() + self._limits.write_timeout_s
        self._unread = self.transport.get_write_buffer_size()
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.is_write_paused = False
        self._wake_drain()
        if self._reader.phase == IDLE:
            self._reader.deadline = self.loop.time() + self._limits.keepalive_s
        if not self._queue:
            self._resume_reading()
        elif self._exchange is None:
            self._start_next_soon()

    def _wake_drain(self) -> None:
        if self._drain_waiter is not None and not self._drain_waiter.done():
            self._drain_waiter.set_result(None)

    def _resume_reading(self) -> None:
        if not self.transport.is_closing():
            self.transport.resume_reading()

    # called by the reader

    def go_on(self) -> None:
        if self._exchange is None:  # otherwise it would stand in the middle of an answer
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def take(self, scope: Scope, body: bytes, *, keep_alive: bool, reserved: int) -> None:
        scope[BODY] = body
        exchange = Exchange(self, scope, body, keep_alive=keep_alive, reserved=reserved)
        if self._exchange is None and not self._queue and not self.is_write_paused:
            self._exchange = exchange
            exchange.start(self._application)
        else:
            self._queue.append(exchange)
            self.transport.pause_reading()

    # called by exchanges

    async def drained(self) -> None:
        """Return when the client has read enough, or is gone."""
        self._drain_waiter = self.loop.create_future()
        await self._drain_waiter

    def finished(self, exchange: Exchange) -> None:
        """`exchange` wrote the last of its response."""
        self._exchange = None
        self._server_state.total_requests += 1
        self.hub.bodies_bytes -= exchange.reserved
        if not exchange.keep_alive:
            self._close()
        elif self._queue:
            self._start_next_soon()
        elif self._reader.phase == READY:
            self._reader.phase = IDLE
            self._reader.deadline = self.loop.time() + self._limits.keepalive_s

    def fail(self, exchange: Exchange) -> None:
        """The application ended without a complete response."""
        if self.is_lost:
            return
        if exchange.state == Exchange.STREAMING:
            self.transport.abort()
            return
        is_safe = exchange.scope["method"] in ("GET", "HEAD", "OPTIONS")
        outcome: RequestOutcome = "not_applied" if is_safe else "unknown"
        problem = Problem(500, "internal_error", "the request failed; see the node's log", outcome=outcome)
        self.hub.bodies_bytes -= exchange.reserved
        self._say_last(closing_response(problem, self.hub.standing_headers()))

    # the queue, and the end

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
        if not self._queue and self._reader.phase != DEAF:
            self._resume_reading()
        self._exchange = following
        following.start(self._application)

    def _refuse(self, problem: Problem) -> None:
        """Answer what cannot be read any further, after the answers that are still due."""
        if self._reader.phase == DEAF:
            return
        self.hub.metrics.observe(0, problem.status, 0.0)
        response = closing_response(problem, self.hub.standing_headers())
        self._go_deaf()
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

    def _close(self) -> None:
        """The client may still take its time to read what was written."""
        self._go_deaf(self._limits.write_timeout_s)
        self.transport.close()

    def _go_deaf(self, until_abort_s: float = 0.0) -> None:
        """Throw away what comes from now on; 0: without an end of its own."""
        self._reader.phase = DEAF
        self._reader.deadline = self.loop.time() + until_abort_s if until_abort_s else 0.0

    # called by the hub and the server

    def expire(self, now: float) -> None:
        """Called now and then: act on a deadline that has passed."""
        reader = self._reader
        if self.is_write_paused:
            self._expire_write(now)
        elif not reader.deadline or now < reader.deadline:
            return
        elif reader.phase == IDLE:
            self._close()
        elif reader.phase == DEAF:
            self.transport.abort()
        else:
            self._refuse(reader.too_slow())

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
