"""The proposer: packing, the window, and how each wait ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from raftkv_core import limits
from raftkv_core.errors import NotApplied, OutcomeUnknown, Overloaded, RequestError, Unavailable
from raftkv_core.interfaces.consensus import Position
from raftkv_core.machine.commands import Outcome
from raftkv_core.machine.entries import DecodedEntry, ProposalId, decode_entry
from raftkv_core.machine.state import Applied
from raftkv_core.node.batches import Batch
from raftkv_core.node.proposer import Proposer

HISTORY = b"h" * 16


class Engine:
    """Takes entries; what `submit` answers is decided by `answer`, or by hand."""

    def __init__(self) -> None:
        self.entries: list[DecodedEntry] = []
        self.answer: Callable[[int], Position | Exception | None] = lambda index: Position(index, 1)

    async def submit(self, entry: bytes, timeout_s: float) -> Position | None:
        self.entries.append(decode_entry(entry))
        answer = self.answer(len(self.entries))
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def commands(self) -> list[list[bytes]]:
        return [entry.commands for entry in self.entries]

    def applied(self, number: int, *, index: int | None = None) -> Applied:
        """Entry `number` (from 1), applied; each command's revision is its own length."""
        entry = self.entries[number - 1]
        outcomes = [Outcome(0, len(command)) for command in entry.commands]
        return Applied(index or number, 1, entry.proposal, outcomes)


class Sink:
    """Remembers how each command ended."""

    def __init__(self) -> None:
        self.ends: dict[int, Outcome | RequestError] = {}

    def resolved(self, batch: Batch, at: int, outcomes: Sequence[Outcome]) -> None:
        for place, outcome in enumerate(outcomes, batch.token + at):
            assert place not in self.ends
            self.ends[place] = outcome

    def failed(self, batch: Batch, at: int, count: int, error: RequestError) -> None:
        for place in range(batch.token + at, batch.token + at + count):
            assert place not in self.ends
            self.ends[place] = error


class Bench:
    def __init__(self, **options: Any) -> None:
        self.engine = Engine()
        self.sink = Sink()
        self.history = HISTORY
        self.bugs: list[str] = []
        settings = {"queue_commands": 10_000, "queue_bytes": 64 << 20, **options}
        self.proposer = Proposer(
            "node1",
            42,
            submit=self.engine.submit,
            history_id=lambda: self.history,
            on_bug=self.bugs.append,
            **settings,
        )
        self.token = 0

    def add(self, *commands: bytes, timeout_s: float = 5.0, weights: list[int] | None = None) -> None:
        deadline = asyncio.get_running_loop().time() + timeout_s
        self.proposer.add(Batch(self.sink, self.token, commands, deadline, weights))
        self.token += len(commands)


