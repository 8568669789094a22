"""History: how far it is kept (part of apply, hence deterministic) and how its rows go (storage's own pace).

The compacted revision C is a function of the sequence of commands and the replicated settings alone. The rows
at or below C are removed later, by storage commits, a bounded number each; nothing that apply computes depends
on whether they are still there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from raftkv_core.interfaces.storage import WriteTransaction
from raftkv_core.machine.meta import State
from raftkv_core.machine.records import (
    CHANGE_DELETE,
    CHANGE_KEY,
    change_key,
    decode_change,
    decode_pointer,
    table_key,
)

__all__ = ["HistoryBound", "total_before", "trim_rows"]

Get = Callable[[str, bytes], bytes | None]

TRIM_ROWS_LEAST: Final = 256
"""Rows that a commit removes at least, if there are that many to remove; beyond it twice what it wrote, so
that trimming keeps up with writing."""


def total_before(get: Get, state: State, revision: int) -> int:
    """History bytes of all changes before `revision`, which lies above C and at most one past the newest."""
    if revision > state.revision:
        return state.history_total
    row = get("changes", change_key(revision, 0))
    assert row is not None, f"change {revision} is above the compacted revision and missing"
    return decode_change(row).total_before


class HistoryBound:
    """Finds the compacted revision that the settings ask for.

    `floor` caches the total before some revision at or below C + 1: an upper bound on the bytes kept, so that
    most commands need no read at all. It is a cache of what the rows say and never part of the result.
    """

    def __init__(self, get: Get, state: State) -> None:
        self._get = get
        self._floor = total_before(get, state, state.compacted + 1)

    def compacted(self, state: State, settings: dict[str, int]) -> int:
        """C after a command that left `state`; never below `state.compacted`, never above the revision."""
        least = max(state.compacted, state.revision - settings["history_revisions"])
        bytes_most = settings["history_bytes"]
        if state.history_total - self._floor <= bytes_most:
            return least
        self._floor = total_before(self._get, state, least + 1)
        if state.history_total - self._floor <= bytes_most:
            return least
        # The bytes above `low` are too many, those above `high` are not. Most commands push out one revision or
        # two, so look near first, in growing steps, and halve the last one.
        low, step = least, 1
        while low + step < state.revision and self._kept(state, low + step) > bytes_most:
            low, step = low + step, 2 * step
        high = min(low + step, state.revision)
        while high - low > 1:
            middle = (low + high) // 2
            if self._kept(state, middle) > bytes_most:
                low = middle
            else:
                high = middle
        self._floor = total_before(self._get, state, high + 1)
        return high

    def _kept(self, state: State, compacted: int) -> int:
        return state.history_total - total_before(self._get, state, compacted + 1)


def trim_rows(txn: WriteTransaction, compacted: int, rows_most: int) -> bool:
    """Remove changes at or below `compacted` with all that belongs to them; says whether more are left."""
    changes: list[bytes] = []
    tombstones: list[bytes] = []
    for key, row in txn.scan("changes", b"", change_key(compacted + 1, 0), limit=rows_most):
        changes.append(key)
        change = decode_change(row)
        if change.op == CHANGE_DELETE:
            tombstone = txn.get("tombstones", table_key(change.key))
            if tombstone is not None and decode_pointer(tombstone) == CHANGE_KEY.unpack(key):
                tombstones.append(table_key(change.key))
    txn.delete_many("changes", changes)
    txn.delete_many("next", changes)
    txn.delete_many("tombstones", tombstones)
    return len(changes) == rows_most
