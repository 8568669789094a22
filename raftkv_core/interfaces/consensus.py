"""Consensus: orders entries, makes them durable on a majority, and hands them to the machine in order.

An engine is built by `factory(context, settings)`, lives on the node's event loop, and works on every member:
a follower forwards. It takes time, randomness, files, sockets and tasks only from its context, so that it can
be simulated; an engine whose Raft lives in another process does not claim `simulatable`.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from raftkv_core.errors import InvalidRequest

if TYPE_CHECKING:
    from raftkv_core.log import DurableLog

__all__ = [
    "Clock",
    "Consensus",
    "ConsensusCapability",
    "ConsensusContext",
    "ConsensusStatus",
    "Entry",
    "EntryKind",
    "Identity",
    "Level",
    "Machine",
    "Member",
    "Position",
    "Role",
    "Snapshot",
]

ConsensusCapability = Literal["replicated", "membership", "linearizable_reads", "lease_reads", "simulatable"]
Level = Literal["linearizable", "lease", "stale"]
Role = Literal["leader", "follower", "candidate", "learner", "starting", "stopped"]


class EntryKind(IntEnum):
    """What an entry means to the machine; stored in logs, so the numbers never change."""

    COMMAND = 0
    CONFIG = 1
    """The engine's own (a membership change); the machine only moves its position."""
    NOOP = 2


class Position(NamedTuple):
    """A place in the log. Indexes count from 1; (0, 0) is before everything."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    term: int


class Entry(NamedTuple):
    """One log entry. `data` is opaque to the engine."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    term: int
    kind: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this node is. `cluster_id` and `history_id` are 32 hex digits, or "" before they are known."""

    node_id: str
    cluster_name: str
    cluster_id: str = ""
    history_id: str = ""


@dataclass(frozen=True, slots=True)
class Member:
    """One voter. `address` is where its peers reach it, `host:port`."""

    node_id: str
    address: str


@dataclass(frozen=True, slots=True)
class ConsensusStatus:
    """What an engine knows right now, without asking anybody."""

    role: Role
    term: int
    leader: str | None
    """Node id of the leader, None if unknown."""
    commit_index: int
    last_index: int
    figures: dict[str, int | float] = field(default_factory=dict)
    """Numbers for people and metrics, by snake_case name."""


class Snapshot(Protocol):
    """The machine's state as a stream: `label`, exact length, chunks. Close it when done."""

    label: Position
    length_bytes: int

    def chunks(self) -> AsyncIterator[bytes]: ...
    async def close(self) -> None: ...


class Machine(Protocol):
    """What the core hands to an engine: the replicated state machine of this node.

    Only entries that this node's own log has synced are handed over. All calls are made on the node's loop.
    """

    @property
    def applied(self) -> Position:
        """The last entry whose outcome is known."""

    @property
    def durable(self) -> Position:
        """Storage survives power loss up to here; the log may be trimmed up to here and not beyond."""

    @property
    def room(self) -> int:
        """Bytes of entries that `apply` takes now. At 0, wait with `wait_for_room`."""

    async def wait_for_room(self) -> None: ...

    def apply(self, prev_index: int, entries: Sequence[Entry]) -> None:
        """Apply in order; never blocks, never raises for a bad command.

        Entries at or below `applied` are skipped; a gap (`prev_index` above `applied`) stops the node.
        """

    def advance(self, index: int, term: int) -> None:
        """Move the position over entries that have no effect and were never handed over."""

    async def make_durable(self, index: int) -> None:
        """Return when `durable.index >= index`."""

    async def snapshot(self) -> Snapshot: ...

    async def restore(self, chunks: AsyncIterator[bytes]) -> Position:
        """Install a stream: verify, activate, move the position. Waiters below it end as unknown."""

    @property
    def engine_state(self) -> bytes:
        """Opaque bytes of the engine, b"" at first; a new history drops them."""

    def set_engine_state(self, state: bytes, at: Position) -> None:
        """Change it in the storage transaction of the entry at `at`; call before applying that entry."""

    def on_role(self, role: Role, term: int, leader: str | None) -> None:
        """Say so whenever one of them changes."""

    def fatal(self, reason: str) -> None:
        """Stop the node, loudly, with the reason. Nothing is acknowledged after it."""


