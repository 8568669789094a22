"""When the disk fails, is full or hangs, the log says so once and acknowledges nothing after it."""

from __future__ import annotations

import asyncio

import pytest

from raftkv_core.errors import DataDirectoryError
from raftkv_core.interfaces.consensus import Position
from raftkv_core.testing.disk import Operation, SimulatedCrash
from raftkv_core.testing.log import SimulatedLog


@pytest.mark.parametrize("operation", ["write", "sync"])
def test_a_failed_write_or_sync_is_never_retried(operation: Operation) -> None:
    """One failure ends it: a second sync would succeed without having written anything."""
    sim = SimulatedLog()
    sim.append_synced(1)
    acknowledged = []
    sim.disk.fail(operation)
    sim.append(1)
    sim.log.barrier(lambda: acknowledged.append("barrier"))
    sim.executor.run()
    assert len(sim.failures) == 1
    assert "the disk failed" in sim.failures[0]
    calls = sim.disk.calls
    sim.append(1)
    sim.log.set_state(2, "a")
    sim.log.truncate(3)
    sim.log.trim(1)
    sim.log.reset(Position(9, 2))
    sim.log.barrier(lambda: acknowledged.append("barrier"))
    sim.executor.advance(1000)
    sim.executor.run()
    assert sim.disk.calls == calls
    assert (sim.synced, acknowledged, len(sim.failures)) == ([1], [], 1)
    sim.power_loss()
    assert sim.log.last_index == 1


def test_the_writer_stops_by_itself() -> None:
    """Work that is waiting is not begun in the time before the loop hears of the failure."""
    sim = SimulatedLog()
    sim.executor.run()
    sim.append(1)
    sim.disk.fail("sync")
    sim.executor.work()
    calls = sim.disk.calls
    sim.append(1)
    while sim.executor.work():
        pass
    assert sim.disk.calls == calls
    sim.executor.tell()
    assert (len(sim.failures), sim.synced) == (1, [])


def test_what_a_killed_process_left_in_memory_is_made_durable_before_it_is_built_upon() -> None:
    """A pointer that was moved and not yet synced counts only after the next open has synced it."""
    sim = SimulatedLog()
    sim.append_synced(1)
    sim.disk.fail("sync_directory")
    with pytest.raises(DataDirectoryError):
        sim.log.set_history(b"h" * 16)
    sim.kill()
    assert sim.log.history_id == b"h" * 16
    sim.power_loss()
    assert sim.log.history_id == b"h" * 16


def test_what_a_failed_sync_left_in_memory_is_made_durable_or_not_shown() -> None:
    """After a failed sync the pages count as clean. A log opened on them does not believe it."""
    sim = SimulatedLog()
    sim.append_synced(1)
    sim.executor.run()
    sim.disk.fail("sync")
    sim.append(1, size=3000)
    sim.executor.run()
    assert sim.failures
    sim.kill()
    came_back = sim.all_entries()
    assert len(came_back) == 2
    sim.power_loss()
    assert sim.all_entries() == came_back


def test_whoever_waits_is_told_of_the_failure() -> None:
    """A coroutine that waits for a sync ends with the reason."""

    async def main() -> None:
        sim = SimulatedLog()
        sim.executor.run()
        sim.append(1)
        waiting = asyncio.create_task(sim.log.wait_flushed())
        await asyncio.sleep(0)
        sim.disk.fail("sync")
        sim.executor.run()
        with pytest.raises(DataDirectoryError, match="the disk failed"):
            await waiting
        with pytest.raises(DataDirectoryError, match="the disk failed"):
            await sim.log.wait_flushed()

    asyncio.run(main())


def test_a_full_disk_is_a_failure_when_room_is_needed() -> None:
    """What fits into room that was taken ahead is written; the first group that does not fit ends it."""
    sim = SimulatedLog()
    sim.executor.run()
    sim.disk.capacity_bytes = 1
    sim.append_synced(*[1] * 2, size=3000)
    synced = sim.log.synced_index
    assert (synced, sim.failures) == (2, [])
    for _ in range(10):
        sim.append_synced(1, size=3000)
    assert len(sim.failures) == 1
    assert "the disk is full" in sim.failures[0]
    synced = sim.log.synced_index
    assert synced < 12
    sim.disk.capacity_bytes = None
    sim.power_loss()
    assert sim.log.last_index == synced


def test_room_that_comes_back_in_time_is_used() -> None:
    """No room for the next segment is no failure before that segment is needed."""
    sim = SimulatedLog(segment_bytes=16 << 10)
    sim.executor.run()
    sim.disk.capacity_bytes = 1
    sim.append_synced(1, size=3000)
    sim.append_synced(1, size=9000)
    sim.disk.capacity_bytes = None
    for _ in range(6):
        sim.append_synced(1, size=9000)
    assert (sim.log.synced_index, sim.failures) == (8, [])


