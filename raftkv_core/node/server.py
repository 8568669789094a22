"""The node socket: where workers and the command line reach the node.

A UNIX socket that only its owner may open, one connection a worker. Commands go to admission as the batches
they came in, and their outcomes go back in groups as apply resolves them, so nothing here is done for a single
command. A worker that does not take its answers is not read from until it does.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from raftkv_core import __version__
from raftkv_core.errors import InvalidRequest, Overloaded, RaftkvError, RequestError, Unavailable
from raftkv_core.interfaces.consensus import Level
from raftkv_core.machine.commands import Outcome
from raftkv_core.node.admission import Admission
from raftkv_core.node.barrier import ReadBarrier
from raftkv_core.node.batches import Batch
from raftkv_core.node.calls import Calls
from raftkv_core.node.frames import FrameError, FrameProtocol
from raftkv_core.node.messages import (
    FRAME_BYTES_MAX,
    PROTOCOL,
    BarrierRequest,
    Call,
    Cancel,
    Chunk,
    Credit,
    Hello,
    News,
    NodeFrame,
    NodeMessage,
    Outcomes,
    Propose,
    Reached,
    Refusal,
    Result,
    Subscribe,
    Welcome,
    WorkerMessage,
    from_error,
    pack,
)
from raftkv_core.node.outgoing import OutgoingStream
from raftkv_core.node.watch import RevisionNews

__all__ = ["NodeServer", "Services"]

HELLO_S: Final = 5.0
"""A connection that has not said who it is by then is closed."""

CLOSE_S: Final = 1.0
"""A worker that has not taken its last answers by then does not get them."""

CALLS_MAX: Final = 1_024
"""Calls and barriers of one worker under way at once."""

STREAM_WINDOW_BYTES: Final = 4 << 20
"""What a stream may be ahead of its receiver, to begin with."""


@dataclass(frozen=True)
class Services:
    """What the connections work with."""

    node_id: str
    admission: Admission
    barrier: ReadBarrier
    news: RevisionNews
    calls: Calls
    standing: Callable[[], tuple[int, int, int]]
    """Index and term that storage shows, and its generation."""
    begin_stream: Callable[[], Awaitable[OutgoingStream]]
    worker_gone: Callable[[], None]
    logger: Any


class NodeServer:
    """Listens at a path; `close` ends it."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._server: asyncio.AbstractServer | None = None
        self.connections: set[_Connection] = set()

    async def start(self, path: Path) -> None:
        """Listen. The folder is its owner's alone, so the socket is never open to others."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._accept, str(path))
        path.chmod(0o600)  # noqa: ASYNC240 - one system call, at start

    async def stop_accepting(self) -> None:
        """Take no further connection; those that are there go on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def close(self) -> None:
        """Send what is waiting and end every connection."""
        await self.stop_accepting()
        connections = list(self.connections)
        for connection in connections:
            connection.close()
        if connections:
            await asyncio.wait([connection.gone for connection in connections], timeout=CLOSE_S)
        for connection in connections:
            connection.abort()
            await connection.ended()

    def announce_generation(self) -> None:
        """Tell every worker now that another store is to be opened."""
        for connection in self.connections:
            connection.push_news()

    def _accept(self) -> _Connection:
        return _Connection(self._services, self.connections)


