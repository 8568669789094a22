"""The state machine: entries in, outcomes out, rows behind them.

    machine = StateMachine(storage)
    applied = machine.apply(prev_index, entries)        # outcomes at once
    generation = machine.begin_commit()                 # now and then, on the loop:
    machine.write_commit(generation, sync=False)        #   in the writer thread
    machine.end_commit(generation, synced=False)        #   on the loop again

Three positions are told apart: *applied* (the outcome is known) >= *visible* (committed in storage, so other
processes read it) >= *durable* (survives a power loss in storage). An entry at or below *applied* is skipped,
so applying is exactly-once however often the log is replayed.

One thread (the loop) owns the machine; only `write_commit` runs in another, on what `begin_commit` gave it.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from raftkv_core.errors import MachineFault
from raftkv_core.interfaces.consensus import Entry, EntryKind, Position
from raftkv_core.interfaces.storage import Storage
from raftkv_core.limits import FORMAT
from raftkv_core.machine.apply import Applier, MemberReport
from raftkv_core.machine.buffer import Generation, WriteBuffer
from raftkv_core.machine.commands import Op, Outcome
from raftkv_core.machine.entries import DecodedEntry, ProposalId, decode_entry
from raftkv_core.machine.history import TRIM_ROWS_LEAST, total_before, trim_rows
from raftkv_core.machine.meta import ENGINE_KEY, STATE_KEY, HistoryIdentity, Meta, State, read_meta

__all__ = ["Applied", "StateMachine"]

DIGEST_EVERY_INDEXES = 1_024
DIGESTS_KEPT = 64
_GENESIS = bytes((Op.GENESIS,))


class Applied(NamedTuple):
    """What became of one entry. `proposal` is None for entries that carry no commands."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    term: int
    proposal: ProposalId | None
    outcomes: list[Outcome]


