"""What transports see of the store, as far as it is the same in the node's process and in a worker's.

Reads, ranges, changes and watches are here; how commands and everything rare reach the node is left to the
two subclasses: `LocalStore` below and `raftkv_core.worker.WorkerStore`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

from raftkv_core.errors import InvalidRequest
from raftkv_core.interfaces.consensus import Consensus, Level, Member
from raftkv_core.interfaces.storage import ReadTransaction, Storage
from raftkv_core.interfaces.transport import ChangesPage, Range, ReadInfo, Record
from raftkv_core.limits import KEY_BYTES_MAX
from raftkv_core.machine import reads
from raftkv_core.machine.commands import Outcome, check_key
from raftkv_core.machine.meta import read_state
from raftkv_core.node.admission import Admission
from raftkv_core.node.barrier import ReadBarrier
from raftkv_core.node.batches import FutureSink
from raftkv_core.node.reading import Reading
from raftkv_core.node.watch import RevisionNews

__all__ = ["LocalStore", "ReadingStore", "StorageSnapshots", "follow"]

QUICK_ROWS: Final = 128
"""A page of more rows, or more changes to look at, is read in a thread."""

WATCH_PAGE_CHANGES: Final = 100
"""Changes that one step of a watch looks at, each up to a largest value long."""


class ReadingStore:
    """The read half of a `Store`, over `Reading`."""

    def __init__(self, reading: Reading, news: RevisionNews, *, timeout_s: float) -> None:
        """`timeout_s`: for requests that name none."""
        self._reading = reading
        self._news = news
        self._timeout_s = timeout_s

    async def get(
        self,
        key: bytes,
        *,
        level: Level = "linearizable",
        revision: int | None = None,
        min_revision: int | None = None,
        timeout_s: float | None = None,
    ) -> tuple[Record | None, ReadInfo]:
        check_key(key)
        if level == "stale" and revision is None and min_revision is None:
            record, state = self._reading.now(lambda txn: reads.get(txn, key))
            return record, ReadInfo("stale", state.revision, state.index)
        return await self._reading.run(
            lambda txn: reads.get(txn, key, revision),
            level=level,
            min_revision=min_revision,
            timeout_s=self._patience(timeout_s),
            slow=revision is not None,
        )

    async def range(
        self,
        start: bytes,
        end: bytes | None,
        *,
        level: Level = "linearizable",
        revision: int | None = None,
        min_revision: int | None = None,
        limit: int = 100,
        keys_only: bool = False,
        count: bool = False,
        reverse: bool = False,
        timeout_s: float | None = None,
    ) -> Range:
        _check_bounds(start, end)
        if limit < 0:
            raise InvalidRequest(f"a limit is 0 or more, not {limit}", code="bad_limit")
        (rows, more, total), info = await self._reading.run(
            lambda txn: reads.range_rows(
                txn, start, end, revision=revision, limit=limit, keys_only=keys_only, count=count, reverse=reverse
            ),
            level=level,
            min_revision=min_revision,
            timeout_s=self._patience(timeout_s),
            slow=revision is not None or count or limit > QUICK_ROWS,
        )
        return Range(rows, more, total, info)

    async def changes(
        self, after: int, *, start: bytes = b"", end: bytes | None = None, limit: int = 1_000
    ) -> ChangesPage:
        _check_bounds(start, end)
        if limit < 1:
            raise InvalidRequest(f"a page has at least one change, not {limit}", code="bad_limit")

        def page(txn: ReadTransaction) -> ChangesPage:
            return reads.changes(txn, after, start, end, limit)

        def page_if_quick(txn: ReadTransaction) -> ChangesPage | None:
            return page(txn) if read_state(txn).revision - after <= QUICK_ROWS else None

        quick, _state = self._reading.now(page_if_quick)
        return quick if quick is not None else await self._reading.in_thread(page)

    def watch(self, after: int, *, start: bytes = b"", end: bytes | None = None) -> AsyncIterator[ChangesPage]:
        return follow(self, self._news, after, start, end)

    def _patience(self, timeout_s: float | None) -> float:
        return self._timeout_s if timeout_s is None else timeout_s


class _HasChanges(Protocol):
    async def changes(
        self, after: int, *, start: bytes = b"", end: bytes | None = None, limit: int = 1_000
    ) -> ChangesPage: ...


async def follow(
    store: _HasChanges, news: RevisionNews, after: int, start: bytes, end: bytes | None
) -> AsyncIterator[ChangesPage]:
    """Pages of changes, for ever: all that a watch is. A page without changes in the range tells how far it got,
    so that a watcher of a quiet range can resume where history is still kept."""
    while True:
        page = await store.changes(after, start=start, end=end, limit=WATCH_PAGE_CHANGES)
        if page.changes or page.revision > after:
            yield page
        if page.revision > after:
            after = page.revision
        else:
            await news.reached(after + 1)


def _check_bounds(start: bytes, end: bytes | None) -> None:
    for bound in (start, end or b""):
        if len(bound) > KEY_BYTES_MAX:
            raise InvalidRequest(
                f"a range bound has {len(bound)} bytes; the longest allowed has {KEY_BYTES_MAX}",
                code="key_too_long",
            )


class StorageSnapshots:
    """Read transactions of the node's own storage, which always shows the newest store."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def read(self) -> ReadTransaction:
        return self._storage.read()

    @contextmanager
    def hold(self) -> Iterator[Callable[[], ReadTransaction]]:
        yield self._storage.read

    def reopen(self) -> None:
        """There is only the one."""


class LocalStore(ReadingStore):
    """The store in the node's own process."""

    def __init__(
        self,
        *,
        storage: Storage,
        barrier: ReadBarrier,
        news: RevisionNews,
        admission: Admission,
        engine: Consensus,
        status: Callable[[], dict[str, Any]],
        timeout_s: float,
    ) -> None:
        super().__init__(Reading(StorageSnapshots(storage), barrier.reach, news), news, timeout_s=timeout_s)
        self._loop = asyncio.get_running_loop()
        self._admission = admission
        self._engine = engine
        self._status = status

    async def propose(self, command: bytes, *, timeout_s: float | None = None) -> Outcome:
        sink = FutureSink(self._loop)
        self._admission.propose(sink, 0, [command], self._loop.time() + self._patience(timeout_s))
        return await sink.future

    async def status(self) -> dict[str, Any]:
        return self._status()

    async def members(self) -> Sequence[Member]:
        return self._engine.members()

    async def add_member(self, member: Member, *, timeout_s: float | None = None) -> None:
        await self._engine.add_member(member, self._patience(timeout_s))

    async def remove_member(self, node_id: str, *, timeout_s: float | None = None) -> None:
        await self._engine.remove_member(node_id, self._patience(timeout_s))

    async def transfer_leadership(self, node_id: str | None, *, timeout_s: float | None = None) -> None:
        await self._engine.transfer_leadership(node_id, self._patience(timeout_s))

    async def close(self) -> None:
        await self._reading.close()