class _Connection(FrameProtocol[list[WorkerMessage], NodeMessage]):
    """One worker. It is also the sink of the commands that the worker proposes."""

    def __init__(self, services: Services, connections: set[_Connection]) -> None:
        super().__init__(_decoder)
        self._services = services
        self._connections = connections
        self._handlers: Final[dict[type[Any], Callable[[Any], None]]] = {
            Propose: self._propose,
            BarrierRequest: self._barrier,
            Subscribe: self._subscribe,
            Call: self._call,
            Credit: self._credit,
            Cancel: self._cancel,
            Hello: self._hello,
        }
        self.gone: asyncio.Future[None] = self._loop.create_future()
        self._greeted = False
        self._hello_timer: asyncio.TimerHandle | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._news_due = False
        self._pending = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._streams: dict[int, _Sending] = {}

    # ---------------------------------------------------------------- frames

    def frame_of(self, messages: list[NodeMessage]) -> NodeFrame:
        return NodeFrame(*self._services.standing(), messages)

    def frame_received(self, frame: list[WorkerMessage]) -> None:
        handlers = self._handlers
        for message in frame:
            if not self.open:
                return
            if not self._greeted and type(message) is not Hello:
                raise FrameError("the first message must be a hello")
            handlers[type(message)](message)

    def connected(self) -> None:
        self._connections.add(self)
        self._hello_timer = self._loop.call_later(HELLO_S, self.abort)

    def disconnected(self, reason: str) -> None:
        self._connections.discard(self)
        if not self.gone.done():
            self.gone.set_result(None)
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        if self._unsubscribe is not None:
            self._unsubscribe()
        for sending in self._streams.values():
            sending.task.cancel()
        if self._greeted:
            self._services.logger.debug("a worker disconnected", reason=reason)
            self._services.worker_gone()

    async def ended(self) -> None:
        """Return when nothing of it runs any more; what still does is given up."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def writable_changed(self) -> None:
        self.pause_reading(not self.writable)
        if self.writable and self._news_due:
            self.push_news()

    def refuse(self, reason: str) -> None:
        self._services.logger.warning("a connection to the node socket was ended", reason=reason)
        self.abort()

    # ---------------------------------------------------------------- requests

    def _hello(self, hello: Hello) -> None:
        mine = self._services.node_id
        reason = ""
        if hello.protocol != PROTOCOL:
            reason = (
                f"the node speaks protocol {PROTOCOL} (raftkv {__version__}), you {hello.protocol} "
                f"(raftkv {hello.version}): restart both with one release"
            )
        elif hello.node_id != mine:
            reason = f"this is node {mine}, you asked for {hello.node_id}"
        if reason:
            self.send(Refusal(reason))
            self.close()
            return
        self._greeted = True
        if self._hello_timer is not None:
            self._hello_timer.cancel()
        self.send(Welcome(mine, os.getpid(), __version__))

    def _propose(self, message: Propose) -> None:
        if message.commands:
            deadline = self._loop.time() + message.timeout_ms / 1_000
            self._services.admission.propose(self, message.first_id, message.commands, deadline)

    def resolved(self, batch: Batch, at: int, outcomes: Sequence[Outcome]) -> None:
        self.send(Outcomes(batch.token + at, list(outcomes)))

    def failed(self, batch: Batch, at: int, count: int, error: RequestError) -> None:
        self.send(from_error(batch.token + at, count, error))

    def _barrier(self, message: BarrierRequest) -> None:
        if not self._admit(message.id):
            return
        level: Level = "lease" if message.lease else "linearizable"
        reached = self._services.barrier.reach(level, message.timeout_ms / 1_000)

        def done(future: asyncio.Future[int]) -> None:
            self._pending -= 1
            if future.cancelled():
                self.send(from_error(message.id, 1, Unavailable("the node is stopping")))
            elif (error := future.exception()) is not None:
                assert isinstance(error, RequestError)
                self.send(from_error(message.id, 1, error))
            else:
                self.send(Reached(message.id, future.result()))

        reached.add_done_callback(done)

    def _subscribe(self, message: Subscribe) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        if message.on:
            self._unsubscribe = self._services.news.subscribe(lambda _revision: self.push_news())
            self.push_news()

    def push_news(self) -> None:
        """A worker that does not take its news gets the newest when it does, and not all of them."""
        self._news_due = self._greeted and not self.writable
        if self._greeted and self.writable:
            self.send(News(self._services.news.revision))

    def _call(self, message: Call) -> None:
        if self._admit(message.id):
            work = self._stream(message.id) if message.method == "backup" else self._answer(message)
            task = self._loop.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._call_ended)

    def _admit(self, request_id: int) -> bool:
        if self._pending >= CALLS_MAX:
            error = Overloaded(f"this worker has {CALLS_MAX} requests under way already; retry later")
            self.send(from_error(request_id, 1, error))
            return False
        self._pending += 1
        return True

    def _call_ended(self, task: asyncio.Task[None]) -> None:
        self._pending -= 1
        self._tasks.discard(task)

    async def _answer(self, call: Call) -> None:
        try:
            value = pack(await self._services.calls.run(call.method, call.arguments, call.timeout_ms / 1_000))
            if len(bytes(value)) > FRAME_BYTES_MAX - 1_024:
                raise InvalidRequest("the page is too large: ask for fewer rows at once", code="page_too_large")
        except RequestError as error:
            self.send(from_error(call.id, 1, error))
        except RaftkvError as error:
            self.send(from_error(call.id, 1, Unavailable(str(error))))
        except Exception as error:
            self._services.logger.exception("a call on the node socket failed", method=call.method)
            self.send(from_error(call.id, 1, Unavailable(f"{call.method} failed: {error!r}", retryable=False)))
        else:
            self.send(Result(call.id, value))

    # ---------------------------------------------------------------- streams

    def _credit(self, message: Credit) -> None:
        if message.id in self._streams:
            self._streams[message.id].allow(message.bytes)

    def _cancel(self, message: Cancel) -> None:
        if message.id in self._streams:
            self._streams[message.id].task.cancel()

    async def _stream(self, stream_id: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        sending = self._streams[stream_id] = _Sending(task)
        try:
            stream = await self._services.begin_stream()
            try:
                self.send(Result(stream_id, pack((*stream.label, stream.length_bytes))))
                async for chunk in stream.chunks():
                    await sending.take(len(chunk))
                    self.send(Chunk(stream_id, chunk, True))
                    self.flush()
                self.send(Chunk(stream_id, b"", False))
            finally:
                await stream.close()
        except RequestError as error:
            self.send(from_error(stream_id, 1, error))
        except RaftkvError as error:
            self.send(from_error(stream_id, 1, Unavailable(str(error))))
        finally:
            del self._streams[stream_id]


class _Sending:
    """How far a stream may go before its receiver says more."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.task = task
        self._window = STREAM_WINDOW_BYTES
        self._more = asyncio.Event()

    def allow(self, size: int) -> None:
        self._window += size
        self._more.set()

    async def take(self, size: int) -> None:
        """Return when `size` bytes may go; one chunk always may when nothing is under way."""
        while self._window <= 0:
            self._more.clear()
            await self._more.wait()
        self._window -= size


_decoder: Final[msgspec.msgpack.Decoder[list[WorkerMessage]]] = msgspec.msgpack.Decoder(list[WorkerMessage])
