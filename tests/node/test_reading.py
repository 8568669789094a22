"""Reads in a worker's process: barriers shared, one transaction for many, a newer store opened when told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raftkv_core.builtin.memory import MemoryStorage
from raftkv_core.errors import StorageError, Unavailable
from raftkv_core.interfaces.consensus import Level
from raftkv_core.interfaces.storage import ReadTransaction, StorageReader
from raftkv_core.machine import commands, reads
from raftkv_core.machine.state import StateMachine
from raftkv_core.node.calls import Calls
from raftkv_core.node.datadir import Layout
from raftkv_core.node.reading import Reading
from raftkv_core.node.watch import RevisionNews
from raftkv_core.worker import SharedReader, SharedStore

Run = Callable[[Coroutine[Any, Any, Any]], Any]


def commit(machine: StateMachine) -> None:
    generation = machine.begin_commit()
    assert generation is not None
    machine.write_commit(generation, sync=False)
    machine.end_commit(generation, synced=False)


class Bench:
    """A store at index 2 with one key, and a barrier that is answered by hand."""

    def __init__(self, machine: StateMachine, storage: MemoryStorage, tape: Any) -> None:
        self.machine, self.storage, self.tape = machine, storage, tape
        machine.apply(1, [tape.put(b"key", b"1")])
        commit(machine)
        self.transactions = 0
        self.reopened = 0
        self.on_reopen: Callable[[], None] = lambda: None
        self.barriers: list[tuple[Level, asyncio.Future[int]]] = []
        self.news = RevisionNews(1)
        self.reading = Reading(self, self.barrier, self.news)

    def read(self) -> ReadTransaction:
        self.transactions += 1
        return self.storage.read()

    @contextmanager
    def hold(self) -> Iterator[Callable[[], ReadTransaction]]:
        yield self.read

    def reopen(self) -> None:
        self.reopened += 1
        self.on_reopen()

    def barrier(self, level: Level, timeout_s: float) -> asyncio.Future[int]:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.barriers.append((level, future))
        return future

    def get(self, level: Level = "linearizable", **options: Any) -> asyncio.Task[Any]:
        async def get() -> Any:
            record, info = await self.reading.run(
                lambda txn: reads.get(txn, b"key"),
                level=level,
                **{"min_revision": None, "timeout_s": 5.0, **options},
            )
            return record.value if record else None, info

        return asyncio.ensure_future(get())

    def put(self, value: bytes) -> None:
        self.machine.apply(self.tape.index, [self.tape.put(b"key", value)])
        commit(self.machine)


@pytest.fixture
def bench_of(machine: StateMachine, storage: MemoryStorage, tape: Any) -> Callable[[], Bench]:
    return lambda: Bench(machine, storage, tape)


async def ticks() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


def test_readers_of_a_tick_share_a_barrier_and_a_transaction(run: Run, bench_of: Callable[[], Bench]) -> None:
    """However many there are: one question to the node, one snapshot."""

    async def work() -> None:
        bench = bench_of()
        readers = [bench.get() for _ in range(50)]
        await ticks()
        [(level, barrier)] = bench.barriers
        assert (level, bench.transactions) == ("linearizable", 0)
        barrier.set_result(2)
        results = await asyncio.gather(*readers)
        assert {value for value, _info in results} == {b"1"}
        assert {(info.level, info.revision, info.index) for _value, info in results} == {("linearizable", 1, 2)}
        assert bench.transactions == 1
        await bench.reading.close()

    run(work())


def test_two_rounds_at_most_are_under_way(run: Run, bench_of: Callable[[], Bench]) -> None:
    """Later readers gather; none joins a round that began before it came."""

    async def work() -> None:
        bench = bench_of()
        readers = []
        for _ in range(4):
            readers.append(bench.get())
            await ticks()
        assert len(bench.barriers) == 2
        bench.put(b"2")
        bench.barriers[0][1].set_result(2)
        await ticks()
        assert len(bench.barriers) == 3
        bench.barriers[1][1].set_result(2)
        bench.barriers[2][1].set_result(3)
        assert [value for value, _info in await asyncio.gather(*readers)] == [b"2"] * 4
        await bench.reading.close()

    run(work())


def test_a_stale_read_asks_nobody(run: Run, bench_of: Callable[[], Bench]) -> None:
    """It says what it had."""

    async def work() -> None:
        bench = bench_of()
        value, info = await bench.get("stale")
        assert (value, info.level, info.index) == (b"1", "stale", 2)
        assert bench.barriers == []
        await bench.reading.close()

    run(work())


def test_a_reader_that_is_behind_opens_the_newer_store_once(run: Run, bench_of: Callable[[], Bench]) -> None:
    """A stream was installed: the old store never reaches the index, the new one has."""

    async def work() -> None:
        bench = bench_of()
        bench.on_reopen = lambda: bench.put(b"new")
        reader = bench.get()
        await ticks()
        bench.barriers[0][1].set_result(3)
        assert (await reader)[0] == b"new"
        assert bench.reopened == 1
        await bench.reading.close()

    run(work())


def test_a_store_that_stays_behind_is_unavailable(run: Run, bench_of: Callable[[], Bench]) -> None:
    """Never an older value than was asked for."""

    async def work() -> None:
        bench = bench_of()
        readers = [bench.get(), bench.get(slow=True)]
        await ticks()
        bench.barriers[0][1].set_result(99)
        for reader in readers:
            with pytest.raises(Unavailable, match="99"):
                await reader
        await bench.reading.close()

    run(work())


def test_a_slow_read_runs_elsewhere_and_is_as_fresh(run: Run, bench_of: Callable[[], Bench]) -> None:
    """In a thread, with a transaction of its own, which is checked like the shared one."""

    async def work() -> None:
        bench = bench_of()
        reader, quick = bench.get(slow=True), bench.get()
        await ticks()
        bench.barriers[0][1].set_result(2)
        assert (await reader)[0] == (await quick)[0] == b"1"
        assert bench.transactions == 2
        await bench.reading.close()

    run(work())


def test_a_failed_barrier_fails_each_reader_with_its_own_error(run: Run, bench_of: Callable[[], Bench]) -> None:
    """One exception raised in many tasks would gather all their tracebacks."""

    async def work() -> None:
        bench = bench_of()
        readers = [bench.get(), bench.get()]
        await ticks()
        bench.barriers[0][1].set_exception(Unavailable("no leader", code="no_leader"))
        errors = await asyncio.gather(*readers, return_exceptions=True)
        assert [(type(error), error.code) for error in errors] == [(Unavailable, "no_leader")] * 2
        assert errors[0] is not errors[1]
        await bench.reading.close()

    run(work())


def test_one_bad_read_does_not_disturb_the_others(run: Run, bench_of: Callable[[], Bench]) -> None:
    """Its error is its own, whatever it is."""

    async def work() -> None:
        bench = bench_of()
        bad = asyncio.ensure_future(
            bench.reading.run(lambda _txn: 1 // 0, level="linearizable", min_revision=None, timeout_s=5.0)
        )
        good = bench.get()
        await ticks()
        bench.barriers[0][1].set_result(2)
        assert (await good)[0] == b"1"
        with pytest.raises(ZeroDivisionError):
            await bad
        await bench.reading.close()

    run(work())


def test_a_deadline_ends_the_wait_for_a_barrier(run: Run, bench_of: Callable[[], Bench]) -> None:
    """The reader is told how else it might read."""

    async def work() -> None:
        bench = bench_of()
        with pytest.raises(Unavailable, match="read stale"):
            await bench.get(timeout_s=0.01)
        await bench.reading.close()

    run(work())


def test_closing_fails_who_waits(run: Run, bench_of: Callable[[], Bench]) -> None:
    """And who comes afterwards."""

    async def work() -> None:
        bench = bench_of()
        readers = [bench.get()]
        await ticks()
        readers.append(bench.get())
        await bench.reading.close()
        readers += [bench.get(), bench.get("stale")]
        for reader in readers:
            with pytest.raises(Unavailable, match="stopping"):
                await reader

    run(work())


class Opened(StorageReader):
    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage
        self.closed = False

    def read(self) -> ReadTransaction:
        assert not self.closed
        return self._storage.read()

    def close(self) -> None:
        self.closed = True


class TestSharedReader:
    """The reader that a worker keeps open."""

    def test_it_is_opened_again_for_another_generation(self, storage: MemoryStorage) -> None:
        """Once for each that the node speaks of, and the old one is closed."""
        opened: list[Opened] = []

        def open_reader() -> Opened:
            opened.append(Opened(storage))
            return opened[-1]

        reader = SharedReader(open_reader)
        reader.told(1)
        reader.read().close()
        reader.told(1)
        reader.read().close()
        assert len(opened) == 1
        reader.told(2)
        reader.read().close()
        assert [each.closed for each in opened] == [True, False]
        reader.close()
        assert opened[1].closed

    def test_a_thread_that_reads_keeps_its_store_open(self, storage: MemoryStorage) -> None:
        """The old store is closed when the last who reads from it is done."""
        opened: list[Opened] = []

        def open_reader() -> Opened:
            opened.append(Opened(storage))
            return opened[-1]

        reader = SharedReader(open_reader)
        with reader.hold() as read:
            reader.told(2)
            reader.read().close()
            read().close()
            assert [each.closed for each in opened] == [False, False]
        assert [each.closed for each in opened] == [True, False]
        with reader.hold() as read:
            reader.reopen()
            assert not opened[1].closed
            reader.close()
            read().close()
        assert opened[1].closed

    def test_a_store_that_is_not_there_yet_is_unavailable(self) -> None:
        """The node makes it; until then a read may be retried."""

        def open_reader() -> StorageReader:
            raise StorageError("there is no store yet")

        with pytest.raises(Unavailable, match="no store yet"):
            SharedReader(open_reader).read()


def test_a_worker_reads_shared_storage_itself(
    run: Run, start_node: Any, config_of: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """Only the barrier goes over the socket; what was acknowledged is seen, and stale reads need no node."""

    async def work() -> None:
        async with start_node() as node:

            async def none_of_it(*_: Any) -> None:
                raise AssertionError("a read went over the socket")

            monkeypatch.setattr(Calls, "run", none_of_it)
            config = config_of(tmp_path / "data")
            storage = node.parts.storage
            store = SharedStore(config, Layout(tmp_path / "data"), lambda: Opened(storage))
            await store.start()
            for number in range(20):
                await store.propose(commands.put(b"a", b"%d" % number))
                record, info = await store.get(b"a")
                assert (record.value, info.revision) == (b"%d" % number, number + 1)
            assert len((await store.range(b"", None)).rows) == 1
            watch = store.watch(19)
            assert [change.revision for change in (await watch.__anext__()).changes] == [20]
            await watch.aclose()
            await node.parts.server.close()
            assert (await store.get(b"a", level="stale"))[0].value == b"19"
            with pytest.raises(Unavailable):
                await store.get(b"a")
            await store.close()

    run(work())
