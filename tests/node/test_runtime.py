"""Whole nodes in this process: a real log, the memory storage, the socket."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from raftkv_core import worker
from raftkv_core.builtin.solo import SoloConsensus
from raftkv_core.config import ClusterSettings, LimitSettings
from raftkv_core.errors import (
    ConfigError,
    DataDirectoryError,
    InvalidRequest,
    NoSpace,
    NotApplied,
    OutcomeUnknown,
    Overloaded,
)
from raftkv_core.machine import commands
from raftkv_core.machine.commands import Status
from raftkv_core.node import runtime as runtime_module
from raftkv_core.node.datadir import DataDirectory
from raftkv_core.node.runtime import NodeRuntime
from raftkv_core.registry import Registry

Run = Callable[[Coroutine[Any, Any, Any]], Any]


async def put(node: NodeRuntime, *keys: bytes) -> None:
    outcomes = await asyncio.gather(*(node.store.propose(commands.put(key, b"of " + key)) for key in keys))
    assert all(outcome.status == Status.OK for outcome in outcomes)


async def value(node: NodeRuntime, key: bytes, **options: Any) -> bytes | None:
    record, _info = await node.store.get(key, **options)
    return None if record is None else record.value


@pytest.mark.parametrize("crash", [False, True])
def test_what_was_acknowledged_is_there_after_a_restart(run: Run, start_node: Any, crash: bool) -> None:
    """After a clean stop from the stream file, after a kill from the log; revision and digest continue."""

    async def work() -> None:
        keys = [b"key%d" % number for number in range(500)]
        async with start_node(crash=crash) as node:
            await put(node, *keys)
            before = await node.store.status()
        async with start_node() as node:
            status = await node.store.status()
            assert [status[name] for name in ("revision", "digest", "history_id", "cluster_id")] == [
                before[name] for name in ("revision", "digest", "history_id", "cluster_id")
            ]
            assert status["term"] == before["term"] + 1
            for key in keys:
                assert await value(node, key) == b"of " + key
            await put(node, b"more")
            assert (await node.store.status())["revision"] == before["revision"] + 1

    run(work())


def test_a_clean_stop_leaves_nothing_to_replay(run: Run, start_node: Any) -> None:
    """Everything applied is durable in storage."""

    async def work() -> None:
        async with start_node() as node:
            await put(node, b"a")
            applied = node.parts.machine.applied
        async with start_node() as node:
            assert node.parts.machine.visible == applied
            assert node.parts.machine.durable == applied

    run(work())


def test_genesis_happens_once(run: Run, start_node: Any) -> None:
    """The first entry of the log is genesis with the configured settings; a restart adds none."""

    async def work() -> None:
        cluster = ClusterSettings(id="ab" * 16, settings={"tick_ms": 700})
        async with start_node(cluster=cluster) as node:
            machine = node.parts.machine
            history = machine.history_id
            assert machine.cluster_id.hex() == "ab" * 16
            assert machine.settings["tick_ms"] == 700
            first_index = machine.applied.index
        async with start_node(cluster=cluster) as node:
            machine = node.parts.machine
            assert machine.history_id == history
            assert machine.applied.index <= first_index + 1, "at most a report follows"

    run(work())


def test_the_status_says_everything(run: Run, start_node: Any, tmp_path: Path) -> None:
    """Every name that `/v1/status` shows, with plausible values."""

    async def work() -> None:
        async with start_node() as node:
            await put(node, b"a")
            status = await node.store.status()
            assert status["ready"] is True
            assert status["reasons"] == []
            assert (status["role"], status["leader"], status["node_id"]) == ("leader", "node1", "node1")
            assert (status["storage"], status["consensus"], status["transports"]) == ("memory", "solo", [])
            assert len(bytes.fromhex(status["digest"])) == 8
            assert len(bytes.fromhex(status["cluster_id"])) == len(bytes.fromhex(status["history_id"])) == 16
            assert status["applied_index"] >= status["visible_index"] >= status["durable_index"]
            assert status["members"] == [{"node_id": "node1", "address": "127.0.0.1:8088"}]
            assert "linearizable_reads" in status["capabilities"]
            assert status["space"]["free_bytes"] > 0
            others = "cluster_name commit_index revision compacted_revision version pid limits uptime_s figures"
            assert set(others.split()) <= set(status)
            assert status["figures"]["proposer"]["commands"] >= 1

    run(work())


def test_reads_have_the_level_they_say(run: Run, start_node: Any) -> None:
    """A linearizable read sees what was acknowledged though storage had not committed it; a stale one may not."""

    async def work() -> None:
        async with start_node(limits=LimitSettings(commit_delay_ms=10_000)) as node:
            await put(node, b"a")
            assert await value(node, b"a", level="stale") is None
            record, info = await node.store.get(b"a", level="linearizable")
            assert record is not None
            assert (info.level, info.revision) == ("linearizable", 1)
            assert await value(node, b"a", level="stale") == b"of a"
            assert await value(node, b"a", level="lease") == b"of a"

    run(work())


def test_a_read_waits_for_the_revision_it_names(run: Run, start_node: Any) -> None:
    """`min_revision` makes even a stale read wait until this node shows it, and no longer than its time."""

    async def work() -> None:
        async with start_node() as node:
            reading = asyncio.ensure_future(node.store.get(b"a", level="stale", min_revision=1))
            await asyncio.sleep(0)
            await put(node, b"a")
            record, _info = await reading
            assert record is not None
            with pytest.raises(Exception, match="revision 99"):
                await node.store.get(b"a", level="stale", min_revision=99, timeout_s=0.01)

    run(work())


def test_older_revisions_can_be_read(run: Run, start_node: Any) -> None:
    """One key or a range, as they were."""

    async def work() -> None:
        async with start_node() as node:
            for number in range(5):
                await node.store.propose(commands.put(b"a", b"%d" % number))
            assert await value(node, b"a", revision=2) == b"1"
            page = await node.store.range(b"", None, revision=3, count=True)
            assert [(key, record.value) for key, record in page.rows] == [(b"a", b"2")]
            assert page.count == 1
            with pytest.raises(InvalidRequest, match="future"):
                await node.store.get(b"a", revision=99)

    run(work())


def test_a_watch_is_told_every_change_in_order(run: Run, start_node: Any) -> None:
    """From where it begins, without gaps, those of its range only."""

    async def work() -> None:
        async with start_node() as node:
            await put(node, b"a1", b"b1")
            watch = node.store.watch(0, start=b"a", end=b"b")
            seen = [change.key for change in (await watch.__anext__()).changes]
            for number in range(2, 30):
                await put(node, b"a%d" % number, b"b%d" % number)
            while len(seen) < 29:
                seen += [change.key for change in (await watch.__anext__()).changes]
            assert sorted(seen) == sorted(b"a%d" % number for number in range(1, 30))
            await put(node, b"elsewhere")
            page = await watch.__anext__()
            while page.revision < node.parts.machine.revision:
                page = await watch.__anext__()
            assert page.changes == [], "it says where to resume all the same"
            await watch.aclose()

    run(work())


def test_a_watch_of_a_quiet_range_says_how_far_it_got(run: Run, start_node: Any) -> None:
    """Its resume point moves with the store, or history would be forgotten from under it."""

    async def work() -> None:
        async with start_node() as node:
            await put(node, b"a", b"b", b"c")
            watch = node.store.watch(0, start=b"x", end=b"y")
            page = await watch.__anext__()
            assert (page.changes, page.revision) == ([], 3)
            await watch.aclose()

    run(work())


def test_ticks_expire_idempotency_keys(run: Run, start_node: Any, monkeypatch: Any, eventually: Any) -> None:
    """The leader's node moves the clock while anything is remembered: ttl and one interval."""

    async def work() -> None:
        monkeypatch.setattr(runtime_module, "POLL_S", 0.005)
        settings = {"tick_ms": 100, "dedupe_ttl_ms": 1_000}
        async with start_node(cluster=ClusterSettings(settings=settings)) as node:
            machine = node.parts.machine
            await node.store.propose(commands.put(b"a", b"1", idempotency_key=b"once"))
            again = await node.store.propose(commands.put(b"a", b"1", idempotency_key=b"once"))
            assert again.replayed
            await eventually(lambda: not machine.dedupe_count)
            assert machine.clock_ms == 1_000 + 100

    run(work())


