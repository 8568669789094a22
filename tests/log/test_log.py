"""What an engine sees of the log while nothing goes wrong."""

from __future__ import annotations

import asyncio

import pytest

from raftkv_core.errors import DataDirectoryError
from raftkv_core.interfaces.consensus import Entry, Position
from raftkv_core.log.intake import GROUP_BYTES_MAX
from raftkv_core.testing.log import SimulatedLog, entries


def test_a_new_log_is_empty() -> None:
    """A new log begins at (0, 0), says that it was created, and is there when it is opened again."""
    sim = SimulatedLog()
    log = sim.log
    assert log.created
    assert (log.base, log.last, log.first_index, log.synced_index) == (Position(0, 0), Position(0, 0), 1, 0)
    assert (log.term, log.vote, log.history_id, log.cuts) == (0, None, b"", [])
    assert log.read(1, 100) == []
    sim.power_loss()
    assert not sim.log.created


def test_what_was_appended_is_readable_at_once_and_synced_later() -> None:
    """Entries are visible from the moment they are handed over; `on_synced` tells when they are safe."""
    sim = SimulatedLog()
    new = sim.append(1, 1, 2)
    assert sim.all_entries() == new
    assert (sim.log.last, sim.log.synced_index) == (Position(3, 2), 0)
    sim.executor.run()
    assert (sim.synced, sim.log.synced_index) == ([3], 3)
    sim.power_loss()
    assert sim.all_entries() == new


def test_what_arrives_during_a_sync_shares_the_next_one() -> None:
    """One group is one sync, whatever number of calls it gathers."""
    sim = SimulatedLog()
    sim.executor.run()
    sim.append(1)
    sim.append(1)
    syncs = sim.disk.done["sync"]

    def meanwhile(*_: object) -> None:
        sim.disk.on_call = lambda *_: None
        for _ in range(5):
            sim.append(1)
        sim.log.set_state(2, "a")

    sim.disk.on_call = meanwhile
    sim.executor.run()
    assert sim.disk.done["sync"] - syncs == 2
    assert sim.synced == [2, 7]


