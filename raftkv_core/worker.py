"""The store for processes that a transport starts: `store = await connect()`.

    store = await connect()                     # RAFTKV_RESOLVED names the node's resolved configuration
    outcome = await store.propose(put(b"a", b"1"))
    record, info = await store.get(b"a")

Where the storage has `shared_readers`, reads are served from storage in this process, and only what makes them
fresh (a barrier, coalesced) is asked of the node; else they go over the node socket like commands. A node that
is away does not end the store: requests raise Unavailable until it is back, stale reads go on.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from raftkv_core.config import Config
from raftkv_core.errors import ConfigError, StorageError, Unavailable
from raftkv_core.interfaces.consensus import Level, Member
from raftkv_core.interfaces.storage import ReadTransaction, StorageReader
from raftkv_core.interfaces.transport import ChangesPage, Range, ReadInfo, Record, Store
from raftkv_core.machine.commands import Outcome, check_key
from raftkv_core.node.calls import ChangesCall, GetCall, MemberCall, NoArguments, NodeCall, RangeCall
from raftkv_core.node.client import NodeClient
from raftkv_core.node.datadir import Layout
from raftkv_core.node.launch import RESOLVED
from raftkv_core.node.reading import Reading
from raftkv_core.node.store import ReadingStore, follow
from raftkv_core.registry import Registry

__all__ = ["connect"]

CONNECT_WAIT_S: Final = 1.0

ResultT = TypeVar("ResultT")


async def connect(resolved_path: Path | str | None = None) -> Store:
    """A store that reaches its node by itself, now and after each restart of the node.

    Returns once connected, or after a second without. Raises ConfigError or PluginError when the resolved
    configuration cannot be used.
    """
    path = resolved_path or os.environ.get(RESOLVED)
    if not path:
        raise ConfigError(f"{RESOLVED} is not set: start this process through `raftkv serve`, or name the file")
    try:
        config = Config.from_json(Path(path).read_bytes())  # noqa: ASYNC240 - once, before anything is served
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(f"the resolved configuration {path} cannot be read: {error}") from error
    store = _open(config)
    await store.start()
    return store


def _open(config: Config) -> SharedStore | SocketStore:
    layout = Layout(config.node.data_dir)
    registry = Registry.discover(config.disabled)
    plugin = registry.storage(config.storage.name)
    settings = registry.settings(plugin, config.storage.settings)
    if "shared_readers" not in plugin.capabilities(settings):
        return SocketStore(config, layout)
    engine = registry.load(plugin)
    return SharedStore(config, layout, lambda: engine.open_reader(layout.storage, settings))


class SharedReader:
    """This process's reader of the node's storage: opened when first needed, again for a new generation."""

    def __init__(self, open_reader: Callable[[], StorageReader]) -> None:
        self._open_reader = open_reader
        self._open: _Counted | None = None
        self._told = 0
        """The generation that the node last spoke of; 0 before it did."""

    def told(self, generation: int) -> None:
        """What the node says it has. A reader that was opened when it said otherwise is opened again."""
        self._told = generation

    def read(self) -> ReadTransaction:
        return self._current().reader.read()

    @contextmanager
    def hold(self) -> Iterator[Callable[[], ReadTransaction]]:
        held = self._current()
        held.users += 1
        try:
            yield held.reader.read
        finally:
            held.users -= 1
            if held is not self._open and not held.users:
                held.reader.close()

    def reopen(self) -> None:
        """Nothing happens while a thread reads from the one that is open: the caller then tries as it is."""
        if self._open is not None and not self._open.users:
            self.close()

    def close(self) -> None:
        """A thread that still reads closes it."""
        retired, self._open = self._open, None
        if retired is not None and not retired.users:
            retired.reader.close()

    def _current(self) -> _Counted:
        if self._open is not None and self._open.generation != self._told:
            self.close()
        if self._open is None:
            try:
                self._open = _Counted(self._open_reader(), self._told)
            except StorageError as error:
                raise Unavailable(f"the store cannot be read yet: {error}", code="storage_away") from error
        return self._open


class _Counted:
    """An open reader, and how many threads read from it."""

    __slots__ = ("generation", "reader", "users")

    def __init__(self, reader: StorageReader, generation: int) -> None:
        self.reader = reader
        self.generation = generation
        self.users = 0


class WorkerStore:
    """What goes to the node wherever reads come from."""

    def __init__(self, config: Config, layout: Layout) -> None:
        self._client = NodeClient(
            layout.node_socket,
            config.node.id,
            pending_max=config.limits.queue_commands,
            on_standing=self._on_standing,
        )
        self._timeout_s = config.limits.request_timeout_s

    async def start(self) -> None:
        await self._client.start(CONNECT_WAIT_S)

    async def propose(self, command: bytes, *, timeout_s: float | None = None) -> Outcome:
        return await self._client.propose(command, self._timeout_s if timeout_s is None else timeout_s)

    async def status(self) -> dict[str, Any]:
        return await self._call("status", NoArguments(), _STATUS)

    async def members(self) -> Sequence[Member]:
        return await self._call("members", NoArguments(), _MEMBERS)

    async def add_member(self, member: Member, *, timeout_s: float | None = None) -> None:
        await self._call("add_member", MemberCall(member.node_id, member.address), _NOTHING, timeout_s, changes=True)

    async def remove_member(self, node_id: str, *, timeout_s: float | None = None) -> None:
        await self._call("remove_member", NodeCall(node_id), _NOTHING, timeout_s, changes=True)

    async def transfer_leadership(self, node_id: str | None, *, timeout_s: float | None = None) -> None:
        await self._call("transfer_leadership", NodeCall(node_id), _NOTHING, timeout_s, changes=True)

    async def close(self) -> None:
        self._client.news.fail(Unavailable("this worker is stopping"))
        await self._client.close()

    def _on_standing(self, index: int, term: int, generation: int) -> None:
        """What each of the node's frames says of its store."""

    async def _call(
        self,
        method: str,
        arguments: Any,
        decoder: msgspec.msgpack.Decoder[ResultT],
        timeout_s: float | None = None,
        *,
        changes: bool = False,
    ) -> ResultT:
        patience = self._timeout_s if timeout_s is None else timeout_s
        return await self._client.call(method, arguments, decoder, patience, changes=changes)


