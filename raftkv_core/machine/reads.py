"""Reading a snapshot: newest and older records, ranges, changes. Pure functions on a read transaction.

A read at an older revision Q starts at the key's newest record or tombstone and steps back over the changes
above Q; the pre-image of the last change stepped over is the answer. That is exact for every Q at or above the
compacted revision, because every change above that is kept. The cost is the number of later changes of the
key, so callers on an event loop run such reads in a thread.
"""

from __future__ import annotations

from collections.abc import Iterator

from raftkv_core.errors import Compacted, InvalidRequest, StorageError
from raftkv_core.interfaces.storage import ReadTransaction
from raftkv_core.interfaces.transport import Change, ChangesPage, Record
from raftkv_core.machine.meta import read_state
from raftkv_core.machine.records import (
    CHANGE_DELETE,
    CHANGE_KEY,
    NO_CHANGE,
    RECORD_HEAD,
    change_key,
    decode_change,
    decode_pointer,
    decode_record,
    table_key,
    user_key,
)

__all__ = ["changes", "get", "range_rows"]

_KEYS_END = b"l"
"""Just past every table key that begins with the prefix `k`."""


def get(txn: ReadTransaction, key: bytes, revision: int | None = None) -> Record | None:
    """The record of `key`, newest or as of `revision`. Raises Compacted, or InvalidRequest for the future."""
    tkey = table_key(key)
    row = txn.get("kv", tkey)
    if revision is not None:
        compacted = _check_revision(txn, revision)
        row = _row_at(txn, tkey, row, revision, compacted)
    return None if row is None else decode_record(row)


def range_rows(
    txn: ReadTransaction,
    start: bytes,
    end: bytes | None,
    *,
    revision: int | None = None,
    limit: int = 100,
    keys_only: bool = False,
    count: bool = False,
    reverse: bool = False,
) -> tuple[list[tuple[bytes, Record]], bool, int | None]:
    """Rows with start <= key < end (None: to the last), whether there are more, and the count if asked.

    With `keys_only` the values are b"". Raises as `get`.
    """
    bounds = table_key(start), _KEYS_END if end is None else table_key(end)
    if revision is None:
        rows = txn.scan("kv", *bounds, reverse=reverse)
    else:
        rows = _rows_at(txn, bounds, revision, _check_revision(txn, revision), reverse)
    result: list[tuple[bytes, Record]] = []
    total = 0
    for tkey, row in rows:
        total += 1
        if total <= limit:
            record = decode_record(row)
            result.append((user_key(tkey), record._replace(value=b"") if keys_only else record))
        elif not count:
            break
    return result, total > limit, total if count else None


def changes(
    txn: ReadTransaction, after: int, start: bytes = b"", end: bytes | None = None, limit: int = 1_000
) -> ChangesPage:
    """Changes with revision > `after` to keys in the range, oldest first, ending at a revision's end.

    At most `limit` changes are looked at, whether they are in the range or not, so a page is bounded; the
    page's revision says how far it got. Raises Compacted if changes after `after` are gone.
    """
    state = read_state(txn)
    if after < state.compacted:
        raise _compacted(after, state.compacted)
    found: list[Change] = []
    covered = after
    for looked_at, (ckey, row) in enumerate(txn.scan("changes", change_key(after + 1, 0))):
        revision, sub = CHANGE_KEY.unpack(ckey)
        if looked_at >= limit and revision != covered:
            return ChangesPage(found, covered)
        covered = revision
        change = decode_change(row)
        if change.key >= start and (end is None or change.key < end):
            previous = None if change.preimage is None else decode_record(change.preimage)
            new = None if change.op == CHANGE_DELETE else _record_made(txn, change.key, revision, sub)
            found.append(Change(revision, sub, change.key, new, previous))
    return ChangesPage(found, max(after, state.revision))


def _record_made(txn: ReadTransaction, key: bytes, revision: int, sub: int) -> Record:
    """The record that the change (revision, sub) made: the newest one if it is that change's, else the
    pre-image of the key's next change."""
    follower = txn.get("next", change_key(revision, sub))
    if follower is None:
        row = txn.get("kv", table_key(key))
    else:
        following = txn.get("changes", change_key(*decode_pointer(follower)))
        row = None if following is None else decode_change(following).preimage
    if row is None:
        raise StorageError(f"the store contradicts itself: the record of change {revision}.{sub} is missing")
    return decode_record(row)


def _check_revision(txn: ReadTransaction, revision: int) -> int:
    """The compacted revision, if `revision` can be read."""
    state = read_state(txn)
    if revision > state.revision:
        raise InvalidRequest(
            f"revision {revision} is in the future; this node has {state.revision}", code="future_revision"
        )
    if revision < state.compacted:
        raise _compacted(revision, state.compacted)
    return state.compacted


def _compacted(revision: int, compacted: int) -> Compacted:
    return Compacted(f"revision {revision} is no longer kept; the oldest that can be read is {compacted}")


def _row_at(txn: ReadTransaction, tkey: bytes, newest: bytes | None, revision: int, compacted: int) -> bytes | None:
    """The row of a key as of `revision`, given its newest row (None: it has none now)."""
    row = newest
    if row is not None:
        head = RECORD_HEAD.unpack_from(row)
        at = (head[3], head[6])
    else:
        tombstone = txn.get("tombstones", tkey)
        at = NO_CHANGE if tombstone is None else decode_pointer(tombstone)
    while at[0] > revision and at[0] > compacted:
        change_row = txn.get("changes", change_key(*at))
        if change_row is None:
            raise StorageError(f"the store contradicts itself: change {at[0]}.{at[1]} is missing")
        change = decode_change(change_row)
        row = change.preimage
        at = change.prev
    return row


def _rows_at(
    txn: ReadTransaction, bounds: tuple[bytes, bytes], revision: int, compacted: int, reverse: bool
) -> Iterator[tuple[bytes, bytes]]:
    """Rows of a range as of `revision`: keys that exist now and keys deleted since, in order."""
    for tkey, newest in _merge(
        txn.scan("kv", *bounds, reverse=reverse), txn.scan("tombstones", *bounds, reverse=reverse), reverse
    ):
        row = _row_at(txn, tkey, newest, revision, compacted)
        if row is not None:
            yield tkey, row


def _merge(
    live: Iterator[tuple[bytes, bytes]], dead: Iterator[tuple[bytes, bytes]], reverse: bool
) -> Iterator[tuple[bytes, bytes | None]]:
    """Two ordered runs without a common key as one; the dead have no newest row."""
    one, other = next(live, None), next(dead, None)
    while one is not None or other is not None:
        if other is None or (one is not None and (one[0] < other[0]) is not reverse):
            assert one is not None
            yield one
            one = next(live, None)
        else:
            yield other[0], None
            other = next(dead, None)
