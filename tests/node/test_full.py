"""A disk that is full: refused ahead, replayed with the reserve, and never a crash loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from raftkv_core.builtin.memory import MemoryStorage
from raftkv_core.config import LimitSettings
from raftkv_core.errors import NoSpace, StorageFull, Unavailable
from raftkv_core.interfaces.storage import Space, WriteTransaction
from raftkv_core.machine import commands
from raftkv_core.node import runtime as runtime_module
from raftkv_core.node.datadir import DataDirectory
from raftkv_core.node.runtime import NodeFailed, NodeRuntime
from raftkv_core.registry import Registry

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Disk:
    """What the patched storage engines of a test share."""

    free = 1 << 30
    reserve_helps = False
    released = 0
    restored = 0


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Memory storage whose commits fail once `disk.free` is 0."""
    disk = Disk()
    write = MemoryStorage.write

    def full(storage: MemoryStorage) -> WriteTransaction:
        if not disk.free and not (disk.released and disk.reserve_helps):
            raise StorageFull("memory: no room is left")
        return write(storage)

    def release(_storage: MemoryStorage) -> None:
        disk.released += 1

    def restore(_storage: MemoryStorage) -> None:
        disk.restored += 1

    monkeypatch.setattr(MemoryStorage, "write", full)
    monkeypatch.setattr(MemoryStorage, "space", lambda _storage: Space(1, disk.free))
    monkeypatch.setattr(MemoryStorage, "release_reserve", release)
    monkeypatch.setattr(MemoryStorage, "restore_reserve", restore)
    monkeypatch.setattr(runtime_module, "HOUSEKEEPING_S", 0.01)
    return disk


async def fill_up(start_node: Any, disk: Disk) -> None:
    """A node whose disk fills up behind an acknowledged put."""
    async with start_node(limits=LimitSettings(space_low_bytes=0)) as node:
        await node.store.get(b"a")
        disk.free = 0
        await node.store.propose(commands.put(b"a", b"1"))
        await node._failed.wait()


async def failed_write(start_node: Any, disk: Disk) -> None:
    with pytest.raises(NodeFailed, match="no room"):
        await fill_up(start_node, disk)


def test_a_commit_without_room_stops_the_node_and_the_reserve_replays_it(
    run: Run, start_node: Any, disk: Disk, eventually: Any
) -> None:
    """What was acknowledged is in the log; the next start gives up the reserve first, and has it."""

    async def work() -> None:
        await failed_write(start_node, disk)
        disk.reserve_helps = True
        async with start_node() as node:
            assert disk.released == 1
            record, _info = await node.store.get(b"a")
            assert record is not None
            assert node.parts.space.low
            with pytest.raises(NoSpace):
                await node.store.propose(commands.put(b"b", b"2"))
            disk.free = 1 << 30
            await eventually(lambda: disk.restored and not node.parts.space.growth_refused())
            await node.store.propose(commands.put(b"b", b"2"))

    run(work())


def test_without_any_room_a_node_starts_read_only(
    run: Run, start_node: Any, disk: Disk, tmp_path: Path, config_of: Any, logger: Any
) -> None:
    """It says what is wrong, serves stale reads, refuses writes, and ends for a restart once there is space."""

    async def work() -> None:
        await failed_write(start_node, disk)
        config = config_of(tmp_path / "data")
        with DataDirectory.open(config, environ={}) as data:
            node = NodeRuntime(config, Registry.discover(), data, logger=logger)
            await node.start()
            status = await node.store.status()
            assert (status["ready"], status["role"]) == (False, "stopped")
            await node.store.get(b"a", level="stale")
            with pytest.raises(Unavailable, match="stale reads"):
                await node.store.get(b"a", timeout_s=1.0)
            with pytest.raises(NoSpace):
                await node.store.propose(commands.put(b"b", b"2"))
            disk.free = 1 << 30
            with pytest.raises(NodeFailed, match="space again"):
                await node.serve_until_stopped(asyncio.Event())
        async with start_node() as node:
            record, _info = await node.store.get(b"a")
            assert record is not None, "nothing that was acknowledged is lost"

    run(work())


def test_a_read_only_node_stops_cleanly(
    run: Run, start_node: Any, disk: Disk, tmp_path: Path, config_of: Any, logger: Any
) -> None:
    """A stop is no fault there either."""

    async def work() -> None:
        await failed_write(start_node, disk)
        config = config_of(tmp_path / "data")
        with DataDirectory.open(config, environ={}) as data:
            node = NodeRuntime(config, Registry.discover(), data, logger=logger)
            await node.start()
            stop = asyncio.Event()
            stop.set()
            await node.serve_until_stopped(stop)

    run(work())
