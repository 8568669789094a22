"""The storage engine `lmdb`: for the node `LmdbStorage`, for other processes `LmdbReader`.

What a crash leaves
- The process dies (kill -9, out of memory): every commit that returned is there. The operating system has it.
- The power fails, `metasync = true`: the same. A commit is one sync of the data and one synced write of the page
  that names the newest commit.
- The power fails, `metasync = false` (the default): all but, perhaps, the newest commit that returned. That page
  is written unsynced, and reaches the disk with the next commit's sync at the latest; pages that the commit
  before needs are not reused until then, so the store is whole either way. The log replays what is missing,
  because it is never trimmed past what storage holds durably.
- After `sync()` nothing that was committed before is lost, in either mode.
- A commit that fails halfway never happened: the page that would name it was not written.

One thread writes. Read transactions may be many, in any thread and process; each holds the pages of its snapshot,
so the file grows while an old one stays open under writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from raftkv_core.errors import StorageError
from raftkv_core.interfaces.storage import (
    ReadTransaction,
    Restore,
    Space,
    Storage,
    StorageReader,
    WriteTransaction,
)
from raftkv_storage_lmdb.environment import DATA_NAME, LOCK_NAME, guarded
from raftkv_storage_lmdb.generations import Current, Generations, read_current
from raftkv_storage_lmdb.plugin import LmdbSettings
from raftkv_storage_lmdb.sharing import SharedStore
from raftkv_storage_lmdb.space import Pages, Reserve, file_system_free_bytes
from raftkv_storage_lmdb.store import Store

__all__ = ["LmdbReader", "LmdbStorage"]


class LmdbStorage(Storage):
    """The writer's engine. See the module for what a crash leaves, `LmdbSettings` for the settings."""

    def __init__(self, directory: Path, settings: LmdbSettings) -> None:
        self.commits_at_risk = 0 if settings.metasync else 1
        self._directory = directory
        self._settings = settings
        self._restore: _LmdbRestore | None = None
        self._retired: list[Store] = []
        with guarded(f"opening {directory}"):
            self._generations = Generations(directory)
            self._current = self._find() or self._create()
            self._store = Store(self._current.folder(directory), settings)
            self._generations.tidy(self._current.generation)
            self._reserve = Reserve(directory / "reserve", settings.reserve_bytes)
            self._reserve.hold()

    def _find(self) -> Current | None:
        current = self._generations.current()
        if current is None:
            orphan = self._generations.orphan()
            if orphan is None:
                return None
            current = Current(engine=self._settings.engine, generation=orphan)
            Store(current.folder(self._directory), self._settings).close()  # it can be read
            self._generations.switch(current)
        _check_engine(current, self._directory, self._settings)
        return current

    def _create(self) -> Current:
        store = Store(self._generations.begin(), self._settings, create=True, sync=False)
        store.sync()
        store.close()
        current = Current(engine=self._settings.engine, generation=1)
        self._generations.finish(current.generation)
        self._generations.switch(current)
        return current

    @classmethod
    def open_reader(cls, directory: Path, settings: LmdbSettings) -> LmdbReader:
        return LmdbReader(directory, settings)

    @property
    def generation(self) -> int:
        return self._current.generation

    # ---------------------------------------------------------------- transactions

    def read(self) -> ReadTransaction:
        while True:
            store = self._store
            try:
                return store.read()
            except StorageError:
                if store is self._store:  # else another thread activated a new one just now
                    raise

    def write(self) -> WriteTransaction:
        self._close_retired()
        return self._store.write(self._room_bytes)

    def sync(self) -> None:
        self._store.sync()

    # ---------------------------------------------------------------- restore

    def begin_restore(self) -> Restore:
        if self._restore is not None:
            self._restore.discard()
        self._restore = _LmdbRestore(self)
        return self._restore

    # ---------------------------------------------------------------- space

    def space(self) -> Space:
        pages = self._store.pages()
        return Space(
            used_bytes=pages.used * pages.size_bytes,
            free_bytes=self._free_bytes(pages),
            reserve_bytes=self._reserve.size_bytes if self._reserve.held else 0,
        )

    def release_reserve(self) -> None:
        with guarded("releasing the reserve"):
            self._reserve.release()

    def restore_reserve(self) -> None:
        with guarded("holding the reserve"):
            self._reserve.hold()

    def _free_bytes(self, pages: Pages) -> int:
        growth = file_system_free_bytes(self._directory)
        limit = self._store.limit_bytes
        if limit is not None:
            growth = min(growth, max(0, limit - pages.end_bytes))
        return pages.free * pages.size_bytes + growth

    def _room_bytes(self, pages: Pages) -> int | None:
        return self._free_bytes(pages) - self._reserve.size_bytes if self._reserve.held else None

    # ---------------------------------------------------------------- life

    def maintain(self) -> None:
        self._close_retired()
        self._store.check_readers()

    def figures(self) -> dict[str, int | float]:
        return {
            **self._store.figures(),
            "generation": self.generation,
            "generations_retired": len(self._retired),
            "reserve_bytes": self._reserve.size_bytes if self._reserve.held else 0,
        }

    def close(self) -> None:
        if self._restore is not None:
            self._restore.discard()
        for store in [*self._retired, self._store]:
            store.close()
        self._retired.clear()

    def _close_retired(self) -> None:
        """In the writer's time, because giving back a large file takes some."""
        for store in self._retired:
            if not store.reads_open:
                store.close()
        self._retired = [store for store in self._retired if store.reads_open]


