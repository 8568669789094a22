"""From commands to log entries, and from applied entries back to those who wait.

Group commit without timers: whatever is queued when there is room in the window of entries in flight becomes
one entry. While an entry is being made durable the next one gathers, so groups grow with the load.

A batch has one *sink*, told of its commands' ends in groups: resolved by apply, and only by apply; or failed,
with an error that says truthfully what that means:

- never handed to the engine (queue full, stopped, deadline): `not_applied`;
- the engine said so, or something else was applied at the entry's index: `not_applied`;
- handed over and not seen again by the deadline, below an installed stream, or at stop: `unknown`.

There is no task, timer or future for a command: a batch costs one object, an entry one task, and one timer
serves all deadlines.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from raftkv_core import limits
from raftkv_core.errors import NotApplied, OutcomeUnknown, Overloaded, RequestError, Unavailable
from raftkv_core.interfaces.consensus import Position
from raftkv_core.machine.commands import Outcome
from raftkv_core.machine.entries import (
    COMMAND_OVERHEAD_BYTES,
    ENTRY_WEIGHT_MAX,
    ProposalId,
    encode_entry,
    entry_header_bytes,
)
from raftkv_core.machine.state import Applied

__all__ = ["Batch", "FutureSink", "Proposer", "Sink"]

WINDOW_ENTRIES: Final = 8
"""Entries in flight at once. Fewer make larger groups, more hide the round trip to other members."""

SWEEP_LEAST_S: Final = 0.01
"""Deadlines are kept to about this."""


class Sink(Protocol):
    """Who waits for a batch. Each command is named once, in `resolved` or in `failed`."""

    def resolved(self, batch: Batch, at: int, outcomes: Sequence[Outcome]) -> None:
        """The outcomes of the commands from place `at` on."""

    def failed(self, batch: Batch, at: int, count: int, error: RequestError) -> None:
        """The `count` commands from place `at` on end with the error."""


class Batch:
    """Commands that one sink proposes together. `weights` is None while every command weighs 1."""

    __slots__ = ("bytes", "commands", "deadline", "sink", "taken", "token", "weights")

    def __init__(
        self, sink: Sink, token: int, commands: Sequence[bytes], deadline: float, weights: Sequence[int] | None = None
    ) -> None:
        """`deadline` is in the loop's time. `token` is the sink's own number of the first command."""
        self.sink = sink
        self.token = token
        self.commands = commands
        self.deadline = deadline
        self.weights = weights
        self.bytes = sum(map(len, commands)) + COMMAND_OVERHEAD_BYTES * len(commands)
        self.taken = 0


class FutureSink:
    """For who proposes a single command and awaits its outcome."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[Outcome] = loop.create_future()

    def resolved(self, batch: Batch, at: int, outcomes: Sequence[Outcome]) -> None:  # noqa: ARG002
        if not self.future.done():
            self.future.set_result(outcomes[0])

    def failed(self, batch: Batch, at: int, count: int, error: RequestError) -> None:  # noqa: ARG002
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(slots=True)
class _Flight:
    """An entry that was handed to the engine."""

    sequence: int
    parts: list[tuple[Batch, int, int]]
    """(batch, place of the first command, number of commands)"""
    commands: int
    bytes: int
    deadline: float
    position: Position | None = None
    counted: bool = True
    """It takes a place in the window."""


@dataclass
class ProposerFigures:
    """Counted since the start."""

    commands: int = 0
    """Resolved by apply."""
    entries: int = 0
    refused: int = 0
    unknown: int = 0


Submit = Callable[[bytes, float], Awaitable[Position | None]]


