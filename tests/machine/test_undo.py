"""A refused command leaves no trace: not in the rows, the counters, the digests or the remembered keys."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv_core import limits
from raftkv_core.machine import commands, reads
from raftkv_core.machine.commands import Op, Operator, Status, Target
from tests.machine.checks import Pending, digests_from_rows, dump
from tests.machine.harness import Node, Storages, genesis, small_bounds
from tests.machine.model import Model
from tests.machine.strategies import Sender, actions, examples, long_lists

MIB = 1 << 20


def trace(node: Node) -> Any:
    """Everything that a command could leave behind."""
    machine = node.machine
    tables = dump(Pending(machine))
    del tables["meta"][b"state"]
    state = machine.state.copy()
    state.index = state.term = 0
    filling = {
        table: rows
        for table, rows in machine._buffer._filling.tables.items()
        if table != "meta"  # the position moves
    }
    return (
        tables,
        state,
        machine.digest,
        machine.digest_local,
        dict(machine.settings),
        dict(machine.members),
        {table: dict(rows) for table, rows in filling.items()},
    )


def refused(node: Node, command: bytes, status: Status) -> None:
    """The command is refused with `status`, and everything is as before; also at the very same key again."""
    before = trace(node)
    (outcome,) = node.do(command)
    assert outcome.status == status
    assert (outcome.revision, outcome.replayed) == (node.machine.revision, False)
    assert isinstance(outcome.payload, str)
    assert trace(node) == before
    assert (node.machine.digest, node.machine.digest_local) == digests_from_rows(Pending(node.machine))


def fill(node: Node, count: int, size: int, start: int = 0) -> None:
    """`count` keys of `size` bytes, some of them committed and some pending."""
    for number in range(start, start + count):
        node.do(commands.put(b"f%05d" % number, b"x" * size))
        if number == count // 2:
            node.commit()


def spoiled(*after: Any, key: bytes | None = None) -> bytes:
    """A transaction that changes a bit of everything before its last operations."""
    many = [commands.op_put(b"n%d" % number, b"new") for number in range(5)]
    return commands.txn(
        [],
        [
            commands.op_put(b"f00000", b"changed", attributes={"t": "x"}),
            commands.op_put(b"f00000", b"changed again"),
            commands.op_delete(b"f00001"),
            commands.op_put(b"f00001", b"back"),
            commands.op_delete(b"n0"),
            *many,
            commands.op_delete(b"n", b"o"),
            *after,
        ],
        idempotency_key=key,
    )


@pytest.mark.parametrize("key", [None, b"idempotent"])
def test_a_transaction_that_touches_too_many_keys_leaves_no_trace(begun: Node, key: bytes | None) -> None:
    """1,024 keys may be touched, one more is refused, whatever the transaction did before it noticed."""
    fill(begun, 1_024, 3)
    refused(begun, spoiled(commands.op_delete(b"f", b"g"), key=key), Status.TOO_LARGE)
    refused(begun, spoiled(commands.op_get(b"f", b"g"), key=key), Status.TOO_LARGE)
    refused(begun, spoiled(*[commands.op_get(b"f00000")] * 1_011, key=key), Status.TOO_LARGE)
    assert begun.do(spoiled(key=key))[0].status == Status.OK


def test_the_number_of_keys_is_exact(begun: Node) -> None:
    """A range of 1,024 keys can be removed at once and one of 1,025 cannot, alone or in a transaction."""
    fill(begun, 1_025, 0)
    refused(begun, commands.delete(b"f", b"g"), Status.TOO_LARGE)
    refused(begun, commands.txn([], [commands.op_get(b"f", b"g")]), Status.TOO_LARGE)
    refused(begun, commands.txn([], [commands.op_get(b"f", b"g", limit=1_025)]), Status.TOO_LARGE)
    refused(
        begun, commands.txn([], [commands.op_put(b"a", b""), commands.op_delete(b"f", b"f01024")]), Status.TOO_LARGE
    )
    (outcome,) = begun.do(commands.txn([], [commands.op_get(b"f", b"g", limit=1_024)]))
    assert len(outcome.payload[1][0]) == 1_024
    (outcome,) = begun.do(commands.delete(b"f", b"f01024"))
    assert outcome.payload == [1_024, None]
    (outcome,) = begun.do(commands.txn([], [commands.op_put(b"f", b"")] * 1_024))
    assert outcome.status == Status.OK


def test_the_replaced_bytes_are_exact(begun: Node) -> None:
    """Records of 16 MiB in all may be replaced or removed by one command, and not one byte more."""
    head = 38  # format, flags, create, mod, version, lease, sub
    for number in range(16):
        begun.do(commands.put(b"b%02d" % number, bytes(MIB - head)))
    assert sum(len(row) for _key, row in Pending(begun.machine).scan("kv")) == limits.COMMAND_REPLACED_BYTES_MAX
    begun.commit()
    begun.do(commands.put(b"b15", bytes(MIB - head + 1)))
    small = [commands.op_put(b"b%02d" % number, b"small") for number in range(16)]
    refused(begun, commands.txn([], small, idempotency_key=b"i"), Status.TOO_LARGE)
    refused(begun, commands.delete(b"b", b"c", idempotency_key=b"i"), Status.TOO_LARGE)
    refused(begun, commands.txn([], [*small[:3], commands.op_get(b"b", b"c")]), Status.TOO_LARGE)
    begun.do(commands.put(b"b15", bytes(MIB - head)))
    (outcome,) = begun.do(commands.delete(b"b", b"c", want_previous=True))
    assert (outcome.status, outcome.payload[0]) == (Status.OK, 16)


def test_a_lease_leaves_no_trace(begun: Node) -> None:
    """Leases do not exist in this release: a put with one is refused, also at the end of a transaction."""
    fill(begun, 2, 3)
    refused(begun, commands.put(b"f00000", b"", lease=1), Status.LEASE_NOT_FOUND)
    refused(begun, commands.put(b"new", b"", lease=1, idempotency_key=b"i"), Status.LEASE_NOT_FOUND)
    refused(begun, spoiled(commands.op_put(b"new", b"", lease=1)), Status.LEASE_NOT_FOUND)
    refused(begun, spoiled(commands.op_put(b"f00000", b"", lease=1), key=b"i"), Status.LEASE_NOT_FOUND)


@pytest.mark.parametrize("op", [Op.SEAL, Op.CHECK, Op.LEASE_GRANT, Op.LEASE_KEEPALIVE, Op.LEASE_REVOKE, Op.EXPIRE])
def test_a_reserved_command_leaves_no_trace(begun: Node, op: Op) -> None:
    """Its format is reserved; this release says that it does not carry it out."""
    fill(begun, 2, 3)
    refused(begun, msgpack.packb([int(op), None, 1, 2, 3]), Status.UNSUPPORTED)
    refused(begun, msgpack.packb([int(op), b"i"]), Status.UNSUPPORTED)


def test_refused_compactions_leave_no_trace(begun: Node) -> None:
    """Beyond the newest revision, or below what is compacted already."""
    fill(begun, 4, 3)
    refused(begun, commands.compact(5), Status.FUTURE_REVISION)
    begun.do(commands.compact(3))
    refused(begun, commands.compact(2), Status.COMPACTED)
    assert begun.do(commands.compact(3))[0].status == Status.OK


def test_a_refused_key_can_be_used_again(begun: Node) -> None:
    """A refusal is not remembered: the same key with another request is no mismatch."""
    (outcome,) = begun.do(commands.put(b"a", b"1", lease=9, idempotency_key=b"i"))
    assert outcome.status == Status.LEASE_NOT_FOUND
    (outcome,) = begun.do(commands.put(b"a", b"2", idempotency_key=b"i"))
    assert (outcome.status, outcome.replayed) == (Status.OK, False)


def test_a_transaction_without_effect_is_no_revision(begun: Node) -> None:
    """Compares that fail, gets, and deletes of nothing leave the revision where it was."""
    begun.do(commands.put(b"a", b"1"))
    condition = commands.compare(b"a", Target.VALUE, Operator.EQUAL, b"1")
    for command in (
        commands.txn([condition], []),
        commands.txn(
            [condition], [commands.op_get(b"", b""), commands.op_delete(b"x"), commands.op_delete(b"x", b"")]
        ),
        commands.delete(b"x"),
        commands.delete(b"x", b""),
    ):
        (outcome,) = begun.do(command)
        assert (outcome.status, outcome.revision) == (Status.OK, 1)
    assert reads.changes(Pending(begun.machine), 0).revision == 1


@given(long_lists(actions, 40), st.integers(2, 5), st.integers(60, 400))
@examples(60)
def test_no_refusal_of_any_kind_leaves_a_trace(storages: Storages, plan: list, keys: int, size: int) -> None:
    """Random commands under tight bounds: whatever is refused, or answered from memory, changes nothing."""
    sender = Sender(Model(keys_max=keys, bytes_max=size, tick_removes=2))
    with small_bounds(keys=keys, size=size), Node(storages) as node:
        opening = genesis({"dedupe_keys": 3})
        node.do(opening)
        sender.model.execute(opening, 1)
        for number, action in enumerate(plan):
            command = sender.encode(action, 1)
            sender.model.execute(command.data, 1, valid=command.valid)
            before = trace(node)
            (outcome,) = node.do(command.data)
            if outcome.status != Status.OK or outcome.replayed:
                assert trace(node) == before
            if number % 7 == 3:
                node.begin_commit()
            if number % 7 == 5:
                node.write_commit()
                node.end_commit()
