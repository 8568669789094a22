"""What the connections of one worker share: limits, applications, standing headers, and the one timer.

A timer per connection would cost more than the requests; instead each notes its deadline, and all are looked
at together now and then.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.server import ServerState

from raftkv_transport_http_falcon.connection import Connection
from raftkv_transport_http_falcon.exchange import Application
from raftkv_transport_http_falcon.limits import Limits
from raftkv_transport_http_falcon.metrics import WorkerMetrics

__all__ = ["Hub"]

_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound


class Hub:
    """Called by uvicorn for each new connection."""

    def __init__(
        self,
        data: Application,
        management: tuple[Application, tuple[str, int]] | None,
        limits: Limits,
        metrics: WorkerMetrics,
        *,
        node_id: str,
    ) -> None:
        """`management`: the application of the management listener, and where that is bound."""
        self.limits = limits
        self.metrics = metrics
        self.bodies_bytes = 0
        self.server_state = ServerState()
        self._data = data
        self._management = management
        self._fixed_headers = (
            f"raftkv-node: {node_id}\r\n"
            "x-content-type-options: nosniff\r\n"
            "content-security-policy: default-src 'none'; sandbox\r\n"
            "cache-control: no-store\r\n"
        ).encode()
        self._standing_headers = self._fixed_headers
        self._date_headers: list[tuple[bytes, bytes]] | None = None
        self._sweeping = False

    def __call__(
        self, *, server_state: ServerState, _loop: asyncio.AbstractEventLoop | None = None, **_others: Any
    ) -> Connection:
        loop = _loop or asyncio.get_running_loop()
        if not self._sweeping:
            self._sweeping = True
            self.server_state = server_state
            loop.call_later(self.limits.sweep_s, self._sweep, loop)
        return Connection(self, loop)

    def application_at(self, server: tuple[Any, ...]) -> Application:
        """The application of the listener that a connection came in by; `server` is its own end's address."""
        if self._management is None:
            return self._data
        application, (host, port) = self._management
        return application if server[1] == port and host in (server[0], *_WILDCARDS) else self._data

    def standing_headers(self) -> bytes:
        """Headers of every response: who answers, since when, and that a browser must not run it."""
        dated = self.server_state.default_headers  # uvicorn replaces the list once a second
        if dated is not self._date_headers:
            self._date_headers = dated
            lines = b"".join(b"%b: %b\r\n" % line for line in dated)
            self._standing_headers = lines + self._fixed_headers
        return self._standing_headers

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        connections = self.server_state.connections
        for connection in list(connections):
            assert isinstance(connection, Connection)
            connection.expire(now)
        self.metrics.connections = len(connections)
        loop.call_later(self.limits.sweep_s, self._sweep, loop)
