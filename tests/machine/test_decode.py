"""From bytes to commands: whatever arrives is a command or a refusal, and never an exception at apply."""

from __future__ import annotations

import contextlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv_core import limits
from raftkv_core.errors import InvalidRequest
from raftkv_core.machine import commands
from raftkv_core.machine.commands import Op, Operator, Status, Target
from raftkv_core.machine.decode import BadCommand, decode_command
from raftkv_core.machine.entries import command_weight
from raftkv_core.machine.settings import DEFAULTS
from tests.machine.checks import Pending, dump
from tests.machine.harness import CLUSTER, HISTORY, Node, Storages
from tests.machine.strategies import GARBAGE, examples

U63 = (1 << 63) - 1
keys = st.binary(min_size=1, max_size=12)
ends = st.one_of(st.none(), st.just(b""))
values = st.binary(max_size=20)
attributes = st.one_of(st.none(), st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3))
idempotency = st.one_of(st.none(), st.binary(min_size=1, max_size=128))
numbers = st.integers(0, U63)
flags = st.booleans()

# Anything msgpack can say, with a liking for what commands are made of.
scalars = st.one_of(
    st.none(),
    flags,
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.integers(0, 20),
    st.sampled_from(Op),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.sampled_from([b"", b"a", "a", next(iter(DEFAULTS)), b"x" * 16, 1, 2, 3, True, 1.0]),
    st.builds(msgpack.ExtType, st.integers(0, 127), st.binary(max_size=3)),
    st.builds(msgpack.Timestamp, st.integers(0, 1 << 34), st.integers(0, 999_999_999)),
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.dictionaries(st.one_of(st.text(max_size=3), st.integers(0, 99)), inner, max_size=3),
    ),
    max_leaves=12,
)
shaped = st.builds(
    lambda op, key, rest: [op, key, *rest],
    st.one_of(st.sampled_from(Op).map(int), scalars),
    st.one_of(st.none(), st.binary(min_size=1, max_size=3), scalars),
    st.lists(anything, max_size=7),
)


def pack(value: Any) -> bytes:
    return msgpack.packb(value, default=int)


@given(st.one_of(st.binary(max_size=60), anything.map(pack), shaped.map(pack)))
@examples(400)
def test_whatever_bytes_arrive_are_a_command_or_a_bad_one(data: bytes) -> None:
    """Decoding raises BadCommand and nothing else; what it lets through can be weighed."""
    try:
        command = decode_command(data)
    except BadCommand:
        return
    assert type(command) is list
    if command[0] in (Op.PUT, Op.DELETE, Op.TXN):
        assert 1 <= command_weight(data) <= 16


PARTS = {
    Op.PUT: [1, None, b"a", b"v", 0, None, False],
    Op.DELETE: [2, b"i", b"a", None, True],
    Op.TXN: [
        3,
        None,
        [[b"a", 4, 1, b""]],
        [[1, b"a", b"", 0, {"t": "x"}, True]],
        [[15, b"a", b"", 3], [2, b"a", None, True]],
    ],
    Op.COMPACT: [4, None, 0],
    Op.SETTINGS: [5, b"j", {"history_revisions": 5}],
    Op.GENESIS: [6, None, b"c" * 16, b"h" * 16, 1, dict(DEFAULTS), 0, 0],
    Op.REPORT: [7, None, "n", [1], True, False],
    Op.TICK: [8, b"k", 1],
    Op.SEAL: [9, None, b"h" * 16],
}


@st.composite
def damaged(draw: Any) -> bytes:
    """A good command with one or two parts, at any depth, replaced, dropped or doubled."""
    command = msgpack.unpackb(msgpack.packb(PARTS[draw(st.sampled_from(list(PARTS)))]))
    for _ in range(draw(st.integers(1, 2))):
        place = command
        while True:
            at = draw(st.integers(0, max(0, len(place) - 1)))
            inner = place[at] if at < len(place) else None
            if isinstance(inner, list) and inner and draw(flags):
                place = inner
                continue
            break
        how = draw(st.sampled_from(["replace", "replace", "replace", "drop", "double"]))
        if how == "replace" and place:
            place[at] = draw(anything)
        elif how == "drop" and len(place) > 1:
            del place[at]
        else:
            place.insert(at, draw(scalars) if inner is None else inner)
    return pack(command)


