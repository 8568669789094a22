"""Commands on their way: batches that wait in a queue, and the entries made of them.

A batch is what one sink proposed together; an entry takes whole batches or parts of them. Both only keep
count of who waits for what: when anything happens is the proposer's business.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from raftkv_core import limits
from raftkv_core.errors import RequestError
from raftkv_core.interfaces.consensus import Position
from raftkv_core.machine.commands import Outcome
from raftkv_core.machine.entries import COMMAND_OVERHEAD_BYTES, ENTRY_WEIGHT_MAX

__all__ = ["Batch", "BatchQueue", "Flight", "FutureSink", "Sink"]


class Sink(Protocol):
    """Who waits for a batch. Each command is named once, in `resolved` or in `failed`."""

    def resolved(self, batch: Batch, at: int, outcomes: Sequence[Outcome]) -> None:
        """The outcomes of the commands from place `at` on."""

    def failed(self, batch: Batch, at: int, count: int, error: RequestError) -> None:
        """The `count` commands from place `at` on end with the error."""


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
        """How many of the commands have left the queue."""

    def first(self, count: int) -> Batch:
        """The same for its first commands alone."""
        weights = None if self.weights is None else self.weights[:count]
        return Batch(self.sink, self.token, self.commands[:count], self.deadline, weights)

    def bytes_left(self) -> int:
        if not self.taken:
            return self.bytes
        left = self.commands[self.taken :]
        return sum(map(len, left)) + COMMAND_OVERHEAD_BYTES * len(left)

    def fail_rest(self, error: RequestError) -> int:
        """End what has not left the queue; returns how many that were."""
        count = len(self.commands) - self.taken
        if count:
            self.sink.failed(self, self.taken, count, error)
        return count


class _Part(NamedTuple):
    """`commands` (so many) of a batch, from place `at` on. Nobody waits for them any more if `ended`."""

    batch: Batch
    at: int
    commands: int
    ended: bool = False


class Flight:
    """The commands of one entry and who waits for them."""

    __slots__ = ("bytes", "commands", "counted", "parts", "position", "sequence")

    def __init__(self, commands: Sequence[bytes], parts: list[_Part], size: int) -> None:
        self.commands = commands
        self.parts = parts
        self.bytes = size
        self.sequence = 0
        self.position: Position | None = None
        """Where the engine put it, once it has said so."""
        self.counted = True
        """It takes a place in the proposer's window."""

    @classmethod
    def alone(cls, batch: Batch) -> Flight:
        """A batch that makes an entry by itself."""
        return cls(batch.commands, [_Part(batch, 0, len(batch.commands))], batch.bytes)

    @property
    def last_deadline(self) -> float:
        return max([part.batch.deadline for part in self.parts])

    @property
    def next_deadline(self) -> float:
        """Of those who still wait."""
        return min([part.batch.deadline for part in self.parts if not part.ended])

    def resolve(self, outcomes: Sequence[Outcome]) -> None:
        """Tell everybody who waits; there is one outcome for each command of the entry."""
        if len(self.parts) == 1 and not self.parts[0].ended:
            self.parts[0].batch.sink.resolved(self.parts[0].batch, self.parts[0].at, outcomes)
            return
        start = 0
        for batch, at, count, ended in self.parts:
            if not ended:
                batch.sink.resolved(batch, at, outcomes[start : start + count])
            start += count

    def fail(self, error: RequestError) -> int:
        """Tell everybody who waits; returns how many commands that were."""
        return self._end(error, lambda _part: True)

    def expire(self, now: float, error: RequestError) -> int:
        """Tell those whose deadline has come; returns how many commands that were."""
        return self._end(error, lambda part: part.batch.deadline <= now)

    @property
    def forgotten(self) -> bool:
        """Nobody waits any more."""
        return all(part.ended for part in self.parts)

    def _end(self, error: RequestError, which: Callable[[_Part], bool]) -> int:
        """A part that ended keeps its number of commands, so that the outcomes of the others are found."""
        ended = 0
        for place, part in enumerate(self.parts):
            if not part.ended and which(part):
                self.parts[place] = part._replace(ended=True)
                part.batch.sink.failed(part.batch, part.at, part.commands, error)
                ended += part.commands
        return ended


class BatchQueue:
    """Batches in the order they came."""

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque()

    def __len__(self) -> int:
        """Batches, not commands."""
        return len(self._batches)

    def add(self, batch: Batch) -> None:
        self._batches.append(batch)

    def take_entry(self, header_bytes: int) -> Flight:
        """As much as fits into one entry; the queue is not empty."""
        commands: list[bytes] = []
        parts: list[_Part] = []
        taken_bytes = 0
        room_commands = limits.ENTRY_COMMANDS_MAX
        room_bytes = limits.ENTRY_BYTES_MAX - header_bytes
        room_weight = ENTRY_WEIGHT_MAX
        while self._batches and room_commands:
            batch = self._batches[0]
            at = batch.taken
            count, size, weight = _fitting(batch, room_commands, room_bytes, room_weight)
            if not count:
                assert parts, "every admitted command fits into an entry of its own"
                break
            commands += batch.commands[at : at + count] if count < len(batch.commands) else batch.commands
            parts.append(_Part(batch, at, count))
            batch.taken = at + count
            taken_bytes += size
            room_commands -= count
            room_bytes -= size
            room_weight -= weight
            if batch.taken < len(batch.commands):
                break
            self._batches.popleft()
        return Flight(commands, parts, taken_bytes)

    def take_expired(self, now: float) -> list[Batch]:
        """Those whose deadline has come."""
        late = [batch for batch in self._batches if batch.deadline <= now]
        if late:
            self._batches = deque([batch for batch in self._batches if batch.deadline > now])
        return late

    def take_all(self) -> list[Batch]:
        batches, self._batches = self._batches, deque()
        return list(batches)

    def deadlines(self) -> list[float]:
        return [batch.deadline for batch in self._batches]


def _fitting(batch: Batch, room_commands: int, room_bytes: int, room_weight: int) -> tuple[int, int, int]:
    """How many of the commands not yet taken fit, their bytes and their weight."""
    weights = batch.weights
    if not batch.taken and weights is None and batch.bytes <= room_bytes:
        count = len(batch.commands)
        if count <= room_commands and count <= room_weight:
            return count, batch.bytes, count
    count = size = weight = 0
    for place in range(batch.taken, min(len(batch.commands), batch.taken + room_commands)):
        more = len(batch.commands[place]) + COMMAND_OVERHEAD_BYTES
        heavier = 1 if weights is None else weights[place]
        if size + more > room_bytes or weight + heavier > room_weight:
            break
        count += 1
        size += more
        weight += heavier
    return count, size, weight
