"""The write buffer: pending rows over storage, in two generations.

Apply writes into the *filling* generation while the writer thread puts the *committing* one into storage.
A row is looked up in filling, then in committing, then in apply's read transaction; the committing generation
is dropped only after that transaction was renewed past its commit. So apply never waits for a disk and never
reads an older row than it wrote.

A generation always ends at an entry's end. What one entry may add is bounded by its weight
(`entries.ENTRY_WEIGHT_MAX`), so nothing has to be written early.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from heapq import merge
from itertools import groupby
from typing import Any, Final

from raftkv_core.interfaces.storage import TABLES, ReadTransaction, Storage
from raftkv_core.machine.meta import State

__all__ = ["MISSING", "Generation", "WriteBuffer"]

MISSING: Final[Any] = object()

_ROW_COST_BYTES: Final = 150
"""What a pending row takes in memory beside its bytes: dictionary slot and object headers."""


class Generation:
    """Pending rows by table (None: deleted), and the state at their end."""

    __slots__ = ("_sorted", "pending_bytes", "state", "tables")

    def __init__(self) -> None:
        self.tables: dict[str, dict[bytes, bytes | None]] = {table: {} for table in TABLES}
        self.pending_bytes = 0
        self.state: State | None = None
        """Set when the generation begins to commit."""
        self._sorted: dict[str, list[bytes]] = {}

    def put(self, table: str, key: bytes, row: bytes | None) -> None:
        rows = self.tables[table]
        if self._sorted and table in self._sorted and key not in rows:
            insort(self._sorted[table], key)
        rows[key] = row
        self.pending_bytes += len(key) + (len(row) if row is not None else 0) + _ROW_COST_BYTES

    def forget(self, table: str, key: bytes, before: Any) -> None:
        """Undo a `put`: back to `before`, or to nothing if that is MISSING. `pending_bytes` stays an upper bound."""
        rows = self.tables[table]
        if before is MISSING:
            del rows[key]
            if table in self._sorted:
                keys = self._sorted[table]
                del keys[bisect_left(keys, key)]
        else:
            rows[key] = before

    def keys_between(self, table: str, start: bytes, end: bytes | None) -> Iterator[bytes]:
        """Pending keys in the range, ascending, each only when asked for: a transaction that wants one row of a
        long range pays for one. Sorted on the first demand, kept sorted from then on."""
        if not self.tables[table]:
            return iter(())
        keys = self._sorted.get(table)
        if keys is None:
            keys = self._sorted[table] = sorted(self.tables[table])
        last = len(keys) if end is None else bisect_left(keys, end)
        return map(keys.__getitem__, range(bisect_left(keys, start), last))


class WriteBuffer:
    """Reads through pending rows; writes into the filling generation, with undo for one command."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._txn = storage.read()
        self._filling = Generation()
        self._committing: Generation | None = None
        self._undo: list[tuple[str, bytes, Any]] = []

    @property
    def pending_bytes(self) -> int:
        return self._filling.pending_bytes + (self._committing.pending_bytes if self._committing else 0)

    @property
    def committing(self) -> bool:
        return self._committing is not None

    @property
    def txn(self) -> ReadTransaction:
        """Apply's read transaction."""
        return self._txn

    def get(self, table: str, key: bytes) -> bytes | None:
        row = self._filling.tables[table].get(key, MISSING)
        if row is MISSING and self._committing is not None:
            row = self._committing.tables[table].get(key, MISSING)
        if row is MISSING:
            row = self._txn.get(table, key)
        return row  # type: ignore[no-any-return]

    def put(self, table: str, key: bytes, row: bytes | None) -> None:
        """Set a pending row; None deletes."""
        self._undo.append((table, key, self._filling.tables[table].get(key, MISSING)))
        self._filling.put(table, key, row)

    def scan(self, table: str, start: bytes, end: bytes | None) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < end, ascending, pending ones included. Do not write while iterating."""
        pending = self._filling.keys_between(table, start, end)
        if self._committing is not None:
            both = merge(pending, self._committing.keys_between(table, start, end))
            pending = (key for key, _same in groupby(both))
        following = next(pending, None)
        for key, row in self._txn.scan(table, start, end):
            while following is not None and following < key:
                yield from self._pending_row(table, following)
                following = next(pending, None)
            if following == key:
                yield from self._pending_row(table, key)
                following = next(pending, None)
            else:
                yield key, row
        while following is not None:
            yield from self._pending_row(table, following)
            following = next(pending, None)

    def _pending_row(self, table: str, key: bytes) -> Iterator[tuple[bytes, bytes]]:
        row = self.get(table, key)
        if row is not None:
            yield key, row

    def begin_command(self) -> None:
        self._undo.clear()

    def roll_back(self) -> None:
        """Undo everything since `begin_command`."""
        for table, key, before in reversed(self._undo):
            self._filling.forget(table, key, before)
        self._undo.clear()

    def begin_commit(self, state: State) -> Generation:
        """Hand the filling generation to the writer; it ends at `state`."""
        assert self._committing is None
        generation = self._committing = self._filling
        generation.state = state
        self._filling = Generation()
        self._undo.clear()
        return generation

    def end_commit(self) -> None:
        """The writer is done: renew the read transaction, then drop the generation."""
        renewed = self._storage.read()
        self._txn.close()
        self._txn = renewed
        self._committing = None

    def reload(self) -> None:
        """Another store was activated: everything pending belongs to the old one."""
        self._committing = None
        self._filling = Generation()
        self._undo.clear()
        self._txn.close()
        self._txn = self._storage.read()

    def close(self) -> None:
        self._txn.close()