def test_a_group_has_a_bound() -> None:
    """A long queue goes out in several frames, a large entry in one of its own."""
    sim = SimulatedLog(segment_bytes=4 << 20)
    new = sim.append(*[1] * 5, size=GROUP_BYTES_MAX // 2) + sim.append(1, size=3 * GROUP_BYTES_MAX)
    flushed = []
    while sim.executor.step():
        flushed.append((sim.log.synced_index, sim.log.flushed_ticket == sim.log.flush_ticket()))
    assert sim.synced == [2, 4, 6]
    assert flushed[:3] == [(2, False), (4, False), (6, True)]
    sim.power_loss()
    assert sim.all_entries() == new


def test_an_entry_larger_than_a_segment_gets_one_of_its_own() -> None:
    """The size of a segment is no limit for an entry."""
    sim = SimulatedLog(segment_bytes=16 << 10)
    new = sim.append_synced(1) + sim.append_synced(1, size=100_000) + sim.append_synced(1)
    assert sim.log.figures()["segments"] == 3
    sim.power_loss()
    assert sim.all_entries() == new
    sim.log.trim(3)
    sim.executor.run()
    sim.power_loss()
    assert sim.all_entries() == new[2:]


@pytest.mark.parametrize("wrong", [entries(1, 2), entries(4, 2), entries(3, 1), [*entries(3, 2), *entries(5, 2)]])
def test_entries_that_do_not_continue_the_log_are_refused(wrong: list[Entry]) -> None:
    """A gap, a repetition or a falling term is the caller's error, and changes nothing."""
    sim = SimulatedLog()
    kept = sim.append(1, 2)
    with pytest.raises(ValueError, match="cannot follow"):
        sim.log.append(wrong)
    assert sim.all_entries() == kept
    assert sim.log.last == Position(2, 2)


def test_read_takes_entries_up_to_a_size_but_at_least_one() -> None:
    """`bytes_max` bounds a read, except that it always makes progress."""
    for cache_bytes in (0, 1 << 20):
        sim = SimulatedLog(cache_bytes=cache_bytes)
        new = [*sim.append_synced(1, 1, 1, size=100), *sim.append_synced(1, 1, 1, size=100)]
        assert sim.log.read(1, 0) == new[:1]
        assert sim.log.read(2, 250) == new[1:3]
        assert sim.log.read(2, 400) == new[1:5]
        assert sim.log.read(6, 1000) == new[5:]
        assert sim.log.read(7, 1000) == []


def test_recent_entries_are_read_from_memory_and_older_ones_from_disk() -> None:
    """Reading what was just appended asks no disk; memory holds no more than its bound."""
    sim = SimulatedLog(cache_bytes=10_000, segment_bytes=64 << 10)
    new = [entry for _ in range(8) for entry in sim.append_synced(1, size=3000)]
    reads = sim.disk.done["read"]
    assert sim.log.read(6, 1 << 20) == new[5:]
    assert sim.disk.done["read"] == reads
    assert sim.log.figures()["cache_bytes"] <= 10_000
    assert sim.all_entries() == new
    assert sim.disk.done["read"] == reads + 5


def test_truncated_entries_are_gone_and_their_indexes_free() -> None:
    """A suffix is dropped at once, on disk and in memory, and other entries may take its place."""
    sim = SimulatedLog()
    kept = sim.append_synced(1, 1, 1, 1)[:2]
    sim.log.truncate(3)
    assert (sim.log.last, sim.log.synced_index) == (Position(2, 1), 2)
    assert sim.log.term_at(3) is None
    assert sim.all_entries() == kept
    kept += sim.append_synced(2, 3)
    assert [sim.log.term_at(index) for index in range(6)] == [0, 1, 1, 2, 3, None]
    sim.power_loss()
    assert sim.all_entries() == kept


def test_a_truncation_alone_is_durable() -> None:
    """Dropping a suffix needs no entry after it to be remembered."""
    sim = SimulatedLog()
    kept = sim.append_synced(1, 1, 1)[:1]
    sim.log.truncate(2)
    sim.executor.run()
    sim.power_loss()
    assert sim.all_entries() == kept


def test_an_entry_that_was_replaced_while_it_was_synced_is_not_called_synced() -> None:
    """`synced_index` speaks of the entries that are in the log now."""
    sim = SimulatedLog()
    sim.append(1, 1, 1)
    sim.executor.work()
    sim.log.truncate(2)
    sim.append(2, 2)
    sim.executor.tell()
    assert sim.log.synced_index == 1
    sim.executor.run()
    assert sim.log.synced_index == 3


def test_truncating_beyond_the_ends() -> None:
    """Nothing is dropped above the last entry; nothing may be at or below the base."""
    sim = SimulatedLog()
    kept = sim.append_synced(1, 1)
    sim.log.truncate(3)
    assert sim.all_entries() == kept
    with pytest.raises(ValueError, match="cannot be truncated"):
        sim.log.truncate(0)


def test_trim_removes_whole_segments_and_keeps_the_term_of_the_base() -> None:
    """What may go goes in whole segments; the entry before the first is still known by its term."""
    sim = SimulatedLog()
    new = [entry for term in range(1, 13) for entry in sim.append_synced(term, size=3000)]
    files = len(sim.segment_paths())
    sim.log.trim(7)
    base = sim.log.base
    assert 4 <= base.index <= 7
    assert base.term == base.index
    assert sim.log.term_at(base.index) == base.term
    assert sim.log.term_at(base.index - 1) is None
    assert sim.all_entries() == new[base.index :]
    with pytest.raises(LookupError, match="trimmed"):
        sim.log.read(base.index, 100)
    sim.executor.run()
    assert len(sim.segment_paths()) <= files
    sim.power_loss()
    assert (sim.log.base, sim.all_entries()) == (base, new[base.index :])


def test_trim_keeps_what_is_not_synced() -> None:
    """Trimming past the end of what is synced removes nothing of the rest."""
    sim = SimulatedLog()
    sim.append_synced(*[1] * 6, size=3000)
    new = sim.append(1, 1, size=3000)
    sim.log.trim(100)
    assert sim.log.base.index <= 6
    assert sim.all_entries()[-2:] == new


def test_a_trimmed_segment_is_used_again_without_its_old_entries() -> None:
    """Segments are recycled: what an earlier life left in one is not read."""
    sim = SimulatedLog()
    for _ in range(30):
        sim.append_synced(1, size=3000)
        sim.log.trim(sim.log.synced_index)
        sim.executor.run()
    assert len(sim.segment_paths()) <= 4
    old = sum(sim.disk.content(path).count(b"RKLF") for path in sim.segment_paths())
    last = sim.append_synced(1)[0]
    assert old > len(sim.all_entries()), "nothing of an earlier life is left: the test proves nothing"
    sim.kill()
    assert sim.all_entries()[-1] == last
    assert sim.log.last_index == 31


def test_the_log_may_begin_anywhere() -> None:
    """A reset begins the log above 1 and carries term and vote over."""
    sim = SimulatedLog()
    sim.log.set_state(5, "a")
    sim.append_synced(5, 5)
    sim.log.reset(Position(1000, 4), b"h" * 16)
    assert (sim.log.base, sim.log.first_index, sim.log.last_index) == (Position(1000, 4), 1001, 1000)
    assert (sim.log.term_at(1000), sim.log.term_at(999), sim.log.term_at(2)) == (4, None, None)
    new = sim.append(5)
    assert sim.all_entries() == new
    sim.executor.run()
    assert sim.log.synced_index == 1001
    sim.power_loss()
    assert (sim.log.base, sim.log.term, sim.log.vote) == (Position(1000, 4), 5, "a")
    assert sim.log.history_id == b"h" * 16
    assert sim.all_entries() == new


def test_every_segment_repeats_term_and_vote() -> None:
    """Term and vote survive the trimming of the segment in which they were set, before a reset and after."""
    sim = SimulatedLog()
    sim.log.set_state(5, "a")
    for base in (0, 100):
        if base:
            sim.log.reset(Position(base, 5))
        for _ in range(12):
            sim.append_synced(5, size=3000)
        sim.log.trim(base + 11)
        sim.executor.run()
        assert sim.log.base.index > base
        sim.power_loss()
        assert (sim.log.term, sim.log.vote) == (5, "a")


def test_a_segment_whose_base_was_truncated_is_not_where_the_log_begins() -> None:
    """The log never begins after an entry that is no longer in it."""
    for restart in (False, True):
        sim = SimulatedLog()
        sim.append_synced(1, 1, 1, 1)
        while len(sim.segment_paths()) < 3:
            sim.append_synced(1, size=3000)
        begins = sim.log.last_index - 1  # the entry that the newest segment goes on from
        sim.log.truncate(begins - 1)
        sim.append_synced(2, 2, 2)
        if restart:
            sim.kill()
        kept = sim.all_entries()
        sim.log.trim(begins)
        base = sim.log.base
        assert base.index in (0, *(entry.index for entry in kept if entry[:2] == base))
        sim.executor.run()
        sim.power_loss()
        assert sim.all_entries() == kept[base.index :]
        assert sim.log.term_at(begins) == 2


def test_a_segment_that_is_truncated_while_it_is_opened_is_not_where_the_log_begins() -> None:
    """The same, when the truncation comes while the segment's first frame is on its way."""
    sim = SimulatedLog()
    new = sim.append_synced(*[1] * 3, size=3000)
    segments = sim.log.figures()["segments"]
    while sim.log.figures()["segments"] == segments:
        new += sim.append(1, size=3000)
        sim.executor.work()
        sim.log.truncate(new[-2].index)
        del new[-2:]
        new += sim.append(2, 2, 2)
        sim.executor.tell()
        sim.executor.run()
    sim.log.trim(new[-3].index)
    base = sim.log.base
    sim.executor.run()
    sim.power_loss()
    assert sim.all_entries() == new[base.index :]
    assert base.term == ([0] + [entry.term for entry in new])[base.index]


def test_a_reset_to_where_an_old_entry_was_does_not_bring_it_back() -> None:
    """Frames of the log before a reset are never read as frames of the log after it."""
    sim = SimulatedLog()
    sim.append_synced(*[1] * 10, size=3000)
    for _ in range(5):
        sim.log.reset(Position(2, 1))
        sim.executor.run()
    assert sim.all_entries() == []
    sim.kill()
    assert sim.all_entries() == []
    new = sim.append_synced(2)
    sim.kill()
    assert sim.all_entries() == new


def test_the_history_is_kept() -> None:
    """`set_history` is durable when it returns."""
    sim = SimulatedLog()
    sim.log.set_history(b"h" * 16)
    sim.power_loss()
    assert sim.log.history_id == b"h" * 16
    with pytest.raises(ValueError, match="16 bytes"):
        sim.log.set_history(b"short")


def test_a_history_is_not_set_in_the_middle_of_a_reset() -> None:
    """Which log a history would be written into is not left open."""
    sim = SimulatedLog()
    sim.log.reset(Position(5, 1), b"h" * 16)
    sim.log.set_history(b"h" * 16)
    with pytest.raises(RuntimeError, match="reset is under way"):
        sim.log.set_history(b"i" * 16)
    sim.executor.run()
    sim.log.set_history(b"i" * 16)
    sim.power_loss()
    assert (sim.log.base.index, sim.log.history_id) == (5, b"i" * 16)


def test_term_and_vote_are_durable_when_the_barrier_says_so() -> None:
    """An engine holds its votes until they survive power loss."""
    sim = SimulatedLog()
    sent: list[str] = []
    sim.log.barrier(lambda: sent.append("nothing to wait for"))
    assert sent == ["nothing to wait for"]
    sim.log.set_state(3, "b")
    assert (sim.log.term, sim.log.vote) == (3, "b")
    ticket = sim.log.flush_ticket()
    sim.log.barrier(lambda: sent.append("vote"))
    sim.append(3)
    sim.executor.work()
    assert (sent[1:], sim.log.flushed_ticket < ticket) == ([], True)
    sim.executor.tell()
    assert sent[1:] == ["vote"]
    assert sim.log.flushed_ticket >= ticket
    sim.power_loss()
    assert (sim.log.term, sim.log.vote) == (3, "b")
    sim.log.set_state(4, None)
    sim.executor.run()
    sim.power_loss()
    assert (sim.log.term, sim.log.vote) == (4, None)


def test_the_term_never_goes_back() -> None:
    """A smaller term, or a vote that does not fit, is the caller's error."""
    sim = SimulatedLog()
    sim.log.set_state(3, "b")
    with pytest.raises(ValueError, match="cannot go back"):
        sim.log.set_state(2, "b")
    with pytest.raises(ValueError, match="bytes"):
        sim.log.set_state(3, "x" * 255)
    assert (sim.log.term, sim.log.vote) == (3, "b")


def test_waiting_for_tickets() -> None:
    """Coroutines wait for what they handed over, in whatever order they ask."""

    async def main() -> list[str]:
        sim = SimulatedLog()
        order: list[str] = []

        async def wait(name: str, ticket: int | None) -> None:
            await sim.log.wait_flushed(ticket)
            order.append(name)

        sim.append(1)
        first = sim.log.flush_ticket()
        sim.executor.work()
        sim.append(1)
        tasks = [asyncio.create_task(wait("second", None)), asyncio.create_task(wait("first", first))]
        await asyncio.sleep(0)
        sim.executor.tell()
        await asyncio.sleep(0)
        assert order == ["first"]
        sim.executor.run()
        await asyncio.gather(*tasks)
        await sim.log.wait_flushed()
        return order

    assert asyncio.run(main()) == ["first", "second"]


def test_closing_writes_what_was_handed_over() -> None:
    """An orderly end loses nothing, and calls nobody back."""

    async def main() -> None:
        sim = SimulatedLog()
        new = sim.append(1, 1)
        waiting = asyncio.create_task(sim.log.wait_flushed())
        await asyncio.sleep(0)
        sim.log.close()
        sim.executor.run()
        with pytest.raises(DataDirectoryError, match="closed"):
            await waiting
        assert sim.synced == []
        sim.log.close()
        sim.power_loss()
        assert sim.all_entries() == new

    asyncio.run(main())


def test_the_reserve_is_held_and_released() -> None:
    """Disk space is held back by a file, and given up on request."""
    sim = SimulatedLog(reserve_bytes=50_000)
    reserve = sim.directory / "reserve"
    assert len(sim.disk.content(reserve)) == 50_000
    assert sim.log.figures()["reserve_bytes"] == 50_000
    sim.log.release_reserve()
    assert "reserve" not in sim.disk.names(sim.directory)
    assert sim.log.figures()["reserve_bytes"] == 0
    assert sim.log.restore_reserve()
    assert len(sim.disk.content(reserve)) == 50_000
    sim.options["reserve_bytes"] = 0
    sim.kill()
    assert "reserve" not in sim.disk.names(sim.directory)


def test_figures_are_numbers() -> None:
    """Every figure is a number, and those that people look for are there."""
    sim = SimulatedLog()
    sim.append_synced(1, 1)
    figures = sim.log.figures()
    assert all(isinstance(value, int | float) for value in figures.values())
    assert (figures["groups"], figures["group_entries"], figures["last_index"], figures["waiting_s"]) == (1, 2, 2, 0)
