"""Storage commits behind apply: when they run, what waits for them, and what follows from them.

One commit takes everything applied so far (begin on the loop, write in the writer thread, end on the loop). It
starts at once when somebody waits to see it or the buffer is half full, else `commit_delay_s` after the first
thing that is pending. While one runs the next gathers.

Who waits:

    await committer.visible(index)          # storage shows it: reads
    await committer.make_durable(index)     # it survives power loss: trimming, snapshots
    await committer.wait_for_room()         # the buffer has room again: apply

A commit that fails is fatal: what it held was acknowledged, so the node stops and replays its log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from raftkv_core.errors import StorageError, StorageFull
from raftkv_core.interfaces.consensus import Position
from raftkv_core.interfaces.storage import Storage
from raftkv_core.machine.buffer import Generation
from raftkv_core.machine.state import StateMachine

__all__ = ["Committer", "CommitterFigures", "Keeper"]

SYNC_EVERY_LOG_BYTES: Final = 64 << 20
"""A storage whose commits are durable only by `sync` is synced when the log has grown by this much since."""


class Keeper(Protocol):
    """Makes positions durable outside a storage that is not `durable` (`raftkv_core.node.streams`)."""

    def due(self, log_bytes: int) -> bool:
        """Whether to keep now, this many log bytes after the last time."""

    async def keep(self) -> Position:
        """Keep at least what is visible now; returns the position that is safe."""


@dataclass
class CommitterFigures:
    """Counted since the start."""

    commits: int = 0
    syncs: int = 0
    commit_seconds: float = 0.0
    commit_seconds_max: float = 0.0


class Committer:
    """Owns the writer thread of the storage."""

    def __init__(
        self,
        machine: StateMachine,
        storage: Storage,
        *,
        commit_delay_s: float,
        buffer_bytes: int,
        fatal: Callable[[str], None],
        keeper: Keeper | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._machine = machine
        self._storage = storage
        self._delay_s = commit_delay_s
        self._buffer_bytes = buffer_bytes
        self._fatal = fatal
        self._keeper = keeper
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="raftkv-storage")
        self._busy: asyncio.Future[None] | None = None
        """Done when the writer thread has nothing to do; None while it has not."""
        self._paused = False
        self._exclusive = asyncio.Lock()
        self._failed = False
        self.full = False
        """A commit failed because there was no room."""
        self._start_scheduled = False
        self._timer: asyncio.TimerHandle | None = None
        self._visible_waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._durable_waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._room_waiters: list[asyncio.Future[None]] = []
        self._log_bytes = 0
        self._keeping: asyncio.Task[None] | None = None
        self.visible_revision = machine.revision
        """What storage shows; the machine's own may be ahead."""
        self._watched = False
        self.on_visible: list[Callable[[], None]] = []
        """Called after `visible` moved."""
        self.on_durable: list[Callable[[Position], None]] = []
        """Called after `durable` moved."""
        self.figures = CommitterFigures()

    # ---------------------------------------------------------------- who waits

    @property
    def room(self) -> int:
        """Bytes that the buffer still takes; 0 or more."""
        return max(0, self._buffer_bytes - self._machine.pending_bytes)

    async def wait_for_room(self) -> None:
        """Return when `room` is above 0."""
        while not self.room:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._room_waiters.append(waiter)
            self._start_soon()
            await waiter

    def visible(self, index: int) -> Awaitable[None]:
        """Await it to know that a new read transaction sees `index`. Raises StorageError when that never comes;
        so do the other two."""
        waiter: asyncio.Future[None] = self._loop.create_future()
        if self._machine.visible.index >= index:
            waiter.set_result(None)
        else:
            self._visible_waiters.append((index, waiter))
            self._start_soon()
        return waiter

    async def make_durable(self, index: int) -> None:
        """Return when `machine.durable.index` has reached `index`, which may have to be applied first."""
        if self._machine.durable.index >= index:
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._durable_waiters.append((index, waiter))
        self._start_soon()
        await waiter

    def watch(self, watched: bool) -> None:
        """Whether somebody wants to see every revision as soon as it is applied."""
        self._watched = watched
        if watched and self._machine.commit_pending:
            self._start_soon()

    # ---------------------------------------------------------------- when

    def applied(self, log_bytes: int) -> None:
        """Something was applied; its entries took that many bytes in the log."""
        self._log_bytes += log_bytes
        if self._urgent():
            self._start_soon()
        elif self._timer is None and self._busy is None:
            self._timer = self._loop.call_later(self._delay_s, self._start)

    def _urgent(self) -> bool:
        return bool(
            self._watched
            or self._visible_waiters
            or self._durable_waiters
            or self._room_waiters
            or self._machine.pending_bytes * 2 > self._buffer_bytes
        )

    def _start_soon(self) -> None:
        """At the end of this tick, so that all that is applied in it shares the commit."""
        if not self._start_scheduled and self._busy is None:
            self._start_scheduled = True
            self._loop.call_soon(self._start)

    def _start(self) -> None:
        self._start_scheduled = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._busy is not None or self._paused or self._failed:
            return
        machine = self._machine
        sync = self._sync_wanted()
        generation = machine.begin_commit()
        if generation is not None:
            self._run(generation, sync)
        elif sync and machine.durable < machine.visible:
            self._run(None, sync)
        else:
            self._keep_if_due()

    def _sync_wanted(self) -> bool:
        if self._keeper is not None:
            return False
        if self._storage.commits_at_risk is None and self._log_bytes >= SYNC_EVERY_LOG_BYTES:
            return True
        applied = self._machine.applied.index
        return any(index <= applied for index, _waiter in self._durable_waiters)

    # ---------------------------------------------------------------- one commit

    def _run(self, generation: Generation | None, sync: bool) -> None:
        self._busy = self._loop.create_future()
        began = time.monotonic()
        covers = self._machine.visible if generation is None else None
        if generation is None:
            work = self._loop.run_in_executor(self._writer, self._storage.sync)
        else:
            work = self._loop.run_in_executor(self._writer, self._write, generation, sync)

        def done(finished: asyncio.Future[None]) -> None:
            if (error := finished.exception()) is not None:
                self.full = isinstance(error, StorageFull)
                self._fail(str(error))
                return
            self._count(time.monotonic() - began, sync)
            before = self._machine.durable
            if generation is not None:
                assert generation.state is not None
                self.visible_revision = generation.state.revision
                self._machine.end_commit(generation, synced=sync)
            elif covers is not None:
                self._machine.mark_durable(covers)
            self._ended(before, sync)

        work.add_done_callback(done)

    def _write(self, generation: Generation, sync: bool) -> None:
        self._machine.write_commit(generation, sync=sync)

    def _count(self, seconds: float, sync: bool) -> None:
        figures = self.figures
        figures.commits += 1
        figures.syncs += sync
        figures.commit_seconds += seconds
        figures.commit_seconds_max = max(figures.commit_seconds_max, seconds)

    def _ended(self, durable_before: Position, synced: bool) -> None:
        self._idle()
        if synced and self._keeper is None:
            self._log_bytes = 0
        self._release(self._visible_waiters, self._machine.visible.index)
        if self.room:
            waiters, self._room_waiters = self._room_waiters, []
            for waiter in waiters:
                _finish(waiter)
        for listener in self.on_visible:
            listener()
        self._durable_moved(durable_before)
        self._keep_if_due()
        self._next()

    def _next(self) -> None:
        """What comes after a commit: another at once, one in a while, or nothing."""
        if self._paused or self._failed:
            return
        machine = self._machine
        if self._urgent() and (machine.commit_pending or self._sync_wanted()):
            self._start_soon()
        elif self._timer is None and (machine.commit_pending or machine.trim_pending):
            self._timer = self._loop.call_later(self._delay_s, self._start)

    def _durable_moved(self, before: Position) -> None:
        durable = self._machine.durable
        self._release(self._durable_waiters, durable.index)
        if durable != before:
            for listener in self.on_durable:
                listener(durable)

    def _release(self, waiters: list[tuple[int, asyncio.Future[None]]], index: int) -> None:
        if not waiters:
            return
        rest = []
        for wanted, waiter in waiters:
            if wanted <= index:
                _finish(waiter)
            elif not waiter.done():
                rest.append((wanted, waiter))
        waiters[:] = rest

    def _idle(self) -> None:
        busy, self._busy = self._busy, None
        if busy is not None:
            _finish(busy)

    def _fail(self, reason: str) -> None:
        self._failed = True
        self._idle()
        self._end_waits(StorageError(f"a storage commit failed: {reason}"))
        self._fatal(f"a storage commit failed: {reason}")

    def _end_waits(self, error: StorageError) -> None:
        waiters = [waiter for _index, waiter in (*self._visible_waiters, *self._durable_waiters)]
        for waiter in (*waiters, *self._room_waiters):
            if not waiter.done():
                waiter.set_exception(error)
                waiter.exception()  # who waited may be gone

    # ---------------------------------------------------------------- storages that are not durable

    def _keep_if_due(self) -> None:
        if self._keeper is None or self._keeping is not None or self._paused or self._failed:
            return
        visible = self._machine.visible.index
        wanted = any(index <= visible for index, _waiter in self._durable_waiters)
        if (wanted or self._keeper.due(self._log_bytes)) and self._machine.durable < self._machine.visible:
            self._keeping = self._loop.create_task(self._keep(self._keeper))

    async def _keep(self, keeper: Keeper) -> None:
        bytes_before = self._log_bytes
        durable_before = self._machine.durable
        try:
            position = await keeper.keep()
        except Exception as error:  # noqa: BLE001 - whatever it is, durability is gone
            self._fail(f"the stream file could not be written: {error}")
            return
        finally:
            self._keeping = None
        self._log_bytes -= bytes_before
        self._machine.mark_durable(position)
        self._durable_moved(durable_before)
        self._keep_if_due()

    # ---------------------------------------------------------------- the writer thread, for others

    async def run_in_writer(self, work: Callable[[], Any]) -> Any:
        """Run something between commits: in the writer thread, while no commit is under way."""
        await self.pause()
        try:
            return await self._loop.run_in_executor(self._writer, work)
        finally:
            self.resume()

    async def pause(self) -> None:
        """Return when no commit is under way, and begin none until `resume`. Others who pause wait for it."""
        await self._exclusive.acquire()
        self._paused = True
        while self._busy is not None:
            await asyncio.shield(self._busy)
        if self._keeping is not None:
            await asyncio.wait([self._keeping])

    def resume(self, *, reloaded: bool = False) -> None:
        """Go on. `reloaded`: storage shows another store now."""
        self._exclusive.release()
        self._paused = False
        if reloaded:
            self.visible_revision = self._machine.revision
            self._ended(Position(0, 0), synced=False)
        else:
            self._next()

    async def close(self, *, durable: bool) -> None:
        """End the writer thread; with `durable`, after everything applied survives power loss."""
        if durable and not self._failed:
            with suppress(StorageError):  # a fault, of which `fatal` has told
                await self.make_durable(self._machine.applied.index)
        self._paused = True
        if self._timer is not None:
            self._timer.cancel()
        while self._busy is not None:
            await asyncio.shield(self._busy)
        if self._keeping is not None:
            await asyncio.wait([self._keeping])
        self._end_waits(StorageError("the node is stopping"))
        await self._loop.run_in_executor(None, self._writer.shutdown)


def _finish(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
