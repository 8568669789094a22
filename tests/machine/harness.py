"""Storages to run on, a machine driven by hand, and random commands."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

from raftkv_core.builtin.memory import MemoryStorage
from raftkv_core.interfaces.consensus import Entry, EntryKind, Position
from raftkv_core.interfaces.storage import Storage
from raftkv_core.machine import apply as apply_module
from raftkv_core.machine import commands, entries
from raftkv_core.machine import state as state_module
from raftkv_core.machine.buffer import Generation
from raftkv_core.machine.commands import Outcome
from raftkv_core.machine.entries import ProposalId
from raftkv_core.machine.settings import DEFAULTS
from raftkv_core.machine.state import Applied, StateMachine
from raftkv_core.machine.stream import StreamSource, install

CLUSTER = b"cluster-id-16byt"
HISTORY = b"history-id-16byt"


class Storages:
    """Makes storages of one kind, each in a directory of its own."""

    def __init__(self, kind: str, root: Path) -> None:
        self.kind = kind
        self.root = root
        self._directories: dict[int, Path] = {}
        self._scratch: Storage | None = None

    def new(self) -> Storage:
        directory = Path(tempfile.mkdtemp(dir=self.root))
        return self._open(directory)

    def scratch(self) -> Storage:
        """One that nobody fills, always the same."""
        if self._scratch is None:
            self._scratch = self.new()
        return self._scratch

    def close(self) -> None:
        if self._scratch is not None:
            self._scratch.close()

    def reopen(self, storage: Storage) -> Storage:
        """As after the end of the process: what was committed is there. Memory's process never ends."""
        if self.kind == "memory":
            return storage
        directory = self._directories.pop(id(storage))
        storage.close()
        return self._open(directory)

    def _open(self, directory: Path) -> Storage:
        storage: Storage
        if self.kind == "memory":
            storage = MemoryStorage(directory, None)
        else:
            from raftkv_storage_lmdb.engine import LmdbStorage
            from raftkv_storage_lmdb.plugin import LmdbSettings

            storage = LmdbStorage(directory, LmdbSettings(map_size=1 << 26, reserve_bytes=0))
        self._directories[id(storage)] = directory
        return storage


@contextlib.contextmanager
def small_bounds(*, keys: int = 6, size: int = 700, tick_removes: int = 2, trim_rows: int = 2) -> Iterator[None]:
    """Bounds of the format made so small that random commands meet them."""
    with (
        mock.patch.object(apply_module, "COMMAND_KEYS_MAX", keys),
        mock.patch.object(apply_module, "COMMAND_REPLACED_BYTES_MAX", size),
        mock.patch.object(apply_module, "_TICK_REMOVES_MOST", tick_removes),
        mock.patch.object(state_module, "TRIM_ROWS_LEAST", trim_rows),
    ):
        yield


def genesis(
    changes: dict[str, int] | None = None, *, history: bytes = HISTORY, base_revision: int = 0, base_digest: int = 0
) -> bytes:
    return commands.genesis(
        CLUSTER,
        history,
        {**DEFAULTS, **(changes or {})},
        base_revision=base_revision,
        base_digest=base_digest,
    )


class Node:
    """One machine on one storage, with the log that was handed to it."""

    def __init__(self, storages: Storages, storage: Storage | None = None, *, storage_durable: bool = True) -> None:
        self.storages = storages
        self.storage = storages.new() if storage is None else storage
        self.machine = StateMachine(self.storage, storage_durable=storage_durable)
        self.log: list[Entry] = []
        self.generation: Generation | None = None
        self.written = False

    @property
    def next_index(self) -> int:
        return self.machine.applied.index + 1

    def entry(self, batch: Sequence[bytes], *, term: int = 1, history: bytes = HISTORY) -> Entry:
        data = entries.encode_entry(history, ProposalId("node", 1, self.next_index), batch)
        return Entry(self.next_index, term, EntryKind.COMMAND, data)

    def apply(self, entry: Entry) -> Applied:
        """Apply what comes next and remember it in the log."""
        (applied,) = self.machine.apply(self.machine.applied.index, [entry])
        self.log.append(entry)
        return applied

    def do(self, *batch: bytes, term: int = 1, history: bytes = HISTORY) -> list[Outcome]:
        """Commands as one entry."""
        return self.apply(self.entry(batch, term=term, history=history)).outcomes

    def begin(self, changes: dict[str, int] | None = None) -> None:
        (outcome,) = self.do(genesis(changes))
        assert outcome.status == 0, outcome

    # ---------------------------------------------------------------- commits, in any order of calls

    def begin_commit(self) -> None:
        if self.generation is None:
            self.generation = self.machine.begin_commit()
            self.written = False

    def write_commit(self, *, sync: bool = False) -> None:
        if self.generation is not None and not self.written:
            self.machine.write_commit(self.generation, sync=sync)
            self.written = True

    def end_commit(self, *, synced: bool = False) -> None:
        if self.generation is not None and self.written:
            self.machine.end_commit(self.generation, synced=synced)
            self.generation = None

    def commit(self, *, sync: bool = False) -> None:
        """Everything that was applied so far."""
        for _ in range(2):
            self.begin_commit()
            self.write_commit(sync=sync)
            self.end_commit(synced=sync)

    def step(self, name: str) -> None:
        """One of the above by its short name, or "nothing"."""
        if name != "nothing":
            {"begin": self.begin_commit, "write": self.write_commit, "end": self.end_commit, "commit": self.commit}[
                name
            ]()

    # ---------------------------------------------------------------- crashes and streams

    def restart(self, replay_from: int = 0) -> list[Applied]:
        """Lose what was not committed, and be handed the log again from some earlier index."""
        self.generation = None
        self.machine.close()
        self.storage = self.storages.reopen(self.storage)
        self.machine = StateMachine(self.storage)
        start = min(replay_from, self.machine.applied.index)
        return self.machine.apply(start, [entry for entry in self.log if entry.index > start])

    def stream(self) -> bytes:
        self.commit()
        with self.storage.read() as txn:
            source = StreamSource(txn)
            data = b"".join(source.chunks())
        assert len(data) == source.length_bytes
        return data

    def install(self, data: bytes, piece: int = 1 << 16) -> None:
        """Replace the store by a stream's."""
        assert self.generation is None
        restore = self.storage.begin_restore()
        install((data[at : at + piece] for at in range(0, len(data), piece)), restore)
        restore.activate()
        self.machine.reload()

    def close(self) -> None:
        self.machine.close()
        self.storage.close()

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def position(index: int, term: int = 1) -> Position:
    return Position(index, term)
