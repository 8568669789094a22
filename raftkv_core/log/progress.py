"""How far the disk is behind what was handed over: who waits for which ticket, and since when."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from raftkv_core.errors import DataDirectoryError
from raftkv_core.log.executor import SyncExecutor, Timer

__all__ = ["Progress"]


class _Waiter(NamedTuple):
    ticket: int
    callback: Callable[[], None]
    future: asyncio.Future[None] | None = None


class Progress:
    """Tickets are handed out in order and flushed in order. Used on the loop only.

    `on_stalled(seconds)` is called when nothing moved for `stall_s` though something is owed.
    """

    def __init__(self, executor: SyncExecutor, stall_s: float, on_stalled: Callable[[float], None]) -> None:
        self.handed = 0
        self.flushed = 0
        self.ended: str | None = None
        """Why nothing will be flushed any more."""
        self._executor = executor
        self._stall_s = stall_s
        self._on_stalled = on_stalled
        self._moved_at = 0.0
        self._timer: Timer | None = None
        self._waiters: deque[_Waiter] = deque()

    @property
    def waiting_s(self) -> float:
        """How long the disk has owed an answer; 0.0 if it owes none."""
        return self._executor.time() - self._moved_at if self.flushed < self.handed else 0.0

    def hand_over(self, ticket: int) -> None:
        """`ticket` is the newest now."""
        if self.flushed == self.handed:
            self._moved_at = self._executor.time()
        self.handed = ticket
        if self._timer is None and self.ended is None:
            self._timer = self._executor.call_later(self._stall_s, self._check)

    def moved(self) -> None:
        """The disk answered."""
        self._moved_at = self._executor.time()

    def flush(self, ticket: int) -> None:
        """Everything up to `ticket` is durable; older tickets change nothing."""
        self.flushed = max(self.flushed, ticket)

    def release(self) -> None:
        """Call whoever waited for what is flushed."""
        while self._waiters and self._waiters[0].ticket <= self.flushed:
            self._waiters.popleft().callback()

    def call(self, callback: Callable[[], None]) -> None:
        """Call back once all that was handed over is flushed; never if that does not happen."""
        if self.flushed >= self.handed:
            callback()
        elif self.ended is None:
            self._waiters.append(_Waiter(self.handed, callback))

    async def wait(self, ticket: int) -> None:
        """Return when `ticket` is flushed; raises DataDirectoryError if it never will be."""
        if ticket <= self.flushed:
            return
        if self.ended is not None:
            raise DataDirectoryError(self.ended)
        future = asyncio.get_running_loop().create_future()

        def done() -> None:
            if not future.done():
                future.set_result(None)

        # Kept in order of tickets, which waiting for an older one would break.
        place = len(self._waiters)
        while place and self._waiters[place - 1].ticket > ticket:
            place -= 1
        self._waiters.insert(place, _Waiter(ticket, done, future))
        await future

    def end(self, reason: str) -> None:
        """Nothing will be flushed any more."""
        self.ended = self.ended or reason
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if waiter.future is not None and not waiter.future.done():
                waiter.future.set_exception(DataDirectoryError(reason))

    def _check(self) -> None:
        self._timer = None
        if self.flushed == self.handed:
            return
        left = self._stall_s - self.waiting_s
        if left > 0:
            self._timer = self._executor.call_later(left, self._check)
        else:
            self._on_stalled(self.waiting_s)