class StateMachine:
    """See the module. `storage_durable` says whether the engine's `sync` means anything; if not, *durable*
    moves only by `mark_durable`."""

    def __init__(self, storage: Storage, *, storage_durable: bool = True) -> None:
        self._storage = storage
        self._storage_durable = storage_durable
        self._commits: deque[Position] = deque()
        self._digests: OrderedDict[int, tuple[int, int]] = OrderedDict()
        self._engine_pending: deque[tuple[bytes, Position]] = deque()
        self.trim_pending = False
        """More history may be removed than the last commit took."""
        self._buffer = WriteBuffer(storage)
        self._load()
        if storage_durable:
            storage.sync()  # what a killed process committed is visible now but was perhaps never synced
            self.durable = self.visible
        else:
            self.durable = Position(0, 0)

    def _load(self) -> None:
        meta = read_meta(self._buffer.txn)
        self._applier = Applier(self._buffer, meta)
        self._engine_state = meta.engine_state
        self.visible: Position = meta.position
        self._taken = self.visible  # where the newest generation that began to commit ends
        self._commits.clear()
        self._digests.clear()

    # ---------------------------------------------------------------- what is so

    @property
    def state(self) -> State:
        """Live; do not change it or keep it."""
        return self._applier.state

    @property
    def identity(self) -> HistoryIdentity:
        return self._applier.identity

    @property
    def applied(self) -> Position:
        return self._applier.state.position

    @property
    def revision(self) -> int:
        return self._applier.state.revision

    @property
    def compacted(self) -> int:
        return self._applier.state.compacted

    @property
    def clock_ms(self) -> int:
        return self._applier.state.clock_ms

    @property
    def settings(self) -> Mapping[str, int]:
        return self._applier.settings

    @property
    def members(self) -> Mapping[str, MemberReport]:
        return self._applier.members

    @property
    def cluster_id(self) -> bytes:
        return self._applier.identity.cluster_id

    @property
    def history_id(self) -> bytes:
        return self._applier.identity.history_id

    @property
    def dedupe_count(self) -> int:
        return self._applier.state.dedupe_keys

    @property
    def lease_count(self) -> int:
        return self._applier.state.leases

    @property
    def engine_state(self) -> bytes:
        return self._engine_pending[-1][0] if self._engine_pending else self._engine_state

    @property
    def pending_bytes(self) -> int:
        """Memory that the write buffer holds, both generations."""
        return self._buffer.pending_bytes

    @property
    def commit_pending(self) -> bool:
        """Something was applied that `begin_commit` has not taken yet."""
        return self._taken != self.applied

    @property
    def digest(self) -> int:
        return self._meta().digest

    @property
    def digest_local(self) -> int:
        return self._meta().digest_local

    @property
    def history_bytes(self) -> int:
        """Stream bytes of the changes above the compacted revision."""
        state = self.state
        return state.history_total - total_before(self._buffer.get, state, state.compacted + 1)

    def digests(self) -> Mapping[int, tuple[int, int]]:
        """Both digests right after each of the last 64 multiples of 1,024 indexes that this process applied."""
        return self._digests

    def _meta(self) -> Meta:
        applier = self._applier
        return Meta(applier.state, applier.identity, applier.settings, self._engine_state)

    # ---------------------------------------------------------------- apply

    def apply(self, prev_index: int, entries: Sequence[Entry]) -> list[Applied]:
        """Apply in order and say what became of each entry not yet applied.

        `prev_index` is the index before the first entry. Raises MachineFault for a gap, a damaged entry, one
        of another history or of a format this release does not read; nothing of that entry is applied.
        """
        done = self.applied.index
        if prev_index > done:
            raise MachineFault(f"entries after {prev_index} were handed over, but only {done} is applied: a gap")
        results = []
        for entry in entries:
            if entry.index <= done:
                continue
            if entry.index != done + 1:
                raise MachineFault(f"entry {entry.index} was handed over after {done}: a gap")
            results.append(self._apply_entry(entry))
            done = entry.index
        return results

    def _apply_entry(self, entry: Entry) -> Applied:
        proposal = None
        outcomes: list[Outcome] = []
        if entry.kind == EntryKind.COMMAND:
            decoded = decode_entry(entry.data)
            self._check_history(decoded)
            proposal = decoded.proposal
            execute = self._applier.execute
            outcomes = [execute(command, entry.term) for command in decoded.commands]
        elif entry.kind not in (EntryKind.CONFIG, EntryKind.NOOP):
            raise MachineFault(f"entry {entry.index} is of kind {entry.kind}, unknown here; upgrade raftkv")
        self._move(entry.index, entry.term)
        return Applied(entry.index, entry.term, proposal, outcomes)

    def _check_history(self, decoded: DecodedEntry) -> None:
        """A genesis of any history may come alone: on a store that has one it is a refused result, because a
        leader that did not hear of its first proposes a second, with another history id."""
        mine = self.history_id
        if decoded.history_id == mine:
            return
        if decoded.commands[0][1:2] == _GENESIS and (not mine or len(decoded.commands) == 1):
            return
        raise MachineFault(
            f"an entry of history {decoded.history_id.hex()} was handed over, "
            f"but this store is of history {mine.hex() or 'none'}"
        )

    def advance(self, index: int, term: int) -> None:
        """Move the position over entries that have no effect. Nothing happens at or below *applied*."""
        if index > self.applied.index:
            self._move(index, term)

    def _move(self, index: int, term: int) -> None:
        state = self._applier.state
        crossed = index // DIGEST_EVERY_INDEXES > state.index // DIGEST_EVERY_INDEXES
        state.index, state.term = index, term
        while self._engine_pending and self._engine_pending[0][1].index <= index:
            self._engine_state, _at = self._engine_pending.popleft()
            self._buffer.put("meta", ENGINE_KEY, bytes((FORMAT, 0)) + self._engine_state)
        if crossed and index % DIGEST_EVERY_INDEXES == 0:
            meta = self._meta()
            self._digests[index] = (meta.digest, meta.digest_local)
            if len(self._digests) > DIGESTS_KEPT:
                self._digests.popitem(last=False)

    def set_engine_state(self, state: bytes, at: Position) -> None:
        """Change the engine's opaque bytes in the storage transaction of the entry at `at`.

        A replayed change is skipped, as its entry is. Changes announced at or above `at` are forgotten: their
        entries were replaced.
        """
        if at.index < self.applied.index:
            return
        while self._engine_pending and self._engine_pending[-1][1].index >= at.index:
            self._engine_pending.pop()
        self._engine_pending.append((state, at))

    # ---------------------------------------------------------------- storage commits

    def begin_commit(self) -> Generation | None:
        """Take what was applied since the last one; None if there is nothing to do, or one is under way."""
        if self._buffer.committing or not (self.commit_pending or self.trim_pending):
            return None
        generation = self._buffer.begin_commit(self.state.copy())
        self._taken = self.applied
        self._commits.append(self._taken)
        return generation

    def write_commit(self, generation: Generation, *, sync: bool) -> None:
        """Write, trim a bounded piece of history, commit, and sync if asked. In the writer thread.

        Raises StorageError; the machine is then of no further use: stop, and replay the log.
        """
        state = generation.state
        assert state is not None
        written = 0
        with self._storage.write() as txn:
            for table, rows in generation.tables.items():
                if rows:
                    written += len(rows)
                    txn.put_many(table, [(key, row) for key, row in sorted(rows.items()) if row is not None])
                    txn.delete_many(table, [key for key, row in rows.items() if row is None])
            txn.put("meta", STATE_KEY, state.encode())
            more = trim_rows(txn, state.compacted, max(TRIM_ROWS_LEAST, 2 * written))
            txn.commit()
        self.trim_pending = more
        if sync:
            self._storage.sync()

    def end_commit(self, generation: Generation, *, synced: bool) -> None:
        """The writer is done: what was written is visible, and durable as far as the engine says."""
        assert generation.state is not None
        self._buffer.end_commit()
        self.visible = generation.state.position
        commits = self._commits
        if not self._storage_durable:
            commits.clear()
            return
        at_risk = self._storage.commits_at_risk
        if synced:
            self.durable = self.visible
            commits.clear()
        elif at_risk is None:
            commits.clear()
        else:
            while len(commits) > at_risk:
                self.durable = max(self.durable, commits.popleft())

    def mark_durable(self, position: Position) -> None:
        """Something outside storage (a stream file) keeps everything up to `position`."""
        self.durable = max(self.durable, position)

    # ---------------------------------------------------------------- life

    def reload(self) -> None:
        """Storage was switched to another store (a stream was installed): begin again from what it holds.

        No commit may be under way; what was pending belonged to the old store and is dropped.
        """
        assert not self._buffer.committing
        self._buffer.reload()
        self._engine_pending.clear()
        self._load()
        self.durable = self.visible if self._storage_durable else Position(0, 0)

    def close(self) -> None:
        """End apply's read transaction. The storage is the caller's."""
        self._buffer.close()
