"""Read barriers: from when on a read is as strong as was asked for.

A round asks the engine for a read index and then waits until storage shows it. Readers share rounds, but only
a round that began after they arrived: an index asked for earlier could miss a write that was acknowledged in
between.

    index = await barrier.reach("linearizable", timeout_s)
    ... begin a read transaction: it sees `index` ...
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from raftkv_core.errors import InvalidRequest, RequestError, StorageError, Unavailable
from raftkv_core.interfaces.consensus import Level

__all__ = ["ReadBarrier"]

ReadIndex = Callable[[Level, float], Awaitable[int]]


class _Round:
    """Readers who share one read index. `deadline` is that of the most patient."""

    __slots__ = ("deadline", "future")

    def __init__(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        self.future: asyncio.Future[int] = loop.create_future()
        self.deadline = deadline


class ReadBarrier:
    """Coalesces read barriers, level by level."""

    def __init__(self, read_index: ReadIndex, visible: Callable[[int], Awaitable[None]]) -> None:
        """`read_index` is the engine's; `visible` the committer's."""
        self._loop = asyncio.get_running_loop()
        self._read_index = read_index
        self._visible = visible
        self._gathering: dict[Level, _Round] = {}
        self._asking: set[Level] = set()
        self._tasks: Final[set[asyncio.Task[None]]] = set()
        self.rounds = 0
        """Begun since the start."""
        self.readers = 0
        """Served by them."""

    def reach(self, level: Level, timeout_s: float) -> asyncio.Future[int]:
        """The index that a read must see, once storage shows it. Raises Unavailable.

        Cancelling the wait disturbs no other reader; the caller keeps its own deadline.
        """
        if level == "stale":
            raise InvalidRequest("a stale read needs no barrier", code="bad_level")
        self.readers += 1
        deadline = self._loop.time() + timeout_s
        joined = self._gathering.get(level)
        if joined is None:
            joined = self._gathering[level] = _Round(self._loop, deadline)
            if level not in self._asking:
                self._asking.add(level)
                self._spawn(self._ask(level))
        else:
            joined.deadline = max(joined.deadline, deadline)
        return asyncio.shield(joined.future)

    async def close(self) -> None:
        """End all rounds; who waits hears Unavailable."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for left in self._gathering.values():
            _fail(left, Unavailable("the node is stopping"))
        self._gathering.clear()

    async def _ask(self, level: Level) -> None:
        """Ask the engine for one round after the other, as long as readers arrive meanwhile."""
        try:
            while (begun := self._gathering.pop(level, None)) is not None:
                self.rounds += 1
                try:
                    index = await self._read_index(level, max(0.001, begun.deadline - self._loop.time()))
                except RequestError as error:
                    _fail(begun, error)
                except asyncio.CancelledError:
                    _fail(begun, Unavailable("the node is stopping"))
                    raise
                except Exception as error:  # noqa: BLE001 - a read fails, not the node
                    _fail(begun, Unavailable(f"the consensus engine failed in read_index: {error!r}"))
                else:
                    await self._show(begun, index)
        finally:
            self._asking.discard(level)

    async def _show(self, begun: _Round, index: int) -> None:
        shown = self._visible(index)
        if isinstance(shown, asyncio.Future) and shown.done() and shown.exception() is None:
            _finish(begun, index)
        else:  # the next round need not wait for this one's commit
            self._spawn(self._wait_shown(begun, index, shown))

    async def _wait_shown(self, begun: _Round, index: int, shown: Awaitable[None]) -> None:
        try:
            await asyncio.wait_for(shown, max(0.001, begun.deadline - self._loop.time()))
        except asyncio.TimeoutError:
            _fail(begun, Unavailable(f"storage did not show log index {index} in time; retry later"))
        except StorageError as error:
            _fail(begun, Unavailable(str(error)))
        except asyncio.CancelledError:
            _fail(begun, Unavailable("the node is stopping"))
            raise
        else:
            _finish(begun, index)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _finish(begun: _Round, index: int) -> None:
    if not begun.future.done():
        begun.future.set_result(index)


def _fail(begun: _Round, error: RequestError) -> None:
    if not begun.future.done():
        begun.future.set_exception(error)
        begun.future.exception()  # a reader who went away leaves nobody to fetch it
