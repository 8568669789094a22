"""The other end of the node socket: what a worker, or the command line, holds.

It connects by itself, again and again, later each time, and says at any moment whether it is connected. What
was not yet written to the socket when the connection went is safe to send again (`Unavailable`); a command
that was written may have been applied (`OutcomeUnknown`). Nothing is ever sent twice.

Commands of one tick go out as one message, and their outcomes come back in groups.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from raftkv_core import __version__
from raftkv_core.errors import OutcomeUnknown, Overloaded, RequestError, Unavailable
from raftkv_core.interfaces.consensus import Position
from raftkv_core.machine.commands import Outcome
from raftkv_core.node.deadlines import Deadlines
from raftkv_core.node.frames import FrameProtocol
from raftkv_core.node.incoming import IncomingStream
from raftkv_core.node.messages import (
    FRAME_BYTES_TARGET,
    PROTOCOL,
    BarrierRequest,
    Call,
    Chunk,
    Failed,
    Hello,
    News,
    NodeFrame,
    Outcomes,
    Propose,
    Reached,
    Refusal,
    Result,
    Subscribe,
    Welcome,
    WorkerMessage,
    pack,
    to_error,
)
from raftkv_core.node.watch import RevisionNews

__all__ = ["NodeClient"]

RECONNECT_FIRST_S: Final = 0.02
RECONNECT_MOST_S: Final = 1.0
GRACE_S: Final = 0.25
"""The node keeps deadlines itself and knows more about the outcome; after this much longer nobody waits for it."""

ResultT = TypeVar("ResultT")


class _Gathered(NamedTuple):
    """A command that was not written yet."""

    command: bytes
    timeout_ms: int
    future: asyncio.Future[Outcome]


class NodeClient:
    """One connection at a time to one node."""

    def __init__(
        self,
        socket_path: Callable[[], Path],
        node_id: str,
        *,
        pending_max: int,
        on_standing: Callable[[int, int, int], None] = lambda _index, _term, _generation: None,
    ) -> None:
        """`socket_path` raises Unavailable while no node says where it is. `on_standing(index, term,
        generation)` hears what each frame says of the node's store, before its messages."""
        self._loop = asyncio.get_running_loop()
        self._socket_path = socket_path
        self._node_id = node_id
        self._pending_max = pending_max
        self._on_standing = on_standing
        self._deadlines = Deadlines(self._loop)
        self._protocol: _NodeProtocol | None = None
        self._why_not = "the node was not reached yet"
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._next_id = 1
        self._gathered: list[_Gathered] = []
        self._flush_scheduled = False
        self._commands: dict[int, asyncio.Future[Outcome]] = {}
        self._requests: dict[int, tuple[asyncio.Future[Any], bool]] = {}
        """Future, and whether the request may have changed something."""
        self._streams: dict[int, IncomingStream] = {}
        self.news = RevisionNews(on_watched=self._watched)
        self.node_pid = 0

    # ---------------------------------------------------------------- life

    async def start(self, wait_s: float = 1.0) -> None:
        """Begin to connect; returns when connected or after `wait_s`."""
        self._task = self._loop.create_task(self._keep_connected())
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._wait_connected(), wait_s)

    async def close(self) -> None:
        """End the connection; whoever waits hears how that leaves his request."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._protocol is not None:
            self._protocol.close()
        self.lost(self._protocol, "this worker is stopping")
        self._deadlines.close()

    @property
    def connected(self) -> bool:
        return self._protocol is not None

    def unavailable(self) -> Unavailable:
        """Why a request cannot be sent now."""
        return Unavailable(f"the node is away ({self._why_not}); retry", code="node_away")

    async def _wait_connected(self) -> None:
        while self._protocol is None:
            self._changed.clear()
            await self._changed.wait()

    async def _keep_connected(self) -> None:
        delay = RECONNECT_FIRST_S
        while True:
            try:
                path = self._socket_path()
                _transport, protocol = await self._loop.create_unix_connection(lambda: _NodeProtocol(self), str(path))
                await protocol.greet(Hello(PROTOCOL, self._node_id, os.getpid(), __version__))
                delay = RECONNECT_FIRST_S
                await protocol.ended
            except (OSError, RequestError) as error:
                self._why_not = str(error)
            await asyncio.sleep(delay)
            delay = min(2 * delay, RECONNECT_MOST_S)

    def welcomed(self, protocol: _NodeProtocol, welcome: Welcome) -> None:
        self._protocol = protocol
        self.node_pid = welcome.pid
        self._changed.set()
        if self.news.watched:
            self.send(Subscribe(True))

    def lost(self, protocol: _NodeProtocol | None, reason: str) -> None:
        """The connection is gone."""
        if protocol is not self._protocol:
            return
        self._protocol = None
        self._why_not = reason
        gathered, self._gathered = self._gathered, []
        for item in gathered:
            _fail(item.future, self.unavailable())
        commands, self._commands = self._commands, {}
        for future in commands.values():
            _fail(future, _disconnected())
        requests, self._requests = self._requests, {}
        for request, changes in requests.values():
            _fail(request, _disconnected() if changes else self.unavailable())
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.put(self.unavailable())

    # ---------------------------------------------------------------- out

    def send(self, message: WorkerMessage) -> None:
        """Dropped when there is no connection."""
        if self._protocol is not None:
            self._protocol.send(message)

    def propose(self, command: bytes, timeout_s: float) -> asyncio.Future[Outcome]:
        """Sent with everything else of this tick. Raises Unavailable or Overloaded at once."""
        if self._protocol is None:
            raise self.unavailable()
        if len(self._commands) + len(self._gathered) >= self._pending_max:
            raise Overloaded(f"{self._pending_max} commands of this worker wait already; retry later")
        future: asyncio.Future[Outcome] = self._loop.create_future()
        self._gathered.append(_Gathered(command, max(1, int(timeout_s * 1_000)), future))
        self._deadlines.watch(future, self._loop.time() + timeout_s + GRACE_S, self._too_late)
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self.flush)
        return future

    def barrier(self, lease: bool, timeout_s: float) -> asyncio.Future[int]:
        """The index that a read must see."""
        future: asyncio.Future[int]
        request_id, future = self._request(timeout_s, changes=False)
        self.send(BarrierRequest(request_id, max(1, int(timeout_s * 1_000)), lease))
        return future

    async def call(
        self,
        method: str,
        arguments: Any,
        decoder: msgspec.msgpack.Decoder[ResultT],
        timeout_s: float,
        *,
        changes: bool = False,
    ) -> ResultT:
        """`changes`: a connection that is lost leaves the outcome unknown."""
        future: asyncio.Future[msgspec.Raw]
        request_id, future = self._request(timeout_s, changes=changes)
        self.send(Call(request_id, max(1, int(timeout_s * 1_000)), method, pack(arguments)))
        return decoder.decode(await future)

    async def backup(self, timeout_s: float = 30.0) -> IncomingStream:
        """A stream of the node's data; label and length are known when this returns."""
        future: asyncio.Future[msgspec.Raw]
        request_id, future = self._request(timeout_s, changes=False)
        stream = self._streams[request_id] = IncomingStream(request_id, self.send, self._forget_stream)
        self.send(Call(request_id, max(1, int(timeout_s * 1_000)), "backup", pack(())))
        try:
            index, term, stream.length_bytes = _BEGUN.decode(await future)
        except BaseException:
            await stream.close()
            raise
        stream.label = Position(index, term)
        return stream

    def _forget_stream(self, stream_id: int) -> None:
        self._streams.pop(stream_id, None)

    def flush(self) -> None:
        """Write the commands that were gathered, unless the node's socket is full: then when it is not."""
        self._flush_scheduled = False
        protocol = self._protocol
        if protocol is None or not self._gathered or not protocol.writable:
            return
        gathered, self._gathered = self._gathered, []
        batch: list[bytes] = []
        size = 0
        timeout_ms = 0
        first_id = self._next_id
        for command, wanted_ms, future in gathered:
            if future.done():  # too late, or nobody waits for it any more: it was never sent
                continue
            if batch and (wanted_ms != timeout_ms or size + len(command) > FRAME_BYTES_TARGET):
                protocol.send(Propose(first_id, timeout_ms, batch))
                batch, size, first_id = [], 0, self._next_id
            timeout_ms = wanted_ms
            batch.append(command)
            size += len(command)
            self._commands[self._next_id] = future
            self._next_id += 1
        if batch:
            protocol.send(Propose(first_id, timeout_ms, batch))
        protocol.flush()

    def _request(self, timeout_s: float, *, changes: bool) -> tuple[int, asyncio.Future[Any]]:
        if self._protocol is None:
            raise self.unavailable()
        if len(self._requests) >= self._pending_max:
            raise Overloaded(f"{self._pending_max} requests of this worker wait already; retry later")
        future: asyncio.Future[Any] = self._loop.create_future()
        request_id = self._next_id
        self._next_id += 1
        self._requests[request_id] = future, changes
        deadline = self._loop.time() + timeout_s + GRACE_S
        self._deadlines.watch(future, deadline, _no_answer if changes else _no_reading)
        return request_id, future

    def _too_late(self, future: asyncio.Future[Outcome]) -> RequestError:
        if any(item.future is future for item in self._gathered):
            return Unavailable("the node was too busy to take the command in time; retry")
        return _no_answer(future)

    def _watched(self, watched: bool) -> None:
        self.send(Subscribe(watched))

    # ---------------------------------------------------------------- in

    def received(self, frame: NodeFrame) -> None:
        self._on_standing(frame.index, frame.term, frame.generation)
        for message in frame.messages:
            if isinstance(message, Outcomes):
                self._resolve(message.first_id, message.outcomes)
            elif isinstance(message, Reached):
                self._answer(message.id, message.index)
            elif isinstance(message, Result):
                self._answer(message.id, message.value)
            elif isinstance(message, Failed):
                self._refused(message)
            elif isinstance(message, News):
                self.news.announce(message.revision)
            elif isinstance(message, Chunk) and message.id in self._streams:
                self._streams[message.id].put(message)

    def _resolve(self, first_id: int, outcomes: list[Outcome]) -> None:
        pop = self._commands.pop
        for request_id, outcome in enumerate(outcomes, first_id):
            future = pop(request_id, None)
            if future is not None and not future.done():
                future.set_result(outcome)

    def _answer(self, request_id: int, value: Any) -> None:
        request = self._requests.pop(request_id, None)
        if request is not None and not request[0].done():
            request[0].set_result(value)

    def _refused(self, message: Failed) -> None:
        for request_id in range(message.first_id, message.first_id + message.count):
            command = self._commands.pop(request_id, None)
            request = self._requests.pop(request_id, None)
            if command is not None:
                _fail(command, to_error(message))
            elif request is not None:
                _fail(request[0], to_error(message))
            elif request_id in self._streams:
                self._streams[request_id].put(to_error(message))


