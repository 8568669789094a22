"""Read and write transactions on one LMDB environment, with the core's limits and errors.

py-lmdb releases the GIL around each call, so each costs a chance to lose it to a busy thread: rows go in by
`putmulti`, which at least makes no Python frame between two of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Final, Protocol

import lmdb

from raftkv_core.errors import StorageError, StorageFull
from raftkv_core.interfaces.storage import ReadTransaction, WriteTransaction
from raftkv_core.limits import ROW_BYTES_MAX, TABLE_KEY_BYTES_MAX
from raftkv_storage_lmdb.environment import translated

if TYPE_CHECKING:
    from lmdb import Cursor, Transaction, _Database

    Tables = Mapping[str, _Database]

__all__ = ["LmdbRead", "LmdbWrite", "Owner"]

_ROW_COST_BYTES: Final = 16
"""A node header and its slot in the page."""

_Rows = Iterator[tuple[bytes, bytes]]


class Owner(Protocol):
    """What a transaction asks of the store that it belongs to."""

    def end_read(self, read: LmdbRead) -> None: ...

    def end_write(self) -> None: ...

    def renewed(self, read: LmdbRead, failed: Transaction[bytes]) -> bool: ...

    def commit_failure(self, error: lmdb.Error) -> StorageError: ...


class LmdbRead(ReadTransaction):
    """A snapshot. The store may replace the LMDB transaction under it when the map grows (`Store.grow`): a call
    that fails for that reason is made again on the new one, which sees the same commit."""

    __slots__ = ("_owner", "_tables", "ended", "txn")

    def __init__(self, owner: Owner, txn: Transaction[bytes], tables: Tables) -> None:
        self._owner = owner
        self._tables = tables
        self.txn = txn
        self.ended = ""
        """Why, once it has."""

    def get(self, table: str, key: bytes) -> bytes | None:
        db = self._tables[table]
        txn = self.txn
        try:
            return txn.get(key, None, db)
        except lmdb.Error as error:
            self._check(txn, error)
            return self.get(table, key)

    def scan(
        self,
        table: str,
        start: bytes = b"",
        end: bytes | None = None,
        *,
        reverse: bool = False,
        limit: int | None = None,
    ) -> _Rows:
        rows = self._scan(self._tables[table], start, end, reverse)
        return rows if limit is None else islice(rows, limit)

    def _scan(self, db: _Database, start: bytes, end: bytes | None, reverse: bool) -> _Rows:
        while True:
            txn = self.txn
            try:
                for row in _walk(txn.cursor(db), start, end, reverse):
                    yield row
                    if reverse:
                        end = row[0]
                    else:
                        start = row[0] + b"\x00"
                return
            except lmdb.Error as error:
                self._check(txn, error)

    def close(self) -> None:
        if not self.ended:
            self._owner.end_read(self)

    def _check(self, txn: Transaction[bytes], error: lmdb.Error) -> None:
        """Returns if the call may be made again."""
        if not self._owner.renewed(self, txn):
            if self.ended:
                raise StorageError(f"lmdb: this read transaction {self.ended}: begin another") from error
            raise translated(error, "reading") from error


class LmdbWrite(WriteTransaction):
    """The one write transaction. It belongs to the thread that began it: LMDB's writer lock does.

    room_bytes: what puts may still take; None for no check.
    """

    def __init__(self, owner: Owner, txn: Transaction[bytes], tables: Tables, room_bytes: int | None) -> None:
        self._owner = owner
        self._txn = txn
        self._tables = tables
        self._room_bytes = room_bytes
        self._ended = False
        self._broken: StorageError | None = None

    def get(self, table: str, key: bytes) -> bytes | None:
        db = self._tables[table]
        try:
            return self._txn.get(key, None, db)
        except lmdb.Error as error:
            raise self._failure(error, "reading") from error

    def scan(
        self,
        table: str,
        start: bytes = b"",
        end: bytes | None = None,
        *,
        reverse: bool = False,
        limit: int | None = None,
    ) -> _Rows:
        rows = self._scan(self._tables[table], start, end, reverse)
        return rows if limit is None else islice(rows, limit)

    def _scan(self, db: _Database, start: bytes, end: bytes | None, reverse: bool) -> _Rows:
        try:
            yield from _walk(self._txn.cursor(db), start, end, reverse)
        except lmdb.Error as error:
            raise self._failure(error, "reading") from error

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self.put_many(table, ((key, value),))

    def put_many(self, table: str, rows: Iterable[tuple[bytes, bytes]]) -> None:
        db = self._tables[table]
        rows = [(key, value) for key, value in rows]  # LMDB takes exact tuples only
        self._admit(table, rows)
        try:
            with self._txn.cursor(db) as cursor:
                cursor.putmulti(rows)
        except lmdb.Error as error:
            raise self._break(self._failure(error, f"writing to table {table}")) from error

    def delete(self, table: str, key: bytes) -> bool:
        db = self._tables[table]
        try:
            return self._txn.delete(key, b"", db)
        except lmdb.Error as error:
            raise self._break(self._failure(error, f"deleting from table {table}")) from error

    def delete_many(self, table: str, keys: Iterable[bytes]) -> None:
        db = self._tables[table]
        delete = self._txn.delete
        try:
            for key in keys:
                delete(key, b"", db)
        except lmdb.Error as error:
            raise self._break(self._failure(error, f"deleting from table {table}")) from error

    def commit(self) -> None:
        if self._ended:
            raise self._ended_error()
        if self._broken is not None:
            self.close()
            raise StorageError(f"lmdb: not committed, because an earlier write failed: {self._broken}")
        try:
            self._txn.commit()
        except lmdb.Error as error:
            raise self._owner.commit_failure(error) from error
        finally:
            self._ended = True
            self._owner.end_write()

    def close(self) -> None:
        if not self._ended:
            self._ended = True
            self._txn.abort()
            self._owner.end_write()

    def _admit(self, table: str, rows: list[tuple[bytes, bytes]]) -> None:
        """Refuse what breaks the format's limits, or would eat into the reserve."""
        if not rows:
            return
        key_sizes = [len(key) for key, _value in rows]
        value_sizes = [len(value) for _key, value in rows]
        if not 1 <= min(key_sizes) <= max(key_sizes) <= TABLE_KEY_BYTES_MAX:
            raise self._break(
                StorageError(f"lmdb: a key for table {table} is empty or longer than {TABLE_KEY_BYTES_MAX} bytes")
            )
        if max(value_sizes) > ROW_BYTES_MAX:
            raise self._break(StorageError(f"lmdb: a row for table {table} is longer than {ROW_BYTES_MAX} bytes"))
        if self._room_bytes is not None:
            self._room_bytes -= sum(key_sizes) + sum(value_sizes) + _ROW_COST_BYTES * len(rows)
            if self._room_bytes < 0:
                raise self._break(
                    StorageFull(
                        "lmdb: no room but the reserve: delete rows, free space on the file system, or raise"
                        " [storage.lmdb] size_max if it is set"
                    )
                )

    def _break(self, error: StorageError) -> StorageError:
        self._broken = error
        return error

    def _failure(self, error: lmdb.Error, operation: str) -> StorageError:
        return self._ended_error() if self._ended else translated(error, operation)

    def _ended_error(self) -> StorageError:
        return StorageError("lmdb: this write transaction has ended: begin another")


def _walk(cursor: Cursor[bytes], start: bytes, end: bytes | None, reverse: bool) -> _Rows:
    with cursor:
        if end is not None and end <= start:
            return
        if not reverse:
            if _seek(cursor, start):
                for row in cursor.iternext():
                    if end is not None and row[0] >= end:
                        return
                    yield row
            return
        if cursor.prev() if end is not None and _seek(cursor, end) else cursor.last():
            for row in cursor.iterprev():
                if row[0] < start:
                    return
                yield row


def _seek(cursor: Cursor[bytes], bound: bytes) -> bool:
    """Stand on the first key >= bound, if there is one. LMDB refuses to look for a bound longer than a key."""
    if len(bound) <= TABLE_KEY_BYTES_MAX:
        return cursor.set_range(bound)
    longest = bound[:TABLE_KEY_BYTES_MAX]
    if not cursor.set_range(longest):
        return False
    return cursor.next() if cursor.key() == longest else True
