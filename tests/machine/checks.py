"""Comparing the state machine, or a snapshot of its storage, with the model."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import xxhash

from raftkv_core.errors import Compacted, InvalidRequest
from raftkv_core.interfaces.storage import TABLES, ReadTransaction
from raftkv_core.machine import reads
from raftkv_core.machine.commands import Outcome, Status
from raftkv_core.machine.meta import STATE_KEY, encode_settings, read_meta
from raftkv_core.machine.state import StateMachine
from raftkv_core.machine.stream import StreamSource
from tests.machine.model import Model

_MASK = (1 << 64) - 1


class Pending(ReadTransaction):
    """The state machine's own view, writes that are not committed yet included."""

    def __init__(self, machine: StateMachine) -> None:
        self._machine = machine

    def get(self, table: str, key: bytes) -> bytes | None:
        if (table, key) == ("meta", STATE_KEY):
            return self._machine.state.encode()
        return self._machine._buffer.get(table, key)

    def scan(
        self,
        table: str,
        start: bytes = b"",
        end: bytes | None = None,
        *,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, bytes]]:
        rows = dict(self._machine._buffer.scan(table, start, end))
        assert list(rows) == sorted(rows)
        if table == "meta":
            rows = {key: self.get(table, key) or b"" for key in sorted({*rows, STATE_KEY})}
        return iter(sorted(rows.items(), reverse=reverse)[:limit])

    def close(self) -> None:
        pass


def dump(txn: ReadTransaction) -> dict[str, dict[bytes, bytes]]:
    """All rows as they lie there."""
    return {table: dict(txn.scan(table)) for table in TABLES}


def logical(txn: ReadTransaction) -> dict[str, Any]:
    """All rows that mean something: without history that is forgotten but not trimmed yet, without position."""
    tables: dict[str, Any] = dump(txn)
    meta = read_meta(txn)
    first = (meta.compacted + 1).to_bytes(8, "big")
    for table in ("changes", "next"):
        tables[table] = {key: row for key, row in tables[table].items() if key >= first}
    tables["tombstones"] = {key: row for key, row in tables["tombstones"].items() if row[2:] >= first}
    del tables["meta"][STATE_KEY]
    state = meta.state.copy()
    state.index = state.term = 0
    tables["state"] = state
    return tables


def row_hash(key: bytes, row: bytes) -> int:
    return xxhash.xxh3_64_intdigest(len(key).to_bytes(2, "big") + key + row)


def digests_from_rows(txn: ReadTransaction) -> tuple[int, int]:
    """Both digests, from nothing but the rows and the state's plain numbers."""
    meta = read_meta(txn)
    kv = sum(row_hash(key[1:], row) for key, row in txn.scan("kv"))
    tail = encode_settings(meta.settings) + meta.revision.to_bytes(8, "big") + meta.compacted.to_bytes(8, "big")
    local = sum(row_hash(key, row) for table in ("dedupe", "members") for key, row in txn.scan(table))
    clock = xxhash.xxh3_64_intdigest(meta.state.clock_ms.to_bytes(8, "big"))
    return (kv + xxhash.xxh3_64_intdigest(tail)) & _MASK, (local + clock) & _MASK


def same_outcome(actual: Outcome, expected: Outcome) -> None:
    """Equal; what a refusal says to people is not the model's business."""
    if expected.status != Status.OK:
        assert isinstance(actual.payload, str)
        assert actual.payload
        actual = actual._replace(payload=None)
    assert actual == expected


def check_numbers(txn: ReadTransaction, model: Model) -> None:
    """Revision, compacted revision, counters, digests, settings, and that streams know their length."""
    meta = read_meta(txn)
    state = meta.state
    assert (state.revision, state.compacted) == (model.revision, model.compacted)
    assert (meta.identity.cluster_id, meta.identity.history_id) == (model.cluster_id, model.history_id)
    if model.history_id:
        assert meta.settings == model.settings
    assert state.clock_ms == model.clock_ms
    assert state.keys == len(model.live)
    assert state.live_bytes == sum(1 + len(key) + len(version.row()) for key, version in model.live.items())
    assert state.history_total == sum(event.history_bytes() for event in model.events)
    assert state.dedupe_keys == len(model.dedupe)
    assert {key for key, _row in txn.scan("dedupe")} == set(model.dedupe)
    assert {(key[8:], int.from_bytes(key[:8], "big")) for key, _row in txn.scan("dedupe_expiry")} == {
        (key, remembered.expiry) for key, remembered in model.dedupe.items()
    }
    assert {key.decode() for key, _row in txn.scan("members")} == set(model.members)
    aux = [(key, row) for table in ("dedupe", "members") for key, row in txn.scan(table)]
    assert state.aux_rows == len(aux)
    assert state.aux_bytes == sum(7 + len(key) + len(row) for key, row in aux)
    assert (meta.digest, meta.digest_local) == digests_from_rows(txn)
    source = StreamSource(txn)
    assert source.length_bytes == sum(map(len, source.chunks()))


