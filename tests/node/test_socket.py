"""The node socket, with a whole node at one end and a worker's store, or a rude stranger, at the other."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest

from raftkv_core import worker
from raftkv_core.errors import (
    InvalidRequest,
    NotApplied,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
)
from raftkv_core.interfaces.consensus import Member
from raftkv_core.machine import commands
from raftkv_core.machine.commands import Status
from raftkv_core.machine.stream import read_header
from raftkv_core.node import server as server_module
from raftkv_core.node.client import NodeClient
from raftkv_core.node.datadir import Layout
from raftkv_core.node.messages import PROTOCOL, News
from raftkv_core.node.runtime import NodeRuntime

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "data")


@pytest.fixture
def connected(start_node: Any, layout: Layout) -> Any:
    """`async with connected() as (node, store)`: a node, and a worker's store on its socket."""

    @asynccontextmanager
    async def connect(**sections: Any) -> AsyncIterator[tuple[NodeRuntime, worker.SocketStore]]:
        async with start_node(**sections) as node:
            store = await worker.connect(layout.resolved_file)
            assert isinstance(store, worker.SocketStore)
            try:
                yield node, store
            finally:
                await store.close()

    return connect


def hang(node: NodeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing that is proposed comes to an end."""

    async def submit(_entry: bytes, _timeout_s: float) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(node.parts.engine, "submit", submit)


def cut(node: NodeRuntime) -> None:
    """End every connection, as a node does that dies."""
    for connection in list(node.parts.server.connections):
        connection.abort()


def test_a_worker_can_do_everything(run: Run, connected: Any) -> None:
    """Commands, reads of every kind, watches, status and members, all over the socket."""

    async def work() -> None:
        async with connected() as (_node, store):
            outcome = await store.propose(commands.put(b"a", b"1", attributes={"content-type": "text/plain"}))
            assert (outcome.status, outcome.revision) == (Status.OK, 1)
            record, info = await store.get(b"a")
            assert (record.value, record.attributes) == (b"1", {"content-type": "text/plain"})
            assert (info.level, info.revision) == ("linearizable", 1)
            assert await store.get(b"missing", level="lease") is not None
            await store.propose(commands.put(b"b", b"2"))
            page = await store.range(b"", None, limit=1, count=True)
            assert ([key for key, _record in page.rows], page.more, page.count) == ([b"a"], True, 2)
            changes = await store.changes(0)
            assert [(change.revision, change.key) for change in changes.changes] == [(1, b"a"), (2, b"b")]
            assert (await store.get(b"a", revision=1))[0].value == b"1"
            previous = (await store.propose(commands.delete(b"a", want_previous=True))).payload
            assert previous[0] == 1
            assert previous[1][0][0] == b"a"
            assert (await store.status())["node_id"] == "node1"
            assert list(await store.members()) == [Member("node1", "127.0.0.1:8088")]
            for change in (
                store.add_member(Member("n2", "h:1")),
                store.remove_member("n2"),
                store.transfer_leadership(None),
            ):
                with pytest.raises(InvalidRequest) as refused:
                    await change
                assert refused.value.code == "membership_unsupported"

    run(work())


def test_commands_of_one_tick_travel_and_commit_together(run: Run, connected: Any) -> None:
    """Two hundred clients at once cost the node one entry."""

    async def work() -> None:
        async with connected() as (node, store):
            entries = node.parts.proposer.figures.entries
            outcomes = await asyncio.gather(*(store.propose(commands.put(b"%d" % n, b"v")) for n in range(200)))
            assert [outcome.revision for outcome in outcomes] == list(range(1, 201))
            assert node.parts.proposer.figures.entries <= entries + 2, "a report may come between"

    run(work())


def test_the_socket_is_its_owners_alone(run: Run, start_node: Any, layout: Layout) -> None:
    """0600, in a folder of 0700."""

    async def work() -> None:
        async with start_node():
            path = layout.node_socket()
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    run(work())


def test_another_node_is_refused_clearly(run: Run, start_node: Any, layout: Layout) -> None:
    """A worker whose configuration names another node must not read this one's answers."""

    async def work() -> None:
        async with start_node():
            client = NodeClient(layout.node_socket, "node9", pending_max=10)
            await client.start(0.2)
            with pytest.raises(Unavailable, match="this is node node1, you asked for node9"):
                client.propose(b"", 1.0)
            await client.close()

    run(work())


async def speak(layout: Layout, *messages: Any) -> list[Any]:
    """Send a frame by hand; what came back until the node closed the connection."""
    reader, writer = await asyncio.open_unix_connection(str(layout.node_socket()))
    payload = msgpack.packb(list(messages))
    writer.write(len(payload).to_bytes(4, "big") + payload)
    data = await reader.read()
    writer.close()
    answers = []
    while data:
        length = int.from_bytes(data[:4], "big")
        answers += msgpack.unpackb(data[4 : 4 + length])[3]
        data = data[4 + length :]
    return answers


def test_another_protocol_is_refused_clearly(run: Run, start_node: Any, layout: Layout) -> None:
    """Both releases are named, whatever else the newer one says."""

    async def work() -> None:
        async with start_node():
            [[tag, reason]] = await speak(layout, [0, PROTOCOL + 1, "node1", 1, "9.9.9"])
            assert tag == 1
            assert "9.9.9" in reason
            assert f"protocol {PROTOCOL}" in reason

    run(work())


def test_a_refusal_reaches_who_says_more_than_hello(run: Run, start_node: Any, layout: Layout) -> None:
    """What came in the same frame is not looked at, and does not drown the reason."""

    async def work() -> None:
        async with start_node() as node:
            [[tag, reason]] = await speak(
                layout, [0, PROTOCOL, "node9", 1, "0.1.0"], [1, 1, 1_000, [commands.put(b"a", b"1")]]
            )
            assert (tag, "node9" in reason) == (1, True)
            assert node.parts.machine.state.keys == 0

    run(work())


def test_a_stranger_gets_nowhere(run: Run, start_node: Any, layout: Layout, logger: Any) -> None:
    """A first message that is no hello, or no message at all, ends the connection unanswered."""

    async def work() -> None:
        async with start_node() as node:
            assert await speak(layout, [1, 1, 1_000, [commands.put(b"a", b"1")]]) == []
            assert await speak(layout, "GET / HTTP/1.1") == []
            assert node.parts.machine.state.keys == 0
            assert logger.said("was ended")

    run(work())


def test_who_does_not_say_hello_is_closed(run: Run, start_node: Any, layout: Layout, monkeypatch: Any) -> None:
    """An idle connection holds nothing for long."""

    async def work() -> None:
        monkeypatch.setattr(server_module, "HELLO_S", 0.01)
        async with start_node():
            reader, writer = await asyncio.open_unix_connection(str(layout.node_socket()))
            assert await reader.read() == b""
            writer.close()

    run(work())


def test_sent_and_then_disconnected_is_unknown(run: Run, connected: Any, monkeypatch: Any, eventually: Any) -> None:
    """The node may have proposed it; only who never sent it may say that it was not applied."""

    async def work() -> None:
        async with connected() as (node, store):
            hang(node, monkeypatch)
            waiting = asyncio.ensure_future(store.propose(commands.put(b"a", b"1")))
            await eventually(lambda: node.parts.proposer.waiting_commands)
            cut(node)
            with pytest.raises(OutcomeUnknown, match="after the command was sent"):
                await waiting

    run(work())


def test_not_sent_is_not_applied(run: Run, connected: Any) -> None:
    """A command that still lay in this process when the connection went is safe to send again."""

    async def work() -> None:
        async with connected() as (node, store):
            client = store._client
            client._protocol.writable = False  # as when the node's socket is full
            waiting = asyncio.ensure_future(store.propose(commands.put(b"a", b"1")))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            cut(node)
            with pytest.raises(NotApplied) as error:
                await waiting
            assert error.value.outcome == "not_applied"
            assert node.parts.machine.state.keys == 0

    run(work())


def test_a_read_that_was_cut_off_may_be_repeated(run: Run, connected: Any, monkeypatch: Any) -> None:
    """It changed nothing, so it is never an unknown outcome."""

    async def work() -> None:
        async with connected() as (node, store):

            async def read_index(_level: str, _timeout_s: float) -> int:
                cut(node)
                return await asyncio.Event().wait()  # type: ignore[return-value]

            monkeypatch.setattr(node.parts.barrier, "_read_index", read_index)
            with pytest.raises(Unavailable):
                await store.get(b"a")

    run(work())


def test_the_nodes_deadline_decides_the_outcome(run: Run, connected: Any, monkeypatch: Any) -> None:
    """A command in flight at its deadline is unknown, told by the node; its late outcome disturbs nobody."""

    async def work() -> None:
        async with connected() as (node, store):
            submit = node.parts.engine.submit
            late: list[bytes] = []

            async def hold(entry: bytes, _timeout_s: float) -> None:
                late.append(entry)

            monkeypatch.setattr(node.parts.engine, "submit", hold)
            with pytest.raises(OutcomeUnknown, match="deadline"):
                await store.propose(commands.put(b"a", b"1"), timeout_s=0.05)
            monkeypatch.setattr(node.parts.engine, "submit", submit)
            await submit(late[0], 1.0)
            assert (await store.propose(commands.put(b"b", b"2"))).status == Status.OK
            assert (await store.get(b"a"))[0].value == b"1"

    run(work())


def test_a_silent_node_is_not_waited_for_for_ever(run: Run, connected: Any, monkeypatch: Any) -> None:
    """If no answer comes at all, the worker ends the wait a little after the deadline."""

    async def work() -> None:
        async with connected() as (node, store):
            monkeypatch.setattr(node.parts.admission, "propose", lambda *_: None)
            with pytest.raises(OutcomeUnknown, match="did not answer"):
                await store.propose(commands.put(b"a", b"1"), timeout_s=0.01)

    run(work())


def test_a_restart_of_the_node_is_survived(run: Run, start_node: Any, layout: Layout, eventually: Any) -> None:
    """While it is away requests are refused as not applied; afterwards they work, and a watch goes on."""

    async def work() -> None:
        async with start_node():
            store = await worker.connect(layout.resolved_file)
            await store.propose(commands.put(b"a", b"1"))
            watch = store.watch(1)
            waiting = asyncio.ensure_future(watch.__anext__())
            await eventually(lambda: store._client.news.watched)
        await eventually(lambda: not store._client.connected)
        with pytest.raises(Unavailable) as refused:
            await store.propose(commands.put(b"b", b"2"))
        assert refused.value.outcome == "not_applied"
        async with start_node():
            await eventually(lambda: store._client.connected)
            await store.propose(commands.put(b"c", b"3"))
            assert (await store.get(b"a"))[0].value == b"1"
            seen = [change.key for change in (await waiting).changes]
            while b"c" not in seen:
                seen += [change.key for change in (await watch.__anext__()).changes]
            await watch.aclose()
            await store.close()

    run(work())


def test_a_worker_starts_before_its_node(
    run: Run, start_node: Any, layout: Layout, monkeypatch: Any, eventually: Any
) -> None:
    """`connect` returns, requests say that the node is away, and later they work."""

    async def work() -> None:
        async with start_node():
            resolved = layout.resolved_file.read_bytes()
        monkeypatch.setattr(worker, "CONNECT_WAIT_S", 0.05)
        layout.resolved_file.write_bytes(resolved)
        store = await worker.connect(layout.resolved_file)
        with pytest.raises(Unavailable, match="away"):
            await store.get(b"a")
        async with start_node():
            await eventually(lambda: store._client.connected)
            await store.propose(commands.put(b"a", b"1"))
            await store.close()

    run(work())


def test_too_many_waiting_in_one_worker_are_refused(run: Run, connected: Any, monkeypatch: Any) -> None:
    """A worker does not pile up what the node would refuse anyway."""

    async def work() -> None:
        async with connected() as (_node, store):
            store._client._pending_max = 5
            results = await asyncio.gather(
                *(store.propose(commands.put(b"%d" % n, b"v")) for n in range(8)), return_exceptions=True
            )
            assert [type(result) is Overloaded for result in results] == [False] * 5 + [True] * 3

    run(work())


def test_a_page_too_large_for_the_socket_is_refused(run: Run, connected: Any, monkeypatch: Any) -> None:
    """The remedy is a smaller page, so the error says so; the connection stays."""

    async def work() -> None:
        monkeypatch.setattr(server_module, "FRAME_BYTES_MAX", 100_000)
        async with connected() as (_node, store):
            for n in range(3):
                await store.propose(commands.put(b"%d" % n, bytes(50_000)))
            with pytest.raises(InvalidRequest, match="fewer rows"):
                await store.range(b"", None)
            assert len((await store.range(b"", None, limit=1)).rows) == 1

    run(work())


@pytest.mark.parametrize("method", ["drop_everything", "get"])
def test_calls_are_checked(run: Run, connected: Any, method: str) -> None:
    """An unknown method or wrong arguments are the caller's mistake, told as such."""

    async def work() -> None:
        async with connected() as (_node, store):
            with pytest.raises(InvalidRequest):
                await store._call(method, ["no", "such", "arguments"], worker._STATUS)

    run(work())


def test_a_backup_is_a_whole_stream(run: Run, connected: Any) -> None:
    """Taken while writes go on; label, length and content agree."""

    async def work() -> None:
        async with connected() as (node, store):
            for start in range(0, 200, 50):
                await asyncio.gather(
                    *(store.propose(commands.put(b"%d" % n, bytes(50_000))) for n in range(start, start + 50))
                )
            stream = await store._client.backup()
            writing = asyncio.ensure_future(store.propose(commands.put(b"later", b"1")))
            data = b"".join([chunk async for chunk in stream.chunks()])
            await stream.close()
            await writing
            assert len(data) == stream.length_bytes > 2 * server_module.STREAM_WINDOW_BYTES
            assert read_header(data).position == stream.label
            assert node.parts.storage.figures()["snapshots_open"] == 1, "only apply's own"

    run(work())


def test_a_receiver_that_does_not_read_holds_the_stream_back(run: Run, connected: Any, eventually: Any) -> None:
    """The node sends no more than the window allows, and a cancelled stream releases its pin."""

    async def work() -> None:
        async with connected() as (node, store):
            for start in range(0, 400, 50):
                await asyncio.gather(
                    *(store.propose(commands.put(b"%d" % n, bytes(50_000))) for n in range(start, start + 50))
                )
            stream = await store._client.backup()
            await store.propose(commands.put(b"others", b"go on"))
            await store.status()
            queued = sum(len(chunk.data) for chunk in stream._queue._queue)
            assert 0 < queued <= server_module.STREAM_WINDOW_BYTES + (1 << 20) < stream.length_bytes
            await stream.close()
            await eventually(lambda: node.parts.storage.figures()["snapshots_open"] == 1)

    run(work())


def test_a_worker_that_does_not_listen_gets_the_newest_news_later(run: Run, connected: Any, eventually: Any) -> None:
    """Not all that it missed: a stopped process must not fill the node's memory."""

    async def work() -> None:
        async with connected() as (node, store):
            wait = asyncio.ensure_future(store._client.news.reached(20))
            await eventually(lambda: node.parts.news.watched)
            [connection] = node.parts.server.connections
            connection.pause_writing()
            sent: list[Any] = []
            send = connection.send
            connection.send = lambda message: (sent.append(message), send(message))[1]
            for number in range(20):
                await node.store.propose(commands.put(b"a", b"%d" % number))
                await node.store.get(b"a")
            assert sent == []
            connection.resume_writing()
            await wait
            assert sent == [News(20)]

    run(work())


def test_after_a_fault_clients_are_told_at_once(
    run: Run, start_node: Any, layout: Layout, monkeypatch: Any, eventually: Any
) -> None:
    """Before anything is closed, which may take long on a disk that hangs."""

    async def work() -> None:
        async with start_node(crash=True) as node:
            store = await worker.connect(layout.resolved_file)
            hang(node, monkeypatch)
            waiting = asyncio.ensure_future(store.propose(commands.put(b"a", b"1"), timeout_s=60.0))
            told: list[bool] = []
            stop = node.parts.engine.stop

            async def stopping(**options: Any) -> None:
                await asyncio.wait([waiting], timeout=5.0)
                told.append(waiting.done())
                await stop(**options)

            monkeypatch.setattr(node.parts.engine, "stop", stopping)
            await eventually(lambda: node.parts.proposer.waiting_commands)
        assert told == [True]
        with pytest.raises(OutcomeUnknown, match="stopped before"):
            await waiting
        await store.close()

    run(work())


def test_stopping_lets_commands_under_way_finish(run: Run, start_node: Any, layout: Layout) -> None:
    """A stop in order answers what it had taken, and refuses the rest as not applied."""

    async def work() -> None:
        async with start_node():
            store = await worker.connect(layout.resolved_file)
            waiting = [asyncio.ensure_future(store.propose(commands.put(b"%d" % n, b"v"))) for n in range(100)]
            await asyncio.sleep(0)
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert not [result for result in results if isinstance(result, OutcomeUnknown)]
        await store.close()

    run(work())