async def ticks(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


Virtual = Callable[[Any], Any]


def test_commands_of_one_tick_share_an_entry(virtual: Virtual) -> None:
    """Whatever is queued in one tick of the loop becomes one entry, in order."""

    async def work() -> None:
        bench = Bench()
        bench.add(b"aa", b"bb")
        bench.add(b"cc")
        await ticks()
        assert bench.engine.commands == [[b"aa", b"bb", b"cc"]]
        assert bench.engine.entries[0].history_id == HISTORY

    virtual(work())


def test_the_window_makes_the_next_group_gather(virtual: Virtual) -> None:
    """While the window is full commands gather, and leave together when an entry is applied."""

    async def work() -> None:
        bench = Bench(window=2)
        for command in (b"a1", b"b1", b"c1", b"d1"):
            bench.add(command)
            await ticks()
        assert bench.engine.commands == [[b"a1"], [b"b1"]]
        bench.proposer.applied([bench.engine.applied(1)], 1)
        await ticks()
        assert bench.engine.commands[2:] == [[b"c1", b"d1"]]

    virtual(work())


def test_an_entry_stays_within_the_limits_of_the_format(virtual: Virtual) -> None:
    """Number of commands, bytes and weight each end an entry; what is left goes into the next ones."""

    async def work() -> None:
        bench = Bench()
        bench.add(*[b"xx"] * 300)
        await ticks()
        assert [len(commands) for commands in bench.engine.commands] == [256, 44]
        bench = Bench()
        bench.add(*[b"x" * (1 << 20)] * 5)
        await ticks()
        assert [len(commands) for commands in bench.engine.commands] == [3, 2]
        bench = Bench()
        bench.add(*[b"xx"] * 20, weights=[16] * 20)
        await ticks()
        assert [len(commands) for commands in bench.engine.commands] == [16, 4]
        assert limits.ENTRY_COMMANDS_MAX == 256

    virtual(work())


def test_outcomes_reach_the_commands_they_belong_to(virtual: Virtual) -> None:
    """Batches that share entries, or are split over two, hear of each command once and in order."""

    async def work() -> None:
        bench = Bench()
        sizes = [number % 200 + 2 for number in range(300)]
        for start in range(0, 300, 30):
            bench.add(*[b"x" * size for size in sizes[start : start + 30]])
        await ticks()
        bench.proposer.applied([bench.engine.applied(1), bench.engine.applied(2)], 2)
        assert [end.revision for _place, end in sorted(bench.sink.ends.items())] == sizes  # type: ignore[union-attr]
        assert bench.proposer.waiting_commands == 0

    virtual(work())


def test_a_full_queue_refuses_at_once(virtual: Virtual) -> None:
    """Beyond the limit of commands or bytes a command is refused as not applied; what fits is taken."""

    async def work() -> None:
        bench = Bench(queue_commands=3)
        bench.add(b"aa", b"bb", b"cc", b"dd")
        error = bench.sink.ends[3]
        assert isinstance(error, Overloaded)
        assert error.outcome == "not_applied"
        await ticks()
        assert bench.engine.commands == [[b"aa", b"bb", b"cc"]]
        bench.proposer.applied([bench.engine.applied(1)], 1)
        bench.add(b"ee")
        assert 4 not in bench.sink.ends
        bench = Bench(queue_bytes=100)
        bench.add(b"x" * 60, b"x" * 60)
        assert isinstance(bench.sink.ends[1], Overloaded)
        assert 0 not in bench.sink.ends

    virtual(work())


def test_an_entry_of_an_earlier_life_resolves_nobody(virtual: Virtual) -> None:
    """Sequence numbers begin again at each start, so an outcome counts only for its own incarnation."""

    async def work() -> None:
        bench = Bench()
        bench.engine.answer = lambda _index: None
        bench.add(b"aa")
        await ticks()
        ghost = bench.engine.applied(1)._replace(proposal=ProposalId("node1", 41, 1))
        bench.proposer.applied([ghost], 1)
        other = bench.engine.applied(1)._replace(proposal=ProposalId("node2", 42, 1))
        bench.proposer.applied([other], 2)
        assert bench.sink.ends == {}
        bench.proposer.applied([bench.engine.applied(1)], 3)
        assert isinstance(bench.sink.ends[0], Outcome)

    virtual(work())


def test_what_the_engine_refused_was_not_applied(virtual: Virtual) -> None:
    """An engine's NotApplied reaches every command of the entry, as it is."""

    async def work() -> None:
        bench = Bench()
        bench.engine.answer = lambda _index: Unavailable("no leader", code="no_leader")
        bench.add(b"aa", b"bb")
        await ticks()
        assert [end.code for end in bench.sink.ends.values()] == ["no_leader"] * 2  # type: ignore[union-attr]
        assert bench.proposer.waiting_commands == 0

    virtual(work())


def test_another_entry_at_its_index_means_not_applied(virtual: Virtual) -> None:
    """When something else is applied, or nothing is, where the entry was to be, it never will be."""

    async def work() -> None:
        bench = Bench()
        bench.add(b"aa")
        await ticks()
        bench.proposer.applied([Applied(1, 2, ProposalId("node2", 7, 1), [Outcome(0, 1)])], 1)
        assert isinstance(bench.sink.ends[0], NotApplied)
        bench.add(b"bb")
        await ticks()
        bench.proposer.applied([], 2)  # `advance` passed it
        assert isinstance(bench.sink.ends[1], NotApplied)

    virtual(work())


def test_an_index_that_was_passed_already_means_not_applied(virtual: Virtual) -> None:
    """The engine may say where an entry was to be only after something else was applied there."""

    async def work() -> None:
        bench = Bench()
        bench.proposer.applied([], 10)
        bench.engine.answer = lambda _index: Position(10, 1)
        bench.add(b"aa")
        await ticks()
        assert isinstance(bench.sink.ends[0], NotApplied)

    virtual(work())


def test_an_unknown_outcome_is_still_told_by_apply(virtual: Virtual) -> None:
    """The engine lost sight of the entry; apply sees it before the deadline, so the outcome is known."""

    async def work() -> None:
        bench = Bench(window=1)
        bench.engine.answer = lambda index: OutcomeUnknown("leadership lost") if index == 1 else None
        bench.add(b"aa")
        await ticks()
        bench.add(b"bb")
        await ticks()
        assert bench.engine.commands == [[b"aa"], [b"bb"]], "a lost entry must not block the window"
        bench.proposer.applied([bench.engine.applied(1)], 5)
        assert isinstance(bench.sink.ends[0], Outcome)

    virtual(work())


def test_the_deadline_ends_a_wait_truthfully(virtual: Virtual) -> None:
    """In flight: unknown. Never handed over: not applied. Others of the same entry go on waiting."""

    async def work() -> None:
        bench = Bench(window=1)
        bench.engine.answer = lambda _index: None
        bench.add(b"aa", timeout_s=1.0)
        bench.add(b"bbb", timeout_s=9.0)
        await ticks()
        bench.add(b"cc", timeout_s=2.0)
        await asyncio.sleep(3.0)
        assert isinstance(bench.sink.ends[0], OutcomeUnknown)
        assert isinstance(bench.sink.ends[2], Unavailable)
        assert 1 not in bench.sink.ends
        bench.proposer.applied([bench.engine.applied(1)], 1)
        assert bench.sink.ends[1] == Outcome(0, 3)
        assert bench.proposer.waiting_commands == 0

    virtual(work())


def test_an_entry_nobody_waits_for_frees_its_place(virtual: Virtual) -> None:
    """After the last deadline of an entry the window has room again."""

    async def work() -> None:
        bench = Bench(window=1)
        bench.engine.answer = lambda _index: None
        bench.add(b"aa", timeout_s=1.0)
        await ticks()
        bench.add(b"bb", timeout_s=9.0)
        await asyncio.sleep(2.0)
        assert bench.engine.commands == [[b"aa"], [b"bb"]]

    virtual(work())


def test_one_timer_serves_all_deadlines(virtual: Virtual) -> None:
    """Each command's deadline is kept to the resolution of the sweep, in whatever order they came."""

    async def work() -> None:
        bench = Bench()
        bench.engine.answer = lambda _index: None
        for timeout_s in (3.0, 1.0, 2.0):
            bench.add(b"xx", timeout_s=timeout_s)
        await asyncio.sleep(0.5)
        for ended in ([], [1], [1, 2], [0, 1, 2]):
            assert sorted(bench.sink.ends) == ended
            await asyncio.sleep(1.0)

    virtual(work())


def test_below_an_installed_stream_the_outcome_is_unknown_at_once(virtual: Virtual) -> None:
    """The stream may contain the entry or not; waiting for the deadline would tell no more."""

    async def work() -> None:
        bench = Bench()
        bench.add(b"aa")
        await ticks()
        bench.add(b"bb")
        await ticks()
        bench.engine.answer = lambda _index: Position(1, 1)
        bench.proposer.restored(Position(1, 3))
        assert isinstance(bench.sink.ends[0], OutcomeUnknown)
        assert 1 not in bench.sink.ends
        bench.add(b"cc")
        await ticks()
        assert isinstance(bench.sink.ends[2], OutcomeUnknown), "its place is told only after the stream came"

    virtual(work())


def test_a_new_term_frees_the_window(virtual: Virtual) -> None:
    """Entries of a term that ended may never come; new commands do not wait behind them."""

    async def work() -> None:
        bench = Bench(window=1)
        bench.add(b"aa")
        await ticks()
        bench.add(b"bb")
        await ticks()
        assert bench.engine.commands == [[b"aa"]]
        bench.proposer.term_changed()
        await ticks()
        assert bench.engine.commands == [[b"aa"], [b"bb"]]

    virtual(work())


def test_stop_ends_every_wait(virtual: Virtual) -> None:
    """In flight: unknown. Queued or new: not applied."""

    async def work() -> None:
        bench = Bench(window=1)
        bench.add(b"aa")
        await ticks()
        bench.add(b"bb")
        await bench.proposer.stop()
        bench.add(b"cc")
        assert [type(bench.sink.ends[place]) for place in range(3)] == [OutcomeUnknown, Unavailable, Unavailable]

    virtual(work())


def test_drain_waits_for_what_is_under_way_and_takes_no_more(virtual: Virtual) -> None:
    """A stop in order first lets every accepted command come to its end."""

    async def work() -> None:
        bench = Bench()
        bench.add(b"aa")
        await ticks()
        drained = asyncio.ensure_future(bench.proposer.drain(5.0))
        await ticks()
        bench.add(b"bb")
        assert isinstance(bench.sink.ends[1], Unavailable)
        assert not drained.done()
        bench.proposer.applied([bench.engine.applied(1)], 1)
        await drained
        assert asyncio.get_running_loop().time() == 0.0

    virtual(work())


def test_nothing_is_proposed_before_genesis(virtual: Virtual) -> None:
    """Commands wait until the store has a history; genesis goes past them, under the new history's name."""

    async def work() -> None:
        bench = Bench()
        bench.history = b""
        bench.add(b"aa")
        await ticks()
        outcome = bench.proposer.begin_history(b"genesis", b"n" * 16, 5.0)
        await ticks()
        assert bench.engine.commands == [[b"genesis"]]
        assert bench.engine.entries[0].history_id == b"n" * 16
        bench.history = b"n" * 16
        bench.proposer.applied([bench.engine.applied(1)], 1)
        bench.proposer.wake()
        assert (await outcome).revision == 7
        await ticks()
        assert bench.engine.commands[1:] == [[b"aa"]]

    virtual(work())


def test_a_bug_in_the_engine_is_told(virtual: Virtual) -> None:
    """Whatever else `submit` raises stops the node; the outcome stays open until the deadline."""

    async def work() -> None:
        bench = Bench()
        bench.engine.answer = lambda _index: KeyError("oops")
        bench.add(b"aa", timeout_s=1.0)
        await ticks()
        assert "oops" in bench.bugs[0]
        assert bench.sink.ends == {}
        await asyncio.sleep(2.0)
        assert isinstance(bench.sink.ends[0], OutcomeUnknown)

    virtual(work())


@pytest.mark.parametrize("commands", [1, 256])
def test_the_nodes_own_commands_pass_a_full_queue(virtual: Virtual, commands: int) -> None:
    """Ticks, reports and compaction must go through under load, or the load would never end."""

    async def work() -> None:
        bench = Bench(queue_commands=commands)
        bench.add(*[b"xx"] * commands)
        outcome = bench.proposer.propose(b"own", 5.0)
        await ticks()
        bench.proposer.applied([bench.engine.applied(n) for n in range(1, len(bench.engine.entries) + 1)], 9)
        assert (await outcome).revision == 3

    virtual(work())
