"""The machine that engines drive: apply, advance, snapshots, installing a stream, faults."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from raftkv_core.builtin.memory import MemoryStorage
from raftkv_core.errors import IdentityMismatch, OutcomeUnknown, StorageError, StreamInvalid
from raftkv_core.interfaces.consensus import Entry, EntryKind, Machine, Position
from raftkv_core.interfaces.storage import Restore
from raftkv_core.machine import commands
from raftkv_core.machine.entries import ProposalId, encode_entry
from raftkv_core.machine.state import StateMachine
from raftkv_core.node.committer import Committer
from raftkv_core.node.machine import NodeMachine
from raftkv_core.node.proposer import Proposer

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Bench:
    """A node machine without an engine; what it tells the node is noted."""

    def __init__(self, directory: Path, storage: MemoryStorage | None = None) -> None:
        self.storage = storage or MemoryStorage(Path(), None)
        self.state = StateMachine(self.storage)
        self.faults: list[str] = []
        self.histories: list[tuple[bytes, bytes]] = []
        self.roles: list[tuple[str, int, str | None]] = []
        self.submitted = 0
        self.committer = Committer(
            self.state, self.storage, commit_delay_s=3600.0, buffer_bytes=64 << 20, fatal=self.faults.append
        )
        self.proposer = Proposer(
            "node1",
            1,
            submit=self.submit,
            history_id=lambda: self.state.history_id,
            on_bug=self.faults.append,
            queue_commands=100,
            queue_bytes=1 << 20,
        )
        self.machine = NodeMachine(
            self.state,
            self.storage,
            self.committer,
            self.proposer,
            spool_directory=directory,
            pin_max_s=60.0,
            on_history=lambda cluster, history: self.histories.append((cluster, history)),
            on_role=lambda role, term, leader: self.roles.append((role, term, leader)),
            fatal=self.faults.append,
        )

    async def submit(self, entry: bytes, timeout_s: float) -> Position | None:
        self.submitted += 1
        return Position(self.state.applied.index + self.submitted, 1)

    def apply(self, *entries: Entry) -> None:
        self.machine.apply(entries[0].index - 1, entries)

    async def stream(self) -> list[bytes]:
        snapshot = await self.machine.snapshot()
        chunks = [chunk async for chunk in snapshot.chunks()]
        await snapshot.close()
        return chunks

    async def close(self) -> None:
        await self.proposer.stop()
        await self.committer.close(durable=False)
        self.state.close()


async def feed(chunks: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        await asyncio.sleep(0)
        yield chunk


async def source(directory: Path, tape: Any, puts: int) -> list[bytes]:
    """A stream of another node's data."""
    bench = Bench(directory)
    bench.apply(tape.genesis(), *(tape.put(b"key%d" % number) for number in range(puts)))
    chunks = await bench.stream()
    await bench.close()
    return chunks


def test_it_is_what_engines_are_promised(run: Run, tmp_path: Path) -> None:
    """The interface, structurally."""

    async def work() -> None:
        bench = Bench(tmp_path)
        machine: Machine = bench.machine
        assert machine.applied == machine.durable == Position(0, 0)
        assert machine.room > 0
        assert machine.engine_state == b""
        await bench.close()

    run(work())


def test_the_history_is_told_before_anything_of_it_is_committed(run: Run, tmp_path: Path, tape: Any) -> None:
    """Directory and log know it before storage does, so no crash leaves them without."""

    async def work() -> None:
        bench = Bench(tmp_path)
        begun: list[int] = []
        write = bench.storage.write
        bench.storage.write = lambda: (begun.append(len(bench.histories)), write())[1]  # type: ignore[method-assign]
        bench.apply(tape.genesis(), tape.put())
        assert bench.histories == [(b"c" * 16, b"h" * 16)]
        await bench.committer.visible(2)
        assert begun == [1]
        await bench.close()

    run(work())