class _LmdbRestore(Restore):
    """Filled without a sync a commit: nothing refers to it, and `activate` syncs it once."""

    def __init__(self, storage: LmdbStorage) -> None:
        self._storage = storage
        with guarded("beginning a restore"):
            folder = storage._generations.begin()
            self._store: Store | None = Store(folder, storage._settings, create=True, sync=False)

    def write(self) -> WriteTransaction:
        return self._filling().write(self._storage._room_bytes)

    def read(self) -> ReadTransaction:
        return self._filling().read()

    def activate(self) -> None:
        storage = self._storage
        store = self._filling()
        store.sync()
        store.close()
        current = Current(engine=storage._settings.engine, generation=storage.generation + 1)
        with guarded("activating the restored store"):
            storage._generations.finish(current.generation)
            live = Store(current.folder(storage._directory), storage._settings)
            storage._generations.switch(current)
            storage._retired.append(storage._store)
            storage._store, storage._current, storage._restore = live, current, None
            self._store = None
            storage._generations.tidy(current.generation)
        storage._close_retired()

    def discard(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = self._storage._restore = None
            with guarded("discarding a restore"):
                self._storage._generations.discard()

    def _filling(self) -> Store:
        if self._store is None:
            raise StorageError("lmdb: this restore was activated or discarded: begin another")
        return self._store


class LmdbReader(StorageReader):
    """The store, read-only, from another process; `generation` says which, and never changes.

    It writes nothing but its slots in LMDB's table of readers (`lock.mdb`).
    """

    def __init__(self, directory: Path, settings: LmdbSettings) -> None:
        last: Current | None = None
        while True:
            current = read_current(directory)
            if current is None:
                raise StorageError(f"lmdb: there is no store in {directory} yet: start its node first")
            _check_engine(current, directory, settings)
            try:
                self._shared = _open_readonly(current.folder(directory), settings)
                break
            except StorageError:
                if current == last:
                    raise
            last = current  # the store may have been replaced between the two steps: look again
        self.generation: Final = current.generation

    def read(self) -> ReadTransaction:
        if self._shared.closed:
            raise StorageError("lmdb: this reader was closed: open another")
        return self._shared.store.read()

    def close(self) -> None:
        """Transactions end with the last reader that this process has of the same generation."""
        self._shared.close()


def _open_readonly(folder: Path, settings: LmdbSettings) -> SharedStore:
    for name in (LOCK_NAME, DATA_NAME):
        if not (folder / name).exists():  # LMDB would create it
            raise StorageError(f"lmdb: {folder / name} is missing: the store is damaged; replace this node")
    return SharedStore(folder, settings)


def _check_engine(current: Current, directory: Path, settings: LmdbSettings) -> None:
    if current.engine != settings.engine:
        raise StorageError(
            f"lmdb: the store in {directory} was made with [storage.lmdb] engine = '{current.engine}', the"
            f" configuration says '{settings.engine}': set it back, or migrate to a new directory"
        )
