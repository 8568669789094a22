"""Storage commits: when they run, what is made durable, and what a failure means."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from raftkv_core.builtin.memory import MemoryStorage
from raftkv_core.errors import StorageError, StorageFull
from raftkv_core.interfaces.consensus import Position
from raftkv_core.interfaces.storage import WriteTransaction
from raftkv_core.machine import reads
from raftkv_core.machine.meta import read_state
from raftkv_core.machine.state import StateMachine
from raftkv_core.node.committer import Committer

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class Disk(MemoryStorage):
    """Counts, and fails when told to."""

    def __init__(self) -> None:
        super().__init__(Path(), None)
        self.begun = 0
        self.syncs = 0
        self.full = False

    def write(self) -> WriteTransaction:
        self.begun += 1
        if self.full:
            raise StorageFull("no room")
        return super().write()

    def sync(self) -> None:
        self.syncs += 1


class Bench:
    def __init__(self, tape: Any, *, at_risk: int | None = 1, delay_s: float = 3600.0, **options: Any) -> None:
        self.tape = tape
        self.storage = Disk()
        self.storage.commits_at_risk = at_risk
        self.machine = StateMachine(self.storage, storage_durable=options.get("keeper") is None)
        self.storage.syncs = 0
        self.faults: list[str] = []
        self.committer = Committer(
            self.machine,
            self.storage,
            commit_delay_s=delay_s,
            buffer_bytes=options.pop("buffer_bytes", 64 << 20),
            fatal=self.faults.append,
            **options,
        )
        self.apply(self.tape.genesis())

    def apply(self, *entries: Any) -> None:
        self.machine.apply(entries[0].index - 1, entries)
        self.committer.applied(sum(len(entry.data) for entry in entries))

    @property
    def stored_index(self) -> int:
        with self.storage.read() as txn:
            return read_state(txn).index

    async def close(self) -> None:
        await self.committer.close(durable=False)
        self.machine.close()


def test_a_reader_who_waits_starts_a_commit_at_once(run: Run, tape: Any) -> None:
    """Without anybody waiting what is applied stays in the buffer; a wait for it commits it now."""

    async def work() -> None:
        bench = Bench(tape)
        bench.apply(tape.put())
        assert bench.stored_index == 0
        await bench.committer.visible(2)
        assert bench.stored_index == 2
        with bench.storage.read() as txn:
            assert reads.get(txn, b"key") is not None
        await bench.close()

    run(work())


def test_without_anybody_waiting_a_commit_comes_after_the_delay(run: Run, tape: Any) -> None:
    """Visible follows applied whether or not somebody reads."""

    async def work() -> None:
        bench = Bench(tape, delay_s=0.01)
        moved = asyncio.Event()
        bench.committer.on_visible.append(moved.set)
        await moved.wait()
        assert bench.stored_index == 1
        await bench.close()

    run(work())


def test_one_commit_takes_all_that_is_pending(run: Run, tape: Any) -> None:
    """Runs applied before a commit begins share it, and the wait for the last covers the first."""

    async def work() -> None:
        bench = Bench(tape)
        for _ in range(20):
            bench.apply(tape.put())
        await asyncio.gather(bench.committer.visible(3), bench.committer.visible(21))
        assert bench.storage.begun == 1
        await bench.close()

    run(work())


def test_while_watched_every_revision_is_committed_at_once(run: Run, tape: Any) -> None:
    """A watch is told of what storage shows, so it does not wait for the delay."""

    async def work() -> None:
        bench = Bench(tape)
        seen: asyncio.Queue[int] = asyncio.Queue()
        bench.committer.on_visible.append(lambda: seen.put_nowait(bench.committer.visible_revision))
        bench.committer.watch(True)
        for revision in (1, 2, 3):
            bench.apply(tape.put())
            assert await seen.get() == revision
        await bench.close()

    run(work())


def test_durable_follows_as_the_engine_says(run: Run, tape: Any) -> None:
    """With one commit at risk, durable is the commit before the newest; asked for, the newest is synced."""

    async def work() -> None:
        bench = Bench(tape, at_risk=1)
        await bench.committer.visible(1)
        assert bench.machine.durable.index == 0
        bench.apply(tape.put())
        await bench.committer.visible(2)
        assert bench.machine.durable.index == 1
        assert bench.storage.syncs == 0
        await bench.committer.make_durable(2)
        assert bench.machine.durable.index == 2
        assert bench.storage.syncs == 1
        await bench.close()

    run(work())


def test_make_durable_commits_and_syncs_what_was_only_applied(run: Run, tape: Any) -> None:
    """One call takes an applied entry all the way down."""

    async def work() -> None:
        bench = Bench(tape, at_risk=None)
        bench.apply(tape.put())
        moves: list[Position] = []
        bench.committer.on_durable.append(moves.append)
        await bench.committer.make_durable(2)
        assert (bench.machine.durable.index, bench.storage.begun, bench.storage.syncs) == (2, 1, 1)
        assert moves == [Position(2, 1)]
        await bench.close()

    run(work())


def test_make_durable_waits_for_an_index_that_is_still_to_come(run: Run, tape: Any) -> None:
    """The caller may be ahead of apply."""

    async def work() -> None:
        bench = Bench(tape)
        waiting = asyncio.ensure_future(bench.committer.make_durable(2))
        await bench.committer.visible(1)
        assert not waiting.done()
        bench.apply(tape.put())
        await waiting
        await bench.close()

    run(work())


def test_a_full_buffer_has_no_room_until_a_commit_took_it(run: Run, tape: Any) -> None:
    """The buffer is bounded: apply waits for room, and waiting for it makes it."""

    async def work() -> None:
        bench = Bench(tape, buffer_bytes=10_000)
        assert bench.committer.room > 0
        bench.apply(tape.put(value=b"v" * 20_000))
        assert bench.committer.room == 0
        await bench.committer.wait_for_room()
        assert bench.committer.room > 0
        assert bench.stored_index == 2
        await bench.close()

    run(work())


def test_a_failed_commit_stops_the_node(run: Run, tape: Any, eventually: Any) -> None:
    """What it held was acknowledged, so there is no way on; that it was for want of space is remembered."""

    async def work() -> None:
        bench = Bench(tape)
        bench.storage.full = True
        waiting = asyncio.ensure_future(asyncio.wait_for(bench.committer.visible(1), 5))
        await eventually(lambda: bench.faults)
        assert "no room" in bench.faults[0]
        assert bench.committer.full
        with pytest.raises(StorageError, match="no room"):
            await waiting
        await bench.committer.close(durable=True)
        bench.machine.close()

    run(work())


def test_nothing_commits_while_paused(run: Run, tape: Any) -> None:
    """Switching the store needs the writer to itself; what was waited for comes afterwards."""

    async def work() -> None:
        bench = Bench(tape)
        await bench.committer.pause()
        waiting = asyncio.ensure_future(asyncio.wait_for(bench.committer.visible(1), 5))
        for _ in range(10):
            await asyncio.sleep(0)
        assert bench.storage.begun == 0
        bench.committer.resume()
        await waiting
        await bench.close()

    run(work())


def test_work_in_the_writer_runs_between_commits(run: Run, tape: Any) -> None:
    """Maintenance never meets an open write transaction."""

    async def work() -> None:
        bench = Bench(tape)

        def care() -> str:
            with bench.storage.write():
                return "done"

        results = await asyncio.gather(
            bench.committer.run_in_writer(care), bench.committer.visible(1), bench.committer.run_in_writer(care)
        )
        assert results[0] == results[2] == "done"
        await bench.close()

    run(work())


class Keeper:
    """Keeps positions somewhere else."""

    def __init__(self) -> None:
        self.kept = 0
        self.is_due = False
        self.machine: StateMachine | None = None

    def due(self, log_bytes: int) -> bool:
        return self.is_due

    async def keep(self) -> Position:
        self.kept += 1
        assert self.machine is not None
        return self.machine.visible


def test_a_storage_that_is_not_durable_is_kept_elsewhere(run: Run, tape: Any, eventually: Any) -> None:
    """Durable is what the keeper says; it is asked when due or when somebody waits, never for every commit."""

    async def work() -> None:
        keeper = Keeper()
        bench = Bench(tape, keeper=keeper)
        keeper.machine = bench.machine
        await bench.committer.visible(1)
        assert (keeper.kept, bench.machine.durable.index) == (0, 0)
        await bench.committer.make_durable(1)
        assert (keeper.kept, bench.machine.durable.index) == (1, 1)
        keeper.is_due = True
        bench.apply(tape.put())
        await bench.committer.visible(2)
        await eventually(lambda: bench.machine.durable.index == 2)
        assert keeper.kept == 2
        await bench.close()

    run(work())


def test_a_keeper_is_asked_again_for_who_came_meanwhile(run: Run, tape: Any) -> None:
    """A wait for a later index, begun while an earlier one is being kept, is not forgotten."""

    async def work() -> None:
        keeper = Keeper()
        bench = Bench(tape, keeper=keeper)
        keeper.machine = bench.machine
        keep, held = keeper.keep, asyncio.Event()

        async def slow() -> Position:
            position = await keep()
            await held.wait()
            return position

        keeper.keep = slow  # type: ignore[method-assign]
        first = asyncio.ensure_future(bench.committer.make_durable(1))
        await bench.committer.visible(1)
        bench.apply(tape.put())
        await bench.committer.visible(2)
        second = asyncio.ensure_future(bench.committer.make_durable(2))
        await asyncio.sleep(0)
        held.set()
        await asyncio.gather(first, second)
        assert keeper.kept == 2
        await bench.close()

    run(work())


def test_closing_durably_leaves_nothing_to_replay(run: Run, tape: Any) -> None:
    """A clean stop commits and syncs everything applied."""

    async def work() -> None:
        bench = Bench(tape)
        bench.apply(tape.put())
        await bench.committer.close(durable=True)
        assert (bench.stored_index, bench.storage.syncs) == (2, 1)
        bench.machine.close()

    run(work())