def test_entries_are_applied_once(run: Run, tmp_path: Path, tape: Any) -> None:
    """What is at or below the position is skipped, as after a restart."""

    async def work() -> None:
        bench = Bench(tmp_path)
        entries = [tape.genesis(), tape.put(), tape.put()]
        bench.machine.apply(0, entries)
        bench.machine.apply(0, entries)
        bench.machine.apply(1, [*entries[1:], tape.put()])
        assert (bench.state.revision, bench.state.applied.index) == (3, 4)
        await bench.close()

    run(work())


@pytest.mark.parametrize("fault", ["gap", "damage", "history"])
def test_what_must_not_be_applied_stops_the_node(run: Run, tmp_path: Path, tape: Any, fault: str) -> None:
    """Said once; afterwards nothing is applied any more."""

    async def work() -> None:
        bench = Bench(tmp_path)
        bench.apply(tape.genesis(), tape.put())
        bad = tape.put()
        if fault == "gap":
            bench.machine.apply(5, [bad._replace(index=6)])
        elif fault == "damage":
            bench.machine.apply(2, [bad._replace(data=bad.data[:-1] + b"?")])
        else:
            data = bad.data.replace(b"h" * 16, b"x" * 16)
            bench.machine.apply(2, [bad._replace(data=data)])
        assert len(bench.faults) == 1
        bench.apply(bad)
        bench.machine.advance(9, 1)
        assert bench.state.applied.index == 2
        assert len(bench.faults) == 1
        await bench.close()

    run(work())


def test_advance_moves_the_position_and_what_storage_shows(run: Run, tmp_path: Path, tape: Any) -> None:
    """A read after an election waits for the no-op's index, which is never handed over."""

    async def work() -> None:
        bench = Bench(tmp_path)
        bench.apply(tape.genesis())
        bench.machine.advance(2, 7)
        await bench.committer.visible(2)
        assert bench.state.visible == Position(2, 7)
        bench.machine.apply(2, [Entry(3, 7, EntryKind.NOOP, b"")])
        await bench.committer.visible(3)
        await bench.close()

    run(work())


def test_a_role_is_told_when_it_changes(run: Run, tmp_path: Path) -> None:
    """And only then."""

    async def work() -> None:
        bench = Bench(tmp_path)
        for role in (("follower", 1, "n2"), ("follower", 1, "n2"), ("leader", 2, "n1")):
            bench.machine.on_role(*role)  # type: ignore[arg-type]
        assert bench.roles == [("follower", 1, "n2"), ("leader", 2, "n1")]
        await bench.close()

    run(work())


def test_a_snapshot_is_durable_and_no_older_than_its_call(run: Run, tmp_path: Path, tape: Any) -> None:
    """What it is labelled with survives power loss here, so the log below may go."""

    async def work() -> None:
        bench = Bench(tmp_path)
        bench.apply(tape.genesis(), tape.put())
        snapshot = await bench.machine.snapshot()
        assert snapshot.label == Position(2, 1)
        assert bench.state.durable.index == 2
        assert sum([len(chunk) async for chunk in snapshot.chunks()]) == snapshot.length_bytes
        await snapshot.close()
        await bench.close()

    run(work())


def test_a_stream_is_installed(run: Run, tmp_path: Path, tape: Any) -> None:
    """Position, data, history and generation are the stream's; apply goes on behind it."""

    async def work() -> None:
        chunks = await source(tmp_path, tape, 20)
        bench = Bench(tmp_path)
        position = await bench.machine.restore(feed(chunks))
        assert position == bench.machine.applied == bench.machine.durable == Position(21, 1)
        assert bench.histories == [(b"c" * 16, b"h" * 16)]
        assert bench.storage.generation == 2
        assert (bench.committer.visible_revision, bench.state.revision) == (20, 20)
        bench.apply(tape.put(b"more"))
        await bench.committer.visible(22)
        await bench.close()

    run(work())


def test_waiters_below_a_stream_end_as_unknown(run: Run, tmp_path: Path, tape: Any, eventually: Any) -> None:
    """Their entry may be in it or not."""

    async def work() -> None:
        chunks = await source(tmp_path, tape, 20)
        bench = Bench(tmp_path)
        bench.apply(type(tape)().genesis())
        waiting = bench.proposer.propose(commands.put(b"a", b"1"), 60.0)
        await eventually(lambda: bench.submitted)
        await asyncio.sleep(0)
        await bench.machine.restore(feed(chunks))
        with pytest.raises(OutcomeUnknown, match="snapshot"):
            await waiting
        await bench.close()

    run(work())


