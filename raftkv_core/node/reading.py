"""Reads on snapshots, in the node's process and in a worker's alike.

A read that must be fresh waits for a barrier; all reads that wait for the same one are then served from one
read transaction. That transaction is asked once whether it has reached the index that the barrier named: a
reader that still has an older store open (a stream was installed) does not, so it is opened again, once.

Reads that may take long (old revisions, large pages) run in a thread, on a transaction of their own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol, TypeVar

from raftkv_core.errors import RequestError, StorageError, Unavailable
from raftkv_core.interfaces.consensus import Level
from raftkv_core.interfaces.storage import ReadTransaction
from raftkv_core.interfaces.transport import ReadInfo
from raftkv_core.machine.meta import State, read_state
from raftkv_core.node.deadlines import Deadlines
from raftkv_core.node.watch import RevisionNews

__all__ = ["Reading", "Snapshots", "copy_error"]

ROUNDS_MAX: Final = 2
"""Barriers under way at once, for each level: the second gathers the readers that came after the first."""

ResultT = TypeVar("ResultT")
ReadFunction = Callable[[ReadTransaction], Any]


class Snapshots(Protocol):
    """Where read transactions come from."""

    def read(self) -> ReadTransaction:
        """Begin one on this thread, for at once. Raises Unavailable or StorageError."""

    def hold(self) -> AbstractContextManager[Callable[[], ReadTransaction]]:
        """What a thread calls to begin one; what it reads from stays open inside the `with`."""

    def reopen(self) -> None:
        """What was read is older than it should be: take a newer store if there is one."""


class _Read:
    """One read that waits for a barrier."""

    __slots__ = ("deadline", "function", "future", "slow")

    def __init__(
        self, function: ReadFunction, slow: bool, deadline: float, future: asyncio.Future[tuple[Any, State]]
    ) -> None:
        self.function = function
        self.slow = slow
        self.deadline = deadline
        self.future = future


class Reading:
    """Runs read functions at the level asked for."""

    def __init__(
        self,
        snapshots: Snapshots,
        barrier: Callable[[Level, float], Awaitable[int]],
        news: RevisionNews,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._snapshots = snapshots
        self._barrier = barrier
        self._news = news
        self._deadlines = Deadlines(self._loop)
        self._gathered: dict[Level, list[_Read]] = {}
        self._rounds: dict[Level, int] = {}
        self._scheduled: set[Level] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="raftkv-read")
        self._closed = False

    def now(self, function: Callable[[ReadTransaction], ResultT]) -> tuple[ResultT, State]:
        """A quick, stale read."""
        self._check_open()
        with self._snapshots.read() as txn:
            return function(txn), read_state(txn)

    async def run(
        self,
        function: Callable[[ReadTransaction], ResultT],
        *,
        level: Level,
        min_revision: int | None,
        timeout_s: float,
        slow: bool = False,
    ) -> tuple[ResultT, ReadInfo]:
        """What `function` returns for a snapshot that is as fresh as asked for, and which one it was.

        Raises what `function` raises, and Unavailable when such a snapshot cannot be had in time.
        """
        self._check_open()
        deadline = self._loop.time() + timeout_s
        if level == "stale":
            result, state = await self._in_thread(function, 0) if slow else self.now(function)
        else:
            result, state = await self._after_barrier(function, level, slow, deadline)
        while min_revision is not None and state.revision < min_revision:
            await self._wait_for(min_revision, deadline)
            result, state = await self._in_thread(function, 0) if slow else self.now(function)
        return result, ReadInfo(level, state.revision, state.index)

    async def in_thread(self, function: Callable[[ReadTransaction], ResultT]) -> ResultT:
        """A stale read that may take long."""
        result: ResultT = (await self._in_thread(function, 0))[0]
        return result

    async def close(self) -> None:
        """Fail what waits."""
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for reads in self._gathered.values():
            _fail(reads, Unavailable("the node is stopping"))
        self._deadlines.close()
        await self._loop.run_in_executor(None, self._threads.shutdown)

    def _check_open(self) -> None:
        if self._closed:
            raise Unavailable("the node is stopping")

    async def _wait_for(self, revision: int, deadline: float) -> None:
        try:
            await asyncio.wait_for(self._news.reached(revision), max(0.001, deadline - self._loop.time()))
        except asyncio.TimeoutError:
            raise Unavailable(
                f"revision {revision} did not become visible on this node in time; retry later",
                code="revision_not_reached",
            ) from None

    # ---------------------------------------------------------------- rounds

    def _after_barrier(
        self, function: ReadFunction, level: Level, slow: bool, deadline: float
    ) -> asyncio.Future[tuple[Any, State]]:
        future: asyncio.Future[tuple[Any, State]] = self._loop.create_future()
        self._deadlines.watch(future, deadline, _too_late)
        self._gathered.setdefault(level, []).append(_Read(function, slow, deadline, future))
        self._begin_soon(level)
        return future

    def _begin_soon(self, level: Level) -> None:
        """At the end of this tick, so that all readers of it share the round."""
        if level not in self._scheduled and self._rounds.get(level, 0) < ROUNDS_MAX and self._gathered.get(level):
            self._scheduled.add(level)
            self._loop.call_soon(self._begin, level)

    def _begin(self, level: Level) -> None:
        self._scheduled.discard(level)
        reads = self._gathered.pop(level, None)
        if not reads:
            return
        self._rounds[level] = self._rounds.get(level, 0) + 1
        task = self._loop.create_task(self._round(level, reads))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _round(self, level: Level, reads: list[_Read]) -> None:
        try:
            patience = max(read.deadline for read in reads) - self._loop.time()
            index = await self._barrier(level, max(0.001, patience))
        except RequestError as error:
            _fail(reads, error)
            return
        except asyncio.CancelledError:
            _fail(reads, Unavailable("the node is stopping"))
            raise
        finally:
            self._rounds[level] -= 1
            self._begin_soon(level)
        self._serve(reads, index)

    def _serve(self, reads: list[_Read], index: int) -> None:
        try:
            txn, state = self._fresh(index)
        except (RequestError, StorageError) as error:
            _fail(reads, error)
            return
        with txn:
            for read in reads:
                if read.future.done():
                    continue
                if read.slow:
                    self._serve_slow(read, index)
                    continue
                try:
                    read.future.set_result((read.function(txn), state))
                except Exception as error:  # noqa: BLE001 - it is this reader's, and it must hear of it
                    read.future.set_exception(error)

    def _fresh(self, index: int) -> tuple[ReadTransaction, State]:
        """A transaction that has reached `index`."""
        for again in (False, True):
            txn = self._snapshots.read()
            state = read_state(txn)
            if state.index >= index:
                return txn, state
            txn.close()
            if not again:
                self._snapshots.reopen()
        raise _behind(index, state.index)

    def _serve_slow(self, read: _Read, index: int) -> None:
        async def serve() -> None:
            try:
                result = await self._in_thread(read.function, index)
            except Exception as error:  # noqa: BLE001 - it is this reader's, and it must hear of it
                if not read.future.done():
                    read.future.set_exception(error)
            else:
                if not read.future.done():
                    read.future.set_result(result)

        task = self._loop.create_task(serve())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _in_thread(self, function: ReadFunction, index: int) -> tuple[Any, State]:
        self._check_open()
        with self._snapshots.hold() as read:

            def work() -> tuple[Any, State]:
                with read() as txn:
                    state = read_state(txn)
                    if state.index < index:
                        raise _behind(index, state.index)
                    return function(txn), state

            return await self._loop.run_in_executor(self._threads, work)


def copy_error(error: Exception) -> Exception:
    """The same again, because an exception raised in several tasks collects all their tracebacks."""
    if isinstance(error, RequestError):
        return type(error)(str(error), code=error.code, retryable=error.retryable)
    return type(error)(*error.args)


def _fail(reads: list[_Read], error: Exception) -> None:
    for read in reads:
        if not read.future.done():
            read.future.set_exception(copy_error(error))


def _too_late(_future: asyncio.Future[Any]) -> Unavailable:
    return Unavailable("the read could not be confirmed in time: no leader or no quorum; retry, or read stale")


def _behind(wanted: int, shown: int) -> Unavailable:
    return Unavailable(f"storage shows log index {shown} here, {wanted} was told; retry", code="storage_behind")
