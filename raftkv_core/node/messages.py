"""What a worker and its node say to each other over the node socket.

A frame carries all that one side had to say in one tick of its loop. From worker to node it is a list of
messages; from node to worker it begins with where the node's store stands, so that a worker learns with every
answer that a new generation must be opened:

    worker → node   [message, …]
    node → worker   [index, term, generation, [message, …]]

The first frame of a connection is a lone `Hello`, and its shape never changes; everything else may, with
`PROTOCOL`. Ids are the worker's; a batch of commands takes consecutive ones.

Every field has a type and none that the node reads is open, so nothing but these shapes is ever decoded from
a worker's bytes: no extension types, no surprises in depth.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from msgspec import Struct

from raftkv_core import errors
from raftkv_core.errors import RequestError, Unavailable
from raftkv_core.machine.commands import Outcome

__all__ = [
    "FRAME_BYTES_MAX",
    "FRAME_BYTES_TARGET",
    "PROTOCOL",
    "BarrierRequest",
    "Call",
    "Cancel",
    "Chunk",
    "Credit",
    "Failed",
    "Hello",
    "News",
    "NodeFrame",
    "NodeMessage",
    "Outcomes",
    "Propose",
    "Reached",
    "Refusal",
    "Result",
    "Subscribe",
    "Welcome",
    "WorkerMessage",
    "from_error",
    "to_error",
]

PROTOCOL: Final = 1

FRAME_BYTES_TARGET: Final = 4 << 20
"""A tick that has more to say says it in several frames."""

FRAME_BYTES_MAX: Final = 64 << 20
"""A longer frame ends the connection; the longest that is made is one outcome or one page of rows."""


class Hello(Struct, array_like=True, tag=0, frozen=True):
    """The worker's first words. The node refuses another protocol, and a worker that wants another node."""

    protocol: int
    node_id: str
    pid: int
    version: str


class Propose(Struct, array_like=True, tag=1, frozen=True):
    """Commands of one tick that share a deadline; the n-th has the id `first_id + n`."""

    first_id: int
    timeout_ms: int
    commands: list[bytes]


class BarrierRequest(Struct, array_like=True, tag=2, frozen=True):
    """Answered by `Reached` once a read may begin. `lease`: a leader's lease is enough."""

    id: int
    timeout_ms: int
    lease: bool


class Subscribe(Struct, array_like=True, tag=3, frozen=True):
    """From now on (or no longer) say so when the revision moves; begins with the present one."""

    on: bool


class Call(Struct, array_like=True, tag=4, frozen=True):
    """Everything that is rare. `arguments` is decoded by the method's own types."""

    id: int
    timeout_ms: int
    method: str
    arguments: msgspec.Raw


class Credit(Struct, array_like=True, tag=5, frozen=True):
    """The receiver of stream `id` has room for that many more bytes."""

    id: int
    bytes: int


class Cancel(Struct, array_like=True, tag=6, frozen=True):
    """The receiver of stream `id` is gone."""

    id: int


WorkerMessage = Hello | Propose | BarrierRequest | Subscribe | Call | Credit | Cancel


class Welcome(Struct, array_like=True, tag=0, frozen=True):
    """Answers `Hello`."""

    node_id: str
    pid: int
    version: str


class Refusal(Struct, array_like=True, tag=1, frozen=True):
    """Answers a `Hello` that will not do; the node closes the connection after it."""

    reason: str


class Outcomes(Struct, array_like=True, tag=2, frozen=True):
    """What became of the commands `first_id` and following."""

    first_id: int
    outcomes: list[Outcome]


class Failed(Struct, array_like=True, tag=3, frozen=True):
    """The same error for `count` requests from `first_id` on, commands or others."""

    first_id: int
    count: int
    kind: str
    code: str
    retryable: bool
    message: str


class Reached(Struct, array_like=True, tag=4, frozen=True):
    """A read that sees `index` in storage of the frame's generation is as strong as was asked for."""

    id: int
    index: int


class Result(Struct, array_like=True, tag=5, frozen=True):
    """A call's value, decoded by the method's own type."""

    id: int
    value: msgspec.Raw


class News(Struct, array_like=True, tag=6, frozen=True):
    """The revision that storage now shows."""

    revision: int


class Chunk(Struct, array_like=True, tag=7, frozen=True):
    """A piece of stream `id`. The last one has `more` false and may be empty."""

    id: int
    data: bytes
    more: bool


NodeMessage = Welcome | Refusal | Outcomes | Failed | Reached | Result | News | Chunk


class NodeFrame(Struct, array_like=True, frozen=True):
    """One frame from the node: what storage shows, then the messages."""

    index: int
    term: int
    generation: int
    messages: list[NodeMessage]


_KINDS: Final[dict[str, type[RequestError]]] = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, RequestError)
}


def from_error(first_id: int, count: int, error: RequestError) -> Failed:
    """An error as a message: class, code and remedy survive the journey."""
    return Failed(first_id, count, type(error).__name__, error.code, error.retryable, str(error))


def to_error(failed: Failed) -> RequestError:
    """A fresh exception each time, because one that is raised in several tasks grows their tracebacks."""
    kind = _KINDS.get(failed.kind, Unavailable)
    return kind(failed.message, code=failed.code, retryable=failed.retryable)


def pack(value: Any) -> msgspec.Raw:
    """A value for `Call.arguments` or `Result.value`."""
    return msgspec.Raw(msgspec.msgpack.encode(value))
