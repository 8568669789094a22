"""Commands: what clients and nodes ask of the state machine, and how it answers.

A command is one msgpack array, `[op, idempotency key | nil, arguments …]`, made here and nowhere else:

    put("a", b"1")  →  b"\\x95\\x01\\xc0…"

The encoding is part of the format: bytes equal on every node, checked before the proposal (`check_*` below
and in the proposer) and again, as far as it can fail, at apply, where a bad command is an `INVALID` outcome.

| op | arguments |
|---|---|
| PUT | key, value, lease, attributes (map or nil), want previous |
| DELETE | key, end (nil: one key; b"": to the last key), want previous |
| TXN | compares, then-operations, else-operations |
| COMPACT | revision |
| SETTINGS | map of name to integer |
| GENESIS | cluster id, history id, format, settings, base revision, base digest |
| REPORT | node id, readable formats, low space, gone |
| TICK | term |
| SEAL | history id |
| CHECK | node id, index, digests |
| LEASE_GRANT, LEASE_KEEPALIVE, LEASE_REVOKE, EXPIRE | id, … |

A compare is `[key, target, operator, operand]`; an operation is `[PUT, key, value, lease, attributes, want]`,
`[DELETE, key, end, want]` or `[GET, key, end, limit]`, without an idempotency key of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, Final, NamedTuple

import msgpack

from raftkv_core import limits
from raftkv_core.errors import InvalidRequest

__all__ = [
    "Compare",
    "Op",
    "Operator",
    "Outcome",
    "Status",
    "Target",
    "check_key",
    "check_range",
    "compact",
    "compare",
    "delete",
    "genesis",
    "op_delete",
    "op_get",
    "op_put",
    "put",
    "report",
    "settings",
    "tick",
    "txn",
]


class Op(IntEnum):
    """Numbers are part of the format."""

    PUT = 1
    DELETE = 2
    TXN = 3
    COMPACT = 4
    SETTINGS = 5
    GENESIS = 6
    REPORT = 7
    TICK = 8
    SEAL = 9
    CHECK = 10
    LEASE_GRANT = 11
    LEASE_KEEPALIVE = 12
    LEASE_REVOKE = 13
    EXPIRE = 14
    GET = 15
    """Only as an operation inside a transaction."""


class Status(IntEnum):
    """How the state machine answered. Everything but OK changed nothing. Numbers are part of the format."""

    OK = 0
    INVALID = 1
    """Malformed, or an argument out of its range."""
    TOO_LARGE = 2
    """Touches more than `COMMAND_KEYS_MAX` keys or `COMMAND_REPLACED_BYTES_MAX` bytes."""
    UNSUPPORTED = 3
    """A command whose format is reserved and which this release does not carry out."""
    COMPACTED = 4
    FUTURE_REVISION = 5
    IDEMPOTENCY_MISMATCH = 6
    """The idempotency key was used before with another request."""
    DEDUPE_FULL = 7
    """Too many idempotency keys are remembered (a replicated setting): retry later."""
    SEALED = 8
    NO_GENESIS = 9
    """The store has no history yet, or a second genesis was refused."""
    LEASE_NOT_FOUND = 10


class Outcome(NamedTuple):
    """The answer to one command. `revision` is the store's revision right after it.

    payload: PUT → previous row (encoded record) or None; DELETE → [number removed, previous rows or None];
    TXN → [succeeded, [payload of each operation]], a GET's being [[key, encoded record], …];
    anything refused → a sentence for people.
    `replayed`: answered from the memory of an earlier command with the same idempotency key; a large payload
    is not remembered and comes back as None.
    """

    status: int
    revision: int
    payload: Any = None
    replayed: bool = False


class Target(IntEnum):
    CREATE = 1
    MOD = 2
    VERSION = 3
    VALUE = 4
    LEASE = 5


class Operator(IntEnum):
    EQUAL = 1
    NOT_EQUAL = 2
    LESS = 3
    GREATER = 4


Compare = Sequence[Any]
Operation = Sequence[Any]

_pack = msgpack.Packer(use_bin_type=True, autoreset=True).pack
_REVISION_MAX: Final = (1 << 63) - 1


def check_key(key: bytes) -> None:
    """Raise InvalidRequest unless `key` is 1 to 480 bytes."""
    if not key:
        raise InvalidRequest("a key has at least one byte", code="empty_key")
    if len(key) > limits.KEY_BYTES_MAX:
        raise InvalidRequest(
            f"the key has {len(key)} bytes; the longest allowed has {limits.KEY_BYTES_MAX}",
            code="key_too_long",
        )


def check_range(key: bytes, end: bytes | None) -> None:
    """A range starts anywhere (b"" is the first key) and ends after it; b"" as its end means the last key."""
    for bound in (key, end or b""):
        if len(bound) > limits.KEY_BYTES_MAX:
            raise InvalidRequest(
                f"a range bound has {len(bound)} bytes; the longest allowed has {limits.KEY_BYTES_MAX}",
                code="key_too_long",
            )
    if end and end <= key:
        raise InvalidRequest("the range ends at or before its start", code="empty_range")


def _check_value(value: bytes) -> None:
    if len(value) > limits.VALUE_BYTES_MAX:
        raise InvalidRequest(
            f"the value has {len(value)} bytes; the largest allowed has {limits.VALUE_BYTES_MAX}",
            code="value_too_large",
        )


def _check_attributes(attributes: Mapping[str, str] | None) -> None:
    if attributes and len(_pack(attributes)) > limits.ATTRIBUTES_BYTES_MAX:
        raise InvalidRequest(
            f"the attributes have more than {limits.ATTRIBUTES_BYTES_MAX} bytes", code="attributes_too_large"
        )


def _check_revision(revision: int) -> None:
    if not 0 <= revision <= _REVISION_MAX:
        raise InvalidRequest(f"revision {revision} is not between 0 and 2^63 - 1", code="bad_revision")


def _encode(op: Op, idempotency_key: bytes | None, *arguments: Any) -> bytes:
    if idempotency_key is not None and not 1 <= len(idempotency_key) <= limits.IDEMPOTENCY_KEY_BYTES_MAX:
        raise InvalidRequest(
            f"an idempotency key has 1 to {limits.IDEMPOTENCY_KEY_BYTES_MAX} bytes, not {len(idempotency_key)}",
            code="bad_idempotency_key",
        )
    encoded: bytes = _pack((int(op), idempotency_key, *arguments))
    if len(encoded) > limits.COMMAND_BYTES_MAX:
        raise InvalidRequest(
            f"the command has {len(encoded)} bytes; the largest allowed has {limits.COMMAND_BYTES_MAX}",
            code="command_too_large",
        )
    return encoded


def put(
    key: bytes,
    value: bytes,
    *,
    lease: int = 0,
    attributes: Mapping[str, str] | None = None,
    want_previous: bool = False,
    idempotency_key: bytes | None = None,
) -> bytes:
    """Set one key."""
    check_key(key)
    _check_value(value)
    _check_attributes(attributes)
    return _encode(Op.PUT, idempotency_key, key, value, lease, attributes or None, want_previous)


def delete(
    key: bytes,
    end: bytes | None = None,
    *,
    want_previous: bool = False,
    idempotency_key: bytes | None = None,
) -> bytes:
    """Remove one key, or with `end` all keys with key <= k < end (b"": to the last)."""
    if end is None:
        check_key(key)
    else:
        check_range(key, end)
    return _encode(Op.DELETE, idempotency_key, key, end, want_previous)


def compare(key: bytes, target: Target, operator: Operator, operand: int | bytes) -> Compare:
    """One condition of a transaction. A missing key has 0 everywhere and no value (only NOT_EQUAL holds)."""
    check_key(key)
    if isinstance(operand, bytes) != (target is Target.VALUE):
        raise InvalidRequest("VALUE is compared with bytes, everything else with an integer", code="bad_compare")
    return (key, int(target), int(operator), operand)


def op_put(
    key: bytes,
    value: bytes,
    *,
    lease: int = 0,
    attributes: Mapping[str, str] | None = None,
    want_previous: bool = False,
) -> Operation:
    check_key(key)
    _check_value(value)
    _check_attributes(attributes)
    return (int(Op.PUT), key, value, lease, attributes or None, want_previous)


def op_delete(key: bytes, end: bytes | None = None, *, want_previous: bool = False) -> Operation:
    if end is None:
        check_key(key)
    else:
        check_range(key, end)
    return (int(Op.DELETE), key, end, want_previous)


def op_get(key: bytes, end: bytes | None = None, *, limit: int = 0) -> Operation:
    """Read inside a transaction; `limit` 0 means as many as a command may touch."""
    if end is None:
        check_key(key)
    else:
        check_range(key, end)
    return (int(Op.GET), key, end, limit)


def txn(
    compares: Sequence[Compare],
    then: Sequence[Operation],
    otherwise: Sequence[Operation] = (),
    *,
    idempotency_key: bytes | None = None,
) -> bytes:
    """If all compares hold, `then`, else `otherwise`; atomically, as one revision."""
    for part in (compares, then, otherwise):
        if len(part) > limits.TXN_OPERATIONS_MAX:
            raise InvalidRequest(
                f"a transaction has {len(part)} operations; at most {limits.TXN_OPERATIONS_MAX} are allowed",
                code="txn_too_large",
            )
    return _encode(Op.TXN, idempotency_key, compares, then, otherwise)


def compact(revision: int) -> bytes:
    """Forget history at or below `revision`."""
    _check_revision(revision)
    return _encode(Op.COMPACT, None, revision)


def settings(changes: Mapping[str, int]) -> bytes:
    """Change replicated settings (`raftkv_core.machine.settings`)."""
    return _encode(Op.SETTINGS, None, dict(changes))


def genesis(
    cluster_id: bytes,
    history_id: bytes,
    settings: Mapping[str, int],
    *,
    base_revision: int = 0,
    base_digest: int = 0,
) -> bytes:
    """The first command of a history. Ids are 16 bytes; `settings` has every setting's value."""
    return _encode(
        Op.GENESIS, None, cluster_id, history_id, limits.FORMAT, dict(settings), base_revision, base_digest
    )


def report(node_id: str, formats: Sequence[int], *, low_space: bool, gone: bool = False) -> bytes:
    """What a member says of itself; or, with `gone`, what the leader says of a member not heard of."""
    return _encode(Op.REPORT, None, node_id, list(formats), low_space, gone)


def tick(term: int) -> bytes:
    """Move the cluster's clock by one interval, if `term` is the entry's own."""
    return _encode(Op.TICK, None, term)
