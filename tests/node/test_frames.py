"""Frames and messages on the node socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgpack
import msgspec
import pytest

from raftkv_core import errors
from raftkv_core.errors import NoSpace, RequestError
from raftkv_core.machine.commands import Outcome
from raftkv_core.node.frames import FrameProtocol
from raftkv_core.node.messages import (
    FRAME_BYTES_TARGET,
    News,
    NodeFrame,
    NodeMessage,
    Outcomes,
    Propose,
    Result,
    WorkerMessage,
    from_error,
    to_error,
)

Virtual = Callable[[Any], Any]


class Wire(asyncio.Transport):
    """Remembers what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.ended = False

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def is_closing(self) -> bool:
        return self.ended

    def close(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.ended = True


class Node(FrameProtocol[NodeFrame, NodeMessage]):
    """The sending side."""

    def __init__(self) -> None:
        super().__init__(msgspec.msgpack.Decoder(NodeFrame))
        self.wire = Wire()
        self.connection_made(self.wire)

    def frame_of(self, messages: list[NodeMessage]) -> NodeFrame:
        return NodeFrame(7, 2, 1, messages)


class Worker(FrameProtocol[NodeFrame, WorkerMessage]):
    """The receiving side."""

    def __init__(self, **options: Any) -> None:
        super().__init__(msgspec.msgpack.Decoder(NodeFrame), **options)
        self.wire = Wire()
        self.frames: list[NodeFrame] = []
        self.connection_made(self.wire)

    def frame_received(self, frame: NodeFrame) -> None:
        self.frames.append(frame)


async def sent(*messages: NodeMessage) -> list[bytes]:
    node = Node()
    for message in messages:
        node.send(message)
    await asyncio.sleep(0)
    return node.wire.written


def test_what_is_said_in_one_tick_is_one_frame(virtual: Virtual) -> None:
    """One write for any number of messages; the next tick's are the next frame."""

    async def work() -> None:
        node = Node()
        node.send(News(1))
        node.send(News(2))
        await asyncio.sleep(0)
        node.send(News(3))
        await asyncio.sleep(0)
        worker = Worker()
        for data in node.wire.written:
            worker.data_received(data)
        assert [frame.messages for frame in worker.frames] == [[News(1), News(2)], [News(3)]]
        assert (worker.frames[0].index, worker.frames[0].term, worker.frames[0].generation) == (7, 2, 1)

    virtual(work())


@pytest.mark.parametrize("piece", [1, 3, 7, 1_000])
def test_frames_come_together_however_they_are_cut(virtual: Virtual, piece: int) -> None:
    """A stream socket keeps no boundaries."""

    async def work() -> None:
        data = b"".join([*await sent(News(1)), *await sent(News(2), News(3)), *await sent(News(4))])
        worker = Worker()
        for start in range(0, len(data), piece):
            worker.data_received(data[start : start + piece])
        assert [message for frame in worker.frames for message in frame.messages] == [News(n) for n in (1, 2, 3, 4)]

    virtual(work())


def test_an_answer_that_is_kept_does_not_disturb_the_frames_behind_it(virtual: Virtual) -> None:
    """A result is decoded by whoever asked, later; its bytes stay what they were."""

    async def work() -> None:
        value = msgspec.msgpack.encode(b"x" * 1_000)
        data = b"".join([*await sent(Result(1, msgspec.Raw(value))), *await sent(News(2)), *await sent(News(3))])
        worker = Worker()
        for start in range(0, len(data), 500):
            worker.data_received(data[start : start + 500])
        messages = [message for frame in worker.frames for message in frame.messages]
        assert messages[1:] == [News(2), News(3)]
        assert isinstance(messages[0], Result)
        assert bytes(messages[0].value) == value
        worker.connection_lost(None)

    virtual(work())


def test_a_large_answer_goes_out_in_several_frames(virtual: Virtual) -> None:
    """Outcomes that together are too long are divided, and keep their ids."""

    async def work() -> None:
        outcomes = [Outcome(0, number, b"x" * (1 << 20)) for number in range(20)]
        written = await sent(News(1), Outcomes(50, outcomes))
        assert len(written) > 4
        assert max(map(len, written)) <= FRAME_BYTES_TARGET
        worker = Worker()
        for data in written:
            worker.data_received(data)
        parts = [m for frame in worker.frames for m in frame.messages if isinstance(m, Outcomes)]
        assert [(part.first_id + n, o.revision) for part in parts for n, o in enumerate(part.outcomes)] == [
            (50 + number, number) for number in range(20)
        ]

    virtual(work())


def test_a_frame_that_is_too_long_ends_the_connection(virtual: Virtual) -> None:
    """From its length alone, before anything is kept."""

    async def work() -> None:
        worker = Worker(frame_bytes_max=100)
        worker.data_received((101).to_bytes(4, "big"))
        assert worker.wire.ended
        assert worker.frames == []

    virtual(work())


def framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        msgpack.packb("hello"),
        msgpack.packb([[99, 1]]),
        msgpack.packb([[1, 1, 5000, ["text"]]]),
        msgpack.packb([[1, 1, 5000, [msgpack.ExtType(5, b"x")]]]),
        msgpack.packb([[1, 1, 5000, [msgpack.Timestamp(1)]]]),
        msgpack.packb([[1, 1, 5000, []]]) + b"\x00",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 5_000,
    ],
)
def test_what_is_no_frame_ends_the_connection(virtual: Virtual, payload: bytes) -> None:
    """Wrong shapes, extension types, trailing bytes, lengths that lie, bottomless nesting."""

    class Server(FrameProtocol[list[WorkerMessage], NodeMessage]):
        def frame_received(self, frame: list[WorkerMessage]) -> None:
            raise AssertionError(f"taken for a frame: {frame}")

    async def work() -> None:
        server = Server(msgspec.msgpack.Decoder(list[WorkerMessage]))
        wire = Wire()
        server.connection_made(wire)
        server.data_received(framed(payload))
        assert wire.ended

    virtual(work())


def test_commands_keep_their_bytes() -> None:
    """Any bytes: they are the log's business."""
    message = Propose(1, 5_000, [bytes(range(256)), b"\x00"])
    data = msgspec.msgpack.encode([message])
    assert msgspec.msgpack.decode(data, type=list[WorkerMessage]) == [message]


def test_errors_survive_the_journey() -> None:
    """Class, code, remedy, and whether to retry; each request gets an exception of its own."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RequestError)]
    assert NoSpace in kinds
    for kind in kinds:
        error = kind("what to do", code="some_code", retryable=True)
        back = to_error(from_error(1, 1, error))
        assert (type(back), str(back), back.code, back.retryable, back.outcome) == (
            kind,
            "what to do",
            "some_code",
            True,
            error.outcome,
        )
        assert back is not to_error(from_error(1, 1, error))
