"""Deadlines for many futures with one timer: a timer each would cost more than what is timed.

deadlines.watch(future, loop.time() + 5.0, lambda _future: Unavailable("too late"))
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

__all__ = ["Deadlines"]

SWEEP_S: Final = 0.25
"""The longest time between two looks; futures that are done are dropped at each."""


class Deadlines:
    """Fails futures that are not done in time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watched: list[tuple[float, asyncio.Future[Any], Callable[[asyncio.Future[Any]], Exception]]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._next = 0.0

    def watch(
        self, future: asyncio.Future[Any], deadline: float, error: Callable[[asyncio.Future[Any]], Exception]
    ) -> None:
        """If it is not done at `deadline` (the loop's time), give it `error(future)`."""
        self._watched.append((deadline, future, error))
        if self._timer is None:
            self._arm(min(deadline, self._loop.time() + SWEEP_S))
        elif deadline < self._next:
            self._timer.cancel()
            self._arm(deadline)

    def sweep(self) -> None:
        """Look now."""
        self._timer = None
        now = self._loop.time()
        left = []
        soonest = now + SWEEP_S
        for entry in self._watched:
            deadline, future, error = entry
            if future.done():
                continue
            if deadline <= now:
                future.set_exception(error(future))
            else:
                left.append(entry)
                soonest = min(soonest, deadline)
        self._watched = left
        if left:
            self._arm(soonest)

    def close(self) -> None:
        """Watch no more."""
        self._watched.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, when: float) -> None:
        self._next = when
        self._timer = self._loop.call_at(when, self.sweep)
