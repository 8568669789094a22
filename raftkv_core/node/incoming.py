"""A snapshot stream as it arrives from the node."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from raftkv_core.errors import RequestError
from raftkv_core.interfaces.consensus import Position
from raftkv_core.node.messages import Cancel, Chunk, Credit

__all__ = ["IncomingStream"]


class IncomingStream:
    """Iterate `chunks` once, then `close`, whatever happens."""

    def __init__(
        self, stream_id: int, send: Callable[[Credit | Cancel], None], forget: Callable[[int], object]
    ) -> None:
        """`send` reaches the node; `forget(stream_id)` ends the deliveries."""
        self._id = stream_id
        self._send = send
        self._forget = forget
        self._queue: asyncio.Queue[Chunk | RequestError] = asyncio.Queue()
        self._ended = False
        self.label = Position(0, 0)
        self.length_bytes = 0

    async def chunks(self) -> AsyncIterator[bytes]:
        """`length_bytes` bytes in all. Raises Unavailable when the node ends it early."""
        while not self._ended:
            item = await self._queue.get()
            if isinstance(item, RequestError):
                self._ended = True
                raise item
            self._ended = not item.more
            if item.data:
                self._send(Credit(self._id, len(item.data)))
                yield item.data

    async def close(self) -> None:
        """Tell the node, if it is not at its end."""
        self._forget(self._id)
        if not self._ended:
            self._ended = True
            self._send(Cancel(self._id))

    def put(self, item: Chunk | RequestError) -> None:
        """What arrived for it."""
        self._queue.put_nowait(item)
