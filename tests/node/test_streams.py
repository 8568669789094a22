"""Streams on their way out and in: stream files, pinned and spooled snapshots."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from raftkv_core.builtin.memory import MemoryStorage
from raftkv_core.errors import StorageError, StreamInvalid
from raftkv_core.interfaces.consensus import Position
from raftkv_core.interfaces.storage import ReadTransaction
from raftkv_core.machine import reads
from raftkv_core.machine.meta import read_meta
from raftkv_core.machine.state import StateMachine
from raftkv_core.machine.stream import read_header
from raftkv_core.node.outgoing import OutgoingStream
from raftkv_core.node.streams import StreamFile

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def commit(machine: StateMachine) -> None:
    generation = machine.begin_commit()
    assert generation is not None
    machine.write_commit(generation, sync=False)
    machine.end_commit(generation, synced=False)


@pytest.fixture
def filled(machine: StateMachine, tape: Any) -> StateMachine:
    """About 5 MiB of rows, committed."""
    machine.apply(1, [tape.put(b"key%d" % number, bytes(50_000)) for number in range(100)])
    commit(machine)
    return machine


def test_a_stream_file_brings_the_whole_state_back(
    filled: StateMachine, storage: MemoryStorage, tmp_path: Path
) -> None:
    """Written once, loaded into an empty storage: the same position, digest and rows."""
    assert StreamFile(tmp_path, storage).write() == filled.visible
    other = MemoryStorage(Path(), None)
    assert StreamFile(tmp_path, other).load() == filled.visible
    with other.read() as txn:
        assert read_meta(txn).digest == filled.digest
        assert reads.get(txn, b"key7") is not None


def test_without_a_file_a_start_begins_at_nothing(storage: MemoryStorage, tmp_path: Path) -> None:
    """The log then replays everything; a file that was never finished counts for nothing."""
    unfinished = tmp_path / "state.stream.new"
    unfinished.write_bytes(b"half")
    assert StreamFile(tmp_path, storage).load() == Position(0, 0)
    assert not unfinished.exists()


def test_a_damaged_file_is_refused_by_name(filled: StateMachine, storage: MemoryStorage, tmp_path: Path) -> None:
    """The log was trimmed on its strength, so a start without it would lose data silently."""
    StreamFile(tmp_path, storage).write()
    path = tmp_path / "state.stream"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(StreamInvalid, match=r"state\.stream"):
        StreamFile(tmp_path, MemoryStorage(Path(), None)).load()


def test_a_file_is_due_after_so_many_log_bytes_or_as_many_as_the_state_has(
    filled: StateMachine, storage: MemoryStorage, tmp_path: Path
) -> None:
    """So a large state is not written again and again for a little log."""
    keeper = StreamFile(tmp_path, storage, every_log_bytes=1_000)
    assert not keeper.due(999)
    assert keeper.due(1_000)
    keeper.write()
    assert not keeper.due(1_000_000)
    assert keeper.due(6_000_000)
    again = StreamFile(tmp_path, MemoryStorage(Path(), None), every_log_bytes=1_000)
    again.load()
    assert not again.due(1_000_000), "a start remembers how large it was"


async def collect(stream: OutgoingStream) -> bytes:
    return b"".join([chunk async for chunk in stream.chunks()])


def test_an_outgoing_stream_has_the_length_it_announced(
    run: Run, filled: StateMachine, storage: MemoryStorage, tmp_path: Path
) -> None:
    """Label and length are known before the first byte, and hold."""

    async def work() -> None:
        stream = await OutgoingStream.begin(storage.read, tmp_path, 60.0)
        data = await collect(stream)
        await stream.close()
        assert stream.label == filled.visible
        assert len(data) == stream.length_bytes == read_header(data).length_bytes
        assert not stream.spooled

    run(work())


def test_a_snapshot_does_not_see_later_commits(
    run: Run, filled: StateMachine, storage: MemoryStorage, tape: Any, tmp_path: Path
) -> None:
    """It is one moment, however long reading it takes."""

    async def work() -> None:
        stream = await OutgoingStream.begin(storage.read, tmp_path, 60.0)
        filled.apply(tape.index, [tape.put(b"later")])
        commit(filled)
        data = await collect(stream)
        await stream.close()
        assert len(data) == stream.length_bytes
        assert b"later" not in data

    run(work())


class Pins:
    """Hands out read transactions and counts those that are open."""

    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage

    @property
    def open(self) -> int:
        return int(self._storage.figures()["snapshots_open"])

    def read(self) -> ReadTransaction:
        return self._storage.read()


def test_a_slow_receiver_is_served_from_a_spool_file(
    run: Run, filled: StateMachine, storage: MemoryStorage, tmp_path: Path, eventually: Any
) -> None:
    """The pin ends when it has lived long enough, and nothing is lost by it."""

    async def work() -> None:
        pins = Pins(storage)
        before = pins.open
        stream = await OutgoingStream.begin(pins.read, tmp_path, 0.0)
        await eventually(lambda: pins.open == before)
        data = await collect(stream)
        await stream.close()
        assert stream.spooled
        assert len(data) == stream.length_bytes
        assert os.listdir(tmp_path) == [], "the spool file has no name"  # noqa: PTH208

    run(work())


def test_closing_early_releases_the_pin(
    run: Run, filled: StateMachine, storage: MemoryStorage, tmp_path: Path
) -> None:
    """A receiver who goes away leaves nothing behind."""

    async def work() -> None:
        pins = Pins(storage)
        before = pins.open
        stream = await OutgoingStream.begin(pins.read, tmp_path, 60.0)
        async for _chunk in stream.chunks():
            break
        await stream.close()
        assert pins.open == before

    run(work())


def test_a_store_that_cannot_be_read_is_an_error(run: Run, tmp_path: Path) -> None:
    """At the beginning, not a stream that never ends."""

    def read() -> ReadTransaction:
        raise StorageError("closed")

    async def work() -> None:
        with pytest.raises(StorageError, match="closed"):
            await OutgoingStream.begin(read, tmp_path, 60.0)

    run(work())
