"""The cluster's clock: it may lag, it never runs ahead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgpack

from raftkv_core.errors import Unavailable
from raftkv_core.machine.commands import Op, Outcome
from raftkv_core.node.ticker import Ticker

Virtual = Callable[[Any], Any]


@dataclass
class Machine:
    """What the ticker asks the state machine."""

    dedupe_count: int = 1
    lease_count: int = 0
    history_id: bytes = b"h" * 16
    settings: dict[str, int] = field(default_factory=lambda: {"tick_ms": 1_000})


class Clock:
    now = 100.0

    def boottime(self) -> float:
        return self.now

    def monotonic(self) -> float:
        raise AssertionError("leases are counted in boot time")

    async def sleep(self, seconds: float) -> None: ...


class Bench:
    def __init__(self) -> None:
        self.machine, self.clock = Machine(), Clock()
        self.proposed: list[tuple[list[Any], asyncio.Future[Outcome]]] = []
        self.ticker = Ticker(self.machine, self.clock, self.propose)  # type: ignore[arg-type]

    def propose(self, command: bytes, timeout_s: float) -> asyncio.Future[Outcome]:
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.proposed.append((msgpack.unpackb(command), future))
        return future

    def after(self, seconds: float) -> int:
        """Let time pass; the number of ticks proposed so far."""
        self.clock.now += seconds
        self.ticker.poll()
        return len(self.proposed)

    async def applied(self) -> None:
        self.proposed[-1][1].set_result(Outcome(0, 1))
        await asyncio.sleep(0)


def test_the_first_tick_comes_a_full_interval_after_the_term_began(virtual: Virtual) -> None:
    """A new leader does not know when the one before ticked last."""

    async def work() -> None:
        bench = Bench()
        assert bench.after(10) == 0, "this node does not lead"
        bench.ticker.led(7)
        assert bench.after(0.9) == 0
        assert bench.after(0.2) == 1
        command = bench.proposed[0][0]
        assert (command[0], command[2]) == (Op.TICK, 7)

    virtual(work())


def test_ticks_are_an_interval_apart_counted_from_the_last_ones_end(virtual: Virtual) -> None:
    """A tick that took long is not followed by another at once: time that nobody could use is not made up."""

    async def work() -> None:
        bench = Bench()
        bench.ticker.led(1)
        assert bench.after(1.0) == 1
        assert bench.after(5.0) == 1, "one at a time"
        await bench.applied()
        assert bench.after(0.5) == 1
        assert bench.after(0.5) == 2

    virtual(work())


def test_a_failed_tick_is_followed_by_one_an_interval_later(virtual: Virtual) -> None:
    """Its outcome may be unknown, so it counts as if it had moved the clock."""

    async def work() -> None:
        bench = Bench()
        bench.ticker.led(1)
        bench.after(1.0)
        bench.proposed[0][1].set_exception(Unavailable("no quorum"))
        await asyncio.sleep(0)
        assert bench.after(0.9) == 1
        assert bench.after(0.1) == 2

    virtual(work())


def test_there_are_no_ticks_while_nothing_can_expire(virtual: Virtual) -> None:
    """An idle cluster writes nothing; the first record then gets a full interval."""

    async def work() -> None:
        bench = Bench()
        bench.machine.dedupe_count = 0
        bench.ticker.led(1)
        assert bench.after(100.0) == 0
        bench.machine.lease_count = 1
        assert bench.after(0.9) == 0
        assert bench.after(0.1) == 1

    virtual(work())


def test_a_node_that_leads_no_longer_ticks_no_longer(virtual: Virtual) -> None:
    """And one that leads again, in a new term, begins anew."""

    async def work() -> None:
        bench = Bench()
        bench.ticker.led(1)
        bench.ticker.led(None)
        assert bench.after(5.0) == 0
        bench.ticker.led(2)
        bench.ticker.led(2)
        assert bench.after(0.9) == 0
        assert bench.after(0.1) == 1

    virtual(work())


def test_the_interval_is_the_replicated_setting(virtual: Virtual) -> None:
    """Each tick moves the clock by it, so it is also what ticks are apart."""

    async def work() -> None:
        bench = Bench()
        bench.machine.settings["tick_ms"] = 200
        bench.ticker.led(1)
        assert bench.after(0.1) == 0
        assert bench.after(0.15) == 1

    virtual(work())
