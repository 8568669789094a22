"""The consensus of one: a log, and a machine behind it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest

from raftkv_core.builtin.solo import SoloConsensus
from raftkv_core.errors import ConfigError, InvalidRequest, NotApplied, Unavailable
from raftkv_core.interfaces.consensus import ConsensusContext, Entry, Identity, Member, Position
from raftkv_core.log import DurableLog
from raftkv_core.machine.entries import ProposalId, encode_entry
from raftkv_core.node.environment import SystemClock, SystemNetwork
from raftkv_core.testing.disk import SimDisk, SteppedExecutor

HERE = Member("node1", "127.0.0.1:8088")
NOTHING = Position(0, 0)


def entry(number: int, size: int = 10) -> bytes:
    return encode_entry(b"h" * 16, ProposalId("node1", 1, number), [bytes(size)])


class FakeMachine:
    """Applies by remembering."""

    def __init__(self, applied: Position = NOTHING) -> None:
        self.applied = applied
        self.durable = applied
        self.entries: list[Entry] = []
        self.runs: list[int] = []
        self.roles: list[tuple[str, int, str | None]] = []
        self.room = 1 << 20
        self.has_room = asyncio.Event()
        self.faults: list[str] = []

    async def wait_for_room(self) -> None:
        await self.has_room.wait()

    def apply(self, prev_index: int, entries: Sequence[Entry]) -> None:
        assert prev_index == self.applied.index
        self.entries += entries
        self.runs.append(len(entries))
        self.applied = Position(entries[-1].index, entries[-1].term)

    def on_role(self, role: str, term: int, leader: str | None) -> None:
        self.roles.append((role, term, leader))


class Bench:
    """An engine on a simulated disk whose writes happen when the test says so."""

    def __init__(self, disk: SimDisk | None = None) -> None:
        self.disk = disk or SimDisk()
        self.machine = FakeMachine()
        self.executor = SteppedExecutor()
        self.tasks: list[asyncio.Task[None]] = []
        self.engine = SoloConsensus(self.context(), None)

    def context(self) -> ConsensusContext:
        return ConsensusContext(
            directory=Path("consensus"),
            identity=Identity("node1", "raftkv"),
            bind="127.0.0.1:8088",
            advertise="127.0.0.1:8088",
            members=[HERE],
            open_log=self.open_log,
            clock=SystemClock(),
            random=random.Random(1),
            network=SystemNetwork(),
            spawn=self.spawn,
            logger=None,
        )

    def open_log(self) -> DurableLog:
        self.log = DurableLog.open(
            Path("log"),
            disk=self.disk,
            executor=self.executor,
            on_failed=self.machine.faults.append,
            segment_bytes=1 << 20,
        )
        return self.log

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        self.tasks.append(asyncio.ensure_future(work))
        return self.tasks[-1]

    def sync(self) -> None:
        """Let the log write and sync everything it was given."""
        self.executor.run()

    async def during(self, work: Awaitable[Any]) -> Any:
        """Await something that needs the log's thread."""
        task = asyncio.ensure_future(work)
        while not task.done():
            self.sync()
            await asyncio.sleep(0)
        return task.result()

    async def start(self) -> Bench:
        await self.during(self.engine.bootstrap([HERE], Position(0, 0)))
        await self.during(self.engine.start(self.machine))  # type: ignore[arg-type]
        return self

    async def submit(self, number: int, size: int = 10) -> Position | None:
        return await self.engine.submit(entry(number, size), 1.0)

    async def applied(self, count: int) -> None:
        """Return when so many entries were applied."""
        while len(self.machine.entries) < count:  # noqa: ASYNC110 - the event would be the thing under test
            await asyncio.sleep(0)

    async def restart(self, machine: FakeMachine | None = None) -> Bench:
        """The power fails, and the node starts again on what is left."""
        self.disk.power_loss()
        again = Bench(self.disk)
        again.machine = machine or again.machine
        await again.during(again.engine.start(again.machine))  # type: ignore[arg-type]
        return again


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 20))


def test_an_entry_is_applied_when_it_is_synced_and_not_before() -> None:
    """Its position is told at once; its outcome waits for the disk."""

    async def work() -> None:
        bench = await Bench().start()
        position = await bench.submit(1)
        assert position == Position(1, bench.engine.status().term)
        assert bench.machine.entries == []
        bench.sync()
        assert [(e.index, e.data) for e in bench.machine.entries] == [(1, entry(1))]

    run(work())


def test_entries_of_one_sync_are_applied_as_one_run() -> None:
    """What gathers while the disk is busy shares the next sync."""

    async def work() -> None:
        bench = await Bench().start()
        for number in range(1, 6):
            await bench.submit(number)
        bench.sync()
        assert bench.machine.runs == [5]
        assert [e.index for e in bench.machine.entries] == [1, 2, 3, 4, 5]

    run(work())


def test_a_power_loss_keeps_what_was_applied_and_replays_it() -> None:
    """Everything whose outcome was told is read back, in order, under its own term."""

    async def work() -> None:
        bench = await Bench().start()
        for number in range(1, 101):
            await bench.submit(number)
        bench.sync()
        term = bench.engine.status().term
        again = await bench.restart()
        assert again.machine.entries == bench.machine.entries
        assert again.engine.status().term == term + 1
        assert (await again.submit(101)) == Position(101, term + 1)
        again.sync()
        assert again.machine.applied == Position(101, term + 1)

    run(work())


def test_replay_begins_where_storage_is() -> None:
    """What storage has durably is not handed over again."""

    async def work() -> None:
        bench = await Bench().start()
        for number in range(1, 11):
            await bench.submit(number)
        bench.sync()
        again = await bench.restart(FakeMachine(Position(7, bench.engine.status().term)))
        assert [e.index for e in again.machine.entries] == [8, 9, 10]

    run(work())