class Clock(Protocol):
    """Seconds. `boottime` goes on while the machine is suspended (leases); `monotonic` is for the rest."""

    def monotonic(self) -> float: ...
    def boottime(self) -> float: ...
    async def sleep(self, seconds: float) -> None: ...


class Network(Protocol):
    """Peer traffic. Streams are `asyncio.StreamReader`/`StreamWriter` or look like them."""

    async def listen(self, address: str, accept: Callable[[Any, Any], Awaitable[None]]) -> Any: ...
    async def connect(self, address: str, timeout_s: float) -> tuple[Any, Any]: ...


@dataclass(frozen=True)
class ConsensusContext:
    """Everything an engine may touch."""

    directory: Path
    """Its own folder in the data directory."""
    identity: Identity
    bind: str
    advertise: str
    members: Sequence[Member]
    """The members that the configuration names, this one included; used at bootstrap only."""
    open_log: Callable[[], DurableLog]
    """Opens this node's durable log, once."""
    clock: Clock
    random: random.Random
    network: Network
    spawn: Callable[[Coroutine[Any, Any, None], str], Any]
    """Start a named task; an exception in it is fatal to the node. The task is cancelled at stop."""
    logger: Any
    """A structlog logger."""


class Consensus(ABC):
    """One member's consensus engine."""

    entry_bytes_max: int
    """Largest entry it takes; at least `limits.ENTRY_BYTES_MAX`."""

    @abstractmethod
    def __init__(self, context: ConsensusContext, settings: Any) -> None: ...

    @abstractmethod
    async def bootstrap(self, members: Sequence[Member], base: Position) -> None:
        """Make this the first member of a new cluster. Called once, before `start`, on an empty log.

        `base` is where the log begins: (0, 0), or the sealed position after a change of engine.
        """

    @abstractmethod
    async def start(self, machine: Machine) -> None:
        """Replay what the machine lacks and take part. Returns when the engine runs, leader or not."""

    @abstractmethod
    async def stop(self, *, transfer: bool, deadline_s: float) -> None:
        """Hand leadership over if asked and possible, then end. Entries in flight end as unknown."""

    @abstractmethod
    async def submit(self, entry: bytes, timeout_s: float) -> Position | None:
        """Hand one command entry over, at most once: nothing at or below this call sends it again.

        Returns its position if it is known (the core then resolves waiters when something is applied there),
        else None. Raises NotApplied or OutcomeUnknown.
        """

    @abstractmethod
    async def read_index(self, level: Level, timeout_s: float) -> int:
        """An index I such that a read which has seen `applied >= I` is as strong as `level`.

        Raises Unavailable when that cannot be had in time, or when the engine does not offer the level.
        """

    @abstractmethod
    def status(self) -> ConsensusStatus: ...

    @abstractmethod
    def members(self) -> Sequence[Member]: ...

    async def add_member(self, member: Member, timeout_s: float) -> None:  # noqa: ARG002
        """Add a voter that is caught up. Engines with the capability `membership` override these three."""
        self._no_membership()

    async def remove_member(self, node_id: str, timeout_s: float) -> None:  # noqa: ARG002
        self._no_membership()

    async def transfer_leadership(self, node_id: str | None, timeout_s: float) -> None:  # noqa: ARG002
        self._no_membership()

    async def recover(self, members: Sequence[Member]) -> None:  # noqa: ARG002
        """Force a new membership on what this node has, offline; see `histories` in the design."""
        self._no_membership()

    def trim(self, index: int) -> None:  # noqa: B027
        """The machine is durable up to `index`: the log at or below it may go. Keep what followers need."""

    def _no_membership(self) -> None:
        raise InvalidRequest(
            f"{type(self).__name__} has no membership; use a consensus engine that claims it",
            code="membership_unsupported",
        )
