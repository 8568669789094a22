"""Stream files: how a storage that is not `durable` is safe under the log all the same.

Every so many log bytes, and at a clean stop, the whole state is written as a stream to a synced file. *Durable*
is that file's position, so the log keeps everything above it; a start loads the file and replays the log. What
is written costs at most about as much as the log itself, because a large state waits for as many log bytes as
it has.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from raftkv_core.errors import StreamInvalid
from raftkv_core.interfaces.consensus import Position
from raftkv_core.interfaces.storage import Storage
from raftkv_core.machine.stream import StreamSource, install

__all__ = ["StreamFile"]

EVERY_LOG_BYTES: Final = 64 << 20
_NAME: Final = "state.stream"
_READ_BYTES: Final = 1 << 20


class StreamFile:
    """The one stream file of a node, replaced whole each time. It is the committer's `Keeper`."""

    def __init__(self, directory: Path, storage: Storage, *, every_log_bytes: int | None = None) -> None:
        self._directory = directory
        self._path = directory / _NAME
        self._storage = storage
        self._every_log_bytes = EVERY_LOG_BYTES if every_log_bytes is None else every_log_bytes
        self._length_bytes = 0

    def load(self) -> Position:
        """Fill the empty storage from the file, if there is one. Blocks; raises StreamInvalid, StorageError."""
        self._temporary.unlink(missing_ok=True)
        if not self._path.exists():
            return Position(0, 0)
        restore = self._storage.begin_restore()
        try:
            meta = install(self._chunks(), restore)
        except StreamInvalid as error:
            restore.discard()
            raise StreamInvalid(
                f"{self._path}: {error}; replace this node, or restore its data directory from a backup"
            ) from error
        restore.activate()
        self._length_bytes = self._path.stat().st_size
        return meta.position

    def due(self, log_bytes: int) -> bool:
        return log_bytes >= max(self._every_log_bytes, self._length_bytes)

    async def keep(self) -> Position:
        return await asyncio.get_running_loop().run_in_executor(None, self.write)

    def write(self) -> Position:
        """Write what storage shows now, durably; returns its position. Blocks: not for the loop's thread."""
        with self._storage.read() as txn:
            source = StreamSource(txn)
            descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                for chunk in source.chunks():
                    file.write(chunk)
                os.fsync(descriptor)
        self._temporary.replace(self._path)
        folder = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._length_bytes = source.length_bytes
        return source.label

    @property
    def _temporary(self) -> Path:
        return self._path.with_name(_NAME + ".new")

    def _chunks(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            while chunk := file.read(_READ_BYTES):
                yield chunk
