"""The news that the revision moved: all that a watch needs, because it reads the changes itself.

news.announce(7)                    # storage shows revision 7 now
await news.reached(8)               # returns when it shows 8 or later
stop = news.subscribe(callback)     # called with each new revision
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

__all__ = ["RevisionNews"]

LINGER_S: Final = 1.0
"""A watcher is away for a moment while it takes each page; it still counts as one."""


class RevisionNews:
    """The newest revision that storage is known to show, and who wants to hear of the next."""

    def __init__(self, revision: int = 0, *, on_watched: Callable[[bool], None] = lambda _watched: None) -> None:
        """`on_watched` hears when the first listener comes and when there has been none for a while."""
        self.revision = revision
        self._on_watched = on_watched
        self._callbacks: list[Callable[[int], None]] = []
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self.watched = False
        self._lingering: asyncio.TimerHandle | None = None

    def announce(self, revision: int) -> None:
        """Storage shows `revision`; the same again is no news, a lower one belongs to another store."""
        if revision == self.revision:
            return
        self.revision = revision
        for callback in list(self._callbacks):
            callback(revision)
        if not self._waiters:
            return
        rest = []
        for wanted, waiter in self._waiters:
            if waiter.done():
                continue
            if wanted <= revision:
                waiter.set_result(None)
            else:
                rest.append((wanted, waiter))
        self._waiters = rest
        self._note()

    def subscribe(self, callback: Callable[[int], None]) -> Callable[[], None]:
        """Call `callback(revision)` at each move; returns what ends it."""
        self._callbacks.append(callback)
        self._note()

        def stop() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)
                self._note()

        return stop

    async def reached(self, revision: int) -> None:
        """Return when the revision is at least that."""
        if self.revision >= revision:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append((revision, waiter))
        self._note()
        try:
            await waiter
        finally:
            if not waiter.done() or waiter.cancelled():
                self._waiters = [pair for pair in self._waiters if pair[1] is not waiter]
                self._note()

    def fail(self, error: Exception) -> None:
        """End every wait with the error."""
        waiters, self._waiters = self._waiters, []
        for _wanted, waiter in waiters:
            if not waiter.done():
                waiter.set_exception(error)
        self._note()

    def _note(self) -> None:
        if self._callbacks or self._waiters:
            if self._lingering is not None:
                self._lingering.cancel()
                self._lingering = None
            if not self.watched:
                self.watched = True
                self._on_watched(True)
        elif self.watched and self._lingering is None:
            self._lingering = asyncio.get_running_loop().call_later(LINGER_S, self._unwatch)

    def _unwatch(self) -> None:
        self._lingering = None
        self.watched = False
        self._on_watched(False)
