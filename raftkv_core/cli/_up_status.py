"""Asks nodes for their status over the node socket, without ever waiting.

`raftkv up` does all its work in one thread, and a stopped node must not hold up the others. So this end of the
socket is a few non-blocking calls of its own instead of the worker's client, which needs an event loop. It is
the node socket, because that is there whatever transports are.
"""

from __future__ import annotations

import os
import socket
from typing import Any, Final

import msgspec

from raftkv_core import __version__
from raftkv_core.addresses import Address
from raftkv_core.errors import Unavailable
from raftkv_core.node.datadir import Layout
from raftkv_core.node.messages import PROTOCOL, Call, Hello, NodeFrame, Refusal, Result, pack

__all__ = ["StatusProbe", "accepts"]

ANSWER_S: Final = 3.0
"""Without an answer for so long, what the node said before counts no more."""

_HEAD: Final = 4
_READ_BYTES: Final = 1 << 16
_decoder: Final = msgspec.msgpack.Decoder(NodeFrame)


def accepts(address: Address) -> bool:
    """Whether somebody on this machine listens there now."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    host = ("::1" if ":" in address.host else "127.0.0.1") if address.is_wildcard else address.host
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.2)
        try:
            probe.connect((host, address.port))
        except OSError:
            return False
    return True


class StatusProbe:
    """One node's newest status."""

    def __init__(self, layout: Layout, node_id: str) -> None:
        self._layout = layout
        self._node_id = node_id
        self._socket: socket.socket | None = None
        self._buffer = bytearray()
        self._asked: float | None = None
        self._answered = 0.0
        self._status: dict[str, Any] | None = None

    @property
    def descriptors(self) -> list[int]:
        """When one can be read, call `read`."""
        return [] if self._socket is None else [self._socket.fileno()]

    def status(self, now: float) -> dict[str, Any] | None:
        """What the node said last, or None when that is too long ago."""
        return self._status if now - self._answered < ANSWER_S else None

    def ask(self, now: float) -> None:
        """Ask for the status, unless an answer is still under way."""
        if self._asked is not None and now - self._asked < ANSWER_S:
            return
        call = Call(1, int(ANSWER_S * 1_000), "status", pack([]))
        try:
            if self._asked is not None or self._socket is None:
                self._connect()
                self._send([Hello(PROTOCOL, self._node_id, os.getpid(), __version__), call])
            else:
                self._send([call])
        except (OSError, Unavailable):
            self.close()
        else:
            self._asked = now

    def read(self, now: float) -> None:
        """Take what has come."""
        if self._socket is None:
            return
        try:
            while data := self._socket.recv(_READ_BYTES):
                self._buffer += data
            self.close()
        except BlockingIOError:
            pass
        except OSError:
            self.close()
        while len(self._buffer) >= _HEAD:
            end = _HEAD + int.from_bytes(self._buffer[:_HEAD], "big")
            if len(self._buffer) < end:
                break
            self._take(bytes(self._buffer[_HEAD:end]), now)
            del self._buffer[:end]

    def close(self) -> None:
        """Forget the connection; the next `ask` makes another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._buffer.clear()
        self._asked = None

    def forget(self) -> None:
        """The node is gone, and what it said with it."""
        self.close()
        self._status = None

    def _connect(self) -> None:
        self.close()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self._socket.connect(str(self._layout.node_socket()))

    def _send(self, messages: list[Any]) -> None:
        assert self._socket is not None
        frame = msgspec.msgpack.encode(messages)
        self._socket.sendall(len(frame).to_bytes(_HEAD, "big") + frame)

    def _take(self, frame: bytes, now: float) -> None:
        for message in _decoder.decode(frame).messages:
            if isinstance(message, Result):
                self._status = msgspec.msgpack.decode(message.value)
                self._answered = now
                self._asked = None
            elif isinstance(message, Refusal):
                self.close()
