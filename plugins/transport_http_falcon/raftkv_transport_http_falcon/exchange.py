"""One request and its response, between a connection and the ASGI application.

The request is whole before the application starts (bodies are bounded), so `receive` never waits for data and
a slow client never holds a task. A response that is not streamed leaves in one write, headers and body.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from raftkv_transport_http_falcon.problems import CONTENT_TYPE, Problem, title_of

if TYPE_CHECKING:
    from raftkv_transport_http_falcon.connection import Connection

__all__ = ["BODY", "Application", "Exchange", "closing_response"]

Scope = dict[str, Any]
Message = Mapping[str, Any]
Application = Callable[..., Coroutine[Any, Any, None]]

BODY: Final = "raftkv.body"
"""In the scope: the whole body, so that handlers need not go through `receive`."""

ROUTE: Final = "raftkv.route"
"""In the scope, set by the router: number of the route, for the metrics."""

_BODYLESS: Final = frozenset({204, 304})

_logger = logging.getLogger("raftkv.http")


def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {title_of(status)}\r\n".encode()


_STATUS_LINES: Final = {status: _status_line(status) for status in range(100, 600)}


def closing_response(problem: Problem, standing_headers: bytes) -> bytes:
    """A problem as the last response of a connection."""
    body = problem.body()
    head = (
        f"content-type: {CONTENT_TYPE}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n"
        + "".join(f"{name}: {value}\r\n" for name, value in problem.headers.items())
        + "\r\n"
    )
    return _STATUS_LINES[problem.status] + standing_headers + head.encode() + body


class Exchange:
    """`receive` and `send` of one request. Made when the request is whole, forgotten when it is answered."""

    __slots__ = (
        "_began",
        "_body",
        "_chunked",
        "_connection",
        "_disconnected",
        "_headers",
        "_status",
        "_task",
        "keep_alive",
        "reserved",
        "scope",
        "state",
    )

    WAITING = 0
    STREAMING = 1
    FINISHED = 2

    def __init__(self, connection: Connection, scope: Scope, body: bytes, *, keep_alive: bool, reserved: int) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        self.reserved = reserved
        """Bytes that it counts for among the bodies of all connections."""
        self.state = self.WAITING
        self._connection = connection
        self._body: bytes | None = body
        self._status = 0
        self._headers: Any = ()
        self._chunked = False
        self._disconnected: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._began = perf_counter()

    if sys.version_info >= (3, 12):

        def start(self, application: Application) -> None:
            """Answers that need no waiting are complete when this returns."""
            loop = self._connection.loop
            self._task = asyncio.Task(self._run(application), loop=loop, eager_start=True)

    else:

        def start(self, application: Application) -> None:
            self._task = self._connection.loop.create_task(self._run(application))

    def abandon(self) -> asyncio.Task[None] | None:
        """The connection is gone or must end. A stream is cut; a request runs on, because a command that was
        proposed cannot be called back. Returns the task if it still runs."""
        if self._disconnected is not None and not self._disconnected.done():
            self._disconnected.set_result(None)
        task = self._task
        if task is None or task.done():
            return None
        if self.state == self.STREAMING:
            task.cancel()
        return task

    async def _run(self, application: Application) -> None:
        try:
            await application(self.scope, self.receive, self.send)
        except Exception:
            _logger.exception("the application failed: %s %s", self.scope["method"], self.scope["path"])
        if self.state != self.FINISHED:
            self._connection.fail(self)

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        if self.state != self.FINISHED and not self._connection.is_lost:
            self._disconnected = self._connection.loop.create_future()
            await self._disconnected
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            self._headers = message["headers"]
            return
        connection = self._connection
        body: bytes = message.get("body", b"")
        more: bool = message.get("more_body", False)
        if connection.is_lost:
            self.state = self.FINISHED
            return
        parts = self._head(streamed=more) if self.state == self.WAITING else []
        if self._chunked:
            if body:
                parts += (b"%x\r\n" % len(body), body, b"\r\n")
            if not more:
                parts.append(b"0\r\n\r\n")
        elif body and self.scope["method"] != "HEAD" and self._status not in _BODYLESS:
            parts.append(body)
        if parts:
            connection.transport.write(b"".join(parts))
        if more:
            self.state = self.STREAMING
            if connection.is_write_paused:
                await connection.drained()
            return
        self.state = self.FINISHED
        connection.hub.metrics.observe(self.scope.get(ROUTE, 0), self._status, perf_counter() - self._began)
        connection.finished(self)

    def _head(self, *, streamed: bool) -> list[bytes]:
        lines: list[bytes] = []
        has_length = False
        for name, value in self._headers:
            lines += (name, b": ", value, b"\r\n")
            if name == b"content-length":
                has_length = True
        if streamed and not has_length and self._status not in _BODYLESS and self.scope["method"] != "HEAD":
            if self.scope["http_version"] == "1.1":
                self._chunked = True
                lines.append(b"transfer-encoding: chunked\r\n")
            else:
                self.keep_alive = False
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        block = b"".join(lines)
        if block.count(b"\n") != len(self._headers) + self._chunked + (not self.keep_alive):
            raise ValueError("a response header contains a line break")
        return [_STATUS_LINES[self._status], self._connection.hub.standing_headers(), block, b"\r\n"]
