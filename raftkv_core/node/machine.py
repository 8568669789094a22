"""The machine that an engine drives: the state machine, its commits, and who waits for what.

Applying resolves those who proposed (`Proposer`), starts commits (`Committer`) and tells the rest of the node
(`on_applied`). Nothing is applied, and so nothing acknowledged, after `fatal`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from raftkv_core.errors import IdentityMismatch, RaftkvError
from raftkv_core.interfaces.consensus import Entry, Position, Role
from raftkv_core.interfaces.storage import Restore, Storage
from raftkv_core.machine.meta import Meta
from raftkv_core.machine.state import StateMachine
from raftkv_core.machine.stream import install
from raftkv_core.node.committer import Committer
from raftkv_core.node.outgoing import OutgoingStream
from raftkv_core.node.proposer import Proposer

__all__ = ["NodeMachine"]


class NodeMachine:
    """Implements `raftkv_core.interfaces.consensus.Machine`."""

    def __init__(
        self,
        machine: StateMachine,
        storage: Storage,
        committer: Committer,
        proposer: Proposer,
        *,
        spool_directory: Path,
        pin_max_s: float,
        on_history: Callable[[bytes, bytes], None],
        on_role: Callable[[Role, int, str | None], None],
        fatal: Callable[[str], None],
    ) -> None:
        """`on_history(cluster id, history id)` makes both durable where the node keeps them, and is called
        before anything of that history is committed to storage."""
        self._machine = machine
        self._storage = storage
        self._committer = committer
        self._proposer = proposer
        self._spool_directory = spool_directory
        self._pin_max_s = pin_max_s
        self._on_history = on_history
        self._on_role = on_role
        self._fatal = fatal
        self._dead = False
        self._history_id = machine.history_id
        self.on_applied: list[Callable[[], None]] = []
        """Called after each run of entries."""
        self.role: tuple[Role, int, str | None] = ("starting", 0, None)
        proposer.applied((), machine.applied.index)

    # ---------------------------------------------------------------- apply

    @property
    def applied(self) -> Position:
        return self._machine.applied

    @property
    def durable(self) -> Position:
        return self._machine.durable

    @property
    def room(self) -> int:
        return self._committer.room

    async def wait_for_room(self) -> None:
        await self._committer.wait_for_room()

    def apply(self, prev_index: int, entries: Sequence[Entry]) -> None:
        if self._dead:
            return
        try:
            results = self._machine.apply(prev_index, entries)
            self._note_history()
        except (RaftkvError, OSError) as error:
            self.fatal(str(error))
            return
        self._proposer.applied(results, self._machine.applied.index)
        self._committer.applied(sum([len(entry.data) for entry in entries]))
        for listener in self.on_applied:
            listener()

    def advance(self, index: int, term: int) -> None:
        if self._dead:
            return
        self._machine.advance(index, term)
        self._proposer.applied((), self._machine.applied.index)
        self._committer.applied(0)

    def _note_history(self) -> None:
        if self._machine.history_id != self._history_id:
            self._on_history(self._machine.cluster_id, self._machine.history_id)
            self._history_id = self._machine.history_id
            self._proposer.wake()

    async def make_durable(self, index: int) -> None:
        await self._committer.make_durable(index)

    # ---------------------------------------------------------------- streams

    async def snapshot(self) -> OutgoingStream:
        """The label is what was applied at the call; the data may be newer."""
        label = self._machine.applied
        await self._committer.make_durable(label.index)
        stream = await OutgoingStream.begin(self._storage.read, self._spool_directory, self._pin_max_s)
        assert stream.label >= label
        return stream

    async def restore(self, chunks: AsyncIterator[bytes]) -> Position:
        """Install a stream. One at or below what is applied is read, checked and left alone."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="raftkv-restore") as thread:
            restore = await loop.run_in_executor(thread, self._storage.begin_restore)
            try:
                meta = await loop.run_in_executor(thread, install, _pull(loop, chunks), restore)
                self._check_stream(meta)
            except BaseException:
                await loop.run_in_executor(thread, restore.discard)
                raise
        if meta.position <= self._machine.applied:
            restore.discard()
            return self._machine.applied
        await self._switch(meta, restore)
        return self._machine.applied

    def _check_stream(self, meta: Meta) -> None:
        mine, theirs = self._machine.identity, meta.identity
        for what, here, there in (
            ("cluster", mine.cluster_id, theirs.cluster_id),
            ("history", mine.history_id, theirs.history_id),
        ):
            if here and here != there:
                raise IdentityMismatch(
                    f"the stream is of {what} {there.hex()}, this node's data of {here.hex()}; "
                    "join with an empty data directory"
                )

    async def _switch(self, meta: Meta, restore: Restore) -> None:
        """Crash-safe in this order: the log knows the history, then the store has it, then the log is reset
        by the engine. A store that is ahead of its log in the same history is legal at a start."""
        await self._committer.pause()
        try:
            if meta.identity.history_id != self._history_id:
                self._on_history(meta.identity.cluster_id, meta.identity.history_id)
                self._history_id = meta.identity.history_id
            await asyncio.get_running_loop().run_in_executor(None, restore.activate)
            self._machine.reload()
        except Exception as error:
            self.fatal(f"a stream could not be installed: {error}")
            raise
        finally:
            self._committer.resume(reloaded=True)
        await self._committer.make_durable(self._machine.applied.index)
        self._proposer.restored(self._machine.applied)
        self._proposer.wake()
        for listener in self.on_applied:
            listener()

    # ---------------------------------------------------------------- the engine's own

    @property
    def engine_state(self) -> bytes:
        return self._machine.engine_state

    def set_engine_state(self, state: bytes, at: Position) -> None:
        self._machine.set_engine_state(state, at)

    def on_role(self, role: Role, term: int, leader: str | None) -> None:
        before, self.role = self.role, (role, term, leader)
        if before == self.role:
            return
        if before[1] != term:
            self._proposer.term_changed()
        self._on_role(role, term, leader)

    def fatal(self, reason: str) -> None:
        if not self._dead:
            self._dead = True
            self._fatal(reason)


def _pull(loop: asyncio.AbstractEventLoop, chunks: AsyncIterator[bytes]) -> Iterator[bytes]:
    """An asynchronous iterator of the loop, for a thread."""
    while True:
        chunk = asyncio.run_coroutine_threadsafe(_next(chunks), loop).result()
        if chunk is None:
            return
        yield chunk


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    try:
        return await chunks.__anext__()
    except StopAsyncIteration:
        return None
