"""The few file operations that the log needs, so that a simulated disk can stand in for the real one.

`raftkv_core.testing.disk.SimDisk` is the other implementation. Every method blocks and raises OSError.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

__all__ = ["Disk", "DiskFile", "RealDisk"]


class DiskFile(Protocol):
    """An open file. Reads may run in one thread while another writes elsewhere in the file."""

    def size(self) -> int: ...

    def written(self) -> int:
        """Below this, every block was written before, so that writing it again is cheap to sync."""

    def read(self, offset: int, size: int) -> bytes:
        """What is there; fewer bytes only at the end of the file."""

    def write(self, offset: int, data: bytes | bytearray, *, sync: bool) -> None:
        """All of it. With `sync` it survives power loss when this returns; never retried when it fails."""

    def allocate(self, size: int) -> None:
        """Make the file at least so large, reading as zeros, so that writing below needs no more room."""

    def sync(self) -> None:
        """Return when everything written before survives power loss."""

    def close(self) -> None:
        """Closing twice is allowed."""


class Disk(Protocol):
    """A file system. Names made, moved or removed are durable once `sync_directory` returned."""

    def make_directory(self, path: Path) -> None:
        """Durable when it returns; nothing happens if it is there."""

    def names(self, directory: Path) -> list[str]: ...

    def open(self, path: Path, *, create: bool = False) -> DiskFile:
        """For reading and writing. `create` makes an empty file, in place of one of that name."""

    def rename(self, old: Path, new: Path) -> None:
        """Atomic; replaces `new`. A file that is open stays open."""

    def remove(self, path: Path) -> None:
        """A file that is not there is no error."""

    def sync_directory(self, path: Path) -> None: ...


class _RealFile:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def written(self) -> int:
        try:
            return os.lseek(self._descriptor, 0, os.SEEK_HOLE)
        except OSError:  # an empty file, or a file system that does not say
            return 0

    def read(self, offset: int, size: int) -> bytes:
        data = os.pread(self._descriptor, size, offset)
        if len(data) in (0, size):
            return data
        pieces = [data]
        got = len(data)
        while got < size and (data := os.pread(self._descriptor, size - got, offset + got)):
            pieces.append(data)
            got += len(data)
        return b"".join(pieces)

    def write(self, offset: int, data: bytes | bytearray, *, sync: bool) -> None:
        # RWF_DSYNC would do both in one call, but was no faster when measured, under a busy loop included,
        # and not every file system honours it.
        with memoryview(data) as view:
            done = 0
            while done < len(view):
                done += os.pwrite(self._descriptor, view[done:], offset + done)
        if sync:
            os.fdatasync(self._descriptor)

    def allocate(self, size: int) -> None:
        os.posix_fallocate(self._descriptor, 0, size)

    def sync(self) -> None:
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class RealDisk:
    """The operating system's files, readable by their owner only."""

    def make_directory(self, path: Path) -> None:
        if path.is_dir():
            return
        if not path.parent.is_dir():
            self.make_directory(path.parent)
        path.mkdir(mode=0o700)
        self.sync_directory(path.parent)

    def names(self, directory: Path) -> list[str]:
        return sorted(os.listdir(directory))  # noqa: PTH208 - names, not paths

    def open(self, path: Path, *, create: bool = False) -> DiskFile:
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_TRUNC if create else 0)
        return _RealFile(os.open(path, flags, 0o600))

    def rename(self, old: Path, new: Path) -> None:
        old.replace(new)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def sync_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