def test_overload_is_refused_at_once_and_passes(run: Run, start_node: Any) -> None:
    """More commands than may wait: the rest is told so, those that were taken are carried out."""

    async def work() -> None:
        async with start_node(limits=LimitSettings(queue_commands=10)) as node:
            results = await asyncio.gather(
                *(node.store.propose(commands.put(b"k%d" % number, b"v")) for number in range(50)),
                return_exceptions=True,
            )
            refused = [result for result in results if isinstance(result, Overloaded)]
            assert len(refused) == 40
            assert node.parts.machine.state.keys == 10
            await put(node, b"later")

    run(work())


def test_without_space_growth_is_refused_until_there_is_some(
    run: Run, start_node: Any, monkeypatch: Any, eventually: Any
) -> None:
    """Puts are refused, deletes pass and history goes; with room again, puts pass."""

    async def work() -> None:
        monkeypatch.setattr(runtime_module, "HOUSEKEEPING_S", 0.01)
        async with start_node(limits=LimitSettings(space_low_bytes=1_000)) as node:
            await put(node, b"a", b"b")
            space = node.parts.space
            monkeypatch.setattr(space, "_free", lambda _directory: 999)
            await eventually(lambda: space.low)
            with pytest.raises(NoSpace):
                await put(node, b"c")
            assert (await node.store.propose(commands.delete(b"a"))).payload == [1, None]
            machine = node.parts.machine
            await eventually(lambda: machine.compacted == 3)
            assert machine.members["node1"].low_space
            monkeypatch.setattr(space, "_free", lambda _directory: 1 << 30)
            await eventually(lambda: not machine.members["node1"].low_space)
            await put(node, b"c")

    run(work())


