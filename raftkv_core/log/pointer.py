"""The pointer file: which log the segments belong to, where it starts, and which history it is part of.

It is replaced as a whole (written beside, synced, renamed), so after a crash it is the old one or the new one.
That makes it the one moment at which a reset or a trim happens: segments below `first` are no longer part of
the log, whether or not they were removed yet, and segments salted with another log id are not frames.
"""

from __future__ import annotations

import struct
import threading
import zlib
from pathlib import Path
from typing import Final, NamedTuple

from raftkv_core.errors import DataDirectoryError, LogDamaged
from raftkv_core.log.disk import Disk

__all__ = ["ID_BYTES", "POINTER_NAME", "Pointer", "PointerFile"]

POINTER_NAME: Final = "pointer"
_NEW_NAME = "pointer.new"
_MAGIC = b"RKLP"
_FORMAT = 1
_LAYOUT = struct.Struct("<4sIHH16s16sQ")
_CRC_END = 8

ID_BYTES: Final = 16


class Pointer(NamedTuple):
    """`history_id` is b"" until a history begins; `first` is the number of the first segment of the log."""

    log_id: bytes
    history_id: bytes
    first: int


class PointerFile:
    """Reads and replaces the pointer. `update` may be called from any thread."""

    def __init__(self, disk: Disk, directory: Path, pointer: Pointer) -> None:
        self._disk = disk
        self._directory = directory
        self._pointer = pointer
        self._lock = threading.Lock()

    @classmethod
    def load(cls, disk: Disk, directory: Path) -> PointerFile | None:
        """The pointer of this directory, or None if there is none."""
        if POINTER_NAME not in disk.names(directory):
            return None
        path = directory / POINTER_NAME
        file = disk.open(path)
        try:
            data = file.read(0, file.size())
        finally:
            file.close()
        return cls(disk, directory, _decode(data, path))

    @classmethod
    def create(cls, disk: Disk, directory: Path, log_id: bytes, first: int) -> PointerFile:
        """Write the first pointer of a directory; durable when it returns."""
        pointer = cls(disk, directory, Pointer(log_id, b"", first))
        pointer.update()
        return pointer

    @property
    def value(self) -> Pointer:
        return self._pointer

    def update(
        self, *, log_id: bytes | None = None, history_id: bytes | None = None, first: int | None = None
    ) -> None:
        """Change what is given; durable when it returns, unchanged if it raises before the rename."""
        with self._lock:
            old = self._pointer
            new = Pointer(
                old.log_id if log_id is None else log_id,
                old.history_id if history_id is None else history_id,
                old.first if first is None else first,
            )
            temporary = self._directory / _NEW_NAME
            file = self._disk.open(temporary, create=True)
            try:
                file.write(0, _encode(new), sync=True)
            finally:
                file.close()
            self._disk.rename(temporary, self._directory / POINTER_NAME)
            self._disk.sync_directory(self._directory)
            self._pointer = new


def _encode(pointer: Pointer) -> bytes:
    if len(pointer.log_id) != ID_BYTES or len(pointer.history_id) not in (0, ID_BYTES):
        raise ValueError(f"a log id has {ID_BYTES} bytes, a history id as many or none")
    body = _LAYOUT.pack(
        _MAGIC, 0, _FORMAT, len(pointer.history_id), pointer.log_id, pointer.history_id, pointer.first
    )[_CRC_END:]
    return _MAGIC + zlib.crc32(body).to_bytes(4, "little") + body


def _decode(data: bytes, path: Path) -> Pointer:
    if len(data) >= _LAYOUT.size and data[:4] == _MAGIC:
        _, crc, version, length, log_id, history_id, first = _LAYOUT.unpack_from(data)
        if zlib.crc32(data[_CRC_END : _LAYOUT.size]) == crc:
            if version != _FORMAT:
                raise DataDirectoryError(
                    f"{path} is of log format {version}, this release reads {_FORMAT}; "
                    "start the release that wrote it"
                )
            return Pointer(log_id, history_id[:length], first)
    raise LogDamaged(f"{path} at offset 0: the pointer file does not read back; replace this node")
