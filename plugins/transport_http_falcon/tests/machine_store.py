"""A store for tests of the transport: the real state machine on memory, without log, consensus or node.

Also a program that serves it under real gunicorn, as RAFTKV_RESOLVED says.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from raftkv_core.builtin.memory import MemoryStorage
from raftkv_core.errors import InvalidRequest, Refused
from raftkv_core.interfaces.consensus import Entry, EntryKind, Level, Member
from raftkv_core.interfaces.transport import ChangesPage, Range, ReadInfo, Record
from raftkv_core.machine import commands, reads
from raftkv_core.machine.commands import Outcome, Status
from raftkv_core.machine.entries import ProposalId, encode_entry
from raftkv_core.machine.meta import read_state
from raftkv_core.machine.settings import DEFAULTS
from raftkv_core.machine.state import StateMachine

HISTORY = b"h" * 16


class MachineStore:
    """A `Store`. `error`: raised by everything while it is set. `outcome`: answers every command if set."""

    def __init__(self) -> None:
        self._storage = MemoryStorage(Path(), None)
        self._machine = StateMachine(self._storage, storage_durable=False)
        self._index = 0
        self._moved = asyncio.Event()
        self.error: Exception | None = None
        self.outcome: Outcome | None = None
        self.asked: list[tuple[str, dict[str, Any]]] = []
        """Every read and its options."""
        self.commands: list[bytes] = []
        self.facts: dict[str, Any] = {"ready": True, "reasons": []}
        self.closed = False
        self._apply(commands.genesis(b"c" * 16, HISTORY, DEFAULTS))

    def _apply(self, command: bytes) -> Outcome:
        history = b"\x00" * 16 if self._index == 0 else HISTORY
        self._index += 1
        data = encode_entry(history, ProposalId("test", 1, self._index), [command])
        entry = Entry(self._index, 1, EntryKind.COMMAND, data)
        outcome = self._machine.apply(self._index - 1, [entry])[0].outcomes[0]
        generation = self._machine.begin_commit()
        assert generation is not None
        self._machine.write_commit(generation, sync=False)
        self._machine.end_commit(generation, synced=False)
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
        return outcome

    def _check(self, what: str, **options: Any) -> None:
        self.asked.append((what, options))
        if self.error is not None:
            raise self.error

    async def propose(self, command: bytes, *, timeout_s: float | None = None) -> Outcome:
        self._check("propose", timeout_s=timeout_s)
        self.commands.append(command)
        await asyncio.sleep(0)
        return self.outcome if self.outcome is not None else self._apply(command)

    async def get(
        self,
        key: bytes,
        *,
        level: Level = "linearizable",
        revision: int | None = None,
        min_revision: int | None = None,
        timeout_s: float | None = None,
    ) -> tuple[Record | None, ReadInfo]:
        self._check("get", level=level, revision=revision, min_revision=min_revision, timeout_s=timeout_s)
        with self._storage.read() as txn:
            state = read_state(txn)
            return reads.get(txn, key, revision), ReadInfo(level, state.revision, state.index)

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
        self._check("range", start=start, end=end, level=level, revision=revision, limit=limit)
        with self._storage.read() as txn:
            state = read_state(txn)
            rows, more, total = reads.range_rows(
                txn, start, end, revision=revision, limit=limit, keys_only=keys_only, count=count, reverse=reverse
            )
            return Range(rows, more, total, ReadInfo(level, state.revision, state.index))

    async def changes(
        self, after: int, *, start: bytes = b"", end: bytes | None = None, limit: int = 1_000
    ) -> ChangesPage:
        self._check("changes", after=after, limit=limit)
        with self._storage.read() as txn:
            return reads.changes(txn, after, start, end, limit)

    async def watch(self, after: int, *, start: bytes = b"", end: bytes | None = None) -> AsyncIterator[ChangesPage]:
        while True:
            moved = self._moved
            page = await self.changes(after, start=start, end=end)
            if page.revision > after:
                after = page.revision
                yield page
            else:
                await moved.wait()

    async def status(self) -> dict[str, Any]:
        self._check("status")
        return {
            "node_id": "node1",
            "cluster_id": "c" * 32,
            "role": "leader",
            "leader": "node1",
            "term": 3,
            "revision": self._machine.revision,
            "storage": "memory",
            "consensus": "solo",
            "version": "0.1.0",
            "members": [{"node_id": "node1", "address": "127.0.0.1:8088"}],
            "space": {"used_bytes": 1, "low": False},
            "figures": {"log": {"syncs": 7}},
            **self.facts,
        }

    async def members(self) -> Sequence[Member]:
        return [Member("node1", "127.0.0.1:8088")]

    async def add_member(self, member: Member, *, timeout_s: float | None = None) -> None:
        self._check("add_member", member=member)
        raise InvalidRequest("consensus 'solo' has one member and cannot be joined")

    async def remove_member(self, node_id: str, *, timeout_s: float | None = None) -> None:
        raise Refused("no")

    async def transfer_leadership(self, node_id: str | None, *, timeout_s: float | None = None) -> None:
        raise Refused("no")

    async def close(self) -> None:
        self.closed = True

    def set_up(self, **values: bytes) -> None:
        """Put keys without asking anybody."""
        for key, value in values.items():
            assert self._apply(commands.put(key.encode(), value)).status == Status.OK

    def compact(self, revision: int) -> None:
        assert self._apply(commands.compact(revision)).status == Status.OK


async def connect() -> MachineStore:
    return MachineStore()


if __name__ == "__main__":
    from raftkv_transport_http_falcon.__main__ import main

    sys.exit(main(connect))
