"""Length-prefixed msgpack frames over a stream socket, one frame a tick of the loop and direction.

`asyncio.Protocol`, not streams: a stream's reader costs a task switch and a copy a message, where this hands
whole frames to a method. Both ends of the node socket are subclasses:

    class Connection(FrameProtocol):
        def frame_received(self, frame): ...

    connection.send(message)            # any number of times in one tick, then one write
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, Generic, TypeVar, cast

import msgspec

from raftkv_core.errors import RaftkvError
from raftkv_core.node.messages import FRAME_BYTES_MAX, FRAME_BYTES_TARGET, Outcomes

__all__ = ["FrameError", "FrameProtocol"]

_HEAD: Final = 4

FrameT = TypeVar("FrameT")
MessageT = TypeVar("MessageT")


class FrameError(RaftkvError):
    """The other side sent what is no frame of this protocol; the connection ends."""


class FrameProtocol(asyncio.Protocol, Generic[FrameT, MessageT]):
    """One end of a connection. Subclasses implement the methods that raise NotImplementedError."""

    def __init__(self, decoder: msgspec.msgpack.Decoder[FrameT], *, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._loop = asyncio.get_running_loop()
        self._decoder = decoder
        self._encoder = msgspec.msgpack.Encoder()
        self._frame_bytes_max = frame_bytes_max
        self._buffer = bytearray()
        self._outbox: list[MessageT] = []
        self._flush_scheduled = False
        self._transport: asyncio.Transport | None = None
        self.writable = True
        """Whether the other side takes what it is sent; falls when its socket is full."""

    # what a subclass says

    def frame_received(self, frame: FrameT) -> None:
        raise NotImplementedError

    def frame_of(self, messages: list[MessageT]) -> Any:
        """The frame that carries the messages."""
        return messages

    def connected(self) -> None:
        """The connection stands."""

    def disconnected(self, reason: str) -> None:
        """It is gone; called once for each `connected`."""

    def writable_changed(self) -> None:
        """`writable` changed."""

    # what it calls

    def send(self, message: MessageT) -> None:
        """Have it sent with everything else of this tick. After the connection ended: nothing."""
        if self._transport is None:
            return
        self._outbox.append(message)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Send what is waiting now."""
        self._flush_scheduled = False
        messages, self._outbox = self._outbox, []
        if messages and self._transport is not None:
            self._write(messages)

    def close(self) -> None:
        """Send what is waiting, then close."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def pause_reading(self, paused: bool) -> None:
        """Take no more from the other side (or go on), so that it feels that this side is behind."""
        if self._transport is None or self._transport.is_closing():
            return
        if paused:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _write(self, messages: list[MessageT]) -> None:
        frame = bytearray(_HEAD)
        self._encoder.encode_into(self.frame_of(messages), frame, _HEAD)
        if len(frame) > FRAME_BYTES_TARGET:
            parts = _halves(messages)
            if parts is not None:
                for part in parts:
                    self._write(part)
                return
        frame[:_HEAD] = (len(frame) - _HEAD).to_bytes(_HEAD, "big")
        if self._transport is not None:
            self._transport.write(frame)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self.connected()

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._outbox.clear()
        self._buffer = bytearray()
        self.disconnected(str(error) if error else "closed by the other side")

    def pause_writing(self) -> None:
        self.writable = False
        self.writable_changed()

    def resume_writing(self) -> None:
        self.writable = True
        self.writable_changed()

    def data_received(self, data: bytes) -> None:
        buffer: bytes | bytearray = data
        if self._buffer:
            self._buffer += data
            buffer = self._buffer
        at = 0
        end = len(buffer)
        view = memoryview(buffer)
        try:
            while end - at >= _HEAD:
                length = int.from_bytes(view[at : at + _HEAD], "big")
                if length > self._frame_bytes_max:
                    raise FrameError(f"a frame of {length} bytes; at most {self._frame_bytes_max} are taken")
                if end - at - _HEAD < length:
                    break
                at += _HEAD
                self.frame_received(self._decoder.decode(view[at : at + length]))
                at += length
                if self._transport is None or self._transport.is_closing():
                    return
        except (FrameError, msgspec.MsgspecError, RecursionError) as error:
            self.refuse(f"not a frame of this protocol: {error}")
            return
        if buffer is data or at:
            # A new one: what was decoded may refer to the old one's bytes (`msgspec.Raw`), which cannot shrink then.
            self._buffer = bytearray(view[at:])

    def refuse(self, reason: str) -> None:  # noqa: ARG002 - for subclasses that log it
        """The other side broke the protocol: end the connection."""
        self.abort()


def _halves(messages: list[Any]) -> tuple[list[Any], list[Any]] | None:
    """Two lists that say the same, or None when the messages cannot be divided further."""
    if len(messages) > 1:
        middle = len(messages) // 2
        return messages[:middle], messages[middle:]
    message = messages[0]
    if isinstance(message, Outcomes) and len(message.outcomes) > 1:
        middle = len(message.outcomes) // 2
        return (
            [Outcomes(message.first_id, message.outcomes[:middle])],
            [Outcomes(message.first_id + middle, message.outcomes[middle:])],
        )
    return None
