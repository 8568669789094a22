"""What happens when room runs out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack

from raftkv_core.builtin.memory import MemoryStorage
from raftkv_core.errors import Unavailable
from raftkv_core.interfaces.storage import Space
from raftkv_core.machine import commands
from raftkv_core.machine.commands import Op, Outcome
from raftkv_core.machine.state import StateMachine
from raftkv_core.node.space import SpaceWatch, free_bytes

Virtual = Callable[[Any], Any]


class Store(MemoryStorage):
    free = 10_000

    def space(self) -> Space:
        return Space(used_bytes=1, free_bytes=self.free)


class Bench:
    def __init__(self, tape: Any, logger: Any) -> None:
        self.tape = tape
        self.storage = Store(Path(), None)
        self.machine = StateMachine(self.storage)
        self.machine.apply(0, [tape.genesis()])
        self.proposed: list[tuple[bytes, asyncio.Future[Outcome]]] = []
        self.disk_free = 1 << 30
        self.space = SpaceWatch(
            self.machine,
            self.storage,
            self.propose,
            node_id="node1",
            directories=[Path("log")],
            low_bytes=1_000,
            logger=logger,
            free=lambda _directory: self.disk_free,
        )

    def propose(self, command: bytes, timeout_s: float) -> asyncio.Future[Outcome]:
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.proposed.append((command, future))
        return future

    async def apply(self) -> list[list[Any]]:
        """Apply what was proposed; what it was."""
        proposed, self.proposed = self.proposed, []
        for command, future in proposed:
            result = self.machine.apply(self.tape.index, [self.tape.entry(command)])
            future.set_result(result[0].outcomes[0])
        await asyncio.sleep(0)
        return [msgpack.unpackb(command) for command, _future in proposed]


def test_a_member_reports_itself_once_and_then_when_it_changes(virtual: Virtual, tape: Any, logger: Any) -> None:
    """Formats at first; low space when the threshold is crossed, either way."""

    async def work() -> None:
        bench = Bench(tape, logger)
        bench.space.poll()
        bench.space.poll()
        assert await bench.apply() == [[Op.REPORT, None, "node1", [1], False, False]]
        bench.space.poll()
        assert bench.proposed == []
        bench.storage.free = 999
        bench.space.poll()
        assert await bench.apply() == [[Op.REPORT, None, "node1", [1], True, False]]
        assert logger.said("space is low")
        bench.storage.free = 1_050
        bench.space.poll()
        assert bench.proposed == [], "a little above the threshold it would cross it all the time"
        bench.storage.free = 2_000
        bench.space.poll()
        assert await bench.apply() == [[Op.REPORT, None, "node1", [1], False, False]]

    virtual(work())


def test_a_report_that_failed_is_made_again(virtual: Virtual, tape: Any, logger: Any) -> None:
    """The others must learn of it, so it is proposed until the members table says so."""

    async def work() -> None:
        bench = Bench(tape, logger)
        bench.space.poll()
        bench.proposed.pop()[1].set_exception(Unavailable("no leader"))
        await asyncio.sleep(0)
        bench.space.poll()
        assert len(bench.proposed) == 1

    virtual(work())


def test_the_logs_file_system_counts_too(virtual: Virtual, tape: Any, logger: Any) -> None:
    """Whichever is less decides."""

    async def work() -> None:
        bench = Bench(tape, logger)
        bench.disk_free = 10
        bench.space.measure()
        assert (bench.space.low, bench.space.free_bytes) == (True, 10)

    virtual(work())


def test_growth_is_refused_while_any_member_is_low(virtual: Virtual, tape: Any, logger: Any) -> None:
    """At once where it is low, before the report is applied; and wherever the report says so."""

    async def work() -> None:
        bench = Bench(tape, logger)
        bench.space.measure()
        assert bench.space.growth_refused() is None
        bench.storage.free = 5
        bench.space.measure()
        assert "node1 has only 5 bytes" in (bench.space.growth_refused() or "")
        bench.storage.free = 5_000
        bench.space.measure()
        entry = bench.tape.entry(commands.report("node2", [1], low_space=True))
        bench.machine.apply(1, [entry])
        assert "node2 is low" in (bench.space.growth_refused() or "")

    virtual(work())


def test_the_leader_compacts_while_growth_is_refused(virtual: Virtual, tape: Any, logger: Any) -> None:
    """A delete keeps what it removed in history, so history goes to the present after each."""

    async def work() -> None:
        bench = Bench(tape, logger)
        bench.machine.apply(1, [tape.put()])
        bench.storage.free = 5
        bench.space.poll()
        await bench.apply()
        assert bench.machine.compacted == 0, "this node does not lead"
        bench.space.led(True)
        bench.space.poll()
        assert await bench.apply() == [[Op.COMPACT, None, 1]]
        bench.space.poll()
        assert bench.proposed == [], "there is nothing to compact"
        bench.machine.apply(tape.index, [tape.entry(commands.delete(b"key"))])
        bench.space.poll()
        assert await bench.apply() == [[Op.COMPACT, None, 2]]
        assert bench.machine.compacted == 2

    virtual(work())


def test_there_is_no_compaction_while_there_is_space(virtual: Virtual, tape: Any, logger: Any) -> None:
    """History is kept as the settings say."""

    async def work() -> None:
        bench = Bench(tape, logger)
        bench.machine.apply(1, [tape.put()])
        bench.space.led(True)
        bench.space.poll()
        await bench.apply()
        bench.space.poll()
        assert bench.proposed == []

    virtual(work())


def test_nothing_is_reported_before_genesis(virtual: Virtual, storage: MemoryStorage, logger: Any) -> None:
    """Without a history there is nobody to tell."""

    async def work() -> None:
        machine = StateMachine(storage)
        space = SpaceWatch(
            machine,
            storage,
            lambda *_: 1 / 0,
            node_id="n",
            directories=[],
            low_bytes=0,
            logger=logger,  # type: ignore[arg-type,return-value]
        )
        space.poll()

    virtual(work())


def test_free_bytes_are_the_file_systems(tmp_path: Path) -> None:
    """What a user may still write, so more than nothing here."""
    assert free_bytes(tmp_path) > 0
