"""Opening LMDB environments, and LMDB's errors in the core's words.

The map is address space, not disk or memory: a data file grows as it is written. It is therefore made huge from
the start, because growing it later means unmapping it under every transaction of the process. Where the address
space is small (a 39-bit kernel, `ulimit -v`) or the file system's files are, the system refuses, and half as
much is tried.
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import lmdb

from raftkv_core.errors import StorageError, StorageFull
from raftkv_core.interfaces.storage import TABLES
from raftkv_storage_lmdb.plugin import LmdbSettings

__all__ = ["DATA_NAME", "LOCK_NAME", "guarded", "map_can_be", "open_environment", "translated"]

DATA_NAME: Final = "data.mdb"
LOCK_NAME: Final = "lock.mdb"

_LIB_VERSIONS: Final = {"0.9": 0, "1.0": 1}
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
_TOO_LARGE_FOR_THE_SYSTEM: Final = (errno.ENOMEM, errno.EOVERFLOW, errno.EFBIG)


def open_environment(
    folder: Path, settings: LmdbSettings, *, readonly: bool = False, sync: bool = True
) -> lmdb.Environment:
    """The environment in `folder`, which must be there. Raises StorageError.

    sync=False is for a store that nothing refers to yet: it is synced once, when it is full. Until then a crash
    leaves it unusable.
    """
    map_size = _map_size(folder, settings)
    while True:
        try:
            return lmdb.open(
                str(folder),
                map_size=map_size,
                readonly=readonly,
                create=False,
                mode=0o600,
                sync=sync,
                metasync=settings.metasync,
                max_readers=settings.max_readers,
                max_dbs=len(TABLES),
                max_spare_txns=1,
                lib_version=_LIB_VERSIONS[settings.engine],
            )
        except lmdb.Error as error:
            if error.code not in _TOO_LARGE_FOR_THE_SYSTEM or map_size // 2 < _file_bytes(folder) + (1 << 20):
                raise translated(error, f"opening {folder}") from error
        map_size //= 2


def map_can_be(size: int) -> bool:
    """Whether the process has that much address space left.

    Asked before a map is grown, because LMDB gives up the old map first: a refusal would leave it with none.
    """
    try:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0).close()
    except OSError:
        return False
    return True


@contextmanager
def guarded(operation: str) -> Iterator[None]:
    """LMDB's and the system's errors within leave as the core's."""
    try:
        yield
    except lmdb.Error as error:
        raise translated(error, operation) from error
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise StorageFull(f"lmdb: {operation}: the file system is full: free space on it") from error
        raise StorageError(f"lmdb: {operation} failed: {error}") from error


def translated(error: lmdb.Error, operation: str) -> StorageError:
    """LMDB's error as the core's, with the remedy."""
    if isinstance(error, lmdb.MapFullError):
        return StorageFull(
            f"lmdb: {operation}: the data file has reached its size limit: raise [storage.lmdb] size_max"
            " (or map_size, where the system could not enlarge the map)"
        )
    if error.code in _NO_SPACE:
        return StorageFull(f"lmdb: {operation}: the file system is full: free space on it")
    if isinstance(error, lmdb.ReadersFullError):
        return StorageError(f"lmdb: {operation}: too many readers at one time: raise [storage.lmdb] max_readers")
    if isinstance(error, (lmdb.InvalidError, lmdb.VersionMismatchError)):
        return StorageError(
            f"lmdb: {operation}: the file is damaged or of another LMDB version"
            f" ([storage.lmdb] engine says which is expected): {error}"
        )
    return StorageError(f"lmdb: {operation} failed: {error}")


def _map_size(folder: Path, settings: LmdbSettings) -> int:
    """At least twice the file, so that a store never begins with a full map; never above `size_max`."""
    size = settings.map_size
    while size < 2 * _file_bytes(folder):
        size *= 2
    return min(size, settings.size_max) if settings.size_max else size


def _file_bytes(folder: Path) -> int:
    try:
        return (folder / DATA_NAME).stat().st_size
    except FileNotFoundError:
        return 0