@given(st.lists(st.one_of(damaged(), shaped.map(pack), st.binary(max_size=8)), min_size=1, max_size=8))
@examples(400)
def test_apply_takes_whatever_decodes(storages: Storages, batch: list[bytes]) -> None:
    """No command raises at apply: a bad one is INVALID and leaves no trace, and those beside it work."""
    with Node(storages) as node:
        node.begin()
        good = [commands.put(b"good%d" % number, b"") for number in range(len(batch))]
        outcomes = node.do(*(command for pair in zip(batch, good, strict=True) for command in pair))
        for data, bad, fine in zip(batch, outcomes[::2], outcomes[1::2], strict=True):
            assert fine.status == Status.OK
            with contextlib.suppress(BadCommand):
                decode_command(data)
                assert bad.status != Status.INVALID
                continue
            assert (bad.status, bad.replayed) == (Status.INVALID, False)
            assert isinstance(bad.payload, str)
        node.commit()
        node.restart()


@pytest.mark.parametrize("data", GARBAGE, ids=lambda data: data.hex()[:40])
def test_bad_commands_leave_no_trace(begun: Node, data: bytes) -> None:
    """Each of these is INVALID and changes no table, no counter and no digest."""
    before = dump(Pending(begun.machine))["kv"], begun.machine.digest, begun.machine.digest_local
    (outcome,) = begun.do(data)
    assert (outcome.status, outcome.revision) == (Status.INVALID, 0)
    assert (dump(Pending(begun.machine))["kv"], begun.machine.digest, begun.machine.digest_local) == before