def test_a_fault_stops_the_node_with_its_reason(run: Run, start_node: Any) -> None:
    """Nothing is acknowledged after it; `serve_until_stopped` raises it."""

    async def work() -> None:
        async with start_node(crash=True) as node:
            node.parts.node_machine.fatal("the test kills it, as a failed disk would")
            with pytest.raises(OutcomeUnknown):
                await node.store.propose(commands.put(b"a", b"1"), timeout_s=0.05)

    run(work())


def test_an_empty_directory_needs_the_word_to_begin(run: Run, tmp_path: Path, config_of: Any, logger: Any) -> None:
    """Without `bootstrap` a node does not begin a cluster by itself."""

    async def work() -> None:
        config = config_of(tmp_path / "data")
        config.node.bootstrap = False
        with DataDirectory.open(config, environ={}) as data, pytest.raises(ConfigError, match="bootstrap"):
            await NodeRuntime(config, Registry.discover(), data, logger=logger).start()

    run(work())


def test_solo_refuses_a_second_member(run: Run, start_node: Any) -> None:
    """One node cannot keep what several promise."""

    async def work() -> None:
        with pytest.raises(ConfigError, match="node2"):
            async with start_node(cluster=ClusterSettings(members={"node2": "127.0.0.1:1"})):
                pass

    run(work())


def test_a_start_that_is_given_up_leaves_nothing_open(
    run: Run, start_node: Any, tmp_path: Path, config_of: Any, logger: Any, monkeypatch: Any
) -> None:
    """A stop may come during a long replay; afterwards the same directory starts again."""

    async def work() -> None:
        async with start_node(crash=True) as node:
            await put(node, b"a")

        replaying = asyncio.Event()

        async def for_ever(*_: Any) -> None:
            replaying.set()
            await asyncio.Event().wait()

        with monkeypatch.context() as patch:
            patch.setattr(SoloConsensus, "_replay", for_ever)
            config = config_of(tmp_path / "data")
            with DataDirectory.open(config, environ={}) as data:
                starting = asyncio.ensure_future(
                    NodeRuntime(config, Registry.discover(), data, logger=logger).start()
                )
                await replaying.wait()
                starting.cancel()
                await asyncio.wait([starting])
                assert starting.cancelled()
        async with start_node() as node:
            assert await value(node, b"a") == b"of a"

    run(work())


