"""Readers of one process share an environment, because LMDB cannot open a file twice in one process.

A worker does that when it is told to reopen while one of its threads still reads: what it opens then may be the
same generation again.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from raftkv_storage_lmdb.environment import DATA_NAME, guarded
from raftkv_storage_lmdb.plugin import LmdbSettings
from raftkv_storage_lmdb.store import Store

__all__ = ["SharedStore"]

_Key = tuple[int, int, int]

_lock = threading.Lock()
_open: dict[_Key, tuple[Store, int]] = {}
"""By process (a fork inherits the table, but must not use what is in it) and data file: users of each store."""


class SharedStore:
    """One user of the store in `folder`. The last one of a process to close it closes the environment.

    Raises StorageError.
    """

    def __init__(self, folder: Path, settings: LmdbSettings) -> None:
        with guarded(f"opening {folder}"), _lock:
            found = (folder / DATA_NAME).stat()
            self._key: _Key | None = (os.getpid(), found.st_dev, found.st_ino)
            store, users = _open.get(self._key) or (Store(folder, settings, readonly=True), 0)
            _open[self._key] = store, users + 1
        self.store = store

    def close(self) -> None:
        with _lock:
            if self._key is None:
                return
            key, self._key = self._key, None
            store, users = _open.pop(key)
            if users > 1:
                _open[key] = store, users - 1
            else:
                store.close()

    @property
    def closed(self) -> bool:
        return self._key is None
