"""The API of the store that this one replaces: `/insert-val` and `/get-val`.

Kept as it was, bodies and statuses included, with these deliberate differences: keys are percent-decoded, a
follower takes writes, an invalid command is answered `error`, reads are linearizable, data is durable.
"""

from __future__ import annotations

from typing import Any, Final

import msgpack
from falcon.asgi import Response

from raftkv_core.errors import InvalidRequest, RequestError
from raftkv_core.machine import commands
from raftkv_transport_http_falcon.answers import MSGPACK, TEXT
from raftkv_transport_http_falcon.problems import Problem
from raftkv_transport_http_falcon.requests import Query, Request
from raftkv_transport_http_falcon.service import Service

__all__ = ["NOT_FOUND", "GetResource", "InsertResource", "not_found"]

NOT_FOUND: Final = b"404 Not Found"
_FIELDS_MAX: Final = 16


async def not_found(_req: Request, resp: Response, **_parameters: Any) -> None:
    """How it answers every other route, method and content type."""
    resp.status = "404 Not Found"
    resp.content_type = TEXT
    resp.data = NOT_FOUND


class InsertResource:
    """POST: set or delete one key; the body is a msgpack map of `op`, `key` and `value`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def on_post(self, req: Request, resp: Response) -> None:
        media_type = req.text_field(b"content-type").partition(";")[0].strip().lower()
        if media_type != MSGPACK:
            await not_found(req, resp)
            return
        resp.content_type = TEXT
        try:
            outcome = await self._service.store.propose(_command(await req.body()))
        except (RequestError, Problem):
            resp.data = b"error"
        else:
            resp.data = b"error" if outcome.status else b"ok"


def _command(body: bytes) -> bytes:
    """The command that a body asks for. Raises InvalidRequest."""
    try:
        # Lists and extension types have no place here; what a header claims is believed only up to the body's
        # own length, and the fields are few.
        fields = msgpack.unpackb(
            body,
            max_array_len=0,
            max_map_len=_FIELDS_MAX,
            ext_hook=_no_extension,
            object_pairs_hook=_unique_fields,
        )
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise InvalidRequest(f"the body is not a msgpack map of op, key and value: {error}") from error
    if not isinstance(fields, dict):
        raise InvalidRequest("the body is not a map")
    op, key, value = fields.get("op"), _octets(fields.get("key")), _octets(fields.get("value"))
    if key is None:
        raise InvalidRequest("key is not a string")
    if op == "SET" and value is not None:
        return commands.put(key, value)
    if op == "DELETE" and (value is not None or "value" not in fields):
        return commands.delete(key)
    raise InvalidRequest("op is not SET or DELETE, or value is not a string")


def _octets(value: Any) -> bytes | None:
    if isinstance(value, str):
        return value.encode()
    return value if isinstance(value, bytes) else None


def _no_extension(code: int, _data: bytes) -> Any:
    raise ValueError(f"extension type {code}")


def _unique_fields(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field stands there twice")
    return fields


class GetResource:
    """GET: the value of `?key=`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def on_get(self, req: Request, resp: Response) -> None:
        query = Query(req.scope["query_string"], None)
        key = query.get("key") or b""
        level = query.choice("level", ("linearizable", "lease", "stale")) or "linearizable"
        resp.content_type = TEXT
        resp.data = b"Key Not Found"
        try:
            commands.check_key(key)
        except InvalidRequest:
            return  # no key is empty or that long
        record, _ = await self._service.store.get(key, level=level)  # type: ignore[arg-type]  # one of them
        if record is not None:
            resp.data = record.value
