"""Storage: an ordered map of bytes to bytes in a few named tables, with transactions.

The state machine is the only writer. An engine knows nothing of what the tables mean; it keeps bytes in
order, atomically, and says truly when they are durable. A complete engine needs `Storage`, `ReadTransaction`,
`WriteTransaction` and `Restore`; everything that is not abstract has a working default.

Threads: one writer thread at a time (write transactions, `sync`), any number of reader threads. A transaction
is used by the thread that made it. All calls are synchronous; none may touch an event loop.

Errors: `StorageFull` when there is no room, `StorageError` for everything else that fails. After a failed
`commit` or `sync` the engine is not used again except to be closed: the node stops and replays its log.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal

from raftkv_core.limits import ROW_BYTES_MAX, TABLE_KEY_BYTES_MAX

__all__ = [
    "TABLES",
    "ReadTransaction",
    "Restore",
    "Space",
    "Storage",
    "StorageCapability",
    "StorageReader",
    "WriteTransaction",
]

TABLES: Final = (
    "kv",
    "changes",
    "next",
    "tombstones",
    "lease",
    "lease_keys",
    "lease_expiry",
    "members",
    "dedupe",
    "dedupe_expiry",
    "meta",
)
"""The tables an engine must offer. It may create them when it is made; asking for another is a KeyError."""

StorageCapability = Literal["durable", "shared_readers"]
"""durable: `sync` means what it says. shared_readers: `open_reader` works from other processes."""


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes, as of now. `free_bytes` counts free pages inside the engine's file and what its file can still
    grow by (its own limit and the file system's free bytes, whichever is less)."""

    used_bytes: int
    free_bytes: int
    reserve_bytes: int = 0
    """Held back by the engine, released by `release_reserve`."""


class ReadTransaction(ABC):
    """A consistent snapshot: it never sees a commit made after it began. Use as a context manager."""

    @abstractmethod
    def get(self, table: str, key: bytes) -> bytes | None:
        """The value of `key`, or None. Keys are 1 to 511 bytes."""

    @abstractmethod
    def scan(
        self,
        table: str,
        start: bytes = b"",
        end: bytes | None = None,
        *,
        reverse: bool = False,
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, bytes]]:
        """Rows with start <= key < end, ascending by bytes (descending if `reverse`), at most `limit`.

        `start` b"" begins at the first row; `end` None goes on past the last. An empty or inverted range
        yields nothing. The iterator is valid while the transaction is open and, in a write transaction,
        until the next write.
        """

    @abstractmethod
    def close(self) -> None:
        """End the transaction, dropping what it wrote and did not commit. Closing twice is allowed."""

    def __enter__(self) -> Any:  # Self is typing_extensions' before 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class WriteTransaction(ReadTransaction):
    """One atomic change; it reads its own writes. Not committed means: never happened."""

    @abstractmethod
    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Set a row. Keys are 1 to 511 bytes, values 0 to `ROW_BYTES_MAX`."""

    @abstractmethod
    def delete(self, table: str, key: bytes) -> bool:
        """Remove a row; says whether it was there."""

    @abstractmethod
    def commit(self) -> None:
        """Make everything visible to transactions that begin later, in all processes. Ends the transaction."""

    def put_many(self, table: str, rows: Iterable[tuple[bytes, bytes]]) -> None:
        """`put` each. Override where the engine has something faster."""
        for key, value in rows:
            self.put(table, key, value)

    def delete_many(self, table: str, keys: Iterable[bytes]) -> None:
        """`delete` each. Override where the engine has something faster."""
        for key in keys:
            self.delete(table, key)


class StorageReader(ABC):
    """What another process may do with a store, and what every `Storage` can do too."""

    @abstractmethod
    def read(self) -> ReadTransaction:
        """Begin a snapshot of the newest commit."""

    @abstractmethod
    def close(self) -> None:
        """Release everything. Open transactions become invalid. Closing twice is allowed."""


class Storage(StorageReader):
    """An engine, as the node's process opens it: `Engine(directory, settings)`.

    It creates `directory`'s contents when they are missing and leaves exactly one valid generation behind
    after a crash at any step, `activate()` included.
    """

    commits_at_risk: int | None = None
    """How many of the newest commits a power loss may take when `sync` is never called: 0 if each commit
    is durable by itself, 1 if the newest is not, and so on; None if only `sync` makes commits durable.
    Whatever the number, a power loss leaves a prefix of the commits, whole."""

    key_bytes_max: int = TABLE_KEY_BYTES_MAX
    value_bytes_max: int = ROW_BYTES_MAX

    @abstractmethod
    def __init__(self, directory: Path, settings: Any) -> None: ...

    @classmethod
    def open_reader(cls, directory: Path, settings: Any) -> StorageReader:
        """Open read-only from another process, at the generation that is valid now (`shared_readers`).
        A process may have several open, of one generation or of different ones.

        Raises StorageError while the store does not exist yet.
        """
        raise NotImplementedError(f"{cls.__name__} does not claim the capability shared_readers")

    @property
    @abstractmethod
    def generation(self) -> int:
        """Which store this is: one more after each `activate()`. A reader of an older one must reopen."""

    @abstractmethod
    def write(self) -> WriteTransaction:
        """Begin the one write transaction; at most one is open at a time."""

    @abstractmethod
    def sync(self) -> None:
        """Return when all that was committed before the call survives power loss."""

    @abstractmethod
    def begin_restore(self) -> Restore:
        """An empty store beside the live one, which goes on working. An older unfinished one is discarded."""

    @abstractmethod
    def space(self) -> Space:
        """Cheap enough to ask once a second."""

    def release_reserve(self) -> None:
        """Give up the held-back space, so that what was already acknowledged can be written. Default: none."""

    def restore_reserve(self) -> None:
        """Hold the reserve again if there is room. Default: none."""

    def maintain(self) -> None:
        """Called now and then, and after a reader process died: free what it left behind. Default: nothing."""

    def figures(self) -> dict[str, int | float]:
        """Numbers for people and metrics (`pages_free`, `readers`, …), by snake_case name. Default: none."""
        return {}


class Restore(ABC):
    """A store being filled. Fill it with as many write transactions as wanted, then `activate` or `discard`."""

    @abstractmethod
    def write(self) -> WriteTransaction:
        """As `Storage.write`, on the new store."""

    @abstractmethod
    def read(self) -> ReadTransaction:
        """As `Storage.read`, on the new store."""

    @abstractmethod
    def activate(self) -> None:
        """Sync the new store and switch the `Storage` to it, atomically and durably.

        Transactions on the old store that are open stay valid until closed. A crash before this returns
        leaves the old store or the new one, never neither and never a mixture.
        """

    @abstractmethod
    def discard(self) -> None:
        """Remove it. After `activate`, nothing."""
