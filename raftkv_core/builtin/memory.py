"""The memory engine: tables in dictionaries, for tests, caches and machines without a disk worth waiting for.

Nothing survives the process; under the log that is still safe, because the core then keeps the snapshot stream
in a synced file and replays the log on top of it. It is also the smallest complete engine, so read it as the
example: `memory_tables.py` holds the rows and the snapshots, this file the interface around them.

Limits are those of the format. `space` reports what the kernel, or the container's memory limit, still grants:
a full machine must refuse growth before the kernel kills the node.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from heapq import merge
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from raftkv_core.builtin.memory_tables import Life, MemoryTables, Pin
from raftkv_core.errors import StorageError
from raftkv_core.interfaces.storage import ReadTransaction, Restore, Space, Storage, WriteTransaction
from raftkv_core.limits import ROW_BYTES_MAX, TABLE_KEY_BYTES_MAX

__all__ = ["MemoryStorage"]

_CGROUP: Final = Path("/sys/fs/cgroup")
_MEMINFO: Final = Path("/proc/meminfo")


class MemoryStorage(Storage):
    """See the module. Neither `durable` nor with `shared_readers`; it has no settings, and writes no file."""

    def __init__(self, directory: Path, settings: Any) -> None:
        del directory, settings  # no file is written, and there is nothing to set
        self._life = Life()
        self._tables = MemoryTables(self._life)
        self._restore: _MemoryRestore | None = None
        self._generation = 1

    @property
    def generation(self) -> int:
        return self._generation

    def read(self) -> ReadTransaction:
        return _MemoryRead(self._tables)

    def write(self) -> WriteTransaction:
        return _MemoryWrite(self._tables)

    def sync(self) -> None:
        """Nothing here survives power loss; the capability `durable` is not claimed."""
        self._tables.check_open()

    def begin_restore(self) -> Restore:
        self._tables.check_open()
        if self._restore is not None:
            self._restore.discard()
        self._restore = _MemoryRestore(self)
        return self._restore

    def space(self) -> Space:
        return Space(used_bytes=self._tables.used_bytes, free_bytes=_memory_free_bytes())

    def figures(self) -> dict[str, int | float]:
        return {"rows": self._tables.row_count(), "snapshots_open": self._tables.pins_open()}

    def close(self) -> None:
        self._life.ended = True
        self._tables.close()
        if self._restore is not None:
            self._restore.discard()

    def _switch(self, tables: MemoryTables) -> None:
        """Snapshots of the old tables keep them alive, and only they."""
        self._tables, self._restore = tables, None
        self._generation += 1


class _MemoryRestore(Restore):
    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage
        self._tables = MemoryTables(storage._life)
        self._activated = False

    def write(self) -> WriteTransaction:
        return _MemoryWrite(self._filling())

    def read(self) -> ReadTransaction:
        return _MemoryRead(self._filling())

    def activate(self) -> None:
        tables = self._filling()
        tables.check_no_writer("activate the restored store")
        self._activated = True
        self._storage._switch(tables)

    def discard(self) -> None:
        if not self._activated:
            self._tables.close()

    def _filling(self) -> MemoryTables:
        if self._activated:
            raise StorageError("memory: the restored store is the live one now: use the storage itself")
        self._tables.check_open()
        return self._tables


class _MemoryRead(ReadTransaction):
    """A snapshot: the tables of now, seen through what later commits replaced (see `memory_tables`)."""

    __slots__ = ("_pin", "_tables")

    def __init__(self, tables: MemoryTables) -> None:
        self._tables = tables
        self._pin: Pin | None = tables.pin()

    def get(self, table: str, key: bytes) -> bytes | None:
        _check_key(key)
        return self._tables.get(table, key, self._pinned())

    def scan(
        self,
        table: str,
        start: bytes = b"",
        end: bytes | None = None,
        *,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, bytes]]:
        rows = self._tables.scan(table, start, end, reverse, self._pinned)
        return rows if limit is None else islice(rows, limit)

    def close(self) -> None:
        if self._pin is not None:
            pin, self._pin = self._pin, None
            self._tables.unpin(pin)

    def _pinned(self) -> Pin:
        if self._pin is None:
            raise StorageError("memory: this read transaction was closed: begin another")
        return self._pin


class _MemoryWrite(WriteTransaction):
    """Changes are kept aside (None: deleted) until the commit."""

    def __init__(self, tables: MemoryTables) -> None:
        tables.begin_write()
        self._tables = tables
        self._open = True
        self._changed: dict[str, dict[bytes, bytes | None]] = {}

    def get(self, table: str, key: bytes) -> bytes | None:
        self._check_open()
        _check_key(key)
        changed = self._changed.get(table)
        if changed is not None and key in changed:
            return changed[key]
        return self._tables.get(table, key, None)

    def scan(
        self,
        table: str,
        start: bytes = b"",
        end: bytes | None = None,
        *,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, bytes]]:
        self._check_open()
        rows = self._tables.scan(table, start, end, reverse, self._newest)
        changed = self._changed.get(table)
        if changed:
            pending = sorted(
                (
                    (key, row)
                    for key, row in changed.items()
                    if row is not None and key >= start and (end is None or key < end)
                ),
                reverse=reverse,
            )
            kept = (row for row in rows if row[0] not in changed)
            rows = merge(kept, pending, key=itemgetter(0), reverse=reverse)
        return rows if limit is None else islice(rows, limit)

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self.put_many(table, ((key, value),))

    def put_many(self, table: str, rows: Iterable[tuple[bytes, bytes]]) -> None:
        added = dict(rows)
        _check_keys(added)
        if added and max(map(len, added.values())) > ROW_BYTES_MAX:
            raise StorageError(f"memory: a row of table {table} is longer than {ROW_BYTES_MAX} bytes: store less")
        self._rows_of(table).update(added)

    def delete(self, table: str, key: bytes) -> bool:
        there = self.get(table, key) is not None
        self._rows_of(table)[key] = None
        return there

    def delete_many(self, table: str, keys: Iterable[bytes]) -> None:
        removed: dict[bytes, bytes | None] = dict.fromkeys(keys)
        _check_keys(removed)
        self._rows_of(table).update(removed)

    def commit(self) -> None:
        self._check_open()
        try:
            self._tables.apply(self._changed)
        finally:
            self.close()

    def close(self) -> None:
        if self._open:
            self._open = False
            self._tables.end_write()

    def _rows_of(self, table: str) -> dict[bytes, bytes | None]:
        self._check_open()
        rows = self._changed.get(table)
        if rows is None:
            self._tables.check_table(table)
            rows = self._changed[table] = {}
        return rows

    def _newest(self) -> None:
        """There is one writer, so the newest rows stay as they are while its transaction is open."""
        self._check_open()

    def _check_open(self) -> None:
        if not self._open:
            raise StorageError("memory: this write transaction has ended: begin another")
        self._tables.check_open()


def _check_key(key: bytes) -> None:
    if not 1 <= len(key) <= TABLE_KEY_BYTES_MAX:
        raise StorageError(f"memory: a table key has 1 to {TABLE_KEY_BYTES_MAX} bytes, this one {len(key)}")


def _check_keys(keys: Collection[bytes]) -> None:
    if keys and not 1 <= min(map(len, keys)) <= max(map(len, keys)) <= TABLE_KEY_BYTES_MAX:
        for key in keys:
            _check_key(key)


def _memory_free_bytes() -> int:
    """What the kernel says can be had without swapping, or what the container's limit leaves, if that is less."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _MEMINFO.read_text(), re.MULTILINE)
    free = int(found[1]) << 10 if found else 0
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        current = int((_CGROUP / "memory.current").read_text())
        cache = re.search(r"^inactive_file (\d+)", (_CGROUP / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):  # no such control group, or "max": no limit
        return free
    return min(free, max(0, limit - current + (int(cache[1]) if cache else 0)))