class SharedStore(ReadingStore, WorkerStore):
    """Reads storage in this process."""

    def __init__(self, config: Config, layout: Layout, open_reader: Callable[[], StorageReader]) -> None:
        WorkerStore.__init__(self, config, layout)
        self._reader = SharedReader(open_reader)
        ReadingStore.__init__(
            self,
            Reading(self._reader, self._barrier, self._client.news),
            self._client.news,
            timeout_s=config.limits.request_timeout_s,
        )

    async def close(self) -> None:
        await WorkerStore.close(self)
        await self._reading.close()
        self._reader.close()

    def _barrier(self, level: Level, timeout_s: float) -> Awaitable[int]:
        return self._client.barrier(level == "lease", timeout_s)

    def _on_standing(self, index: int, term: int, generation: int) -> None:  # noqa: ARG002
        self._reader.told(generation)


class SocketStore(WorkerStore):
    """Has the node read."""

    async def get(
        self,
        key: bytes,
        *,
        level: Level = "linearizable",
        revision: int | None = None,
        min_revision: int | None = None,
        timeout_s: float | None = None,
    ) -> tuple[Record | None, ReadInfo]:
        check_key(key)
        return await self._call("get", GetCall(key, level, revision, min_revision), _RECORD, timeout_s)

    async def range(
        self,
        start: bytes,
        end: bytes | None,
        *,
        level: Level = "linearizable",
        revision: int | None = None,
        min_revision: int | None = None,
        limit: int = 100,
        keys_only: bool = False,
        count: bool = False,
        reverse: bool = False,
        timeout_s: float | None = None,
    ) -> Range:
        call = RangeCall(start, end, level, revision, min_revision, limit, keys_only, count, reverse)
        return await self._call("range", call, _RANGE, timeout_s)

    async def changes(
        self, after: int, *, start: bytes = b"", end: bytes | None = None, limit: int = 1_000
    ) -> ChangesPage:
        return await self._call("changes", ChangesCall(after, start, end, limit), _CHANGES)

    def watch(self, after: int, *, start: bytes = b"", end: bytes | None = None) -> AsyncIterator[ChangesPage]:
        return follow(self, self._client.news, after, start, end)


_STATUS: Final[msgspec.msgpack.Decoder[dict[str, Any]]] = msgspec.msgpack.Decoder(dict[str, Any])
_MEMBERS: Final[msgspec.msgpack.Decoder[list[Member]]] = msgspec.msgpack.Decoder(list[Member])
_NOTHING: Final[msgspec.msgpack.Decoder[None]] = msgspec.msgpack.Decoder(type(None))
_RECORD: Final[msgspec.msgpack.Decoder[tuple[Record | None, ReadInfo]]] = msgspec.msgpack.Decoder(
    tuple[Record | None, ReadInfo]
)
_RANGE: Final[msgspec.msgpack.Decoder[Range]] = msgspec.msgpack.Decoder(Range)
_CHANGES: Final[msgspec.msgpack.Decoder[ChangesPage]] = msgspec.msgpack.Decoder(ChangesPage)
