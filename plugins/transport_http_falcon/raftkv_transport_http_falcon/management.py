"""The management listener: how members join, and what the store that this one replaces showed there."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
from falcon import HTTP_400, HTTP_405, HTTP_500
from falcon.asgi import Response

from raftkv_core.addresses import Address
from raftkv_core.errors import InvalidRequest, RequestError
from raftkv_core.interfaces.consensus import Member
from raftkv_transport_http_falcon.answers import JSON, TEXT
from raftkv_transport_http_falcon.requests import Query, Request
from raftkv_transport_http_falcon.service import Service

__all__ = ["HealthResource", "JoinResource", "StatusResource", "method_not_allowed"]

_NODE_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FORM: Final = "application/x-www-form-urlencoded"


async def method_not_allowed(_req: Request, resp: Response, **_parameters: Any) -> None:
    resp.status = HTTP_405
    resp.content_type = TEXT
    resp.data = b"Method not allowed"


class JoinResource:
    """GET or POST: add a member, named by `peerID` and `peerAddress` in the query or in a form."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def on_get(self, req: Request, resp: Response) -> None:
        await self._join(Query(req.scope["query_string"], None), resp)

    async def on_post(self, req: Request, resp: Response) -> None:
        parameters = req.scope["query_string"]
        if req.text_field(b"content-type").partition(";")[0].strip().lower() == _FORM:
            parameters += b"&" + await req.body()
        await self._join(Query(parameters, None), resp)

    async def _join(self, query: Query, resp: Response) -> None:
        resp.content_type = TEXT
        node_id, address = query.text("peerID"), query.text("peerAddress")
        if not node_id or not address:
            resp.status = HTTP_400
            resp.data = b"Missing peerAddress or peerID"
            return
        try:
            _check(node_id, address)
            await self._service.store.add_member(Member(node_id, address))
        except InvalidRequest as error:
            resp.status = HTTP_400
            resp.text = str(error)
        except RequestError as error:
            resp.status = HTTP_500
            resp.text = str(error)
        else:
            resp.data = b"Joined successfully"


def _check(node_id: str, address: str) -> None:
    """Raise InvalidRequest unless both can be what they say."""
    if not _NODE_ID.fullmatch(node_id):
        raise InvalidRequest("peerID has 1 to 64 letters, digits, dots, dashes and underscores")
    try:
        parsed = Address.parse(address)
    except ValueError as error:
        raise InvalidRequest(f"peerAddress: {error}") from None
    if parsed.port <= 0 or parsed.is_wildcard:
        raise InvalidRequest(f"peerAddress: members cannot connect to {address!r}; give a host and its port")


class StatusResource:
    """GET: whether this node leads, and who does."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def on_get(self, _req: Request, resp: Response) -> None:
        status = await self._service.store.status()
        leader = status.get("leader")
        addresses = {member["node_id"]: member["address"] for member in status.get("members", ())}
        document = {"is_leader": status.get("role") == "leader", "leader_addr": addresses.get(leader, "")}
        resp.data = msgspec.json.encode(document)
        resp.content_type = JSON


class HealthResource:
    """GET: that this process answers."""

    def __init__(self, _service: Service) -> None:
        pass

    async def on_get(self, _req: Request, resp: Response) -> None:
        resp.content_type = TEXT
        resp.data = b"OK"