def test_while_it_replays_a_node_says_so(
    run: Run, start_node: Any, tmp_path: Path, config_of: Any, logger: Any, monkeypatch: Any
) -> None:
    """The socket answers from the beginning; the status names what is waited for, writes are refused."""

    async def work() -> None:
        async with start_node(crash=True) as node:
            await put(node, b"a")
        replay, go = SoloConsensus._replay, asyncio.Event()

        async def slowly(engine: SoloConsensus, machine: Any) -> None:
            await go.wait()
            await replay(engine, machine)

        monkeypatch.setattr(SoloConsensus, "_replay", slowly)
        config = config_of(tmp_path / "data")
        with DataDirectory.open(config, environ={}) as data:
            node = NodeRuntime(config, Registry.discover(), data, logger=logger)
            starting = asyncio.ensure_future(node.start())
            store = await worker.connect(data.resolved_file)
            status = await store.status()
            assert status["ready"] is False
            assert "replaying the log: 0 of" in status["reasons"][0]
            with pytest.raises(NotApplied):
                await store.propose(commands.put(b"b", b"2"), timeout_s=0.05)
            go.set()
            await starting
            assert (await store.status())["ready"] is True
            await store.close()
            stop = asyncio.Event()
            stop.set()
            await node.serve_until_stopped(stop)

    run(work())


def test_a_lost_log_is_refused(run: Run, start_node: Any, tmp_path: Path) -> None:
    """The store is there and the log is not: what was acknowledged last may be gone, so the node says so."""

    async def work() -> None:
        async with start_node() as node:
            await put(node, b"a")
        shutil.rmtree(tmp_path / "data" / "log")
        with pytest.raises(DataDirectoryError, match="missing"):
            async with start_node():
                pass

    run(work())


def test_a_log_of_another_node_is_refused(run: Run, start_node: Any, tmp_path: Path) -> None:
    """Two nodes' folders mixed up."""

    async def work() -> None:
        async with start_node() as node:
            await put(node, b"a")
        (tmp_path / "data").rename(tmp_path / "first")
        async with start_node() as node:
            await put(node, b"a")
        shutil.rmtree(tmp_path / "data" / "log")
        shutil.copytree(tmp_path / "first" / "log", tmp_path / "data" / "log")
        with pytest.raises(DataDirectoryError, match="history"):
            async with start_node():
                pass

    run(work())


def test_the_log_is_trimmed_behind_the_stream_file(
    run: Run, start_node: Any, monkeypatch: Any, eventually: Any
) -> None:
    """A storage that is not durable is written to a file every so many log bytes, and the log lets go."""

    async def work() -> None:
        monkeypatch.setattr("raftkv_core.node.streams.EVERY_LOG_BYTES", 1 << 20)
        monkeypatch.setattr("raftkv_core.node.assembly.TRIM_EVERY_ENTRIES", 1)
        trimmed: list[int] = []
        async with start_node() as node:
            assert node.parts.around.config.log.keep_entries == 10_000, "which is for followers, and solo has none"
            monkeypatch.setattr(node.parts.engine, "trim", trimmed.append)
            for number in range(60):
                await put(node, b"k%d" % number)
                await node.store.propose(commands.put(b"large", bytes(100_000)))
            await eventually(lambda: node.parts.machine.durable.index >= 10)
            assert trimmed
            assert trimmed == sorted(trimmed)
            assert trimmed[-1] <= node.parts.machine.durable.index
        async with start_node() as node:
            assert await value(node, b"k7") == b"of k7"

    run(work())
