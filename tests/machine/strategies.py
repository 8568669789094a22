"""Random commands: drawn in the abstract, made concrete against the model, with a liking for edges."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgpack
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from raftkv_core.machine import commands
from raftkv_core.machine.commands import Op, Operator, Target
from tests.machine.harness import genesis
from tests.machine.model import Model


def examples(quick: int) -> settings:
    """`quick` examples by default; with --hypothesis-profile=long, fifteen times as many."""
    scale = settings().max_examples / settings.get_profile("default").max_examples
    return settings(
        max_examples=max(1, int(quick * scale)),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


class Command(NamedTuple):
    data: bytes
    valid: bool = True


KEYS = [b"a", b"a\x00", b"ab", b"b", b"\x00", b"\xff", b"\xff" * 480]
IDEMPOTENCY_KEYS = [b"i", b"j", b"k", b"l" * 128]
SMALL_SETTINGS = {
    "history_revisions": [0, 1, 3, 10, 1_000],
    "history_bytes": [0, 60, 200, 700, 1 << 30],
    "dedupe_ttl_ms": [1_000, 3_000],
    "dedupe_keys": [0, 2, 3, 100],
    "dedupe_outcome_bytes": [0, 8, 60, 4_096],
    "tick_ms": [500, 1_000],
}

small_settings = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in SMALL_SETTINGS.items()})

Action = tuple[Any, ...]


@st.composite
def weighted(draw: Any, *choices: tuple[int, st.SearchStrategy[Any]]) -> Any:
    """One of the strategies, each as often as its weight says (`one_of` drops what is there twice)."""
    table = [strategy for times, strategy in choices for _ in range(times)]
    return draw(table[draw(st.integers(0, len(table) - 1))])


_keys = st.sampled_from(KEYS)
_bounds = st.sampled_from([b"", *KEYS])
_values = st.one_of(
    st.sampled_from([b"", b"1", b"2"]), st.binary(max_size=4), st.sampled_from([b"x" * 50, b"y" * 150])
)
_attributes = st.sampled_from([None, None, None, {}, {"t": "x"}, {"z": "1", "b": "é"}])
_flags = st.booleans()
_idempotency = st.sampled_from([None] * 20 + IDEMPOTENCY_KEYS)
_leases = st.sampled_from([0] * 60 + [7])
_ranges = st.one_of(st.tuples(_keys, st.none()), st.tuples(_bounds, _bounds))
_changed_settings = st.fixed_dictionaries(
    {}, optional={name: st.sampled_from(values) for name, values in SMALL_SETTINGS.items()}
)

_puts = st.tuples(st.just(Op.PUT), _keys, _values, _leases, _attributes, _flags)
_deletes = st.tuples(st.just(Op.DELETE), _ranges, _flags)
_gets = st.tuples(st.just(Op.GET), _ranges, st.sampled_from([0, 1, 2, 1_000]))
_operations = st.lists(weighted((4, _puts), (1, _deletes), (1, _gets)), max_size=9)
_compares = st.lists(
    st.one_of(
        st.tuples(
            _keys,
            st.sampled_from([Target.CREATE, Target.MOD, Target.VERSION, Target.LEASE]),
            st.sampled_from(Operator),
            st.integers(-1, 1),
        ),
        st.tuples(_keys, st.just(Target.VALUE), st.sampled_from(Operator), _values),
    ),
    max_size=2,
)
GARBAGE = [
    data if isinstance(data, bytes) else msgpack.packb(data)
    for data in [
        b"",
        b"\xc1",
        b"\x95\x01\xc0",
        [],
        [1],
        [99, None],
        [15, None, b"a", None, 0],
        [True, None, b"a", b"", 0, None, False],
        [1, b"", b"a", b"", 0, None, False],
        [1, b"i" * 129, b"a", b"", 0, None, False],
        [1, "i", b"a", b"", 0, None, False],
        [1, None, b"", b"", 0, None, False],
        [1, None, b"a" * 481, b"", 0, None, False],
        [1, None, b"a", "text", 0, None, False],
        [1, None, b"a", b"", -1, None, False],
        [1, None, b"a", b"", 0, {"a": 1}, False],
        [1, None, b"a", b"", 0, None, 0],
        [2, None, b"b", b"a", False],
        [2, None, b"b", b"b", False],
        [3, None, [], []],
        [3, None, [[b"a", 1, 1, b""]], [], []],
        [3, None, [[b"a", 4, 1, 1]], [], []],
        [3, None, [[b"a", 1, 5, 1]], [], []],
        [3, None, [], [[3, [], [], []]], []],
        [3, None, [], [], [[1, b"a"]]],
        [4, None, -1],
        [5, None, {"nothing": 1}],
        [5, None, {"tick_ms": True}],
        [8, None, 1 << 63],
    ]
]

_RETRY = "send an earlier command again"
_EXACT = "keep the bytes of so many revisions exactly, or one byte more or less"

actions: st.SearchStrategy[Action] = weighted(
    (8, st.tuples(st.just(Op.PUT), _puts, _idempotency)),
    (3, st.tuples(st.just(Op.DELETE), _deletes, _idempotency)),
    (6, st.tuples(st.just(Op.TXN), _compares, _operations, _operations, _idempotency)),
    (1, st.tuples(st.just(Op.COMPACT), st.integers(-1, 6))),
    (1, st.tuples(st.just(Op.SETTINGS), _changed_settings)),
    (1, st.tuples(st.just(Op.REPORT), st.sampled_from(["n1", "n2"]), _flags, st.sampled_from([False, False, True]))),
    (2, st.tuples(st.just(Op.TICK), st.sampled_from([0, 0, 0, 1]))),
    (1, st.tuples(st.sampled_from([Op.GENESIS, Op.SEAL]), _idempotency)),
    (1, st.tuples(st.just(Op.GET), st.sampled_from(GARBAGE))),
    (2, st.tuples(st.just(_RETRY), st.integers(0, 5))),
    (1, st.tuples(st.just(_EXACT), st.integers(0, 6), st.integers(-1, 1))),
)
"""Commands in the abstract: what depends on the state (revisions, terms) is filled in by `Sender.encode`."""


def _operation(action: Action) -> Any:
    op, *rest = action
    if op == Op.PUT:
        key, value, lease, attributes, want = rest
        return commands.op_put(key, value, lease=lease, attributes=attributes, want_previous=want)
    (key, end), last = rest
    if end is not None and end and end <= key:
        key, end = end, (key if key > end else None)
    if op == Op.DELETE:
        return commands.op_delete(key, end, want_previous=last)
    return commands.op_get(key, end, limit=last)


def _operand(model: Model, key: bytes, target: Target, given: Any) -> Any:
    if target == Target.VALUE:
        return given
    version = model.live.get(key)
    numbers = (version.create, version.mod, version.version, 0) if version else (0, 0, 0, 0)
    order = (Target.CREATE, Target.MOD, Target.VERSION, Target.LEASE)
    return max(0, numbers[order.index(target)] + given)


def small_model() -> Model:
    """The model with the bounds of `small_bounds`."""
    return Model(keys_max=6, bytes_max=700, tick_removes=2)


class Sender:
    """Makes commands of actions, given where the model stands, and remembers them for retries."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.sent: list[Command] = []

    def encode(self, action: Action, term: int) -> Command:
        op, *rest = action
        if op == _RETRY:
            again = [c for c in self.sent if c.valid and msgpack.unpackb(c.data)[1] is not None] or self.sent
            return again[-1 - rest[0] % len(again)] if again else Command(b"", valid=False)
        command = self._encode(op, rest, term)
        self.sent.append(command)
        return command

    def _encode(self, op: Any, rest: list[Any], term: int) -> Command:
        model = self.model
        if op == Op.GET:
            return Command(rest[0], valid=False)
        if op in (Op.PUT, Op.DELETE):
            operation, idempotency_key = rest
            _op, *arguments = _operation(operation)
            return Command(msgpack.packb([int(op), idempotency_key, *arguments]))
        if op == Op.TXN:
            compares, then, otherwise, idempotency_key = rest
            compares = [
                commands.compare(key, target, how, _operand(model, key, target, operand))
                for key, target, how, operand in compares
            ]
            parts = [_operation(o) for o in then], [_operation(o) for o in otherwise]
            return Command(commands.txn(compares, *parts, idempotency_key=idempotency_key))
        if op == Op.COMPACT:
            return Command(commands.compact(max(0, model.revision - rest[0])))
        if op == _EXACT:
            kept = sum(event.history_bytes() for event in model.after(model.revision - rest[0]))
            return Command(commands.settings({"history_bytes": max(0, kept + rest[1])}))
        if op == Op.SETTINGS:
            return Command(commands.settings(rest[0]))
        if op == Op.REPORT:
            return Command(commands.report(rest[0], [1], low_space=rest[1], gone=rest[2]))
        if op == Op.TICK:
            return Command(commands.tick(term + rest[0]))
        if op == Op.GENESIS:
            return Command(genesis())
        return Command(msgpack.packb([int(op), rest[0], b"whatever"]))


def long_lists(of: st.SearchStrategy[Any], most: int = 60) -> st.SearchStrategy[list[Any]]:
    """Mostly long ones: alone, Hypothesis draws lists of about five. The short ones are what it shrinks to."""
    return st.one_of(st.lists(of, min_size=most // 2, max_size=most), st.lists(of, max_size=10))
