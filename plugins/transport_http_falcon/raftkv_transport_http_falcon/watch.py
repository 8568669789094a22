"""Changes as they happen: `/v1/watch` as server-sent events, `/v1/changes` page by page.

Both resume by revision. A change that came before the compacted revision is gone: 410, never a silent gap.

    id: 8
    event: put
    data: {"type":"put","revision":8,"key":"a","value":"x","create_revision":8,"mod_revision":8,"version":1}

`id` stands only on the last change of a revision, so that a reader that resumes with Last-Event-ID never
misses the rest of a transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Final

import msgspec
from falcon.asgi import Response

from raftkv_core.errors import RequestError
from raftkv_core.interfaces.transport import ChangesPage
from raftkv_transport_http_falcon.answers import change_row, respond, wants_msgpack
from raftkv_transport_http_falcon.problems import Problem, from_error
from raftkv_transport_http_falcon.ranges import RANGE_PARAMETERS, read_range
from raftkv_transport_http_falcon.requests import TIMEOUT_S_MAX, Query, Request
from raftkv_transport_http_falcon.service import Service

__all__ = ["ChangesResource", "WatchResource"]

_WATCH_PARAMETERS: Final = RANGE_PARAMETERS | {"after", "previous"}
_CHANGES_PARAMETERS: Final = _WATCH_PARAMETERS | {"limit", "wait_s"}
_CHANGES_LIMIT: Final = 100
_CHANGES_MOST: Final = 1_000


class WatchResource:
    """GET: an endless stream of events."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def on_get(self, req: Request, resp: Response) -> None:
        query = Query(req.scope["query_string"], _WATCH_PARAMETERS)
        start, end = read_range(query)
        after = query.number("after")
        if (last := req.text_field(b"last-event-id")).isdigit():
            after = int(last)  # an EventSource that reconnects repeats its URL and adds this
        store = self._service.store
        if after is None:
            after = await _present(self._service)
        # what is wrong is raised here, while it can still be a status
        first = await store.changes(after, start=start, end=end, limit=_CHANGES_LIMIT)
        resp.content_type = "text/event-stream"
        resp.stream = _Events(
            first,
            store.watch(first.revision, start=start, end=end),
            may_go_on=partial(self._service.gate.check, req.fields, "GET"),
            heartbeat_s=self._service.settings.heartbeat_s,
            with_previous=query.flag("previous"),
        )


class ChangesResource:
    """GET: one page of changes, at once or as soon as there are some."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def on_get(self, req: Request, resp: Response) -> None:
        query = Query(req.scope["query_string"], _CHANGES_PARAMETERS)
        start, end = read_range(query)
        limit = query.number("limit", least=1, most=_CHANGES_MOST) or _CHANGES_LIMIT
        wait_s = query.seconds("wait_s", most=TIMEOUT_S_MAX)
        after = query.number("after")
        if after is None:
            after = await _present(self._service)
        store = self._service.store
        page = await store.changes(after, start=start, end=end, limit=limit)
        if wait_s is not None and not page.changes:
            page = await _wait(page, store.watch(page.revision, start=start, end=end), wait_s)
        binary = wants_msgpack(req)
        with_previous = query.flag("previous")
        rows = [change_row(change, binary=binary, with_previous=with_previous) for change in page.changes]
        resp.set_header("raftkv-revision", str(page.revision))
        respond(req, resp, {"revision": page.revision, "changes": rows})


async def _present(service: Service) -> int:
    """The revision to begin after, for who wants to hear of what comes."""
    page = await service.store.range(b"", None, limit=1, keys_only=True)
    return page.info.revision


async def _wait(page: ChangesPage, pages: AsyncIterator[ChangesPage], wait_s: float) -> ChangesPage:
    """The first page of `pages` that has changes, or the last that came in time."""
    loop = asyncio.get_running_loop()
    until = loop.time() + wait_s
    try:
        while not page.changes:
            page = await asyncio.wait_for(anext(pages), until - loop.time())
    except asyncio.TimeoutError:
        pass
    finally:
        await _close(pages)
    return page


async def _close(pages: AsyncIterator[ChangesPage]) -> None:
    if (close := getattr(pages, "aclose", None)) is not None:
        await close()


class _Events:
    """The body of a watch. Falcon iterates over it and calls `close` at the end, however that comes about."""

    def __init__(
        self,
        first: ChangesPage,
        pages: AsyncIterator[ChangesPage],
        *,
        may_go_on: Callable[[], None],
        heartbeat_s: float,
        with_previous: bool,
    ) -> None:
        """`may_go_on` raises Problem when the client's token was withdrawn."""
        self._first: ChangesPage | None = first
        self._pages = pages
        self._may_go_on = may_go_on
        self._heartbeat_s = heartbeat_s
        self._with_previous = with_previous
        self._revision = first.revision
        self._next: asyncio.Task[ChangesPage] | None = None
        self._is_over = False

    def __aiter__(self) -> _Events:
        return self

    async def __anext__(self) -> bytes:
        if self._first is not None:
            page, self._first = self._first, None
            return b"retry: 1000\n\n" + self._encode(page) + self._resume_point()
        if self._is_over:
            raise StopAsyncIteration
        try:
            return await self._following()
        except RequestError as error:
            problem = from_error(error)
        except Problem as refusal:
            problem = refusal
        self._is_over = True
        return _event("error", problem.body())

    async def _following(self) -> bytes:
        """The next events, or a sign of life."""
        while True:
            if self._next is None:
                self._next = asyncio.ensure_future(_anext(self._pages))
            await asyncio.wait({self._next}, timeout=self._heartbeat_s)
            self._may_go_on()
            if not self._next.done():
                return self._resume_point()
            following, self._next = self._next, None
            page = following.result()
            self._revision = page.revision
            if page.changes:
                return self._encode(page)

    async def close(self) -> None:
        if self._next is not None:
            self._next.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._next
        await _close(self._pages)

    def _resume_point(self) -> bytes:
        """A sign of life, and where to resume: an event without data moves Last-Event-ID and is not shown."""
        return b"id: %d\n\n" % self._revision

    def _encode(self, page: ChangesPage) -> bytes:
        events = []
        changes = page.changes
        for number, change in enumerate(changes):
            is_last = number + 1 == len(changes) or changes[number + 1].revision != change.revision
            row = change_row(change, binary=False, with_previous=self._with_previous)
            identity = b"id: %d\n" % change.revision if is_last else b""
            events.append(identity + _event(row["type"], msgspec.json.encode(row)))
        return b"".join(events)


async def _anext(pages: AsyncIterator[ChangesPage]) -> ChangesPage:
    return await anext(pages)


def _event(name: str, data: bytes) -> bytes:
    """JSON holds no line break, so one data line is enough."""
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)
