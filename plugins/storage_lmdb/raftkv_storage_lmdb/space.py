"""How full the store is, and the space that it holds back.

LMDB never gives pages back to the file system; it uses them again. So what can still be stored is the free pages
inside the file, and what the file can grow by: up to its size limit, or to what the file system has left.

The reserve is for the moment when that is used up although commands were acknowledged that are not yet stored.
It is two things at once: a preallocated file, because other users of the file system take what is not taken;
and the rule that puts are refused (`StorageFull`) while less than the reserve is free, so that deletes still find
pages to write to. `release` gives up both.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import lmdb

if TYPE_CHECKING:
    from lmdb import _Database

__all__ = ["Pages", "Reserve", "file_system_free_bytes", "measure"]


class Pages(NamedTuple):
    """Pages of one snapshot: `end` in the file, `used` of them by rows, the rest free (or held by old snapshots)."""

    size_bytes: int
    end: int
    used: int
    rows: int
    depth: int

    @property
    def free(self) -> int:
        return max(0, self.end - self.used)

    @property
    def end_bytes(self) -> int:
        return self.end * self.size_bytes


def measure(env: lmdb.Environment, txn: lmdb.Transaction[Any], tables: Iterable[_Database]) -> Pages:
    """A dozen look-ups in memory, no scan: about ten microseconds.

    LMDB's list of free pages cannot be asked for its size; it takes 8 bytes for each page on it.
    """
    stats = [txn.stat(), *(txn.stat(table) for table in tables)]
    size_bytes = stats[0]["psize"]
    end = env.info()["last_pgno"] + 1
    used = 2 + sum(stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"] for stat in stats)
    used += -(-max(0, end - used) * 8 // size_bytes)
    rows = sum(stat["entries"] for stat in stats[1:])
    return Pages(size_bytes, end, used, rows, max(stat["depth"] for stat in stats))


def file_system_free_bytes(directory: Path) -> int:
    """What an ordinary user may still write."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


class Reserve:
    """The preallocated file. A reserve of 0 bytes is never held."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self.size_bytes = size_bytes
        self.held = self._is_whole()

    def hold(self) -> None:
        """Take the space, if as much again is left for everything else."""
        if self.held or not self.size_bytes:
            return
        if file_system_free_bytes(self._path.parent) < 2 * self.size_bytes:
            return
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, self.size_bytes)
            self.held = True
        except OSError:  # another took the space meanwhile: there is no reserve, and `space` says so
            self._path.unlink()
        finally:
            os.close(descriptor)

    def release(self) -> None:
        """Give the space up."""
        self._path.unlink(missing_ok=True)
        self.held = False

    def _is_whole(self) -> bool:
        """A file of another size is of other settings, or of a crash while it was made."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        if 0 < found.st_size == self.size_bytes <= found.st_blocks * 512:
            return True
        self._path.unlink()
        return False
