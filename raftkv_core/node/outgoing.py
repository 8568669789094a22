"""A snapshot stream on its way out: to a backup, to a joiner, into a stream file.

The stream is read from a pinned read transaction, which must stay on one thread and must not live long, and
goes to a receiver that may be slow. So a thread of its own reads ahead a few chunks; when the pin has lived
`pin_max_s` and the receiver is not done, the rest goes to a spool file at full speed, the pin ends, and the
receiver is served from the file.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Final

from raftkv_core.errors import StorageError
from raftkv_core.interfaces.consensus import Position
from raftkv_core.interfaces.storage import ReadTransaction
from raftkv_core.machine.stream import StreamSource

__all__ = ["OutgoingStream"]

AHEAD_CHUNKS: Final = 8
SPOOL_CHUNK_BYTES: Final = 256 << 10


class OutgoingStream:
    """A `Snapshot`. Iterate `chunks` once; `close` whatever happens."""

    def __init__(self, loop: asyncio.AbstractEventLoop, spool_directory: Path, pin_max_s: float) -> None:
        self._loop = loop
        self._spool_directory = spool_directory
        self._pin_max_s = pin_max_s
        self._chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._slots = threading.Semaphore(AHEAD_CHUNKS)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._begun: asyncio.Future[None] = loop.create_future()
        self._error: BaseException | None = None
        self._ended = asyncio.Event()
        self.label = Position(0, 0)
        self.length_bytes = 0
        self.spooled = False
        """The receiver was slower than the pin may live."""

    @classmethod
    async def begin(
        cls, read: Callable[[], ReadTransaction], spool_directory: Path, pin_max_s: float
    ) -> OutgoingStream:
        """Pin what `read` shows now. Raises StorageError."""
        loop = asyncio.get_running_loop()
        stream = cls(loop, spool_directory, pin_max_s)
        stream._thread = threading.Thread(target=stream._run, args=(read,), name="raftkv-stream", daemon=True)
        stream._thread.start()
        await stream._begun
        return stream

    async def chunks(self) -> AsyncIterator[bytes]:
        """`length_bytes` bytes in all."""
        while (chunk := await self._chunks.get()) is not None:
            self._slots.release()
            yield chunk
        if self._error is not None:
            raise StorageError(f"the snapshot could not be read to its end: {self._error}") from self._error

    async def close(self) -> None:
        """End it, read to the end or not, and release the pin."""
        self._closing.set()
        self._slots.release()
        await self._ended.wait()

    # ---------------------------------------------------------------- in the thread

    def _run(self, read: Callable[[], ReadTransaction]) -> None:
        try:
            self._pump(read)
        except BaseException as error:  # noqa: BLE001 - it reaches whoever waits on the loop
            self._error = error
        self._tell(self._finish)

    def _pump(self, read: Callable[[], ReadTransaction]) -> None:
        with tempfile.TemporaryFile(dir=self._spool_directory) as spool:
            with read() as txn:
                unpin_at = time.monotonic() + self._pin_max_s
                source = StreamSource(txn)
                self.label, self.length_bytes = source.label, source.length_bytes
                self._tell(self._begin)
                for chunk in source.chunks():
                    if not self.spooled and self._wait_for_slot(unpin_at - time.monotonic()):
                        self._put(chunk)
                    elif self._closing.is_set():
                        return
                    else:
                        self.spooled = True
                        spool.write(chunk)
            spool.seek(0)
            for chunk in _pieces(spool.read):
                if not self._wait_for_slot(None):
                    return
                self._put(chunk)

    def _wait_for_slot(self, timeout_s: float | None) -> bool:
        """False when the stream is closed or no slot came in time."""
        got = self._slots.acquire(timeout=None if timeout_s is None else max(0.0, timeout_s))
        return got and not self._closing.is_set()

    def _put(self, chunk: bytes) -> None:
        self._tell(self._chunks.put_nowait, chunk)

    def _tell(self, callback: Callable[..., None], *arguments: bytes) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the loop has ended, and with it everybody who could care
            self._closing.set()

    # ---------------------------------------------------------------- on the loop

    def _begin(self) -> None:
        if not self._begun.done():
            self._begun.set_result(None)

    def _finish(self) -> None:
        if not self._begun.done():
            self._begun.set_exception(StorageError(f"the store cannot be read: {self._error}"))
        self._chunks.put_nowait(None)
        self._ended.set()


def _pieces(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while piece := read(SPOOL_CHUNK_BYTES):
        yield piece
