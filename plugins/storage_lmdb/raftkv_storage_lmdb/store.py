"""One LMDB environment with the core's tables: what a generation is made of, for the writer and for readers.

It keeps track of its open read transactions, because two things need them: an old generation is closed only
after the last one, and to enlarge a map LMDB gives up every transaction of the process.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import lmdb

from raftkv_core.errors import StorageError, StorageFull
from raftkv_core.interfaces.storage import TABLES
from raftkv_storage_lmdb.environment import guarded, map_can_be, open_environment, translated
from raftkv_storage_lmdb.plugin import LmdbSettings
from raftkv_storage_lmdb.space import Pages, file_system_free_bytes, measure
from raftkv_storage_lmdb.transactions import LmdbRead, LmdbWrite

if TYPE_CHECKING:
    from lmdb import Transaction

__all__ = ["Store"]

_FULL_BYTES: Final = 1 << 20
"""A file system with less left is full, for one that cannot write a commit's pages."""


class Store:
    """Opens the store in `folder`, or with `create` makes its tables there. Raises StorageError."""

    def __init__(
        self,
        folder: Path,
        settings: LmdbSettings,
        *,
        create: bool = False,
        readonly: bool = False,
        sync: bool = True,
    ) -> None:
        self._folder = folder
        self._size_max = settings.size_max
        self._lock = threading.Lock()
        self._reads: set[LmdbRead] = set()
        self._writing = False
        self._closed = False
        self._map_fixed = False
        self._env = open_environment(folder, settings, readonly=readonly, sync=sync)
        try:
            with guarded(f"opening the tables in {folder}"):
                self._tables = {name: self._env.open_db(name.encode(), create=create) for name in TABLES}
        except StorageError:
            self._env.close()
            raise
        self._map_bytes = self._env.info()["map_size"]
        self._page_bytes = self._env.stat()["psize"]

    # ---------------------------------------------------------------- transactions

    def read(self) -> LmdbRead:
        with self._lock:
            self._check_open()
            try:
                read = LmdbRead(self, self._begin(), self._tables)
            except lmdb.Error as error:
                raise translated(error, "beginning a read transaction") from error
            self._reads.add(read)
            return read

    def end_read(self, read: LmdbRead) -> None:
        with self._lock:
            read.ended = read.ended or "was closed"
            self._reads.discard(read)
            read.txn.abort()

    def write(self, room_bytes: Callable[[Pages], int | None]) -> LmdbWrite:
        """`room_bytes` says what puts may take, from how full the store is; None for no limit."""
        with guarded("beginning a write transaction"):
            with self._lock:
                self._check_open()
                if self._writing:
                    raise StorageError("lmdb: a write transaction is open already: commit or close it first")
                self._grow_if_nearly_full()
                self._writing = True
            txn: Transaction[bytes] | None = None
            try:
                txn = self._env.begin(write=True)
                room = room_bytes(measure(self._env, txn, self._tables.values()))
            except (lmdb.Error, OSError):
                if txn is not None:
                    txn.abort()
                self._writing = False
                raise
        return LmdbWrite(self, txn, self._tables, room)

    def end_write(self) -> None:
        self._writing = False

    def commit_failure(self, error: lmdb.Error) -> StorageError:
        """LMDB calls it an I/O error when the last pages fitted only in part."""
        with suppress(OSError):
            if error.code == errno.EIO and file_system_free_bytes(self._folder) < _FULL_BYTES:
                return StorageFull(f"lmdb: committing: the file system of {self._folder} is full: free space on it")
        return translated(error, "committing")

    def sync(self) -> None:
        with guarded("syncing"):
            self._env.sync(True)

    # ---------------------------------------------------------------- the map

    def renewed(self, read: LmdbRead, failed: Transaction[bytes]) -> bool:
        """Whether `failed` was replaced under `read`, so that the call may be made again."""
        with self._lock:
            return not read.ended and read.txn is not failed

    def _begin(self) -> Transaction[bytes]:
        try:
            return self._env.begin()
        except lmdb.MapResizedError:  # the writer, in its process, enlarged the map
            self._remap(0)
        except lmdb.ReadersFullError:  # some may be of processes that died
            self._env.reader_check()
        return self._env.begin()

    def _grow_if_nearly_full(self) -> None:
        """Double the map when less than a quarter is left.

        Snapshots of the newest commit are taken over into the new map. One of an older commit cannot be, so it
        holds the growth up; when a sixteenth is left it is given up, because otherwise the writer would be.
        """
        info = self._env.info()
        left = self._map_bytes - (info["last_pgno"] + 1) * self._page_bytes
        if left >= self._map_bytes // 4 or self._map_fixed:
            return
        size = 2 * self._map_bytes
        if self._size_max:
            size = min(size, self._size_max)
        old_snapshots = any(read.txn.id() != info["last_txnid"] for read in self._reads)
        if old_snapshots and left >= self._map_bytes // 16:
            return
        if size > self._map_bytes and map_can_be(size):
            self._remap(size)
        else:
            self._map_fixed = True

    def _remap(self, size: int) -> None:
        """Map `size` bytes, or with 0 what the writer says. The lock is held."""
        snapshots = {read: read.txn.id() for read in self._reads}
        self._env.set_mapsize(size)
        self._map_bytes = self._env.info()["map_size"]
        for read, snapshot in snapshots.items():
            read.txn = self._env.begin()
            if read.txn.id() != snapshot:
                read.ended = "was given up, because the file's map had to be enlarged"
                read.txn.abort()
                self._reads.discard(read)

    # ---------------------------------------------------------------- what is so

    @property
    def limit_bytes(self) -> int | None:
        """Largest size of the file, if something other than the file system limits it."""
        return self._map_bytes if self._map_fixed else self._size_max or None

    @property
    def reads_open(self) -> int:
        return len(self._reads)

    def pages(self) -> Pages:
        with guarded("asking for its size"), self._lock:
            self._check_open()
            txn = self._begin()
            try:
                return measure(self._env, txn, self._tables.values())
            finally:
                txn.abort()

    def check_readers(self) -> int:
        """Free what readers left behind that died; says how many there were."""
        with guarded("checking its readers"):
            return self._env.reader_check()

    def figures(self) -> dict[str, int | float]:
        pages = self.pages()
        with guarded("asking for its figures"):
            info = self._env.info()
            slots = self._env.readers()
        return {
            "commits": info["last_txnid"],
            "depth": pages.depth,
            "file_bytes": pages.end_bytes,
            "map_bytes": self._map_bytes,
            "page_bytes": pages.size_bytes,
            "pages_free": pages.free,
            "pages_used": pages.used,
            "readers": max(0, len(slots.splitlines()) - 1),
            "readers_max": info["max_readers"],
            "rows": pages.rows,
            "snapshots_open": self.reads_open,
        }

    # ---------------------------------------------------------------- end

    def close(self) -> None:
        """A write transaction must be closed by its own thread first; this waits for it."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for read in self._reads:
                read.ended = "ended with its storage, which was closed"
            self._reads.clear()
        self._env.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StorageError("lmdb: the storage was closed: open it again")
