"""Where the log's blocking work runs: a thread of its own, or, in tests and simulation, wherever a hand steps it.

The log uses threads, timers and the clock only through `SyncExecutor`, so with
`raftkv_core.testing.executor.SteppedExecutor` everything happens in one thread and in a chosen order.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Protocol

__all__ = ["SyncExecutor", "ThreadExecutor", "Timer"]


class Timer(Protocol):
    """A call that was put off."""

    def cancel(self) -> None: ...


class SyncExecutor(Protocol):
    """Runs jobs off the loop, one after the other, and gets back to the loop. One log, one executor."""

    def submit(self, job: Callable[[], None]) -> None:
        """Run it after all that were submitted before. Callable from the loop and from a job."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run it on the loop, in order. Called by jobs."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Run it on the loop after a delay. Called on the loop."""

    def time(self) -> float:
        """Seconds of a clock that never goes back. Callable from anywhere."""

    def close(self, timeout_s: float) -> bool:
        """Run what was submitted, then end. False if that did not happen in time."""


class ThreadExecutor:
    """A daemon thread for the jobs, and an event loop to get back to."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str = "raftkv-log") -> None:
        self._loop = loop
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], None]) -> None:
        self._jobs.put(job)

    def call_soon(self, callback: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is there to be told
            self._loop.call_soon_threadsafe(callback)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        return self._loop.call_later(delay_s, callback)

    def time(self) -> float:
        return self._loop.time()

    def close(self, timeout_s: float) -> bool:
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