def test_readers_who_wait_are_released_by_a_stream(run: Run, tmp_path: Path, tape: Any) -> None:
    """The store shows more than they waited for."""

    async def work() -> None:
        chunks = await source(tmp_path, tape, 20)
        bench = Bench(tmp_path)
        waiting = asyncio.ensure_future(asyncio.wait_for(bench.committer.visible(15), 10))
        await bench.machine.restore(feed(chunks))
        await waiting
        await bench.close()

    run(work())


def test_a_stream_of_the_past_changes_nothing(run: Run, tmp_path: Path, tape: Any) -> None:
    """A late or repeated snapshot must not turn the node back."""

    async def work() -> None:
        chunks = await source(tmp_path, tape, 3)
        bench = Bench(tmp_path)
        again = type(tape)()
        bench.apply(again.genesis(), *(again.put() for _ in range(9)))
        assert await bench.machine.restore(feed(chunks)) == Position(10, 1)
        assert (bench.storage.generation, bench.state.revision) == (1, 9)
        await bench.close()

    run(work())


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_bad_stream_leaves_the_store_as_it_was(run: Run, tmp_path: Path, tape: Any, damage: str) -> None:
    """It is verified whole before anything is switched; the node goes on."""

    async def work() -> None:
        data = bytearray(b"".join(await source(tmp_path, tape, 20)))
        if damage == "cut":
            del data[-20:]
        else:
            data[len(data) // 2] ^= 1
        bench = Bench(tmp_path)
        with pytest.raises(StreamInvalid):
            await bench.machine.restore(feed([bytes(data)]))
        assert (bench.storage.generation, bench.faults, bench.histories) == (1, [], [])
        bench.apply(type(tape)().genesis())
        await bench.committer.visible(1)
        await bench.close()

    run(work())


def test_a_stream_of_another_history_is_refused(run: Run, tmp_path: Path, tape: Any) -> None:
    """Nodes of two histories never mix."""

    async def work() -> None:
        chunks = await source(tmp_path, tape, 5)
        bench = Bench(tmp_path)
        entry = Entry(1, 1, EntryKind.COMMAND, b"")
        genesis = commands.genesis(b"d" * 16, b"i" * 16, dict(bench.state.settings))
        bench.apply(entry._replace(data=encode_entry(b"i" * 16, ProposalId("n", 1, 1), [genesis])))
        with pytest.raises(IdentityMismatch, match="empty data directory"):
            await bench.machine.restore(feed(chunks))
        assert bench.storage.generation == 1
        await bench.close()

    run(work())


def test_a_switch_that_fails_stops_the_node(run: Run, tmp_path: Path, tape: Any, monkeypatch: Any) -> None:
    """Which store is valid is then for the next start to find out."""

    async def work() -> None:
        chunks = await source(tmp_path, tape, 5)
        bench = Bench(tmp_path)
        begin = bench.storage.begin_restore

        def broken() -> Restore:
            restore = begin()

            def activate() -> None:
                raise StorageError("the rename failed")

            monkeypatch.setattr(restore, "activate", activate)
            return restore

        monkeypatch.setattr(bench.storage, "begin_restore", broken)
        with pytest.raises(StorageError):
            await bench.machine.restore(feed(chunks))
        assert "the rename failed" in bench.faults[0]
        await bench.close()

    run(work())


def test_the_engines_state_is_carried_by_a_stream(run: Run, tmp_path: Path, tape: Any) -> None:
    """A joiner learns the members with the data."""

    async def work() -> None:
        bench = Bench(tmp_path)
        entries = [tape.genesis(), tape.put()]
        bench.machine.set_engine_state(b"members", Position(2, 1))
        bench.machine.apply(0, entries)
        chunks = await bench.stream()
        await bench.close()
        joiner = Bench(tmp_path)
        await joiner.machine.restore(feed(chunks))
        assert joiner.machine.engine_state == b"members"
        await joiner.close()

    run(work())
