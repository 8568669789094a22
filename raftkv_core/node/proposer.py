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
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final

from raftkv_core.errors import NotApplied, OutcomeUnknown, Overloaded, RequestError, Unavailable
from raftkv_core.interfaces.consensus import Position
from raftkv_core.machine.commands import Outcome
from raftkv_core.machine.entries import COMMAND_OVERHEAD_BYTES, ProposalId, encode_entry, entry_header_bytes
from raftkv_core.machine.state import Applied
from raftkv_core.node.batches import Batch, BatchQueue, Flight, FutureSink

__all__ = ["Proposer", "ProposerFigures"]

WINDOW_ENTRIES: Final = 8
"""Entries in flight at once. Fewer make larger groups, more hide the round trip to other members."""

SWEEP_LEAST_S: Final = 0.01
"""Deadlines are kept to about this."""

Submit = Callable[[bytes, float], Awaitable[Position | None]]


@dataclass
class ProposerFigures:
    """Counted since the start."""

    commands: int = 0
    """Resolved by apply."""
    entries: int = 0
    refused: int = 0
    unknown: int = 0


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
        self._queue = BatchQueue()
        self._flights: dict[int, Flight] = {}
        self._by_index: dict[int, Flight] = {}
        self._counted = 0
        """Flights that take a place in the window."""
        self._sequence = 0
        self._applied_index = 0
        self._restored_index = 0
        self._waiting_commands = 0
        self._waiting_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._pump_scheduled = False
        self._sweep: asyncio.TimerHandle | None = None
        self._sweep_at = 0.0
        self._stopping = False
        self._drained: asyncio.Future[None] | None = None
        self.figures = ProposerFigures()

    # ---------------------------------------------------------------- in

    @property
    def waiting_commands(self) -> int:
        """Queued or in flight."""
        return self._waiting_commands

    def add(self, batch: Batch) -> None:
        """Queue what there is room for; the rest fails at once with Overloaded."""
        if self._stopping:
            self._refuse(batch, _stopping())
            return
        if (
            self._waiting_commands + len(batch.commands) > self._commands_max
            or self._waiting_bytes + batch.bytes > self._bytes_max
        ):
            fits = self._fitting(batch)
            waiting = self._waiting_commands
            accepted, batch.taken = batch.first(fits), fits
            self._refuse(
                batch,
                Overloaded(
                    f"{waiting} commands wait for an outcome already; retry later, or raise limits.queue_commands "
                    "and limits.queue_bytes"
                ),
            )
            batch = accepted
        if batch.commands:
            self._enqueue(batch)

    def propose(self, command: bytes, timeout_s: float) -> asyncio.Future[Outcome]:
        """A small command of the node's own; it is queued whatever the load."""
        sink = FutureSink(self._loop)
        batch = Batch(sink, 0, [command], self._loop.time() + timeout_s)
        if self._stopping:
            self._refuse(batch, _stopping())
        else:
            self._enqueue(batch)
        return sink.future

    def begin_history(self, command: bytes, history_id: bytes, timeout_s: float) -> asyncio.Future[Outcome]:
        """Propose `genesis`, past the queue, which waits for it."""
        sink = FutureSink(self._loop)
        batch = Batch(sink, 0, [command], self._loop.time() + timeout_s)
        self._waiting_commands += 1
        self._waiting_bytes += batch.bytes
        self._launch(history_id, Flight.alone(batch))
        return sink.future

    def _enqueue(self, batch: Batch) -> None:
        self._waiting_commands += len(batch.commands)
        self._waiting_bytes += batch.bytes
        self._queue.add(batch)
        self._arm(batch.deadline)
        self.wake()

    def _fitting(self, batch: Batch) -> int:
        """How many commands of a batch that is too large there is room for."""
        room_bytes = self._bytes_max - self._waiting_bytes
        most = max(0, min(len(batch.commands), self._commands_max - self._waiting_commands))
        for place in range(most):
            room_bytes -= len(batch.commands[place]) + COMMAND_OVERHEAD_BYTES
            if room_bytes < 0:
                return place
        return most

    def _refuse(self, batch: Batch, error: RequestError) -> None:
        self.figures.refused += batch.fail_rest(error)

    # ---------------------------------------------------------------- out

    def wake(self) -> None:
        """Something was queued, resolved, or the history became known: pack at the end of this tick."""
        if not self._pump_scheduled and self._queue:
            self._pump_scheduled = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_scheduled = False
        history_id = self._history_id()
        while history_id and self._queue and self._counted < self._window:
            self._launch(history_id, self._queue.take_entry(self._header_bytes))

    def _launch(self, history_id: bytes, flight: Flight) -> None:
        self._sequence += 1
        flight.sequence = self._sequence
        proposal = ProposalId(self._node_id, self._incarnation, flight.sequence)
        data = encode_entry(history_id, proposal, flight.commands)
        self._flights[flight.sequence] = flight
        self._counted += 1
        self._arm(flight.next_deadline)
        task = self._loop.create_task(self._hand_over(flight, data))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hand_over(self, flight: Flight, data: bytes) -> None:
        try:
            position = await self._submit(data, max(0.001, flight.last_deadline - self._loop.time()))
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

    def _placed(self, flight: Flight, position: Position) -> None:
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
        if not self._flights:
            return
        for result in results:
            proposal = result.proposal
            if proposal is None or proposal.incarnation != self._incarnation or proposal.node_id != self._node_id:
                continue
            flight = self._flights.get(proposal.sequence)
            if flight is not None:
                self._take_out(flight)
                self.figures.entries += 1
                self.figures.commands += len(flight.commands)
                flight.resolve(result.outcomes)
        if self._by_index:
            # Ours were taken out above, so what is left at or below `index` was replaced by something else.
            self._fail_up_to(index, _overtaken)

    def restored(self, position: Position) -> None:
        """A stream was installed; what became of entries at or below its position nobody here can tell."""
        self._restored_index = self._applied_index = position.index
        self._fail_up_to(position.index, _below_stream)

    def term_changed(self) -> None:
        """Entries of an earlier term may never come: they go on waiting, but hold no place in the window."""
        for flight in self._flights.values():
            self._set_adrift(flight)

    async def drain(self, timeout_s: float) -> None:
        """Take nothing more; return when nothing waits for an outcome any longer, or after `timeout_s`."""
        self._stopping = True
        if self._waiting_commands:
            self._drained = self._loop.create_future()
            await asyncio.wait([self._drained], timeout=timeout_s)

    async def stop(self) -> None:
        """End every wait: what was queued is not applied, what was in flight is unknown."""
        self._stopping = True
        if self._sweep is not None:
            self._sweep.cancel()
        self._refuse_queued(self._queue.take_all(), _stopping())
        for flight in list(self._flights.values()):
            self._fail(flight, OutcomeUnknown("the node stopped before the outcome was known"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _fail_up_to(self, index: int, error: Callable[[], RequestError]) -> None:
        for flight in [flight for at, flight in self._by_index.items() if at <= index]:
            self._fail(flight, error())

    def _fail(self, flight: Flight, error: RequestError) -> None:
        if flight.sequence in self._flights:
            self._take_out(flight)
            self._count(error, flight.fail(error))

    def _take_out(self, flight: Flight) -> None:
        del self._flights[flight.sequence]
        if flight.position is not None:
            self._by_index.pop(flight.position.index, None)
        self._set_adrift(flight)
        self._forget(len(flight.commands), flight.bytes)

    def _set_adrift(self, flight: Flight) -> None:
        if flight.counted:
            flight.counted = False
            self._counted -= 1
            self.wake()

    def _refuse_queued(self, batches: Iterable[Batch], error: RequestError) -> None:
        for batch in batches:
            self._forget(len(batch.commands) - batch.taken, batch.bytes_left())
            self._refuse(batch, error)

    def _forget(self, commands: int, size: int) -> None:
        """So many no longer wait."""
        self._waiting_commands -= commands
        self._waiting_bytes -= size
        if self._drained is not None and not self._waiting_commands and not self._drained.done():
            self._drained.set_result(None)

    def _count(self, error: RequestError, commands: int) -> None:
        if error.outcome == "unknown":
            self.figures.unknown += commands
        else:
            self.figures.refused += commands

    # ---------------------------------------------------------------- deadlines

    def _arm(self, deadline: float) -> None:
        if self._sweep is not None:
            if self._sweep_at <= deadline:
                return
            self._sweep.cancel()
        self._sweep_at = max(deadline, self._loop.time() + SWEEP_LEAST_S)
        self._sweep = self._loop.call_at(self._sweep_at, self._expire)

    def _expire(self) -> None:
        """End every wait whose deadline has come, and set the timer for the next."""
        self._sweep = None
        now = self._loop.time()
        self._refuse_queued(self._queue.take_expired(now), _not_in_time())
        for flight in list(self._flights.values()):
            error = _unknown_in_time()
            self._count(error, flight.expire(now, error))
            if flight.forgotten:
                self._take_out(flight)
        deadlines = self._queue.deadlines()
        deadlines += [flight.next_deadline for flight in self._flights.values()]
        if deadlines:
            self._arm(min(deadlines))


def _stopping() -> Unavailable:
    return Unavailable("the node is stopping; send it again to another or later")


def _not_in_time() -> Unavailable:
    return Unavailable("its deadline came before the command could be proposed; retry later")


def _unknown_in_time() -> OutcomeUnknown:
    return OutcomeUnknown(
        "its deadline came before the outcome was known; read the key, or retry with an idempotency key"
    )


def _overtaken() -> NotApplied:
    return NotApplied("another leader's entry took its place in the log; send it again")


def _below_stream() -> OutcomeUnknown:
    return OutcomeUnknown("the node caught up by a snapshot that may or may not contain it; read the key")
