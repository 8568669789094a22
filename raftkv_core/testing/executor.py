"""Threads, a loop and a clock in one thread: nothing runs until it is told to, in the order that a test chooses."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["SteppedExecutor"]


@dataclass(order=True)
class _Timer:
    at: float
    number: int
    callback: Callable[[], None] = field(compare=False)
    cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.cancelled = True


class SteppedExecutor:
    """Implements `raftkv_core.log.executor.SyncExecutor` in one thread: nothing runs until it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.stalled = False
        """While set, jobs do not run: the disk does not answer."""
        self._jobs: deque[Callable[[], None]] = deque()
        self._callbacks: deque[Callable[[], None]] = deque()
        self._timers: list[_Timer] = []
        self._numbers = itertools.count()

    def submit(self, job: Callable[[], None]) -> None:
        self._jobs.append(job)

    def call_soon(self, callback: Callable[[], None]) -> None:
        self._callbacks.append(callback)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> _Timer:
        timer = _Timer(self.now + delay_s, next(self._numbers), callback)
        heapq.heappush(self._timers, timer)
        return timer

    def time(self) -> float:
        return self.now

    def close(self, timeout_s: float) -> bool:  # noqa: ARG002
        while self.work():
            pass
        return not self._jobs

    def work(self) -> bool:
        """Run one job, not what it has to say to the loop; says whether there was one."""
        if self.stalled or not self._jobs:
            return False
        self._jobs.popleft()()
        return True

    def tell(self) -> bool:
        """Run what is due on the loop; says whether there was anything."""
        due = len(self._callbacks)
        for _ in range(due):
            self._callbacks.popleft()()
        return due > 0

    def step(self) -> bool:
        """One job and what it has to say; says whether there was anything to do."""
        worked = self.work()
        return self.tell() or worked

    def run(self) -> None:
        """Step until nothing is left to do."""
        while self.step():
            pass

    def advance(self, seconds: float) -> None:
        """Let time pass, timers fire."""
        end = self.now + seconds
        while self._timers and self._timers[0].at <= end:
            timer = heapq.heappop(self._timers)
            self.now = max(self.now, timer.at)
            if not timer.cancelled:
                timer.callback()
        self.now = end