def test_trimming_waits_for_room() -> None:
    """A disk too full to note a trim is no failure; the next one takes its segments too."""
    sim = SimulatedLog()
    for _ in range(12):
        sim.append_synced(1, size=3000)
    files = sim.segment_paths()
    sim.disk.capacity_bytes = 0
    sim.log.trim(5)
    sim.executor.run()
    assert (sim.failures, sim.segment_paths()) == ([], files)
    assert sim.log.base.index > 0
    sim.disk.capacity_bytes = None
    sim.log.trim(9)
    sim.append_synced(1)
    assert sim.segment_paths()[-1] == files[-1]
    kept = sim.all_entries()
    sim.power_loss()
    assert sim.all_entries() == kept


def test_the_reserve_makes_room_to_go_on() -> None:
    """A log that met a full disk goes on after a restart once the reserve is given up."""
    sim = SimulatedLog(reserve_bytes=64 << 10)
    sim.executor.run()
    sim.disk.capacity_bytes = 0
    while not sim.failures:
        sim.append_synced(1, size=9000)
    synced = sim.log.synced_index
    sim.disk.capacity_bytes = sum(
        len(sim.disk.content(sim.directory / name)) for name in sim.disk.names(sim.directory)
    )
    sim.power_loss()
    sim.log.release_reserve()
    sim.append_synced(1, 1, size=9000)
    assert (sim.log.synced_index, sim.failures) == (synced + 2, [])


def test_a_disk_that_hangs_is_noticed() -> None:
    """No answer within the deadline is a failure, even if the answer comes later."""
    sim = SimulatedLog(stall_s=30.0)
    sim.append_synced(1)
    sim.executor.advance(100)
    assert sim.failures == []
    sim.executor.stalled = True
    sim.append(1)
    sim.executor.advance(20)
    assert (sim.failures, sim.log.waiting_s) == ([], 20)
    sim.append(1)
    sim.executor.advance(9)
    assert sim.failures == []
    sim.executor.advance(1)
    assert sim.failures == ["the log's disk has not answered for 30.0 s"]
    sim.executor.stalled = False
    sim.executor.run()
    assert (sim.synced, len(sim.failures)) == ([1], 1)


def test_a_slow_disk_that_answers_is_no_failure() -> None:
    """The deadline is for one answer, not for the queue to be empty."""
    sim = SimulatedLog(stall_s=30.0)
    for _ in range(10):
        sim.append(1)
        sim.executor.work()
        sim.append(1)
        sim.executor.advance(20)
        sim.executor.tell()
    assert sim.failures == []
    assert sim.log.synced_index == 19


def test_a_history_that_cannot_be_written_is_a_failure() -> None:
    """`set_history` promises durability when it returns, so it does not return."""
    sim = SimulatedLog()
    sim.executor.run()
    sim.disk.fail("sync")
    with pytest.raises(DataDirectoryError, match="pointer file cannot be written"):
        sim.log.set_history(b"h" * 16)
    assert len(sim.failures) == 1
    assert sim.log.history_id == b""
    with pytest.raises(DataDirectoryError, match="pointer file cannot be written"):
        sim.log.set_history(b"h" * 16)
    sim.power_loss()
    assert sim.log.history_id == b""


def test_a_reset_that_fails_leaves_the_old_log() -> None:
    """A reset that could not be written is not acknowledged."""
    for operation in ("write", "sync", "rename"):
        sim = SimulatedLog()
        old = sim.append_synced(1, 1)
        sim.log.reset(Position(9, 1))
        sim.disk.fail(operation)  # type: ignore[arg-type]
        synced = list(sim.synced)
        sim.executor.run()
        assert (len(sim.failures), sim.synced) == (1, synced)
        sim.power_loss()
        assert sim.all_entries() == old


def test_an_error_of_our_own_stops_the_log_too() -> None:
    """Whatever goes wrong in the writer, nothing is acknowledged after it."""
    sim = SimulatedLog()
    sim.executor.run()
    sim.append(1)

    def broken(*_: object) -> None:
        raise ZeroDivisionError("broken")

    sim.disk.on_call = broken
    sim.executor.run()
    assert sim.failures == ["the log cannot be written: ZeroDivisionError('broken')"]


def test_closing_after_a_failure_writes_nothing() -> None:
    """An end in disorder does not try again either."""
    sim = SimulatedLog()
    sim.executor.run()
    sim.disk.fail("sync")
    sim.append(1)
    sim.executor.run()
    calls = sim.disk.calls
    sim.append(1)
    sim.log.close()
    assert sim.disk.calls == calls


def test_a_failure_while_closing_is_not_reported_to_nobody() -> None:
    """Closing ends in any case."""
    sim = SimulatedLog()
    sim.append(1)
    sim.disk.fail("sync")
    sim.log.close()
    sim.executor.run()
    assert sim.failures == []


def test_the_simulated_crash_is_not_caught() -> None:
    """The writer's own error handling does not swallow the end of the world."""
    sim = SimulatedLog()
    sim.append(1)
    sim.disk.crash_at = sim.disk.calls
    with pytest.raises(SimulatedCrash):
        sim.executor.run()
    assert sim.failures == []
