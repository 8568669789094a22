"""Beginning a new history on existing data: what restore, and later the way back from a lost majority, do.

The data stays; the position, the history's name, the engine's state and what members said of themselves go.
The next start finds a store without a history and proposes `genesis`, whose base revision lies far above the
data's, so that no revision that was seen in lost time is given out again.
"""

from __future__ import annotations

from typing import Final

from raftkv_core.interfaces.storage import WriteTransaction
from raftkv_core.machine.meta import ENGINE_KEY, IDENTITY_KEY, STATE_KEY, read_meta
from raftkv_core.machine.records import ROW_OVERHEAD, row_hash

__all__ = ["REVISIONS_SKIPPED", "begin_new_history"]

REVISIONS_SKIPPED: Final = 1 << 32
"""Between the data's revision and the base of its new history."""


def begin_new_history(txn: WriteTransaction) -> None:
    """Rewrite `meta` and drop `members` in `txn`, which the caller commits."""
    meta = read_meta(txn)
    state = meta.state
    for key, row in list(txn.scan("members")):
        txn.delete("members", key)
        state.aux_rows -= 1
        state.aux_bytes -= ROW_OVERHEAD + len(key) + len(row)
        state.local_digest = (state.local_digest - row_hash(key, row)) % (1 << 64)
    state.index = state.term = state.sealed_index = state.sealed_term = 0
    txn.put("meta", STATE_KEY, state.encode())
    txn.delete("meta", IDENTITY_KEY)
    txn.delete("meta", ENGINE_KEY)
