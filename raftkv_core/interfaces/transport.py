"""Transports serve clients (in Raft the word means peer traffic; here it does not).

A transport gets a `Store` and turns it into a protocol. It never opens a storage engine, never sees tables,
and never speaks to consensus. It runs either in the node's process (`InProcessTransport`) or in processes of
its own, whose command line its descriptor gives and which call `raftkv_core.worker.connect()`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Any, NamedTuple, Protocol

from raftkv_core.interfaces.consensus import Level, Member
from raftkv_core.machine.commands import Outcome

__all__ = [
    "Change",
    "ChangesPage",
    "InProcessTransport",
    "Range",
    "ReadInfo",
    "Record",
    "Store",
]


class Record(NamedTuple):
    """The newest (or an older) state of one key."""

    create_revision: int
    mod_revision: int
    version: int
    """1 at creation, one more with each put."""
    lease: int
    value: bytes
    attributes: dict[str, str] | None = None


class ReadInfo(NamedTuple):
    """What a read really had."""

    level: Level
    revision: int
    """The store's revision in the snapshot that answered."""
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    """Applied log index of that snapshot."""


class Range(NamedTuple):
    """A page of a range. `more`: rows beyond the limit exist; `count`: rows in the whole range, or None
    unless it was asked for."""

    rows: list[tuple[bytes, Record]]
    more: bool
    count: int | None  # type: ignore[assignment]  # hides tuple.count
    info: ReadInfo


class Change(NamedTuple):
    """One event, in order of (revision, sub)."""

    revision: int
    sub: int
    key: bytes
    record: Record | None
    """None for a deletion."""
    previous: Record | None


class ChangesPage(NamedTuple):
    """Changes after a revision; never cut inside a revision unless one revision alone exceeds the limit.

    `revision` is the newest revision that the page covers: ask on with it.
    """

    changes: list[Change]
    revision: int


class Store(Protocol):
    """The store as a transport sees it; the same in the node's process and in a worker's.

    Times are seconds. Every method may raise `Unavailable`; reads at an old revision raise `Compacted`.
    `stale` reads never ask anybody; `min_revision` makes any read wait until that revision is visible here.
    """

    async def get(
        self,
        key: bytes,
        *,
        level: Level = "linearizable",
        revision: int | None = None,
        min_revision: int | None = None,
        timeout_s: float | None = None,
    ) -> tuple[Record | None, ReadInfo]: ...

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
        """Rows with start <= key < end; `start` b"" is the first key, `end` None past the last."""

    async def changes(
        self, after: int, *, start: bytes = b"", end: bytes | None = None, limit: int = 1_000
    ) -> ChangesPage:
        """Events with revision > after in the key range, straight from storage."""

    def watch(self, after: int, *, start: bytes = b"", end: bytes | None = None) -> AsyncIterator[ChangesPage]:
        """`changes` again and again, waiting for news in between. Raises Compacted when it fell behind.

        A page may have no changes in the range: its revision then says where to resume.
        """

    async def propose(self, command: bytes, *, timeout_s: float | None = None) -> Outcome:
        """Propose an encoded command (`raftkv_core.machine.commands`) and wait for its outcome.

        Returns what the state machine answered, refusals included. Raises NotApplied (and below it
        Overloaded, NoSpace, Unavailable), InvalidRequest or OutcomeUnknown.
        """

    async def status(self) -> dict[str, Any]:
        """The node's status, as `/v1/status` shows it."""

    async def members(self) -> Sequence[Member]: ...
    async def add_member(self, member: Member, *, timeout_s: float | None = None) -> None: ...
    async def remove_member(self, node_id: str, *, timeout_s: float | None = None) -> None: ...
    async def transfer_leadership(self, node_id: str | None, *, timeout_s: float | None = None) -> None: ...

    async def close(self) -> None: ...


class InProcessTransport(ABC):
    """A transport that lives in the node's process, on its loop."""

    @abstractmethod
    def __init__(self, store: Store, settings: Any) -> None: ...

    @abstractmethod
    async def start(self) -> None:
        """Listen; return when clients are served."""

    @abstractmethod
    async def stop(self, deadline_s: float) -> None:
        """Stop accepting, finish what is under way, return."""
