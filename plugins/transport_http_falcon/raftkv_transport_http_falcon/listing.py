"""`/v1/kv`: ranges of keys. Lists them page by page, at one revision; removes them as one command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote, urlencode

from falcon.asgi import Response

from raftkv_core.interfaces.transport import Range, Record
from raftkv_core.machine import commands
from raftkv_transport_http_falcon.answers import put_bytes, read_headers, respond, row_of, wants_msgpack
from raftkv_transport_http_falcon.problems import Problem, from_refusal
from raftkv_transport_http_falcon.ranges import RANGE_PARAMETERS, above, read_range
from raftkv_transport_http_falcon.requests import (
    READ_PARAMETERS,
    TIMEOUT_S_MAX,
    Query,
    Request,
    read_options,
)
from raftkv_transport_http_falcon.service import Service

__all__ = ["RangeResource"]

_LIST_PARAMETERS: Final = READ_PARAMETERS | RANGE_PARAMETERS | {"limit", "after", "keys_only", "count", "reverse"}
_DELETE_PARAMETERS: Final = RANGE_PARAMETERS | {"all", "timeout_s"}
_LIMIT: Final = 100
_FIRST_ROWS: Final = 32
"""Rows asked for before their size is known: at the largest value, that many MiB."""

Row = tuple[bytes, Record]


class RangeResource:
    """GET, HEAD and DELETE of a range."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def on_get(self, req: Request, resp: Response) -> None:
        settings = self._service.settings
        query = Query(req.scope["query_string"], _LIST_PARAMETERS)
        options = read_options(query)
        start, end = read_range(query)
        limit = query.number("limit", least=0, most=settings.page_rows_max)
        keys_only, reverse = query.flag("keys_only"), query.flag("reverse")
        limit = _LIMIT if limit is None else limit
        after = query.get("after")
        is_beyond = False
        if after is not None:
            rest = _continued(start, end, after, reverse=reverse)
            is_beyond = rest is None
            start, end = rest or (after, None)
        page = await self._page(
            start,
            end,
            limit=0 if is_beyond else limit,
            keys_only=keys_only,
            reverse=reverse,
            count=query.flag("count"),
            **options,
        )
        if is_beyond:
            page = page._replace(more=False)
        binary = wants_msgpack(req)
        as_of = options.get("revision", page.info.revision)
        document: dict[str, Any] = {
            "revision": as_of,
            "rows": [row_of(key, record, binary=binary, with_value=not keys_only) for key, record in page.rows],
            "more": page.more,
        }
        if page.count is not None:
            document["count"] = page.count
        if page.more and page.rows:
            last = page.rows[-1][0]
            put_bytes(document, "after", last, binary=binary)
            document["next"] = _next_link(query, last, as_of)
        resp.set_headers(read_headers(page.info))
        respond(req, resp, document)

    on_head = on_get

    async def _page(
        self,
        start: bytes,
        end: bytes | None,
        *,
        limit: int,
        keys_only: bool,
        reverse: bool,
        count: bool,
        **options: Any,
    ) -> Range:
        """Up to `limit` rows and about `page_bytes_max` bytes, all of one revision.

        Asked for piece by piece, so that a page of large values is never in memory whole.
        """
        read = self._service.store.range
        first = max(1, limit if keys_only else min(limit, _FIRST_ROWS))
        page = await read(start, end, limit=first, keys_only=keys_only, reverse=reverse, count=count, **options)
        if limit == 0:
            return page._replace(rows=[], more=bool(page.rows))
        rows: list[Row] = list(page.rows)
        more = page.more
        left = self._service.settings.page_bytes_max - _size(rows)
        options.setdefault("revision", page.info.revision)
        while more and left > 0 and len(rows) < limit:
            rest = _continued(start, end, rows[-1][0], reverse=reverse)
            assert rest is not None, "there are more rows"
            start, end = rest
            affordable = left * len(rows) // max(1, _size(rows))
            piece = await read(
                start,
                end,
                limit=max(1, min(limit - len(rows), affordable, 4 * len(rows))),
                keys_only=keys_only,
                reverse=reverse,
                **options,
            )
            rows += piece.rows
            left -= _size(piece.rows)
            more = piece.more
        return page._replace(rows=rows, more=more)

    async def on_delete(self, req: Request, resp: Response) -> None:
        query = Query(req.scope["query_string"], _DELETE_PARAMETERS)
        start, end = read_range(query)
        if not start and end is None and not query.flag("all"):
            raise Problem(400, "whole_store", "this would remove every key; if that is meant, say all=true")
        timeout_s = query.seconds("timeout_s", most=TIMEOUT_S_MAX)
        idempotency_key = req.fields.get(b"idempotency-key")
        outcome = await self._service.store.propose(
            commands.delete(start, end or b"", idempotency_key=idempotency_key), timeout_s=timeout_s
        )
        if outcome.status:
            raise from_refusal(outcome)
        resp.set_header("raftkv-revision", str(outcome.revision))
        document: dict[str, Any] = {"revision": outcome.revision}
        if outcome.payload is not None:
            document["deleted"] = outcome.payload[0]
        if outcome.replayed:
            document["replayed"] = True
        respond(req, resp, document)


def _continued(start: bytes, end: bytes | None, after: bytes, *, reverse: bool) -> tuple[bytes, bytes | None] | None:
    """The rest of a range, beyond the key `after`; None if nothing can be left."""
    commands.check_key(after)
    if reverse:
        end = after if end is None else min(end, after)
    else:
        following = above(after)
        if following is None:
            return None
        start = max(start, following)
    return None if end is not None and end <= start else (start, end)


def _size(rows: Sequence[Row]) -> int:
    return sum(len(key) + len(record.value) for key, record in rows)


def _next_link(query: Query, last: bytes, revision: int) -> str:
    """Where the next page is: the same query, after the last key, at the same revision."""
    parameters = {name: value for name, value in query if name not in ("after", "revision", "count", "level")}
    parameters["after"] = last
    parameters["revision"] = str(revision).encode()
    return "/v1/kv?" + urlencode(parameters, quote_via=quote)
