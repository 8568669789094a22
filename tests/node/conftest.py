"""What tests of the node share: a loop whose time only moves when nothing else can, and whole nodes in a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from raftkv_core.builtin.memory import MemoryStorage
from raftkv_core.config import Config, LogSettings, NodeSettings, Selected
from raftkv_core.interfaces.consensus import Entry, EntryKind
from raftkv_core.machine import commands
from raftkv_core.machine.entries import ProposalId, encode_entry
from raftkv_core.machine.settings import DEFAULTS
from raftkv_core.machine.state import StateMachine
from raftkv_core.node.datadir import DataDirectory, write_file
from raftkv_core.node.runtime import NodeRuntime
from raftkv_core.registry import Registry

TIMEOUT_S = 30.0
HISTORY = b"h" * 16

Run = Callable[[Coroutine[Any, Any, Any]], Any]


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time stands still while anything can run, then jumps to the next timer. Not for tests with threads."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        really_select = self._selector.select  # type: ignore[attr-defined]

        def select(timeout: float | None = None) -> Any:
            events = really_select(0)
            if timeout is None:
                assert events, "the test waits for something that cannot happen"
            elif not events:
                self._now += timeout
            return events

        self._selector.select = select  # type: ignore[attr-defined]

    def time(self) -> float:
        return self._now


@pytest.fixture
def virtual() -> Iterator[Run]:
    """`virtual(coroutine)` runs it on a loop with virtual time."""
    loop = VirtualLoop()

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        async def alone() -> Any:
            try:
                return await work
            finally:
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                left = asyncio.all_tasks() - {asyncio.current_task()}
                for task in left:
                    task.cancel()
                await asyncio.gather(*left, return_exceptions=True)

        return loop.run_until_complete(alone())

    yield run
    loop.close()


@pytest.fixture
def run() -> Run:
    """`run(coroutine)` runs it on an ordinary loop, and not for ever."""
    return lambda work: asyncio.run(asyncio.wait_for(work, TIMEOUT_S))


async def _eventually(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 - any condition, whoever makes it true
        await asyncio.sleep(0.001)


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], Coroutine[Any, Any, None]]:
    """`await eventually(condition)` returns once it is true; `run` sees to it that this is not for ever."""
    return _eventually


class Tape:
    """Makes log entries, as a leader would."""

    def __init__(self) -> None:
        self.index = 0
        self.term = 1

    def entry(self, *encoded: bytes, proposal: ProposalId | None = None) -> Entry:
        self.index += 1
        data = encode_entry(HISTORY, proposal or ProposalId("other", 1, self.index), encoded)
        return Entry(self.index, self.term, EntryKind.COMMAND, data)

    def genesis(self) -> Entry:
        return self.entry(commands.genesis(b"c" * 16, HISTORY, dict(DEFAULTS)))

    def put(self, key: bytes = b"key", value: bytes = b"value") -> Entry:
        return self.entry(commands.put(key, value))


@pytest.fixture
def tape() -> Tape:
    return Tape()


@pytest.fixture
def storage() -> Iterator[MemoryStorage]:
    storage = MemoryStorage(Path(), None)
    yield storage
    storage.close()


@pytest.fixture
def machine(storage: MemoryStorage, tape: Tape) -> Iterator[StateMachine]:
    """A state machine with a history, nothing committed to storage."""
    machine = StateMachine(storage)
    machine.apply(0, [tape.genesis()])
    yield machine
    machine.close()


class Log:
    """Stands in for structlog."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def bind(self, **_fields: Any) -> Log:
        return self

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda event, **fields: self.lines.append((level, event, fields))

    def said(self, part: str) -> bool:
        return any(part in event for _level, event, _fields in self.lines)


@pytest.fixture
def logger() -> Log:
    return Log()


def make_config(directory: Path, *, storage: str = "memory", **sections: Any) -> Config:
    return Config(
        node=NodeSettings(data_dir=str(directory), bootstrap=True),
        log=LogSettings(segment_bytes=16 << 20),
        storage=Selected(name=storage),
        consensus=Selected(name="solo"),
        transports=[],
        **sections,
    )


@pytest.fixture
def config_of() -> Callable[..., Config]:
    """`config_of(directory)`: a configuration of one node with memory storage."""
    return make_config


StartNode = Callable[..., AbstractAsyncContextManager[NodeRuntime]]


@pytest.fixture
def start_node(tmp_path: Path, logger: Log) -> StartNode:
    """`async with start_node() as node`: a whole node on `tmp_path`; again: the same one, restarted.

    Keywords are sections of the configuration. `crash=True` leaves as kill -9 would, as far as files go.
    """

    @asynccontextmanager
    async def start(
        *, crash: bool = False, registry: Registry | None = None, **sections: Any
    ) -> AsyncIterator[NodeRuntime]:
        config = make_config(tmp_path / "data", **sections)
        with DataDirectory.open(config, environ={}) as data:
            write_file(data.resolved_file, config.to_json())
            node = NodeRuntime(config, registry or Registry.discover(), data, logger=logger)
            await node.start()
            stop = asyncio.Event()
            try:
                yield node
                if crash:
                    node.parts.node_machine.fatal("the test kills it")
            finally:
                stop.set()
                if crash:
                    with pytest.raises(Exception, match="the test kills it"):
                        await node.serve_until_stopped(stop)
                else:
                    await node.serve_until_stopped(stop)

    return start