class _NodeProtocol(FrameProtocol[NodeFrame, WorkerMessage]):
    """One connection; the client lives longer."""

    def __init__(self, client: NodeClient) -> None:
        super().__init__(_decoder)
        self._client = client
        self._welcome: asyncio.Future[None] = self._loop.create_future()
        self.ended: asyncio.Future[None] = self._loop.create_future()

    async def greet(self, hello: Hello) -> None:
        """Say hello; returns when welcome. Raises Unavailable with the node's reason."""
        self.send(hello)
        try:
            await self._welcome
        except BaseException:
            self.abort()
            raise

    def frame_received(self, frame: NodeFrame) -> None:
        if not self._welcome.done():
            first = frame.messages[0] if frame.messages else None
            if isinstance(first, Welcome):
                self._client.welcomed(self, first)
                self._welcome.set_result(None)
            else:
                reason = first.reason if isinstance(first, Refusal) else "it did not answer the hello"
                self._welcome.set_exception(Unavailable(reason))
                return
        self._client.received(frame)

    def disconnected(self, reason: str) -> None:
        if not self._welcome.done():
            self._welcome.set_exception(Unavailable(f"it closed the connection: {reason}"))
        if not self.ended.done():
            self.ended.set_result(None)
        self._client.lost(self, reason)

    def writable_changed(self) -> None:
        if self.writable:
            self._client.flush()


_decoder: Final[msgspec.msgpack.Decoder[NodeFrame]] = msgspec.msgpack.Decoder(NodeFrame)
_BEGUN: Final[msgspec.msgpack.Decoder[tuple[int, int, int]]] = msgspec.msgpack.Decoder(tuple[int, int, int])


def _fail(future: asyncio.Future[Any], error: RequestError) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # who waited may be gone


def _disconnected() -> OutcomeUnknown:
    return OutcomeUnknown(
        "the connection to the node was lost after the command was sent; "
        "read the key, or retry with an idempotency key"
    )


def _no_answer(_future: asyncio.Future[Any]) -> OutcomeUnknown:
    return OutcomeUnknown("the node did not answer in time; read the key, or retry with an idempotency key")


def _no_reading(_future: asyncio.Future[Any]) -> Unavailable:
    return Unavailable("the node did not answer in time; retry")
