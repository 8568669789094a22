"""The Falcon applications of the two listeners, and the ASGI application that uvicorn sees.

site = Site(service, connect)
site.data, site.management      # what connections are answered by, depending on where they came in
await site(scope, receive, send)   # lifespan: connects to the node and lets go of it
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, cast

import falcon
import falcon.asgi
from falcon.asgi import Response

from raftkv_core.errors import RequestError, StorageError
from raftkv_core.interfaces.transport import Store
from raftkv_transport_http_falcon import seed
from raftkv_transport_http_falcon.exchange import Message, Scope
from raftkv_transport_http_falcon.gate import Gate
from raftkv_transport_http_falcon.problems import CONTENT_TYPE, Problem, from_error, title_of
from raftkv_transport_http_falcon.requests import Request
from raftkv_transport_http_falcon.routes import ROUTES, Router
from raftkv_transport_http_falcon.service import Service

__all__ = ["Connect", "Site", "make_app"]

Connect = Callable[[], Awaitable[Store]]
App = falcon.asgi.App[Request, Response]

_SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})

_logger = logging.getLogger("raftkv.http")


def make_app(service: Service, listener: str, gate: Gate) -> App:
    """The Falcon application of one listener."""
    router = Router(gate)
    app: App = falcon.asgi.App(request_type=Request, router=cast(Any, router))
    for route in ROUTES:
        if route.listener == listener:
            app.add_route(route.path, route.resource(service), route=route)
    app.add_error_handler(Exception, _on_exception)
    app.add_error_handler(falcon.HTTPError, _on_http_error)
    app.add_error_handler(RequestError, _on_request_error)
    app.add_error_handler(StorageError, _on_storage_error)
    app.add_error_handler(Problem, _on_problem)
    return app


async def _on_problem(_req: Request, resp: Response | None, problem: Problem, _parameters: Any) -> None:
    assert resp is not None
    resp.status = problem.status
    resp.stream = None
    resp.text = None
    resp.set_headers(problem.headers)
    resp.content_type = CONTENT_TYPE
    resp.data = problem.body()


async def _on_request_error(req: Request, resp: Response | None, error: RequestError, parameters: Any) -> None:
    await _on_problem(req, resp, from_error(error), parameters)


async def _on_storage_error(req: Request, resp: Response | None, error: StorageError, parameters: Any) -> None:
    """Only reads touch storage in this process, so nothing was applied."""
    _logger.error("%s %s failed: %s", req.method, req.path, error)
    problem = Problem(500, "storage_failed", "storage could not be read; the node's log says why")
    await _on_problem(req, resp, problem, parameters)


async def _on_http_error(req: Request, resp: Response | None, error: falcon.HTTPError, parameters: Any) -> None:
    """What Falcon itself refuses: an unknown path, a method that a resource does not have."""
    assert resp is not None
    status = error.status_code
    if status == 404 and not req.scope["raw_path"].startswith(b"/v1/"):
        await seed.not_found(req, resp)
        return
    code = title_of(status).lower().replace(" ", "_").replace("-", "_")
    detail = error.description or {
        404: "there is no such path; the API is described in docs/http-api.md",
        405: f"{req.method} is not possible here",
    }.get(status, error.title)
    headers = dict(error.headers or {})
    problem = Problem(status, code, detail or code, headers={name.lower(): text for name, text in headers.items()})
    await _on_problem(req, resp, problem, parameters)


async def _on_exception(req: Request, resp: Response | None, error: Exception, parameters: Any) -> None:
    _logger.error("%s %s failed", req.method, req.path, exc_info=error)
    problem = Problem(
        500,
        "internal_error",
        "the request failed; the node's log says how",
        outcome="not_applied" if req.method in _SAFE else "unknown",
    )
    await _on_problem(req, resp, problem, parameters)


class Site:
    """Both applications, and the connection to the node that they share."""

    def __init__(self, service: Service, connect: Connect) -> None:
        settings = service.settings
        self.service = service
        self._connect = connect
        gate = Gate(settings.bind, token_file=settings.token_file, hosts=_hosts(settings.hosts, settings.advertise))
        service.gate = gate
        self.data = make_app(service, "http", gate)
        self.management: App | None = None
        if settings.management_bind:
            gate = Gate(settings.management_bind, token_file=settings.management_token_file, hosts=settings.hosts)
            self.management = make_app(service, "management", gate)

    async def __call__(
        self,
        scope: Scope,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        if scope["type"] != "lifespan":
            await self.data(cast(Any, scope), cast(Any, receive), cast(Any, send))
            return
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self.service.store = await self._connect()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.service.store.close()
                await send({"type": "lifespan.shutdown.complete"})
                return


def _hosts(hosts: list[str], advertise: str) -> list[str]:
    return [*hosts, advertise.rpartition(":")[0]] if advertise else hosts
