"""What clients may propose."""

from __future__ import annotations

from collections.abc import Sequence

import msgpack
import pytest

from raftkv_core.errors import InvalidRequest, NoSpace, RequestError
from raftkv_core.machine import commands
from raftkv_core.machine.commands import Outcome
from raftkv_core.node.admission import Admission
from raftkv_core.node.batches import Batch


class Queue:
    """Stands in for the proposer."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def add(self, batch: Batch) -> None:
        self.batches.append(batch)

    @property
    def taken(self) -> dict[int, bytes]:
        return {
            number: command for batch in self.batches for number, command in enumerate(batch.commands, batch.token)
        }


class Sink:
    def __init__(self) -> None:
        self.errors: dict[int, RequestError] = {}

    def resolved(self, batch: Batch, at: int, outcomes: Sequence[Outcome]) -> None: ...

    def failed(self, batch: Batch, at: int, count: int, error: RequestError) -> None:
        for number in range(batch.token + at, batch.token + at + count):
            self.errors[number] = error


class Bench:
    def __init__(self, *, value_bytes: int = 1 << 20, low: str | None = None) -> None:
        self.queue, self.sink = Queue(), Sink()
        self.admission = Admission(self.queue, value_bytes=value_bytes, growth_refused=lambda: low)  # type: ignore[arg-type]

    def propose(self, *encoded: bytes) -> None:
        self.admission.propose(self.sink, 100, encoded, 5.0)


def test_puts_are_taken_as_the_batch_they_are() -> None:
    """The common case: one batch in, one batch out, every command weighing 1."""
    bench = Bench()
    bench.propose(commands.put(b"a", b"1"), commands.put(b"b", b"2"))
    [batch] = bench.queue.batches
    assert (batch.token, len(batch.commands), batch.weights) == (100, 2, None)


def test_commands_are_weighed_by_what_they_may_replace() -> None:
    """A range may replace as much as the format allows, a transaction as many records as it has operations."""
    bench = Bench()
    bench.propose(
        commands.put(b"a", b"1"),
        commands.delete(b"a", b"z"),
        commands.txn([], [commands.op_put(b"k", b"v")] * 3),
        commands.compact(1),
    )
    [batch] = bench.queue.batches
    assert batch.weights == [1, 16, 3, 1]


@pytest.mark.parametrize(
    "command",
    [
        commands.tick(1),
        commands.report("node1", [1], low_space=False),
        commands.genesis(b"c" * 16, b"h" * 16, {}),
    ],
)
def test_what_only_nodes_say_is_refused(command: bytes) -> None:
    """A transport cannot move the clock, speak for a member or begin a history."""
    bench = Bench()
    bench.propose(commands.put(b"a", b"1"), command, commands.put(b"b", b"2"))
    assert list(bench.queue.taken) == [100, 102]
    assert bench.sink.errors[101].code == "internal_command"


@pytest.mark.parametrize(
    "command",
    [b"", b"\x01", b"\x95\x01", b"\x95\x03\xc0\x01", msgpack.packb([3, None, 1, 2]), msgpack.packb(7)],
)
def test_what_is_no_command_is_refused_alone(command: bytes) -> None:
    """Malformed bytes never reach the log, and the commands beside them do."""
    bench = Bench()
    good = commands.delete(b"a")
    bench.propose(good, command, good)
    taken = bench.queue.taken
    assert taken[100] == taken[102] == good
    if 101 not in taken:  # a put that is cut short is an INVALID outcome at apply, if it looks like one here
        assert isinstance(bench.sink.errors[101], InvalidRequest)


def test_a_lower_limit_of_this_node_holds_for_every_kind_of_write() -> None:
    """`limits.value_bytes` counts the value, in puts and in transactions."""
    bench = Bench(value_bytes=10)
    bench.propose(
        commands.put(b"a", b"x" * 10),
        commands.put(b"a", b"x" * 11),
        commands.txn([], [], [commands.op_put(b"a", b"x" * 11)]),
    )
    assert list(bench.queue.taken) == [100]
    assert {error.code for error in bench.sink.errors.values()} == {"value_too_large"}


def test_an_oversized_command_is_refused() -> None:
    """Longer than the format allows, whoever encoded it."""
    bench = Bench()
    bench.propose(msgpack.packb([3, None, b"x" * (3 << 20), [], []]))
    assert bench.sink.errors[100].code == "command_too_large"


def test_without_space_what_grows_is_refused_and_what_shrinks_passes() -> None:
    """Puts, and transactions that may put, are 507; deletes and compaction are how one gets out of it."""
    bench = Bench(low="node2 is low on space")
    bench.propose(
        commands.put(b"a", b"1"),
        commands.delete(b"a"),
        commands.txn([], [commands.op_delete(b"a")], [commands.op_put(b"a", b"1")]),
        commands.txn([], [commands.op_delete(b"a")]),
        commands.compact(3),
    )
    assert list(bench.queue.taken) == [101, 103, 104]
    assert isinstance(bench.sink.errors[100], NoSpace)
    assert isinstance(bench.sink.errors[102], NoSpace)
    assert "node2" in str(bench.sink.errors[100])