def test_replay_takes_turns_and_waits_for_room() -> None:
    """A long log is applied in runs; a full buffer is waited for."""

    async def work() -> None:
        bench = await Bench().start()
        for number in range(1, 9):
            await bench.submit(number, 100_000)
        bench.sync()
        machine = FakeMachine()
        machine.room = 0
        restarting = asyncio.ensure_future(bench.restart(machine))
        for _ in range(20):
            await asyncio.sleep(0)
        assert machine.entries == []
        machine.room = 1 << 20
        machine.has_room.set()
        await restarting
        assert len(machine.entries) == 8
        assert len(machine.runs) > 2

    run(work())


def test_apply_waits_for_room_and_goes_on_in_order() -> None:
    """Nothing is applied while the buffer is full; nothing is lost or reordered by that."""

    async def work() -> None:
        bench = await Bench().start()
        bench.machine.room = 0
        for number in range(1, 4):
            await bench.submit(number)
        bench.sync()
        await asyncio.sleep(0)
        await bench.submit(4)
        bench.sync()
        assert bench.machine.entries == []
        bench.machine.room = 1 << 20
        bench.machine.has_room.set()
        await bench.applied(4)
        assert [e.index for e in bench.machine.entries] == [1, 2, 3, 4]

    run(work())


def test_a_large_run_is_applied_in_parts() -> None:
    """The loop turns to others between them."""

    async def work() -> None:
        bench = await Bench().start()
        for number in range(1, 9):
            await bench.submit(number, 100_000)
        bench.sync()
        await bench.applied(8)
        assert max(bench.machine.runs) <= 3

    run(work())


def test_reads_are_as_strong_as_anybody_asks() -> None:
    """What was acknowledged was applied; before the start there is nothing to read."""

    async def work() -> None:
        bench = Bench()
        with pytest.raises(Unavailable):
            await bench.engine.read_index("linearizable", 1.0)
        await bench.start()
        await bench.submit(1)
        assert await bench.engine.read_index("linearizable", 1.0) == 0
        bench.sync()
        for level in ("linearizable", "lease"):
            assert await bench.engine.read_index(level, 1.0) == 1  # type: ignore[arg-type]

    run(work())


def test_it_leads_in_a_new_term_from_each_start() -> None:
    """A term is never used twice, so a tick of an earlier life is never taken for one of this."""

    async def work() -> None:
        bench = await Bench().start()
        terms = [bench.engine.status().term]
        for _ in range(3):
            await bench.submit(1)
            bench.sync()
            bench = await bench.restart()
            terms.append(bench.engine.status().term)
        assert terms == sorted(set(terms))
        assert bench.machine.roles == [("leader", terms[-1], "node1")]
        assert list(bench.engine.members()) == [HERE]

    run(work())


def test_an_empty_log_needs_bootstrap() -> None:
    """And says how; doing it twice does nothing, and a second member is refused."""

    async def work() -> None:
        bench = Bench()
        with pytest.raises(ConfigError, match=r"node\.bootstrap = true"):
            await bench.engine.start(bench.machine)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="node2"):
            await bench.engine.bootstrap([HERE, Member("node2", "h:1")], Position(0, 0))
        await bench.start()
        term = bench.engine.status().term
        await bench.engine.bootstrap([HERE], Position(0, 0))
        assert bench.engine.status().term == term

    run(work())


def test_a_cluster_may_begin_above_nothing() -> None:
    """After a change of engine indexes and terms continue."""

    async def work() -> None:
        bench = Bench()
        bench.machine.applied = Position(50, 4)
        await bench.during(bench.engine.bootstrap([HERE], Position(50, 4)))
        await bench.during(bench.engine.start(bench.machine))  # type: ignore[arg-type]
        position = await bench.submit(1)
        assert position is not None
        assert (position.index, position.term > 4) == (51, True)

    run(work())


def test_a_damaged_entry_is_refused_before_it_is_appended() -> None:
    """It would be replayed for ever."""

    async def work() -> None:
        bench = await Bench().start()
        damaged = bytearray(entry(1))
        damaged[-1] ^= 1
        with pytest.raises(NotApplied, match="checksum"):
            await bench.engine.submit(bytes(damaged), 1.0)
        assert bench.engine.status().last_index == 0

    run(work())


def test_trimming_reaches_the_log() -> None:
    """Whole segments below go."""

    async def work() -> None:
        bench = await Bench().start()
        for number in range(1, 61):
            await bench.submit(number, 100_000)
            bench.sync()
        bench.engine.trim(50)
        bench.sync()
        assert 0 < bench.log.base.index <= 50

    run(work())


def test_stopping_syncs_what_was_appended() -> None:
    """Its outcome was not told, but it is not thrown away either; nothing is taken afterwards."""

    async def work() -> None:
        bench = await Bench().start()
        await bench.submit(1)
        await bench.engine.stop(transfer=True, deadline_s=1.0)
        with pytest.raises(Unavailable, match="stopped"):
            await bench.submit(2)
        again = await bench.restart()
        assert [e.index for e in again.machine.entries] == [1]
        assert bench.machine.roles[-1][0] == "stopped"

    run(work())


def test_it_has_no_membership() -> None:
    """Solo is one node; the error names what to choose instead."""

    async def work() -> None:
        bench = await Bench().start()
        for change in (
            bench.engine.add_member(Member("node2", "h:1"), 1.0),
            bench.engine.remove_member("node1", 1.0),
            bench.engine.transfer_leadership(None, 1.0),
        ):
            with pytest.raises(InvalidRequest) as refused:
                await change
            assert refused.value.code == "membership_unsupported"

    run(work())
