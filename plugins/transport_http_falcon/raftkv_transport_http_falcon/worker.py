"""gunicorn's worker: uvicorn's server around our own connections."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, cast

from uvicorn_worker import UvicornWorker  # type: ignore[import-untyped]

from raftkv_transport_http_falcon.app import Site
from raftkv_transport_http_falcon.hub import Hub

if TYPE_CHECKING:
    from raftkv_transport_http_falcon.server import HttpServer

__all__ = ["HttpWorker"]


class HttpWorker(UvicornWorker):  # type: ignore[misc]  # uvicorn-worker is not typed
    """One worker process. Everything uvicorn could learn from the environment is said here instead."""

    sockets: list[Any]
    slot = 0
    """Number of its array of counters; set before it is forked."""

    def __init__(self, age: int, ppid: int, sockets: Any, app: HttpServer, *others: Any) -> None:
        graceful_s = max(1, math.ceil(app.settings.graceful_timeout_s) - 1)  # before gunicorn kills
        self.CONFIG_KWARGS = {
            "loop": "uvloop",
            "ws": "none",
            "lifespan": "on",
            "interface": "asgi3",
            "access_log": False,
            "proxy_headers": False,
            "server_header": False,
            "workers": 1,
            "timeout_graceful_shutdown": graceful_s,
        }
        super().__init__(age, ppid, sockets, app, *others)
        log = logging.getLogger("uvicorn.error")
        log.propagate = True
        log.setLevel(logging.WARNING)

    def load_wsgi(self) -> None:
        """In the worker process: make the application, and have connections made for it."""
        super().load_wsgi()
        server = cast("HttpServer", self.app)
        self._choose_sockets(server.settings.worker_count)
        site: Site = self.wsgi
        management = None
        if site.management is not None:
            host, port = self.sockets[-1].getsockname()[:2]
            management = (site.management, (host, port))
        self.config.http = Hub(
            site.data,
            management,
            server.limits,
            server.counters.of(self.slot),
            node_id=server.config.node.id,
        )

    def _choose_sockets(self, workers: int) -> None:
        """Of those that `sockets.listen` made: one of the clients', and the management listener's."""
        own = self.slot % workers
        for number, other in enumerate(self.sockets[:workers]):
            if number != own:
                other.close()
        self.sockets = [self.sockets[own], *self.sockets[workers:]]
