"""Whether a log and a store belong together, decided before anything is replayed.

| log | store | |
|---|---|---|
| new, or of no history | has a history | refused: the log was lost, and with it what was acknowledged last |
| of another history | has a history | refused |
| of the same history, ends below the store | | legal (a stream was installed): the log begins anew there |
| begins above the store | | refused: entries in between are gone |
| has another term at the store's index | | refused |
"""

from __future__ import annotations

from pathlib import Path

from raftkv_core.errors import DataDirectoryError, IdentityMismatch, PluginError
from raftkv_core.interfaces.consensus import Position
from raftkv_core.interfaces.storage import Storage
from raftkv_core.limits import ROW_BYTES_MAX, TABLE_KEY_BYTES_MAX
from raftkv_core.log import DurableLog

__all__ = ["check_limits", "reconcile_log"]

_REPLACE = "replace this node (a new node id and an empty data directory), or restore a backup"


def reconcile_log(log: DurableLog, directory: Path, store: Position, store_history: bytes) -> None:
    """Raise DataDirectoryError unless the log in `directory` continues the store; reset it where that is legal."""
    if (store_history and not log.history_id) or (store.index and log.created):
        raise DataDirectoryError(
            f"the log in {directory} is {'missing' if log.created else 'of no history'}, but the store holds data up "
            f"to index {store.index}: what was acknowledged last is lost; {_REPLACE}"
        )
    if store_history and log.history_id != store_history:
        raise IdentityMismatch(
            f"the log in {directory} is of history {log.history_id.hex()}, the store of {store_history.hex()}; "
            f"{_REPLACE}"
        )
    if store.index < log.base.index:
        raise DataDirectoryError(
            f"the store holds data up to index {store.index}, but the log in {directory} begins after "
            f"{log.base.index}: the store was lost or put back from an older copy; {_REPLACE}"
        )
    if store.index > log.last_index:
        log.reset(store)  # durable before anything that is appended later, which is all that matters
    elif log.term_at(store.index) != store.term:
        raise DataDirectoryError(
            f"at index {store.index} the store has term {store.term} and the log in {directory} has "
            f"{log.term_at(store.index)}: they are not of one node; {_REPLACE}"
        )


def check_limits(name: str, storage: Storage) -> None:
    """Refuse an engine that cannot hold the format's largest row: at replay it would be too late."""
    if storage.key_bytes_max < TABLE_KEY_BYTES_MAX or storage.value_bytes_max < ROW_BYTES_MAX:
        raise PluginError(
            f"storage {name!r} takes keys of {storage.key_bytes_max} and values of {storage.value_bytes_max} bytes; "
            f"{TABLE_KEY_BYTES_MAX} and {ROW_BYTES_MAX} are needed: change its settings or choose another storage"
        )
