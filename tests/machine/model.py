"""The data model as plainly as it can be written: every version of every key is kept for ever.

The state machine is compared with this after every step. Nothing here shares code with it but the numbers of
operations and statuses: rows are packed again from the table in `records.py`, so a change of format shows.
"""

from __future__ import annotations

import operator
from struct import pack
from typing import Any, NamedTuple

import msgpack

from raftkv_core.interfaces.transport import Change, Record
from raftkv_core.machine.commands import Op, Operator, Outcome, Status, Target

__all__ = ["Model", "Version"]

_COMPARE = {
    Operator.EQUAL: operator.eq,
    Operator.NOT_EQUAL: operator.ne,
    Operator.LESS: operator.lt,
    Operator.GREATER: operator.gt,
}


class Version(NamedTuple):
    """One value that a key had."""

    create: int
    mod: int
    version: int
    sub: int
    value: bytes
    attributes: dict[str, str] | None

    def row(self) -> bytes:
        head = pack(">BBQQQQI", 1, bool(self.attributes), self.create, self.mod, self.version, 0, self.sub)
        if self.attributes:
            packed = msgpack.packb(dict(sorted(self.attributes.items())))
            head += pack(">H", len(packed)) + packed
        return head + self.value

    def record(self) -> Record:
        return Record(self.create, self.mod, self.version, 0, self.value, self.attributes or None)


class Event(NamedTuple):
    revision: int
    sub: int
    key: bytes
    new: Version | None
    old: Version | None

    def history_bytes(self) -> int:
        """Seven bytes of framing, the table key, the head of a change, the key and what it replaced."""
        return 7 + 12 + 25 + len(self.key) + (len(self.old.row()) if self.old else 0)

    def change(self) -> Change:
        return Change(
            self.revision,
            self.sub,
            self.key,
            self.new.record() if self.new else None,
            self.old.record() if self.old else None,
        )


class Remembered(NamedTuple):
    data: bytes
    expiry: int
    revision: int
    payload: Any


class _Refused(Exception):
    def __init__(self, status: Status) -> None:
        super().__init__(status)
        self.status = status


