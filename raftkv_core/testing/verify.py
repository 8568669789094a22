"""Does a store agree with itself? Everything that is kept incrementally, computed again from the rows.

    with storage.read() as txn:
        assert contradictions(txn) == []

For tests of engines and for a look at a data directory after a crash. Works on any storage, reads only.
"""

from __future__ import annotations

from collections.abc import Iterator

from raftkv_core.interfaces.storage import ReadTransaction
from raftkv_core.machine.history import total_before
from raftkv_core.machine.meta import State, read_meta
from raftkv_core.machine.records import (
    CHANGE_DELETE,
    CHANGE_KEY,
    ROW_OVERHEAD,
    change_bytes,
    change_key,
    decode_change,
    decode_pointer,
    encode_pointer,
    row_hash,
    table_key,
    user_key,
)

__all__ = ["contradictions"]

_MASK = (1 << 64) - 1


def contradictions(txn: ReadTransaction) -> list[str]:
    """What does not add up, one sentence each; empty for a sound store."""
    return [*_counters(txn), *_history(txn)]


def _counters(txn: ReadTransaction) -> Iterator[str]:
    state = read_meta(txn).state
    counted = State(index=state.index)
    for key, row in txn.scan("kv"):
        counted.keys += 1
        counted.live_bytes += len(key) + len(row)
        counted.kv_digest += row_hash(user_key(key), row)
    for table in ("members", "dedupe"):
        for key, row in txn.scan(table):
            counted.aux_rows += 1
            counted.aux_bytes += ROW_OVERHEAD + len(key) + len(row)
            counted.local_digest += row_hash(key, row)
            counted.dedupe_keys += table == "dedupe"
    counted.kv_digest &= _MASK
    counted.local_digest &= _MASK
    for name in ("kv_digest", "local_digest", "keys", "live_bytes", "aux_rows", "aux_bytes", "dedupe_keys"):
        said, found = getattr(state, name), getattr(counted, name)
        if said != found:
            yield f"the state says {name} is {said}, the rows say {found}"
    expiries = {row[10:18] + key for key, row in txn.scan("dedupe")}
    if expiries != {key for key, _row in txn.scan("dedupe_expiry")}:
        yield "dedupe and its expiry index name different keys"


def _history(txn: ReadTransaction) -> Iterator[str]:
    """Changes above the compacted revision: gap-free, adding up, and the newest of each key as `kv` or
    `tombstones` say."""
    state = read_meta(txn).state
    first = change_key(state.compacted + 1, 0)
    total = total_before(txn.get, state, state.compacted + 1)
    expected = (state.compacted + 1, 0)
    newest: dict[bytes, tuple[tuple[int, int], int]] = {}
    for key, row in txn.scan("changes", first):
        at = CHANGE_KEY.unpack(key)
        if at not in (expected, (expected[0] + 1, 0)):
            yield f"change {at} follows where {expected} was expected"
        expected = (at[0], at[1] + 1)
        change = decode_change(row)
        if change.total_before != total:
            yield f"change {at} says {change.total_before} history bytes lie before it, the rows say {total}"
        total += change_bytes(row)
        if change.prev[0] > state.compacted:
            pointer = txn.get("next", change_key(*change.prev))
            if pointer != encode_pointer(*at):
                yield f"change {change.prev} does not name {at} as its key's next"
        newest[change.key] = (at, change.op)
    if total != state.history_total:
        yield f"the state says {state.history_total} history bytes were made, the rows say {total}"
    for user, (at, op) in newest.items():
        yield from _newest(txn, user, at, op)


def _newest(txn: ReadTransaction, key: bytes, at: tuple[int, int], op: int) -> Iterator[str]:
    tombstone = txn.get("tombstones", table_key(key))
    present = txn.get("kv", table_key(key)) is not None
    if op == CHANGE_DELETE:
        if present or tombstone is None or decode_pointer(tombstone) != at:
            yield f"{key!r} was deleted by {at}, but its row or tombstone says otherwise"
    elif not present or tombstone is not None:
        yield f"{key!r} was put by {at}, but its row or tombstone says otherwise"