def check_newest(txn: ReadTransaction, model: Model) -> None:
    rows, more, count = reads.range_rows(txn, b"", None, limit=1_000, count=True)
    assert rows == [(key, model.live[key].record()) for key in sorted(model.live)]
    assert (more, count) == (False, len(model.live))


def check_reads(txn: ReadTransaction, model: Model, keys: list[bytes], random: Random) -> None:
    """Every key and range at every revision that is kept, and every way to page through the changes."""
    check_newest(txn, model)
    kept = range(model.compacted, model.revision + 1)
    for revision in kept:
        state = model.at(revision)
        for key in keys:
            version = state.get(key)
            assert reads.get(txn, key, revision) == (version.record() if version else None), (key, revision)
        _check_range(txn, state, revision, keys, random)
    state = model.live
    for key in keys:
        version = state.get(key)
        assert reads.get(txn, key) == (version.record() if version else None)
    _check_range(txn, state, None, keys, random)
    for revision in {model.compacted - 1, 0} if model.compacted else ():
        with pytest.raises(Compacted):
            reads.get(txn, b"a", revision)
        with pytest.raises(Compacted):
            reads.range_rows(txn, b"", None, revision=revision)
        with pytest.raises(Compacted):
            reads.changes(txn, revision)
    with pytest.raises(InvalidRequest) as raised:
        reads.get(txn, b"a", model.revision + 1)
    assert raised.value.code == "future_revision"
    with pytest.raises(InvalidRequest):
        reads.range_rows(txn, b"", None, revision=model.revision + 1)
    check_changes(txn, model, keys, random)


def _check_range(
    txn: ReadTransaction, state: dict[bytes, Any], revision: int | None, keys: list[bytes], random: Random
) -> None:
    bounds = [b"", *keys]
    start, end = random.choice(bounds), random.choice([None, *bounds])
    limit = random.choice([0, 1, 2, 3, 100])
    reverse, keys_only, count = (random.random() < 0.5 for _ in range(3))
    found = sorted((k for k in state if k >= start and (end is None or k < end)), reverse=reverse)
    rows, more, total = reads.range_rows(
        txn, start, end, revision=revision, limit=limit, keys_only=keys_only, count=count, reverse=reverse
    )
    records = [(key, state[key].record()) for key in found[:limit]]
    if keys_only:
        records = [(key, record._replace(value=b"")) for key, record in records]
    assert rows == records
    assert more == (len(found) > limit)
    assert total == (len(found) if count else None)


def check_changes(txn: ReadTransaction, model: Model, keys: list[bytes], random: Random) -> None:
    """The whole history above C in one page, and in pages of any size, over any key range."""
    page = reads.changes(txn, model.compacted, limit=1_000_000)
    assert page.changes == [event.change() for event in model.after(model.compacted)]
    assert page.revision == model.revision
    future = reads.changes(txn, model.revision + 7)
    assert (future.changes, future.revision) == ([], model.revision + 7)
    for limit in (1, 2, 5):
        start, end = random.choice([b"", *keys]), random.choice([None, *keys])
        after = random.randint(model.compacted, model.revision)
        expected = [e.change() for e in model.after(after) if e.key >= start and (end is None or e.key < end)]
        found = []
        while True:
            page = reads.changes(txn, after, start, end, limit)
            assert all(after < change.revision <= page.revision for change in page.changes)
            found += page.changes
            # Whole revisions: one more begins only while fewer than `limit` changes were looked at.
            inside = [event for event in model.after(after) if event.revision <= page.revision]
            assert len([event for event in inside if event.revision < page.revision]) < max(limit, 1)
            if page.revision == model.revision:
                break
            assert page.revision > after
            after = page.revision
        assert found == expected
