"""Rows of the memory engine: the newest in plain dictionaries, older ones in the snapshots that need them.

A dictionary per table holds the newest rows, beside a sorted index of its keys. A snapshot copies nothing: it is
a *pin* on a commit. While pins are open, a commit notes in the newest pin what it replaces (None: no row was
there), unless the pin has noted an older state already. A snapshot therefore reads its own pin's notes, then
those of each newer pin, then the newest rows. A pin that closes hands its notes to the next older one. So

- a commit costs the rows it writes, however long the oldest snapshot has been open and however many there are;
- a read costs one look-up more per pin between it and the newest rows (apply's and a backup's: two);
- a snapshot that stays open holds in memory what was replaced since, once.

A key that is only in some pin's notes stays in the index as a *ghost*, so that one walk of the index serves
every snapshot.

Threads: one writer, any number of readers. The lock is held for one look-up, one piece of a scan or one slice of
a commit, never for the whole of either.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Final

from raftkv_core.builtin.sorted_keys import SortedKeys
from raftkv_core.errors import StorageError
from raftkv_core.interfaces.storage import TABLES

__all__ = ["Life", "MemoryTables", "Pin"]

ROW_COST_BYTES: Final = 200
"""Memory of a row beside its bytes: two object headers, a dictionary slot, an index slot."""

_PIECE_ROWS_FIRST: Final = 16
_PIECE_ROWS_MAX: Final = 256

_Rows = dict[bytes, "bytes | None"]


class Pin:
    """A commit that snapshots are open at. `notes`: by table, the rows that were replaced after it."""

    __slots__ = ("commit", "newer", "notes", "older", "open")

    def __init__(self, commit: int, older: Pin | None) -> None:
        self.commit = commit
        self.older = older
        self.newer: Pin | None = None
        self.open = 1
        self.notes: dict[str, _Rows] = {}


class _Table:
    __slots__ = ("ghosts", "index", "name", "rows")

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: dict[bytes, bytes] = {}
        self.index = SortedKeys()
        self.ghosts: set[bytes] = set()


class Life:
    """Whether the storage is open: shared by all its stores, those that only old snapshots still see too."""

    __slots__ = ("ended",)

    def __init__(self) -> None:
        self.ended = False


class MemoryTables:
    """One store: its tables, its snapshots, its one writer."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self.used_bytes = 0
        self._tables = {name: _Table(name) for name in TABLES}
        self._newest_pin: Pin | None = None
        self._commit = 0
        self._lock = threading.Lock()
        self._writing = False
        self._closed = False

    # ---------------------------------------------------------------- reading

    def get(self, table: str, key: bytes, pin: Pin | None) -> bytes | None:
        """The row as `pin` sees it (None: the newest)."""
        found = self._tables[table]
        self.check_open()
        with self._lock:
            return _see(found, key, pin)

    def scan(
        self, table: str, start: bytes, end: bytes | None, reverse: bool, pin_now: Callable[[], Pin | None]
    ) -> Iterator[tuple[bytes, bytes]]:
        """Rows in order, taken in pieces; `pin_now` raises if the transaction has ended meanwhile."""
        found = self._tables[table]
        pin_now()
        return self._scan(found, start, end, reverse, pin_now)

    def _scan(
        self, table: _Table, start: bytes, end: bytes | None, reverse: bool, pin_now: Callable[[], Pin | None]
    ) -> Iterator[tuple[bytes, bytes]]:
        piece = _PIECE_ROWS_FIRST
        while True:
            self.check_open()
            with self._lock:
                pin = pin_now()
                if reverse:
                    keys = table.index.descending(start, end, piece)
                else:
                    keys = table.index.ascending(start, end, piece)
                rows = [(key, _see(table, key, pin)) for key in keys]
            for key, row in rows:
                if row is not None:
                    yield key, row
            if len(keys) < piece:
                return
            if reverse:
                end = keys[-1]
            else:
                start = keys[-1] + b"\x00"
            piece = min(2 * piece, _PIECE_ROWS_MAX)

    # ---------------------------------------------------------------- snapshots

    def pin(self) -> Pin:
        """Open a snapshot of the newest whole commit."""
        self.check_open()
        with self._lock:
            newest = self._newest_pin
            if newest is not None and newest.commit == self._commit:
                newest.open += 1
                return newest
            pin = self._newest_pin = Pin(self._commit, newest)
            if newest is not None:
                newest.newer = pin
            return pin

    def unpin(self, pin: Pin) -> None:
        """Close one snapshot; the last one of its pin hands the notes on."""
        with self._lock:
            pin.open -= 1
            if pin.open:
                return
            older, newer = pin.older, pin.newer
            if newer is not None:
                newer.older = older
            else:
                self._newest_pin = older
            if older is not None:
                older.newer = newer
                _hand_over(pin.notes, older.notes)
            else:
                self._lay_ghosts(pin)

    def pins_open(self) -> int:
        with self._lock:
            count, pin = 0, self._newest_pin
            while pin is not None:
                count, pin = count + pin.open, pin.older
            return count

    def _lay_ghosts(self, oldest: Pin) -> None:
        """The oldest pin is gone: ghosts that only it could see leave the index."""
        for name, notes in oldest.notes.items():
            table = self._tables[name]
            for key in notes.keys() & table.ghosts:
                pin = oldest.newer
                while pin is not None and pin.notes.get(name, {}).get(key) is None:
                    pin = pin.newer
                if pin is None:
                    table.ghosts.remove(key)
                    table.index.remove(key)

    # ---------------------------------------------------------------- writing

    def begin_write(self) -> None:
        self.check_open()
        with self._lock:
            if self._writing:
                raise StorageError("memory: a write transaction is open already: commit or close it first")
            self._writing = True

    def end_write(self) -> None:
        self._writing = False

    def apply(self, changed: Mapping[str, _Rows]) -> None:
        """Commit. A pin on the state before keeps half of a commit from being seen, so the lock need not."""
        before = self.pin()
        try:
            for name, rows in changed.items():
                pending = iter(rows.items())
                while piece := list(islice(pending, _PIECE_ROWS_MAX)):
                    with self._lock:
                        self._replace(name, piece)
            with self._lock:
                self._commit += 1
        finally:
            self.unpin(before)

    def _replace(self, name: str, piece: list[tuple[bytes, bytes | None]]) -> None:
        table = self._tables[name]
        rows, index, ghosts = table.rows, table.index, table.ghosts
        assert self._newest_pin is not None  # `apply` holds one
        notes = self._newest_pin.notes.setdefault(name, {})
        grown = 0
        for key, row in piece:
            old = rows.get(key)
            if key not in notes:
                notes[key] = old
            if old is not None:
                grown -= len(key) + len(old) + ROW_COST_BYTES
            if row is None:
                if old is not None:
                    del rows[key]
                    ghosts.add(key)
                continue
            rows[key] = row
            grown += len(key) + len(row) + ROW_COST_BYTES
            if old is None:
                if key in ghosts:
                    ghosts.remove(key)
                else:
                    index.add(key)
        self.used_bytes += grown

    # ---------------------------------------------------------------- life

    def row_count(self) -> int:
        return sum(len(table.rows) for table in self._tables.values())

    def check_table(self, name: str) -> None:
        self._tables[name]

    def check_open(self) -> None:
        if self._closed or self._life.ended:
            raise StorageError("memory: the storage was closed: open it again")

    def check_no_writer(self, wish: str) -> None:
        if self._writing:
            raise StorageError(f"memory: a write transaction is open: commit or close it, then {wish}")

    def close(self) -> None:
        self._closed = True
        self._tables = {name: _Table(name) for name in TABLES}


def _see(table: _Table, key: bytes, pin: Pin | None) -> bytes | None:
    while pin is not None:
        notes = pin.notes.get(table.name)
        if notes is not None and key in notes:
            return notes[key]
        pin = pin.newer
    return table.rows.get(key)


def _hand_over(notes: dict[str, _Rows], older: dict[str, _Rows]) -> None:
    """Give a closing pin's notes to the next older pin, whose own state of a key counts."""
    for name, rows in notes.items():
        mine = older.get(name)
        if mine is None:
            older[name] = rows
        elif len(mine) < len(rows):
            rows.update(mine)
            older[name] = rows
        else:
            for key, row in rows.items():
                mine.setdefault(key, row)
