"""What the machine knows of itself: position, counters, digests, identity, settings; the `meta` table.

`State` is written as one row in every storage transaction, so it can never disagree with the data. `Identity`,
settings and the engine's state change seldom and have rows of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields, replace
from struct import Struct
from typing import Final

import msgpack
import xxhash

from raftkv_core.errors import StorageError
from raftkv_core.interfaces.consensus import Position
from raftkv_core.interfaces.storage import ReadTransaction
from raftkv_core.limits import FORMAT
from raftkv_core.machine.records import check_head
from raftkv_core.machine.settings import DEFAULTS

__all__ = ["HistoryIdentity", "Meta", "State", "read_meta", "read_state", "stored_digest"]

STATE_KEY: Final = b"state"
IDENTITY_KEY: Final = b"identity"
SETTINGS_KEY: Final = b"settings"
ENGINE_KEY: Final = b"engine"

_MASK: Final = (1 << 64) - 1


@dataclass(slots=True)
class State:
    """Numbers that move with every entry. Bytes are stream bytes unless said otherwise."""

    index: int = 0
    term: int = 0
    revision: int = 0
    compacted: int = 0
    clock_ms: int = 0
    kv_digest: int = 0
    """Sum of row hashes over `kv`, modulo 2^64."""
    local_digest: int = 0
    """The same over dedupe, lease and member rows."""
    keys: int = 0
    live_bytes: int = 0
    """Table keys and rows of `kv`."""
    history_total: int = 0
    """History bytes of all changes ever made; what is kept is this minus the total before the oldest kept."""
    aux_rows: int = 0
    aux_bytes: int = 0
    """Rows of dedupe, lease and members in a stream."""
    dedupe_keys: int = 0
    leases: int = 0
    sealed_index: int = 0
    """Reserved for `seal`: 0 means not sealed."""
    sealed_term: int = 0

    @property
    def position(self) -> Position:
        return Position(self.index, self.term)

    def copy(self) -> State:
        return replace(self)

    def encode(self) -> bytes:
        return _STATE.pack(FORMAT, 0, *astuple(self))

    @classmethod
    def decode(cls, row: bytes) -> State:
        if row[0] != FORMAT or row[1]:
            raise StorageError(
                f"the store's state has format {row[0]}, flags {row[1]:#x}; this release reads {FORMAT}: upgrade"
            )
        return cls(*_STATE.unpack(row)[2:])


_STATE: Final = Struct(">BB" + "Q" * len(fields(State)))


@dataclass(frozen=True, slots=True)
class HistoryIdentity:
    """Which cluster and which unbroken sequence of commands. Ids are 16 bytes, b"" before genesis."""

    cluster_id: bytes = b""
    history_id: bytes = b""
    base_revision: int = 0

    def encode(self) -> bytes:
        packed: bytes = msgpack.packb([self.cluster_id, self.history_id, self.base_revision])
        return bytes((FORMAT, 0)) + packed

    @classmethod
    def decode(cls, row: bytes) -> HistoryIdentity:
        check_head("history's identity", row)
        return cls(*msgpack.unpackb(row[2:]))


def encode_settings(settings: Mapping[str, int]) -> bytes:
    """Canonical: sorted by name."""
    packed: bytes = msgpack.packb(sorted(settings.items()))
    return bytes((FORMAT, 0)) + packed


def decode_settings(row: bytes) -> dict[str, int]:
    check_head("set of settings", row)
    return dict(msgpack.unpackb(row[2:]))


@dataclass(slots=True)
class Meta:
    """The whole of `meta`, as one snapshot has it."""

    state: State
    identity: HistoryIdentity
    settings: dict[str, int]
    engine_state: bytes

    @property
    def position(self) -> Position:
        return self.state.position

    @property
    def revision(self) -> int:
        return self.state.revision

    @property
    def compacted(self) -> int:
        return self.state.compacted

    @property
    def digest(self) -> int:
        return stored_digest(self.state, self.settings)

    @property
    def digest_local(self) -> int:
        return (self.state.local_digest + xxhash.xxh3_64_intdigest(self.state.clock_ms.to_bytes(8, "big"))) & _MASK


def stored_digest(state: State, settings: Mapping[str, int]) -> int:
    """The digest that is equal under every engine: the sum over `kv`, with settings, revision and compacted
    revision, modulo 2^64."""
    tail = encode_settings(settings) + state.revision.to_bytes(8, "big") + state.compacted.to_bytes(8, "big")
    return (state.kv_digest + xxhash.xxh3_64_intdigest(tail)) & _MASK


def read_state(txn: ReadTransaction) -> State:
    """The state row alone: what each read needs. A new store has zeros."""
    row = txn.get("meta", STATE_KEY)
    return State() if row is None else State.decode(row)


def read_meta(txn: ReadTransaction) -> Meta:
    identity = txn.get("meta", IDENTITY_KEY)
    settings = txn.get("meta", SETTINGS_KEY)
    engine = txn.get("meta", ENGINE_KEY)
    if engine is not None:
        check_head("engine's state", engine)
    return Meta(
        read_state(txn),
        HistoryIdentity() if identity is None else HistoryIdentity.decode(identity),
        dict(DEFAULTS) if settings is None else decode_settings(settings),
        b"" if engine is None else engine[2:],
    )
