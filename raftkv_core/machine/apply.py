"""Carrying commands out: the only code that changes the data.

`Applier.execute` is a function of the state, the command and the entry's term; no clock, no random source, no
configuration. A command either changes something and answers OK, or answers OK without a change (a delete of
nothing, a transaction that wrote nothing), or is refused and leaves no trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from operator import eq, gt, lt, ne
from typing import Any, Final, NamedTuple

import msgpack
import xxhash

from raftkv_core.errors import MachineFault
from raftkv_core.limits import COMMAND_KEYS_MAX, COMMAND_REPLACED_BYTES_MAX, FORMAT
from raftkv_core.machine.buffer import WriteBuffer
from raftkv_core.machine.commands import Op, Operator, Outcome, Status, Target
from raftkv_core.machine.decode import BadCommand, decode_command
from raftkv_core.machine.history import HistoryBound
from raftkv_core.machine.meta import (
    IDENTITY_KEY,
    SETTINGS_KEY,
    HistoryIdentity,
    Meta,
    State,
    encode_settings,
)
from raftkv_core.machine.records import (
    CHANGE_DELETE,
    CHANGE_PUT,
    NO_CHANGE,
    RECORD_HEAD,
    ROW_OVERHEAD,
    change_bytes,
    change_key,
    check_head,
    decode_pointer,
    decode_record,
    encode_change,
    encode_pointer,
    encode_record,
    row_hash,
    table_key,
    user_key,
)

__all__ = ["Applier", "MemberReport"]

_MASK: Final = (1 << 64) - 1
_TICK_REMOVES_MOST: Final = 256
"""Expired idempotency keys that one tick removes."""

_OPERATORS: Final = {Operator.EQUAL: eq, Operator.NOT_EQUAL: ne, Operator.LESS: lt, Operator.GREATER: gt}
_RESERVED: Final = frozenset((Op.SEAL, Op.CHECK, Op.LEASE_GRANT, Op.LEASE_KEEPALIVE, Op.LEASE_REVOKE, Op.EXPIRE))


class MemberReport(NamedTuple):
    """What a member said of itself."""

    formats: tuple[int, ...]
    low_space: bool


class _Refusal(Exception):
    """The command in hand is refused; what it did so far is undone."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Applier:
    """Executes commands on a write buffer and the state beside it."""

    def __init__(self, buffer: WriteBuffer, meta: Meta) -> None:
        self._buffer = buffer
        self.state: State = meta.state
        self.identity: HistoryIdentity = meta.identity
        self.settings: dict[str, int] = meta.settings
        self.members: dict[str, MemberReport] = {
            key.decode(): _decode_member(row) for key, row in buffer.scan("members", b"", None)
        }
        self._bound = HistoryBound(buffer.get, self.state)
        self._revision = 0
        self._sub = 0
        self._touched = 0
        self._touched_bytes = 0

    def execute(self, data: bytes, term: int) -> Outcome:
        """Carry out one encoded command of an entry of `term`."""
        state = self.state
        try:
            command = decode_command(data)
        except BadCommand as error:
            return Outcome(Status.INVALID, state.revision, str(error))
        op = command[0]
        if not self.identity.history_id and op != Op.GENESIS:
            return Outcome(Status.NO_GENESIS, state.revision, "the store has no history yet")
        idempotency_key = command[1]
        if idempotency_key is not None:
            remembered = self._remembered(idempotency_key, data)
            if remembered is not None:
                return remembered
        self._buffer.begin_command()
        saved = state.copy() if op == Op.TXN or idempotency_key is not None else None
        self._revision = state.revision + 1
        self._sub = self._touched = self._touched_bytes = 0
        try:
            payload = self._carry_out(op, command, term)
        except _Refusal as refusal:
            self._buffer.roll_back()
            if saved is not None:
                self.state = saved
            return Outcome(refusal.status, self.state.revision, str(refusal))
        if self._sub:
            state.revision = self._revision
        if self._sub or op in (Op.SETTINGS, Op.COMPACT):
            state.compacted = self._bound.compacted(state, self.settings)
        outcome = Outcome(Status.OK, state.revision, payload)
        if idempotency_key is not None:
            self._remember(idempotency_key, data, outcome)
        return outcome

    def _carry_out(self, op: int, command: list[Any], term: int) -> Any:  # noqa: PLR0911
        if op == Op.PUT:
            return self._put(*command[2:])
        if op == Op.DELETE:
            return self._delete(*command[2:])
        if op == Op.TXN:
            return self._txn(*command[2:])
        if op == Op.TICK:
            return self._tick(command[2], term)
        if op == Op.COMPACT:
            return self._compact(command[2])
        if op == Op.SETTINGS:
            return self._change_settings(command[2])
        if op == Op.REPORT:
            return self._report(*command[2:])
        if op == Op.GENESIS:
            return self._genesis(*command[2:])
        assert op in _RESERVED
        raise _Refusal(Status.UNSUPPORTED, f"this release does not carry out {Op(op).name}")

    # ---------------------------------------------------------------- keys

    def _put(self, key: bytes, value: bytes, lease: int, attributes: Mapping[str, str] | None, want: bool) -> Any:
        if lease:
            raise _Refusal(Status.LEASE_NOT_FOUND, f"there is no lease {lease}")
        buffer, state = self._buffer, self.state
        tkey = table_key(key)
        old = buffer.get("kv", tkey)
        revision, sub = self._revision, self._sub
        self._touch(old)
        if old is not None:
            _form, _flags, create, mod, version, _lease, old_sub = RECORD_HEAD.unpack_from(old)
            row = encode_record(create, revision, version + 1, 0, sub, value, attributes)
            prev = (mod, old_sub)
            state.kv_digest -= row_hash(key, old)
            state.live_bytes += len(row) - len(old)
        else:
            row = encode_record(revision, revision, 1, 0, sub, value, attributes)
            prev = self._buried(tkey)
            state.keys += 1
            state.live_bytes += len(tkey) + len(row)
        state.kv_digest = (state.kv_digest + row_hash(key, row)) & _MASK
        buffer.put("kv", tkey, row)
        self._record_change(CHANGE_PUT, key, prev, old)
        return old if want else None

    def _delete(self, key: bytes, end: bytes | None, want: bool) -> Any:
        if end is None:
            row = self._buffer.get("kv", table_key(key))
            rows = [] if row is None else [(table_key(key), row)]
        else:
            rows = self._range(key, end)
        for tkey, row in rows:
            self._remove(tkey, row)
        return [len(rows), [[user_key(tkey), row] for tkey, row in rows] if want else None]

    def _remove(self, tkey: bytes, old: bytes) -> None:
        buffer, state = self._buffer, self.state
        self._touch(old)
        key = user_key(tkey)
        _form, _flags, _create, mod, _version, _lease, old_sub = RECORD_HEAD.unpack_from(old)
        state.kv_digest = (state.kv_digest - row_hash(key, old)) & _MASK
        state.keys -= 1
        state.live_bytes -= len(tkey) + len(old)
        buffer.put("kv", tkey, None)
        buffer.put("tombstones", tkey, encode_pointer(self._revision, self._sub))
        self._record_change(CHANGE_DELETE, key, (mod, old_sub), old)

    def _buried(self, tkey: bytes) -> tuple[int, int]:
        """Take a key's tombstone away and say which change it stood for. One at or below the compacted
        revision may be trimmed or not: it counts as absent."""
        row = self._buffer.get("tombstones", tkey)
        if row is None:
            return NO_CHANGE
        self._buffer.put("tombstones", tkey, None)
        pointer = decode_pointer(row)
        return pointer if pointer[0] > self.state.compacted else NO_CHANGE

    def _record_change(self, op: int, key: bytes, prev: tuple[int, int], preimage: bytes | None) -> None:
        buffer, state = self._buffer, self.state
        row = encode_change(op, key, prev, state.history_total, preimage)
        buffer.put("changes", change_key(self._revision, self._sub), row)
        if prev[0] > state.compacted:
            buffer.put("next", change_key(*prev), encode_pointer(self._revision, self._sub))
        state.history_total += change_bytes(row)
        self._sub += 1

    def _touch(self, row: bytes | None) -> None:
        """Count one key against the bounds of a command."""
        self._touched += 1
        self._touched_bytes += len(row) if row is not None else 0
        if self._touched > COMMAND_KEYS_MAX:
            raise _Refusal(Status.TOO_LARGE, f"the command touches more than {COMMAND_KEYS_MAX} keys")
        if self._touched_bytes > COMMAND_REPLACED_BYTES_MAX:
            raise _Refusal(
                Status.TOO_LARGE, f"the command touches more than {COMMAND_REPLACED_BYTES_MAX} bytes of records"
            )

    def _range(self, start: bytes, end: bytes, limit: int = COMMAND_KEYS_MAX + 1) -> list[tuple[bytes, bytes]]:
        """Rows of a range, no more of them than the bounds allow (and one, so that the next check refuses)."""
        rows: list[tuple[bytes, bytes]] = []
        size = self._touched_bytes
        stop = table_key(end) if end else b"l"
        for tkey, row in self._buffer.scan("kv", table_key(start), stop):
            if len(rows) >= limit:
                break
            rows.append((tkey, row))
            size += len(row)
            if size > COMMAND_REPLACED_BYTES_MAX or len(rows) > COMMAND_KEYS_MAX:
                raise _Refusal(
                    Status.TOO_LARGE,
                    f"the range has more than {COMMAND_KEYS_MAX} keys or {COMMAND_REPLACED_BYTES_MAX} bytes; "
                    "take it in parts",
                )
        return rows

    # ---------------------------------------------------------------- transactions

    def _txn(self, compares: Sequence[Any], then: Sequence[Any], otherwise: Sequence[Any]) -> Any:
        succeeded = all(self._holds(*compare) for compare in compares)
        return [succeeded, [self._operation(operation) for operation in (then if succeeded else otherwise)]]

    def _holds(self, key: bytes, target: int, operator: int, operand: Any) -> bool:
        row = self._buffer.get("kv", table_key(key))
        actual: Any
        if target == Target.VALUE:
            if row is None:
                return operator == Operator.NOT_EQUAL
            actual = decode_record(row).value
        elif row is None:
            actual = 0
        else:
            _form, _flags, create, mod, version, lease, _sub = RECORD_HEAD.unpack_from(row)
            actual = {Target.CREATE: create, Target.MOD: mod, Target.VERSION: version, Target.LEASE: lease}[
                Target(target)
            ]
        return bool(_OPERATORS[Operator(operator)](actual, operand))

    def _operation(self, operation: Sequence[Any]) -> Any:
        op, *arguments = operation
        if op == Op.PUT:
            return self._put(*arguments)
        if op == Op.DELETE:
            return self._delete(*arguments)
        return self._get(*arguments)

    def _get(self, key: bytes, end: bytes | None, limit: int) -> Any:
        if end is None:
            row = self._buffer.get("kv", table_key(key))
            rows = [] if row is None else [(table_key(key), row)]
        else:
            rows = self._range(key, end, limit or COMMAND_KEYS_MAX + 1)
        for _tkey, row in rows:
            self._touch(row)
        return [[user_key(tkey), row] for tkey, row in rows]

    # ---------------------------------------------------------------- the store itself

    def _compact(self, revision: int) -> None:
        state = self.state
        if revision > state.revision:
            raise _Refusal(Status.FUTURE_REVISION, f"the store is at revision {state.revision}")
        if revision < state.compacted:
            raise _Refusal(Status.COMPACTED, f"history is compacted to revision {state.compacted} already")
        state.compacted = revision

    def _change_settings(self, changes: Mapping[str, int]) -> None:
        self.settings = {**self.settings, **changes}
        self._buffer.put("meta", SETTINGS_KEY, encode_settings(self.settings))

    def _genesis(
        self,
        cluster_id: bytes,
        history_id: bytes,
        _format: int,
        settings: Mapping[str, int],
        base_revision: int,
        base_digest: int,
    ) -> None:
        state = self.state
        if self.identity.history_id:
            raise _Refusal(Status.NO_GENESIS, "the store has a history; a second genesis is refused")
        if base_digest != state.kv_digest or base_revision < state.revision:
            raise MachineFault(
                f"genesis begins at revision {base_revision} with digest {base_digest:016x}, but this store is at "
                f"revision {state.revision} with {state.kv_digest:016x}: it was restored from another backup"
            )
        self.identity = HistoryIdentity(cluster_id, history_id, base_revision)
        self._buffer.put("meta", IDENTITY_KEY, self.identity.encode())
        self._change_settings(settings)
        state.revision = state.compacted = base_revision

    def _report(self, node_id: str, formats: Sequence[int], low_space: bool, gone: bool) -> None:
        key = node_id.encode()
        row = None
        if gone:
            self.members.pop(node_id, None)
        else:
            self.members[node_id] = MemberReport(tuple(formats), low_space)
            row = bytes((FORMAT, 0)) + msgpack.packb([list(formats), low_space])
        self._aux_put("members", key, row)

    def _aux_put(self, table: str, key: bytes, row: bytes | None) -> None:
        """Set or remove a row that is in streams and in the local digest."""
        state = self.state
        old = self._buffer.get(table, key)
        if old is not None:
            state.aux_rows -= 1
            state.aux_bytes -= ROW_OVERHEAD + len(key) + len(old)
            state.local_digest -= row_hash(key, old)
        if row is not None:
            state.aux_rows += 1
            state.aux_bytes += ROW_OVERHEAD + len(key) + len(row)
            state.local_digest += row_hash(key, row)
        state.local_digest &= _MASK
        if old is not None or row is not None:
            self._buffer.put(table, key, row)

    # ---------------------------------------------------------------- clock and idempotency keys

    def _tick(self, term: int, entry_term: int) -> None:
        """Move the clock, if the proposer still led when its entry was appended; forget what expired."""
        if term != entry_term:
            return
        state = self.state
        state.clock_ms += self.settings["tick_ms"]
        expired = self._expired(state.clock_ms)
        for index_key in expired:
            self._buffer.put("dedupe_expiry", index_key, None)
            self._aux_put("dedupe", index_key[8:], None)
        state.dedupe_keys -= len(expired)

    def _expired(self, clock_ms: int) -> list[bytes]:
        rows: Iterable[tuple[bytes, bytes]] = self._buffer.scan(
            "dedupe_expiry", b"", (clock_ms + 1).to_bytes(8, "big")
        )
        return [key for _n, (key, _row) in zip(range(_TICK_REMOVES_MOST), rows, strict=False)]

    def _remembered(self, key: bytes, data: bytes) -> Outcome | None:
        row = self._buffer.get("dedupe", key)
        if row is None:
            if self.state.dedupe_keys >= self.settings["dedupe_keys"]:
                reason = "too many idempotency keys are remembered; retry when some have expired"
                return Outcome(Status.DEDUPE_FULL, self.state.revision, reason)
            return None
        check_head("remembered idempotency key", row)
        if row[2:10] != _request_hash(data):
            return Outcome(
                Status.IDEMPOTENCY_MISMATCH,
                self.state.revision,
                "this idempotency key was used with another request; take a new key",
            )
        revision, payload = msgpack.unpackb(row[18:])
        return Outcome(Status.OK, revision, payload, True)

    def _remember(self, key: bytes, data: bytes, outcome: Outcome) -> None:
        settings = self.settings
        packed = msgpack.packb([outcome.revision, outcome.payload])
        if len(packed) > settings["dedupe_outcome_bytes"]:
            packed = msgpack.packb([outcome.revision, None])
        # Expiry is never early: a whole interval may have passed since the last tick.
        expiry = self.state.clock_ms + settings["dedupe_ttl_ms"] + settings["tick_ms"]
        stamp = expiry.to_bytes(8, "big")
        self._aux_put("dedupe", key, bytes((FORMAT, 0)) + _request_hash(data) + stamp + packed)
        self._buffer.put("dedupe_expiry", stamp + key, bytes((FORMAT, 0)))
        self.state.dedupe_keys += 1


def _request_hash(data: bytes) -> bytes:
    return xxhash.xxh3_64_digest(data)


def _decode_member(row: bytes) -> MemberReport:
    check_head("member's report", row)
    formats, low_space = msgpack.unpackb(row[2:])
    return MemberReport(tuple(formats), low_space)
