"""Every route, in one table, and the router that finds them by the raw path.

Falcon's own router works on the decoded path, in which keys have lost their bytes; and a table that is looked
up whole is quicker than a tree.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

from falcon.routing import map_http_methods, set_default_responders

from raftkv_transport_http_falcon import kv, listing, management, operations, seed, transactions, watch
from raftkv_transport_http_falcon.exchange import ROUTE
from raftkv_transport_http_falcon.gate import Gate
from raftkv_transport_http_falcon.requests import Request, decode_key
from raftkv_transport_http_falcon.service import Service

__all__ = ["ROUTES", "Route", "Router", "names"]

Responder = Callable[..., Awaitable[None]]


@dataclass(frozen=True)
class Route:
    """One path of one listener. A path that ends in `{key}` takes everything from there on as a key."""

    listener: Literal["http", "management"]
    path: str
    methods: tuple[str, ...]
    resource: Callable[[Service], object]
    is_open: bool = False
    """Served without a token."""
    is_safe: bool = True
    """A GET changes nothing."""
    otherwise: Responder | None = None
    """Answers other methods; None: problem 405."""


ROUTES: Final = (
    Route("http", "/v1/kv/{key}", ("GET", "HEAD", "PUT", "DELETE"), kv.KeyResource),
    Route("http", "/v1/kv", ("GET", "HEAD", "DELETE"), listing.RangeResource),
    Route("http", "/v1/txn", ("POST",), transactions.TransactionResource),
    Route("http", "/v1/watch", ("GET",), watch.WatchResource),
    Route("http", "/v1/changes", ("GET",), watch.ChangesResource),
    Route("http", "/v1/status", ("GET", "HEAD"), operations.StatusResource),
    Route("http", "/livez", ("GET", "HEAD"), operations.LiveResource, is_open=True),
    Route("http", "/readyz", ("GET", "HEAD"), operations.ReadyResource, is_open=True),
    Route("http", "/health", ("GET", "HEAD"), operations.HealthResource, is_open=True),
    Route("http", "/metrics", ("GET",), operations.MetricsResource),
    Route("http", "/version", ("GET",), operations.VersionResource),
    Route("http", "/insert-val", ("POST",), seed.InsertResource, otherwise=seed.not_found),
    Route("http", "/get-val", ("GET",), seed.GetResource, otherwise=seed.not_found),
    Route(
        "management",
        "/join",
        ("GET", "POST"),
        management.JoinResource,
        is_safe=False,
        otherwise=management.method_not_allowed,
    ),
    Route(
        "management",
        "/status",
        ("GET",),
        management.StatusResource,
        otherwise=management.method_not_allowed,
    ),
    Route(
        "management",
        "/health",
        ("GET",),
        management.HealthResource,
        is_open=True,
        otherwise=management.method_not_allowed,
    ),
)

_KEY: Final = "{key}"


def names() -> list[str]:
    """What requests are counted under; a route's number in ROUTES plus one is its place here."""
    return ["none", *(f"{route.listener}:{route.path}" for route in ROUTES)]


class _Methods(dict[str, Responder]):
    """Responders by method; also for methods that nobody has heard of."""

    otherwise: Responder

    def __missing__(self, _method: str) -> Responder:
        return self.otherwise


_Entry = tuple[Route, int, object, _Methods]
Found = tuple[object, _Methods, dict[str, Any], str]


class Router:
    """What `falcon.asgi.App` wants of a router, and the place where the gate stands."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._exact: dict[bytes, _Entry] = {}
        self._before_key = b""
        self._with_key: _Entry | None = None

    def add_route(self, uri_template: str, resource: object, *, route: Route, **_options: Any) -> None:
        methods = _Methods(cast(dict[str, Responder], map_http_methods(resource)))
        missing = set(route.methods) ^ set(methods)
        assert not missing, f"{route.path}: the table and the resource differ in {missing}"
        if route.otherwise is None:
            set_default_responders(methods, asgi=True)  # type: ignore[arg-type]
            methods.otherwise = methods["PATCH"]  # no resource has it, so it is the answer to any other
        else:
            methods.otherwise = route.otherwise
        entry = (route, ROUTES.index(route) + 1, resource, methods)
        if uri_template.endswith(_KEY):
            assert self._with_key is None, "one path with a key is all that find looks for"
            self._before_key = uri_template[: -len(_KEY)].encode()
            self._with_key = entry
        else:
            self._exact[uri_template.encode()] = entry

    def find(self, _uri: str, req: Request | None = None) -> Found | None:
        """Called for each request. Raises Problem, from the gate and for keys that cannot be decoded."""
        assert req is not None
        scope = req.scope
        raw_path: bytes = scope["raw_path"]
        raw_key: bytes | None = None
        entry = self._exact.get(raw_path)
        if entry is None and self._before_key and raw_path.startswith(self._before_key):
            entry, raw_key = self._with_key, raw_path[len(self._before_key) :]
        if entry is None:
            self._gate.check(req.fields, req.method)
            return None
        route, number, resource, methods = entry
        scope[ROUTE] = number
        self._gate.check(req.fields, req.method, is_open=route.is_open, is_safe=route.is_safe)
        parameters = {} if raw_key is None else {"key": decode_key(raw_key)}
        return resource, methods, parameters, route.path