class Proposer:
    """All of it runs on the loop's thread."""

    def __init__(
        self,
        node_id: str,
        incarnation: int,
        *,
        submit: Submit,
        history_id: Callable[[], bytes],
        on_bug: Callable[[str], None],
        queue_commands: int,
        queue_bytes: int,
        window: int = WINDOW_ENTRIES,
    ) -> None:
        """`history_id` is b"" before genesis, until when batches wait in the queue. `on_bug`: the engine
        raised what it may not raise."""
        self._loop = asyncio.get_running_loop()
        self._node_id = node_id
        self._incarnation = incarnation
        self._submit = submit
        self._history_id = history_id
        self._on_bug = on_bug
        self._commands_max = queue_commands
        self._bytes_max = queue_bytes
        self._window = window
        self._header_bytes = entry_header_bytes(node_id)
        self._queue: deque[Batch] = deque()
        self._flights: dict[int, _Flight] = {}
        self._by_index: dict[int, _Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sequence = 0
        self._counted = 0
        self._restored_index = 0
        self._applied_index = 0
        self._waiting_commands = 0
        self._waiting_bytes = 0
        self._pump_scheduled = False
        self._sweep: asyncio.TimerHandle | None = None
        self._sweep_at = 0.0
        self._stopped = False
        self._drained: asyncio.Future[None] | None = None
        self.figures = ProposerFigures()

    # ---------------------------------------------------------------- in

    @property
    def waiting_commands(self) -> int:
        """Queued or in flight."""
        return self._waiting_commands

    def add(self, batch: Batch) -> None:
        """Queue what there is room for; the rest fails at once with Overloaded."""
        if self._stopped:
            self._refuse(batch, 0, Unavailable("the node is stopping; send it again to another or later"))
            return
        count = len(batch.commands)
        if self._waiting_commands + count > self._commands_max or self._waiting_bytes + batch.bytes > self._bytes_max:
            fits = self._fitting(batch)
            self._refuse(
                batch,
                fits,
                Overloaded(
                    f"{self._waiting_commands} commands wait for an outcome already; retry later, or raise "
                    "limits.queue_commands and limits.queue_bytes"
                ),
            )
            if not fits:
                return
            weights = None if batch.weights is None else batch.weights[:fits]
            batch = Batch(batch.sink, batch.token, batch.commands[:fits], batch.deadline, weights)
        self._enqueue(batch)

    def propose(self, command: bytes, timeout_s: float, weight: int = 1) -> asyncio.Future[Outcome]:
        """One command of the node's own; it is queued whatever the load. InvalidRequest is the caller's care."""
        sink = FutureSink(self._loop)
        batch = Batch(sink, 0, [command], self._loop.time() + timeout_s, None if weight == 1 else [weight])
        if self._stopped:
            self._refuse(batch, 0, Unavailable("the node is stopping"))
        else:
            self._enqueue(batch)
        return sink.future

    def begin_history(self, command: bytes, history_id: bytes, timeout_s: float) -> asyncio.Future[Outcome]:
        """Propose `genesis`, past the queue, which waits for it."""
        sink = FutureSink(self._loop)
        batch = Batch(sink, 0, [command], self._loop.time() + timeout_s)
        self._waiting_commands += 1
        self._waiting_bytes += batch.bytes
        self._launch(history_id, [command], [(batch, 0, 1)], batch.bytes, batch.deadline)
        return sink.future

    def _enqueue(self, batch: Batch) -> None:
        self._waiting_commands += len(batch.commands)
        self._waiting_bytes += batch.bytes
        self._queue.append(batch)
        self._arm(batch.deadline)
        self.wake()

    def _fitting(self, batch: Batch) -> int:
        most = min(len(batch.commands), self._commands_max - self._waiting_commands)
        room = self._bytes_max - self._waiting_bytes
        for place in range(max(0, most)):
            room -= len(batch.commands[place]) + COMMAND_OVERHEAD_BYTES
            if room < 0:
                return place
        return max(0, most)

    def _refuse(self, batch: Batch, at: int, error: RequestError) -> None:
        count = len(batch.commands) - at
        self.figures.refused += count
        batch.sink.failed(batch, at, count, error)

    # ---------------------------------------------------------------- out

    def wake(self) -> None:
        """Something was queued, resolved, or the history became known: pack at the end of this tick."""
        if not self._pump_scheduled and self._queue:
            self._pump_scheduled = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_scheduled = False
        history_id = self._history_id()
        if not history_id:
            return
        while self._queue and self._counted < self._window:
            self._pack(history_id)

    def _pack(self, history_id: bytes) -> None:
        """Make one entry of what is queued, as far as it fits."""
        commands: list[bytes] = []
        parts: list[tuple[Batch, int, int]] = []
        room_commands = limits.ENTRY_COMMANDS_MAX
        room_bytes = limits.ENTRY_BYTES_MAX - self._header_bytes
        room_weight = ENTRY_WEIGHT_MAX
        deadline = 0.0
        taken_bytes = 0
        queue = self._queue
        while queue and room_commands:
            batch = queue[0]
            at = batch.taken
            if (
                not at
                and batch.weights is None
                and len(batch.commands) <= min(room_commands, room_weight)
                and (batch.bytes <= room_bytes)
            ):
                count, size, weight = len(batch.commands), batch.bytes, len(batch.commands)
                commands += batch.commands
            else:
                count, size, weight = _prefix(batch, room_commands, room_bytes, room_weight)
                if not count:
                    break
                commands += batch.commands[at : at + count]
            batch.taken = at + count
            parts.append((batch, at, count))
            room_commands -= count
            room_bytes -= size
            room_weight -= weight
            taken_bytes += size
            deadline = max(deadline, batch.deadline)
            if batch.taken < len(batch.commands):
                break
            queue.popleft()
        self._launch(history_id, commands, parts, taken_bytes, deadline)

    def _launch(
        self,
        history_id: bytes,
        commands: list[bytes],
        parts: list[tuple[Batch, int, int]],
        size: int,
        deadline: float,
    ) -> None:
        self._sequence += 1
        sequence = self._sequence
        data = encode_entry(history_id, ProposalId(self._node_id, self._incarnation, sequence), commands)
        flight = self._flights[sequence] = _Flight(sequence, parts, len(commands), size, deadline)
        self._counted += 1
        self._arm(min(batch.deadline for batch, _at, _count in parts))
        task = self._loop.create_task(self._hand_over(flight, data))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hand_over(self, flight: _Flight, data: bytes) -> None:
        try:
            position = await self._submit(data, max(0.001, flight.deadline - self._loop.time()))
        except NotApplied as error:
            self._fail(flight, error)
        except OutcomeUnknown:
            self._set_adrift(flight)  # apply may still tell; its deadline ends the wait
        except Exception as error:  # noqa: BLE001 - an engine's bug must not go unseen
            self._set_adrift(flight)
            self._on_bug(f"the consensus engine failed in submit: {error!r}")
        else:
            if position is not None and flight.sequence in self._flights:
                self._placed(flight, position)

    def _placed(self, flight: _Flight, position: Position) -> None:
        if position.index <= self._restored_index:
            self._fail(flight, _below_stream())
        elif position.index <= self._applied_index:
            self._fail(flight, _overtaken())
        else:
            flight.position = position
            self._by_index[position.index] = flight

    # ---------------------------------------------------------------- ends

    def applied(self, results: Iterable[Applied], index: int) -> None:
        """The machine applied these, and now stands at `index`."""
        self._applied_index = max(self._applied_index, index)
        flights = self._flights
        if not flights:
            return
        for result in results:
            proposal = result.proposal
            if proposal is None or proposal.incarnation != self._incarnation or proposal.node_id != self._node_id:
                continue
            flight = flights.get(proposal.sequence)
            if flight is not None:
                self._resolve(flight, result.outcomes)
        if self._by_index:
            # Ours were taken out above, so what is left at or below `index` was replaced by something else.
            for flight in [flight for at, flight in self._by_index.items() if at <= index]:
                self._fail(flight, _overtaken())

    def restored(self, position: Position) -> None:
        """A stream was installed; what became of entries at or below its position nobody here can tell."""
        self._restored_index = self._applied_index = position.index
        for flight in [flight for at, flight in self._by_index.items() if at <= position.index]:
            self._fail(flight, _below_stream())

    def term_changed(self) -> None:
        """Entries of an earlier term may never come: they go on waiting, but hold no place in the window."""
        for flight in self._flights.values():
            self._set_adrift(flight)

    async def drain(self, timeout_s: float) -> None:
        """Take nothing more; return when nothing waits for an outcome any longer, or after `timeout_s`."""
        self._stopped = True
        if self._waiting_commands:
            self._drained = self._loop.create_future()
            await asyncio.wait([self._drained], timeout=timeout_s)

    async def stop(self) -> None:
        """End every wait: what was queued is not applied, what was in flight is unknown."""
        self._stopped = True
        if self._sweep is not None:
            self._sweep.cancel()
        while self._queue:
            batch = self._queue.popleft()
            self._forget(batch, batch.taken)
            self._refuse(batch, batch.taken, Unavailable("the node is stopping; send it again to another or later"))
        for flight in list(self._flights.values()):
            self._fail(flight, OutcomeUnknown("the node stopped before the outcome was known"))
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _resolve(self, flight: _Flight, outcomes: Sequence[Outcome]) -> None:
        self._take_out(flight)
        self.figures.entries += 1
        self.figures.commands += flight.commands
        at = 0
        for batch, place, count in flight.parts:
            if place >= 0:
                part = outcomes if count == len(outcomes) else outcomes[at : at + count]
                batch.sink.resolved(batch, place, part)
            at += count

    def _fail(self, flight: _Flight, error: RequestError) -> None:
        if flight.sequence not in self._flights:
            return
        self._take_out(flight)
        for batch, place, count in flight.parts:
            if place >= 0:
                self._count_failure(error, count)
                batch.sink.failed(batch, place, count, error)

    def _take_out(self, flight: _Flight) -> None:
        del self._flights[flight.sequence]
        if flight.position is not None:
            self._by_index.pop(flight.position.index, None)
        self._waiting_commands -= flight.commands
        self._waiting_bytes -= flight.bytes
        self._set_adrift(flight)
        self._note_drained()

    def _set_adrift(self, flight: _Flight) -> None:
        if flight.counted:
            flight.counted = False
            self._counted -= 1
            self.wake()

    def _forget(self, batch: Batch, at: int) -> None:
        """Commands of a queued batch from place `at` on no longer wait."""
        self._waiting_commands -= len(batch.commands) - at
        self._waiting_bytes -= sum(map(len, batch.commands[at:])) + COMMAND_OVERHEAD_BYTES * (
            len(batch.commands) - at
        )
        self._note_drained()

    def _note_drained(self) -> None:
        if self._drained is not None and not self._waiting_commands and not self._drained.done():
            self._drained.set_result(None)

    def _count_failure(self, error: RequestError, count: int) -> None:
        if error.outcome == "unknown":
            self.figures.unknown += count
        else:
            self.figures.refused += count

    # ---------------------------------------------------------------- deadlines

    def _arm(self, deadline: float) -> None:
        if self._sweep is not None:
            if self._sweep_at <= deadline:
                return
            self._sweep.cancel()
        self._sweep_at = max(deadline, self._loop.time() + SWEEP_LEAST_S)
        self._sweep = self._loop.call_at(self._sweep_at, self.sweep)

    def sweep(self) -> None:
        """End every wait whose deadline has come, and set the timer for the next."""
        self._sweep = None
        now = self._loop.time()
        late = [batch for batch in self._queue if batch.deadline <= now]
        if late:
            self._queue = deque(batch for batch in self._queue if batch.deadline > now)
            for batch in late:
                self._forget(batch, batch.taken)
                self._refuse(
                    batch,
                    batch.taken,
                    Unavailable("its deadline came before the command could be proposed; retry later"),
                )
        for flight in list(self._flights.values()):
            self._expire(flight, now)
        deadlines = [batch.deadline for batch in self._queue]
        deadlines += [
            batch.deadline for flight in self._flights.values() for batch, place, _count in flight.parts if place >= 0
        ]
        if deadlines:
            self._arm(min(deadlines))

    def _expire(self, flight: _Flight, now: float) -> None:
        late = [part for part in flight.parts if part[1] >= 0 and part[0].deadline <= now]
        if not late:
            return
        for batch, place, count in late:
            error = OutcomeUnknown(
                "its deadline came before the outcome was known; read the key, or retry with an idempotency key"
            )
            self._count_failure(error, count)
            batch.sink.failed(batch, place, count, error)
        # A part that ended keeps its number of commands, so that the outcomes of the others are found.
        flight.parts = [(batch, -1 if batch.deadline <= now else at, count) for batch, at, count in flight.parts]
        if all(at < 0 for _batch, at, _count in flight.parts):
            self._take_out(flight)


def _prefix(batch: Batch, room_commands: int, room_bytes: int, room_weight: int) -> tuple[int, int, int]:
    """How many of the commands not yet taken fit, their bytes and their weight."""
    count = size = weight = 0
    weights = batch.weights
    for place in range(batch.taken, min(len(batch.commands), batch.taken + room_commands)):
        more = len(batch.commands[place]) + COMMAND_OVERHEAD_BYTES
        heavier = 1 if weights is None else weights[place]
        if size + more > room_bytes or weight + heavier > room_weight:
            break
        count += 1
        size += more
        weight += heavier
    return count, size, weight


def _overtaken() -> NotApplied:
    return NotApplied("another leader's entry took its place in the log; send it again")


def _below_stream() -> OutcomeUnknown:
    return OutcomeUnknown("the node caught up by a snapshot that may or may not contain it; read the key")
