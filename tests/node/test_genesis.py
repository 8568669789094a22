"""How a history begins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from raftkv_core.builtin.memory import MemoryStorage
from raftkv_core.errors import InvalidRequest, Unavailable
from raftkv_core.machine import commands
from raftkv_core.machine.commands import Outcome
from raftkv_core.machine.histories import REVISIONS_SKIPPED, begin_new_history
from raftkv_core.machine.settings import DEFAULTS
from raftkv_core.machine.state import StateMachine
from raftkv_core.node.genesis import Genesis

Virtual = Callable[[Any], Any]


class Bench:
    def __init__(self, machine: StateMachine, logger: Any, **options: Any) -> None:
        self.machine = machine
        self.proposed: list[tuple[list[Any], bytes, asyncio.Future[Outcome]]] = []
        drawn = iter([b"1" * 16, b"2" * 16, b"3" * 16, b"4" * 16])
        self.genesis = Genesis(
            machine,
            self.begin_history,
            lambda: next(drawn),
            **{"cluster_id": b"", "settings": {}, "logger": logger, **options},
        )

    def begin_history(self, command: bytes, history_id: bytes, timeout_s: float) -> asyncio.Future[Outcome]:
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.proposed.append((msgpack.unpackb(command), history_id, future))
        return future


def test_the_leader_of_an_empty_store_begins_a_history_once(
    virtual: Virtual, storage: MemoryStorage, logger: Any
) -> None:
    """It draws both ids, brings every setting, and does not ask again while it waits."""

    async def work() -> None:
        bench = Bench(StateMachine(storage), logger, settings={"tick_ms": 500})
        bench.genesis.poll()
        assert bench.proposed == [], "this node does not lead"
        bench.genesis.led(3)
        bench.genesis.poll()
        [(command, history_id, _future)] = bench.proposed
        assert history_id == b"1" * 16
        assert command[2:4] == [b"2" * 16, b"1" * 16]
        assert command[5] == {**DEFAULTS, "tick_ms": 500}
        assert command[6:] == [0, 0]

    virtual(work())


def test_the_configured_cluster_id_is_used(virtual: Virtual, storage: MemoryStorage, logger: Any) -> None:
    """An id that was written into every node's file is not drawn anew."""

    async def work() -> None:
        bench = Bench(StateMachine(storage), logger, cluster_id=b"c" * 16)
        bench.genesis.led(1)
        assert bench.proposed[0][0][2] == b"c" * 16

    virtual(work())


def test_a_store_with_a_history_gets_no_other(virtual: Virtual, machine: StateMachine, logger: Any) -> None:
    """Leading later in life proposes nothing."""

    async def work() -> None:
        bench = Bench(machine, logger)
        bench.genesis.led(1)
        assert bench.proposed == []

    virtual(work())


def test_a_lost_proposal_is_made_again(virtual: Virtual, storage: MemoryStorage, logger: Any) -> None:
    """Without a history nothing else can be done, so it is tried until one is there."""

    async def work() -> None:
        bench = Bench(StateMachine(storage), logger)
        bench.genesis.led(1)
        bench.proposed[0][2].set_exception(Unavailable("leadership lost"))
        await asyncio.sleep(0)
        bench.genesis.poll()
        assert len(bench.proposed) == 2
        assert bench.proposed[1][1] != bench.proposed[0][1]

    virtual(work())


def test_restored_data_continues_far_above_its_revision(
    virtual: Virtual, machine: StateMachine, storage: MemoryStorage, tape: Any, logger: Any
) -> None:
    """No revision that was seen in lost time is given out again; the digest names the data, and settings stay."""
    machine.apply(1, [tape.put(), tape.entry(commands.settings({"history_revisions": 7}))])
    generation = machine.begin_commit()
    assert generation is not None
    machine.write_commit(generation, sync=True)
    machine.end_commit(generation, synced=True)
    with storage.write() as txn:
        begin_new_history(txn)
        txn.commit()

    async def work() -> None:
        restored = StateMachine(storage)
        bench = Bench(restored, logger)
        bench.genesis.led(1)
        command = bench.proposed[0][0]
        assert command[6:] == [1 + REVISIONS_SKIPPED, restored.state.kv_digest]
        assert command[5] == {**DEFAULTS, "history_revisions": 7}

    virtual(work())


def test_a_wrong_setting_is_refused_before_anything_is_proposed(
    virtual: Virtual, storage: MemoryStorage, logger: Any
) -> None:
    """The configuration's mistake is found at start, not by the state machine."""

    async def work() -> None:
        with pytest.raises(InvalidRequest, match="tick_ms"):
            Bench(StateMachine(storage), logger, settings={"tick_ms": 1})

    virtual(work())