def test_a_claim_of_four_billion_elements_costs_nothing() -> None:
    """Lengths that the bytes do not hold, and nesting without end, are refused at once."""
    for data in (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\x91" * 100_000):
        with pytest.raises(BadCommand):
            decode_command(data)


# -------------------------------------------------------------------- builders

operations = st.lists(
    st.one_of(
        st.builds(commands.op_put, keys, values, attributes=attributes, want_previous=flags, lease=numbers),
        st.builds(commands.op_delete, keys, ends, want_previous=flags),
        st.builds(commands.op_get, keys, ends, limit=numbers),
    ),
    max_size=4,
)
compares = st.lists(
    st.one_of(
        st.builds(
            commands.compare,
            keys,
            st.sampled_from([t for t in Target if t is not Target.VALUE]),
            st.sampled_from(Operator),
            numbers,
        ),
        st.builds(commands.compare, keys, st.just(Target.VALUE), st.sampled_from(Operator), values),
    ),
    max_size=3,
)
settings = st.fixed_dictionaries({}, optional={name: st.just(value) for name, value in DEFAULTS.items()})
built = st.one_of(
    st.builds(
        commands.put,
        keys,
        values,
        lease=numbers,
        attributes=attributes,
        want_previous=flags,
        idempotency_key=idempotency,
    ),
    st.builds(commands.delete, keys, ends, want_previous=flags, idempotency_key=idempotency),
    st.builds(commands.txn, compares, operations, operations, idempotency_key=idempotency),
    st.builds(commands.compact, numbers),
    st.builds(commands.settings, settings),
    st.builds(
        commands.genesis,
        st.binary(min_size=16, max_size=16),
        st.binary(min_size=16, max_size=16),
        st.just(DEFAULTS),
        base_revision=numbers,
        base_digest=st.integers(0, (1 << 64) - 1),
    ),
    st.builds(
        commands.report,
        st.text(min_size=1, max_size=16),
        st.lists(numbers, min_size=1, max_size=64),
        low_space=flags,
        gone=flags,
    ),
    st.builds(commands.tick, numbers),
)


@given(built)
@examples(400)
def test_what_builders_make_decodes_to_itself(data: bytes) -> None:
    """Encoding is canonical: what was decoded packs to the same bytes."""
    assert msgpack.packb(decode_command(data)) == data


def test_builders_say_what_they_were_given() -> None:
    """One example of each, argument by argument."""
    assert decode_command(
        commands.put(b"k", b"v", lease=3, attributes={"t": "x"}, want_previous=True, idempotency_key=b"i")
    ) == [Op.PUT, b"i", b"k", b"v", 3, {"t": "x"}, True]
    assert decode_command(commands.delete(b"k", b"", want_previous=True)) == [Op.DELETE, None, b"k", b"", True]
    assert decode_command(
        commands.txn(
            [commands.compare(b"k", Target.VERSION, Operator.LESS, 4)],
            [commands.op_get(b"", b"", limit=2)],
            [commands.op_delete(b"k"), commands.op_put(b"k", b"v")],
        )
    ) == [
        Op.TXN,
        None,
        [[b"k", Target.VERSION, Operator.LESS, 4]],
        [[Op.GET, b"", b"", 2]],
        [[Op.DELETE, b"k", None, False], [Op.PUT, b"k", b"v", 0, None, False]],
    ]
    assert decode_command(commands.compact(7)) == [Op.COMPACT, None, 7]
    assert decode_command(commands.settings({"tick_ms": 100})) == [Op.SETTINGS, None, {"tick_ms": 100}]
    assert decode_command(commands.report("n", [1, 2], low_space=True)) == [Op.REPORT, None, "n", [1, 2], True, False]
    assert decode_command(commands.tick(9)) == [Op.TICK, None, 9]
    assert decode_command(commands.genesis(CLUSTER, HISTORY, DEFAULTS, base_revision=1, base_digest=2)) == [
        Op.GENESIS,
        None,
        CLUSTER,
        HISTORY,
        limits.FORMAT,
        dict(DEFAULTS),
        1,
        2,
    ]


def test_a_failed_builder_spoils_no_later_command() -> None:
    """The packer is shared: what one call could not pack must not turn up in the next."""
    expected = commands.put(b"a", b"1")
    for wrong in (object(), 1 << 70):
        with pytest.raises((TypeError, OverflowError)):
            commands.put(b"a", b"1", lease=wrong)  # type: ignore[arg-type]
        assert commands.put(b"a", b"1") == expected


# -------------------------------------------------------------------- bounds, one below and one above

VALUE = b"v" * limits.VALUE_BYTES_MAX
KEY = b"k" * limits.KEY_BYTES_MAX


def attributes_of(size: int) -> dict[str, str]:
    """A map that packs to `size` bytes: one of map head, 2 of the key, 3 of the text's head, the text."""
    made = {"t": "x" * (size - 6)}
    assert len(msgpack.packb(made)) == size
    return made


GOOD = {
    "longest key": lambda: commands.put(KEY, b""),
    "largest value": lambda: commands.put(b"a", VALUE),
    "largest attributes": lambda: commands.put(b"a", b"", attributes=attributes_of(limits.ATTRIBUTES_BYTES_MAX)),
    "all the largest": lambda: commands.put(
        KEY, VALUE, attributes=attributes_of(limits.ATTRIBUTES_BYTES_MAX), idempotency_key=b"i" * 128
    ),
    "longest bounds": lambda: commands.delete(KEY, KEY[:-1] + b"l"),
    "whole range": lambda: commands.delete(b"", b""),
    "most compares": lambda: commands.txn([commands.compare(b"a", Target.MOD, Operator.EQUAL, 0)] * 1_024, []),
    "most operations": lambda: commands.txn([], [commands.op_put(b"a", b"")] * 1_024),
    "most else operations": lambda: commands.txn([], [], [commands.op_put(b"a", b"")] * 1_024),
    "largest revision": lambda: commands.compact(U63),
    "largest command": lambda: commands.txn([], [commands.op_put(b"a", VALUE), commands.op_put(b"b", VALUE[:-64])]),
}
BAD: dict[str, tuple[Any, str]] = {
    "empty key": (lambda: commands.put(b"", b""), "empty_key"),
    "key too long": (lambda: commands.put(KEY + b"k", b""), "key_too_long"),
    "value too large": (lambda: commands.put(b"a", VALUE + b"v"), "value_too_large"),
    "attributes too large": (
        lambda: commands.op_put(b"a", b"", attributes=attributes_of(4_097)),
        "attributes_too_large",
    ),
    "idempotency key too long": (lambda: commands.put(b"a", b"", idempotency_key=b"i" * 129), "bad_idempotency_key"),
    "empty idempotency key": (lambda: commands.put(b"a", b"", idempotency_key=b""), "bad_idempotency_key"),
    "bound too long": (lambda: commands.delete(b"a", KEY + b"k"), "key_too_long"),
    "range the wrong way": (lambda: commands.op_get(b"b", b"a"), "empty_range"),
    "empty range": (lambda: commands.op_delete(b"a", b"a"), "empty_range"),
    "empty key to delete": (lambda: commands.delete(b""), "empty_key"),
    "number for a value": (lambda: commands.compare(b"a", Target.VALUE, Operator.EQUAL, 1), "bad_compare"),
    "value for a number": (lambda: commands.compare(b"a", Target.MOD, Operator.EQUAL, b"1"), "bad_compare"),
    "too many operations": (lambda: commands.txn([], [commands.op_put(b"a", b"")] * 1_025), "txn_too_large"),
    "negative revision": (lambda: commands.compact(-1), "bad_revision"),
    "revision too large": (lambda: commands.compact(U63 + 1), "bad_revision"),
    "command too large": (
        lambda: commands.txn([], [commands.op_put(b"a", VALUE), commands.op_put(b"b", VALUE)]),
        "command_too_large",
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_the_largest_allowed_is_built_and_applied(begun: Node, name: str) -> None:
    """At its limit a command is good everywhere: in its builder, in decoding, at apply and in storage."""
    data = GOOD[name]()
    assert len(data) <= limits.COMMAND_BYTES_MAX
    decode_command(data)
    (outcome,) = begun.do(data)
    assert outcome.status in (Status.OK, Status.FUTURE_REVISION)
    (outcome,) = begun.do(data)  # now with something to replace
    begun.commit()


@pytest.mark.parametrize("name", BAD)
def test_one_more_is_refused_by_the_builder(name: str) -> None:
    """One beyond the limit is refused before anything is proposed, with a code that names it."""
    build, code = BAD[name]
    with pytest.raises(InvalidRequest) as raised:
        build()
    assert raised.value.code == code


@pytest.mark.parametrize(
    "command",
    [
        [1, None, KEY + b"k", b"", 0, None, False],
        [1, None, b"a", VALUE + b"v", 0, None, False],
        [1, None, b"a", b"", 0, {"t": "x" * 4_091}, False],
        [1, None, b"a", b"", U63 + 1, None, False],
        [2, None, b"", KEY + b"k", False],
        [2, None, KEY + b"k", b"", False],
        [3, None, [[b"a", 2, 1, 0]] * 1_025, [], []],
        [3, None, [], [[2, b"a", None, False]] * 1_025, []],
        [3, None, [], [], [[15, b"a", None, 0]] * 1_025],
        [4, None, U63 + 1],
        [5, None, {"tick_ms": 99}],
        [5, None, {"tick_ms": 60_001}],
        [6, None, b"c" * 15, b"h" * 16, 1, dict(DEFAULTS), 0, 0],
        [6, None, b"c" * 16, b"h" * 17, 1, dict(DEFAULTS), 0, 0],
        [6, None, b"c" * 16, b"h" * 16, 2, dict(DEFAULTS), 0, 0],
        [6, None, b"c" * 16, b"h" * 16, 1, {"tick_ms": 100}, 0, 0],
        [7, None, "n" * 65, [1], False, False],
        [7, None, "", [1], False, False],
        [7, None, "é" * 33, [1], False, False],
        [7, None, "n", [], False, False],
        [7, None, "n", [1] * 65, False, False],
    ],
    ids=lambda command: msgpack.packb(command).hex()[:24],
)
def test_one_more_is_refused_at_apply_too(begun: Node, command: list[Any]) -> None:
    """What a builder would not make is INVALID on every node, wherever it came from."""
    (outcome,) = begun.do(msgpack.packb(command))
    assert outcome.status == Status.INVALID
