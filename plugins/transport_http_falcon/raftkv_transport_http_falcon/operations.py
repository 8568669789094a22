"""What operators and their tools ask: status, health, metrics, version."""

from __future__ import annotations

from typing import Any

from falcon import HTTP_503
from falcon.asgi import Response

import raftkv_core
from raftkv_core.errors import RequestError
from raftkv_transport_http_falcon.answers import TEXT, respond
from raftkv_transport_http_falcon.metrics import exposition
from raftkv_transport_http_falcon.requests import Query, Request
from raftkv_transport_http_falcon.service import Service

__all__ = [
    "HealthResource",
    "LiveResource",
    "MetricsResource",
    "ReadyResource",
    "StatusResource",
    "VersionResource",
]


class _Resource:
    def __init__(self, service: Service) -> None:
        self._service = service

    async def _reasons(self) -> tuple[bool, list[str]]:
        """Whether the node is ready, and why not."""
        try:
            status = await self._service.store.status()
        except RequestError as error:
            return False, [str(error)]
        return bool(status.get("ready")), [str(reason) for reason in status.get("reasons", ())]


class StatusResource(_Resource):
    """GET `/v1/status`."""

    async def on_get(self, req: Request, resp: Response) -> None:
        respond(req, resp, await self._service.store.status())

    on_head = on_get


class LiveResource(_Resource):
    """GET `/livez`: this process answers. Restarting it because its node is away would help nobody."""

    async def on_get(self, _req: Request, resp: Response) -> None:
        resp.content_type = TEXT
        resp.data = b"ok\n"

    on_head = on_get


class ReadyResource(_Resource):
    """GET `/readyz`: whether requests are served; `?verbose` gives a line for each check."""

    async def on_get(self, req: Request, resp: Response) -> None:
        verbose = Query(req.scope["query_string"], frozenset({"verbose"})).flag("verbose")
        ready, reasons = await self._reasons()
        resp.content_type = TEXT
        if not ready:
            resp.status = HTTP_503
        if not verbose:
            resp.text = "ok\n" if ready else f"not ready: {'; '.join(reasons) or 'no reason given'}\n"
            return
        lines = ["[+]http ok", "[+]node ok" if ready else "[-]node not ready"]
        lines += [f"[-]{reason}" for reason in reasons]
        resp.text = "\n".join([*lines, "readyz check passed" if ready else "readyz check failed", ""])

    on_head = on_get


class HealthResource(_Resource):
    """GET `/health`: the same, the way etcd says it."""

    async def on_get(self, req: Request, resp: Response) -> None:
        ready, reasons = await self._reasons()
        document: dict[str, Any] = {"health": "true" if ready else "false"}
        if not ready:
            resp.status = HTTP_503
            document["reason"] = "; ".join(reasons)
        respond(req, resp, document)

    on_head = on_get


class VersionResource(_Resource):
    """GET `/version`."""

    async def on_get(self, req: Request, resp: Response) -> None:
        respond(req, resp, {"version": raftkv_core.__version__, "api": "v1"})


class MetricsResource(_Resource):
    """GET `/metrics`: all workers' counts and the node's numbers, for Prometheus."""

    async def on_get(self, req: Request, resp: Response) -> None:
        try:
            status = await self._service.store.status()
        except RequestError:
            status = None
        content_type, resp.data = exposition(self._service.counters, status, req.text_field(b"accept"))
        resp.content_type = content_type
