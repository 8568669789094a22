"""The proposer against an engine that does whatever an engine may do: every command ends once, and truthfully."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raftkv_core.errors import NotApplied, OutcomeUnknown, RequestError
from raftkv_core.interfaces.consensus import Position
from raftkv_core.machine.commands import Outcome
from raftkv_core.machine.entries import ProposalId, decode_entry
from raftkv_core.machine.state import Applied
from raftkv_core.node.batches import Batch
from raftkv_core.node.proposer import Proposer

ACTIONS = (
    "propose",
    "propose",
    "propose",
    "apply",
    "apply",
    "overtake",
    "stream",
    "election",
    "wait",
    "answer",
    "advance",
)


class World:
    """A log that grows, loses its uncommitted end to other leaders, and is applied; and who waits for what."""

    def __init__(self, choose: Callable[[Sequence[str]], str]) -> None:
        self.choose = choose
        self.log: list[tuple[int, bytes | None]] = []
        """(term, entry) by index - 1; None is somebody else's."""
        self.applied = 0
        self.term = 1
        self.given_out = 0
        self.ends: dict[int, Outcome | RequestError] = {}
        self.carried_out: set[int] = set()
        self.pending: list[tuple[asyncio.Future[Position | None], bytes]] = []
        self.proposer = Proposer(
            "node1",
            1,
            submit=self.submit,
            history_id=lambda: b"h" * 16,
            on_bug=lambda reason: (_ for _ in ()).throw(AssertionError(reason)),
            queue_commands=40,
            queue_bytes=1 << 20,
            window=2,
        )

    # the sink

    def resolved(self, batch: Batch, at: int, outcomes: Sequence[Outcome]) -> None:
        for number, outcome in enumerate(outcomes, batch.token + at):
            assert number not in self.ends, "it ended before"
            assert outcome.revision == number, "the outcome of another command"
            self.ends[number] = outcome

    def failed(self, batch: Batch, at: int, count: int, error: RequestError) -> None:
        for number in range(batch.token + at, batch.token + at + count):
            assert number not in self.ends, "it ended before"
            self.ends[number] = error

    # the engine

    async def submit(self, entry: bytes, timeout_s: float) -> Position | None:
        kind = self.choose(("placed", "placed", "slow", "unplaced", "refused", "lost", "perhaps"))
        if kind == "refused":
            raise NotApplied("no leader")
        if kind == "lost":
            raise OutcomeUnknown("sent, never to be seen")
        position = self.place(entry)
        if kind == "perhaps":
            raise OutcomeUnknown("sent, and it arrived")
        if kind == "unplaced":
            return None
        if kind == "slow":
            future: asyncio.Future[Position | None] = asyncio.get_running_loop().create_future()
            self.pending.append((future, entry))
            await future
        return position

    def place(self, entry: bytes | None) -> Position:
        self.log.append((self.term, entry))
        return Position(len(self.log), self.term)

    # what happens

    def propose(self) -> None:
        count = int(self.choose(["1", "2", "5"]))
        numbers = range(self.given_out, self.given_out + count)
        self.given_out += count
        deadline = asyncio.get_running_loop().time() + float(self.choose(["1", "5", "50"]))
        self.proposer.add(Batch(self, numbers.start, [b"%05d" % number for number in numbers], deadline))

    def apply(self) -> None:
        """One entry, as the machine would."""
        if self.applied == len(self.log):
            return
        term, entry = self.log[self.applied]
        self.applied += 1
        result = Applied(self.applied, term, ProposalId("node2", 9, self.applied), [])
        if entry is not None:
            decoded = decode_entry(entry)
            numbers = [int(command) for command in decoded.commands]
            self.carried_out.update(numbers)
            result = Applied(self.applied, term, decoded.proposal, [Outcome(0, number) for number in numbers])
        self.proposer.applied([result], self.applied)

    def advance(self) -> None:
        """Another leader's no-op, which is never handed over."""
        if self.applied == len(self.log):
            self.log.append((self.term, None))
        if self.log[self.applied][1] is None:
            self.applied += 1
            self.proposer.applied((), self.applied)

    def overtake(self) -> None:
        """Another leader replaces what was not applied."""
        self.term += 1
        lost = len(self.log) - self.applied
        del self.log[self.applied :]
        for _ in range(lost):
            self.place(None)

    def stream(self) -> None:
        """Part of what follows is installed at once, whatever is in it."""
        ahead = (len(self.log) - self.applied + 1) // 2
        for _ in range(ahead):
            _term, entry = self.log[self.applied]
            self.applied += 1
            if entry is not None:
                self.carried_out.update(int(command) for command in decode_entry(entry).commands)
        if ahead:
            self.proposer.restored(Position(self.applied, self.log[self.applied - 1][0]))

    def election(self) -> None:
        self.term += 1
        self.proposer.term_changed()

    def answer(self) -> None:
        if self.pending:
            future, _entry = self.pending.pop(0)
            if not future.done():
                future.set_result(None)

    async def play(self, actions: int) -> None:
        for _ in range(actions):
            action = self.choose(ACTIONS)
            if action == "wait":
                await asyncio.sleep(1.5)
            else:
                getattr(self, action)()
            for _ in range(3):
                await asyncio.sleep(0)
        await self.proposer.stop()

    def check(self) -> None:
        assert set(self.ends) == set(range(self.given_out)), "everybody hears of the end, once"
        # What is still in the log may be applied some day.
        possible = {
            int(command) for _term, entry in self.log if entry is not None for command in decode_entry(entry).commands
        }
        for number, end in self.ends.items():
            if isinstance(end, Outcome):
                assert number in self.carried_out
            elif end.outcome == "not_applied":
                assert number not in self.carried_out | possible, f"{end!r}, and yet it may be"
        assert self.proposer.waiting_commands == 0


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_command_ends_once_and_truthfully(virtual: Any, data: st.DataObject) -> None:
    """Resolved: it was applied. Not applied: it was not, and never will be. Else it is said to be unknown."""

    async def work() -> None:
        world = World(lambda options: data.draw(st.sampled_from(list(options))))
        await world.play(data.draw(st.integers(1, 40)))
        world.check()

    virtual(work())