class Model:
    def __init__(self, *, keys_max: int = 1_024, bytes_max: int = 16 << 20, tick_removes: int = 256) -> None:
        self.keys_max = keys_max
        self.bytes_max = bytes_max
        self.tick_removes = tick_removes
        self.events: list[Event] = []
        self.live: dict[bytes, Version] = {}
        self.revision = 0
        self.compacted = 0
        self.clock_ms = 0
        self.cluster_id = b""
        self.history_id = b""
        self.settings: dict[str, int] = {}
        self.members: dict[str, tuple[tuple[int, ...], bool]] = {}
        self.dedupe: dict[bytes, Remembered] = {}
        self._begin()

    # ---------------------------------------------------------------- what a client reads

    def at(self, revision: int) -> dict[bytes, Version]:
        """All keys as they were at `revision`."""
        state: dict[bytes, Version] = {}
        for event in self.events:
            if event.revision <= revision:
                if event.new is None:
                    state.pop(event.key, None)
                else:
                    state[event.key] = event.new
        return state

    def after(self, revision: int) -> list[Event]:
        return [event for event in self.events if event.revision > revision]

    def kept_bytes(self) -> int:
        return sum(event.history_bytes() for event in self.after(self.compacted))

    # ---------------------------------------------------------------- commands

    def execute(self, data: bytes, term: int, *, valid: bool = True) -> Outcome:
        """Carry out one command; `valid` False: the caller knows that it is malformed."""
        if not valid:
            return Outcome(Status.INVALID, self.revision)
        op, idempotency_key, *arguments = msgpack.unpackb(data, strict_map_key=False)
        if not self.history_id and op != Op.GENESIS:
            return Outcome(Status.NO_GENESIS, self.revision)
        if idempotency_key is not None:
            known = self.dedupe.get(idempotency_key)
            if known is None and len(self.dedupe) >= self.settings["dedupe_keys"]:
                return Outcome(Status.DEDUPE_FULL, self.revision)
            if known is not None and known.data != data:
                return Outcome(Status.IDEMPOTENCY_MISMATCH, self.revision)
            if known is not None:
                return Outcome(Status.OK, known.revision, known.payload, True)
        self._begin()
        try:
            payload = self._carry_out(op, arguments, term)
        except _Refused as refused:
            return Outcome(refused.status, self.revision)
        if self._events:
            self.revision += 1
            self.live = self._live
            self.events += self._events
        if self._events or op in (Op.SETTINGS, Op.COMPACT):
            self._forget_history()
        if idempotency_key is not None:
            self._remember(idempotency_key, data, payload)
        return Outcome(Status.OK, self.revision, payload)

    def _begin(self) -> None:
        self._live = dict(self.live)
        self._events: list[Event] = []
        self._touched: list[int] = []

    def _carry_out(self, op: int, arguments: list[Any], term: int) -> Any:
        if op == Op.PUT:
            return self._put(*arguments)
        if op == Op.DELETE:
            return self._delete(*arguments)
        if op == Op.TXN:
            return self._txn(*arguments)
        if op == Op.COMPACT:
            return self._compact(*arguments)
        if op == Op.SETTINGS:
            self.settings.update(arguments[0])
            return None
        if op == Op.REPORT:
            return self._report(*arguments)
        if op == Op.TICK:
            return self._tick(arguments[0], term)
        if op == Op.GENESIS:
            return self._genesis(*arguments)
        raise _Refused(Status.UNSUPPORTED)

    def _touch(self, old: Version | None) -> None:
        self._touched.append(len(old.row()) if old else 0)
        if len(self._touched) > self.keys_max or sum(self._touched) > self.bytes_max:
            raise _Refused(Status.TOO_LARGE)

    def _event(self, key: bytes, new: Version | None) -> None:
        old = self._live.pop(key, None)
        if new is not None:
            self._live[key] = new
        self._events.append(Event(self.revision + 1, len(self._events), key, new, old))

    def _put(self, key: bytes, value: bytes, lease: int, attributes: Any, want: bool) -> Any:
        if lease:
            raise _Refused(Status.LEASE_NOT_FOUND)
        old = self._live.get(key)
        self._touch(old)
        revision = self.revision + 1
        create, version = (old.create, old.version + 1) if old else (revision, 1)
        self._event(key, Version(create, revision, version, len(self._events), value, attributes))
        return old.row() if want and old else None

    def _keys(self, key: bytes, end: bytes | None) -> list[bytes]:
        if end is None:
            return [key] if key in self._live else []
        return sorted(k for k in self._live if k >= key and (end == b"" or k < end))

    def _delete(self, key: bytes, end: bytes | None, want: bool) -> Any:
        rows = []
        for found in self._keys(key, end):
            old = self._live[found]
            self._touch(old)
            self._event(found, None)
            rows.append([found, old.row()])
        return [len(rows), rows if want else None]

    def _get(self, key: bytes, end: bytes | None, limit: int) -> Any:
        keys = self._keys(key, end)
        if limit and end is not None:
            keys = keys[:limit]
        for found in keys:
            self._touch(self._live[found])
        return [[found, self._live[found].row()] for found in keys]

    def _txn(self, compares: list[Any], then: list[Any], otherwise: list[Any]) -> Any:
        succeeded = all(self._holds(*compare) for compare in compares)
        payloads = []
        for op, *arguments in then if succeeded else otherwise:
            carry_out = {Op.PUT: self._put, Op.DELETE: self._delete, Op.GET: self._get}[op]
            payloads.append(carry_out(*arguments))
        return [succeeded, payloads]

    def _holds(self, key: bytes, target: int, how: int, operand: Any) -> bool:
        version = self._live.get(key)
        if target == Target.VALUE:
            if version is None:
                return how == Operator.NOT_EQUAL
            return bool(_COMPARE[Operator(how)](version.value, operand))
        numbers = (version.create, version.mod, version.version, 0) if version else (0, 0, 0, 0)
        actual = dict(zip((Target.CREATE, Target.MOD, Target.VERSION, Target.LEASE), numbers, strict=True))
        return bool(_COMPARE[Operator(how)](actual[Target(target)], operand))

    # ---------------------------------------------------------------- the store itself

    def _compact(self, revision: int) -> None:
        if revision > self.revision:
            raise _Refused(Status.FUTURE_REVISION)
        if revision < self.compacted:
            raise _Refused(Status.COMPACTED)
        self.compacted = revision

    def _forget_history(self) -> None:
        """One revision after the other, until both limits are kept."""
        while (
            self.revision - self.compacted > self.settings["history_revisions"]
            or self.kept_bytes() > self.settings["history_bytes"]
        ):
            self.compacted += 1

    def _report(self, node_id: str, formats: list[int], low_space: bool, gone: bool) -> None:
        if gone:
            self.members.pop(node_id, None)
        else:
            self.members[node_id] = (tuple(formats), low_space)

    def _genesis(
        self, cluster: bytes, history: bytes, _form: int, settings: dict[str, int], base: int, _digest: int
    ) -> None:
        if self.history_id:
            raise _Refused(Status.NO_GENESIS)
        self.cluster_id, self.history_id = cluster, history
        self.settings = dict(settings)
        self.revision = self.compacted = base

    def _tick(self, term: int, entry_term: int) -> None:
        if term != entry_term:
            return
        self.clock_ms += self.settings["tick_ms"]
        expired = sorted((r.expiry, key) for key, r in self.dedupe.items() if r.expiry <= self.clock_ms)
        for _expiry, key in expired[: self.tick_removes]:
            del self.dedupe[key]

    def _remember(self, key: bytes, data: bytes, payload: Any) -> None:
        if len(msgpack.packb([self.revision, payload])) > self.settings["dedupe_outcome_bytes"]:
            payload = None
        expiry = self.clock_ms + self.settings["dedupe_ttl_ms"] + self.settings["tick_ms"]
        self.dedupe[key] = Remembered(data, expiry, self.revision, payload)

    def begin_new_history(self) -> None:
        """What a restore does to the data before the next genesis."""
        self.history_id = self.cluster_id = b""
        self.members = {}
