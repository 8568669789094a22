"""The durable log as consensus engines use it: hand entries over, be told when they survive power loss.

```python
log = DurableLog.open(directory, executor=ThreadExecutor(loop), on_failed=machine.fatal)
log.on_synced = lambda index: ...        # on the loop, after every group
log.set_state(term=1, vote="node1")
log.append([Entry(1, 1, EntryKind.COMMAND, data)])
log.barrier(send_what_promised_it)       # on the loop, once both are durable
```
All methods are called on the loop thread, and none waits for the disk but those that say so: `read` of entries
that are no longer in memory, `set_history`, the reserve's two, `close`. What was handed over is visible at once
(`last_index`, `term`, `read`) and durable later, in the order in which it was handed over: a crash leaves
everything that was called synced, and possibly more of what was handed over after it, never with a gap.

When writing or syncing fails or hangs, `on_failed(reason)` is called once, and nothing is acknowledged after
it. The process must end: only opening the log again finds out what is on disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from raftkv_core.errors import DataDirectoryError
from raftkv_core.interfaces.consensus import Entry, Position
from raftkv_core.log.contents import Contents
from raftkv_core.log.creation import create_log
from raftkv_core.log.disk import Disk, RealDisk
from raftkv_core.log.executor import SyncExecutor
from raftkv_core.log.format import VOTE_BYTES_MAX, State
from raftkv_core.log.intake import Intake
from raftkv_core.log.pointer import PointerFile
from raftkv_core.log.progress import Progress
from raftkv_core.log.recovery import Recovered, recover
from raftkv_core.log.reserve import Reserve
from raftkv_core.log.writer import Failed, Report, ResetDone, Writer, WriterState, Written

__all__ = ["CACHE_BYTES", "SEGMENT_BYTES", "STALL_S", "DurableLog"]

SEGMENT_BYTES: Final = 64 << 20
CACHE_BYTES: Final = 16 << 20
STALL_S: Final = 30.0


class DurableLog:
    """One node's log. Made by `open`."""

    on_synced: Callable[[int], None]
    """Called on the loop with the new `synced_index` after each group, those without entries included.
    Engines that get their log opened set it."""

    created: bool
    """Whether `open` found nothing and began a new log at (0, 0)."""

    history_id: bytes
    """16 bytes, b"" until `set_history` or `reset` gave one."""

    cuts: list[str]
    """Where `open` cut off what a crash had left unfinished, for people."""

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        executor: SyncExecutor,
        on_failed: Callable[[str], None],
        on_synced: Callable[[int], None] = lambda _: None,
        disk: Disk | None = None,
        sync: bool = True,
        segment_bytes: int = SEGMENT_BYTES,
        cache_bytes: int = CACHE_BYTES,
        reserve_bytes: int = 0,
        stall_s: float = STALL_S,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> DurableLog:
        """Open the log in `directory`, or begin one; blocks while it reads everything there is.

        `sync=False` writes without syncing: a killed process loses nothing, a power loss any number of the
        newest entries. `cache_bytes` of entries are kept in memory, `reserve_bytes` of disk held back (see
        `release_reserve`). A group that takes longer than `stall_s` is a failure.

        Raises LogDamaged when something that was synced does not read back, DataDirectoryError when the
        directory cannot be used or is of another release's format.
        """
        disk = RealDisk() if disk is None else disk
        reserve = Reserve(disk, directory, reserve_bytes)
        try:
            disk.make_directory(directory)
            # A rename that a killed process did not see through may be undone by a power loss until now.
            disk.sync_directory(directory)
            pointer = PointerFile.load(disk, directory)
            created = pointer is None
            if pointer is None:
                pointer = create_log(disk, directory, segment_bytes, random_bytes)
            reserve.hold()
            recovered = recover(disk, directory, pointer.value, segment_bytes, sync=sync)
        except OSError as error:
            raise DataDirectoryError(
                f"the log in {directory} cannot be opened: {error}; check the disk and the directory's owner"
            ) from error
        return cls(
            recovered,
            created=created,
            executor=executor,
            on_failed=on_failed,
            on_synced=on_synced,
            pointer=pointer,
            reserve=reserve,
            sync=sync,
            cache_bytes=cache_bytes,
            stall_s=stall_s,
            random_bytes=random_bytes,
        )

    def __init__(
        self,
        recovered: Recovered,
        *,
        created: bool,
        executor: SyncExecutor,
        on_failed: Callable[[str], None],
        on_synced: Callable[[int], None],
        pointer: PointerFile,
        reserve: Reserve,
        sync: bool,
        cache_bytes: int,
        stall_s: float,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self.created = created
        self.on_synced = on_synced
        self.history_id = pointer.value.history_id
        self.cuts = recovered.cuts
        self._on_failed = on_failed
        self._executor = executor
        self._pointer = pointer
        self._reserve = reserve
        self._contents = Contents(recovered.frames, recovered.terms, cache_bytes)
        self._state = recovered.state
        self._intake = Intake(recovered.terms.last)
        self._files = recovered.files
        self._writer = Writer(
            WriterState(
                recovered.segments,
                recovered.offset,
                recovered.sequence,
                recovered.state,
                recovered.next_segment,
            ),
            intake=self._intake,
            files=recovered.files,
            pointer=pointer,
            executor=executor,
            report=self._heard,
            sync=sync,
            random_bytes=random_bytes,
        )
        self._progress = Progress(executor, stall_s, self._stalled)
        self._resets = 0
        self._failure: str | None = None
        self._closed = False
        self._groups = 0
        self._grouped_entries = 0
        self._sync_s_last = 0.0
        self._sync_s_max = 0.0
        self._writer.wake()

    # What is there.

    @property
    def base(self) -> Position:
        """The position before the first entry that can be read; (0, 0) in a new log."""
        return self._contents.terms.base

    @property
    def first_index(self) -> int:
        """`base.index + 1`, whether or not there is an entry."""
        return self._contents.terms.base.index + 1

    @property
    def last(self) -> Position:
        """Of the newest entry; `base` if there is none."""
        return self._contents.terms.last

    @property
    def last_index(self) -> int:
        return self._contents.terms.last.index

    @property
    def synced_index(self) -> int:
        """Entries up to here survive power loss. Goes back when they are truncated."""
        return self._contents.synced_index

    @property
    def term(self) -> int:
        return self._state.term

    @property
    def vote(self) -> str | None:
        return self._state.vote

    @property
    def failure(self) -> str | None:
        """The reason that `on_failed` was given."""
        return self._failure

    def term_at(self, index: int) -> int | None:
        """The term of an entry, or of `base`; None for any other index."""
        return self._contents.terms.at(index)

    def read(self, index: int, bytes_max: int) -> list[Entry]:
        """Entries from `index` on, with at most `bytes_max` bytes of data, but at least one.

        [] when `index` is above the last. Blocks for the disk when the entries are no longer in memory.
        Raises LookupError for an entry that was trimmed, LogDamaged for one that does not read back.
        """
        return self._contents.read(index, bytes_max)

    # What is handed over.

    def append(self, entries: Sequence[Entry]) -> None:
        """Add entries after the last one. They go out with the next group."""
        self._contents.append(entries)
        if entries:
            self._intake.append(entries)
            self._handed_over()

    def set_state(self, term: int, vote: str | None) -> None:
        """Change the term and who this node voted for in it. It goes out with the next group.

        Nothing that promises it may leave the node before `barrier` says that it is durable.
        """
        if term < self._state.term:
            raise ValueError(f"the term cannot go back from {self._state.term} to {term}")
        if vote is not None and len(vote.encode()) > VOTE_BYTES_MAX:
            raise ValueError(f"a node id has at most {VOTE_BYTES_MAX} bytes")
        self._state = State(term, vote)
        self._intake.set_state(self._state)
        self._handed_over()

    def truncate(self, index: int) -> None:
        """Drop the entries at `index` and above; nothing happens if there is none."""
        if index <= self.base.index:
            raise ValueError(f"entry {index} was trimmed and cannot be truncated; the base is {self.base}")
        if index > self.last_index:
            return
        self._contents.truncate(index)
        self._intake.cut(index, self.last.term)
        self._contents.truncating(self._intake.ticket, index)
        self._handed_over()

    def trim(self, index: int) -> None:
        """Entries at or below `index` may go. Whole segments do, so `base` moves now and then, never past it.

        A crash soon after may bring some of them back.
        """
        first = self._contents.trim(index)
        if first is not None:
            self._intake.trim(first)
            self._writer.wake()

    def reset(self, base: Position, history_id: bytes | None = None) -> None:
        """Begin anew after `base`, which the store holds durably; term and vote stay as they are.

        Durable when a `barrier` after it says so. A crash before that leaves the old log as it was, old
        history id included, never a mixture.
        """
        self._contents.reset(base)
        if history_id is not None:
            self.history_id = history_id
        self._resets += 1
        self._intake.reset(base, self._state, history_id)
        self._handed_over()

    def set_history(self, history_id: bytes) -> None:
        """Say which history the log is part of; blocks until that is durable (about 1 ms).

        Raises DataDirectoryError when it cannot be written, after `on_failed`.
        """
        if history_id == self.history_id:
            return
        if self._failure is not None:
            raise DataDirectoryError(self._failure)
        if self._resets:
            raise RuntimeError("a reset is under way: pass it the history, or wait until it is flushed")
        try:
            self._pointer.update(history_id=history_id)
        except OSError as error:
            reason = f"the log's pointer file cannot be written: {error}"
            self._fail(reason)
            raise DataDirectoryError(f"{reason}; check the disk") from error
        self.history_id = history_id

    # What is durable.

    def flush_ticket(self) -> int:
        """Stands for everything handed over so far; durable once `flushed_ticket` has reached it."""
        return self._progress.handed

    @property
    def flushed_ticket(self) -> int:
        """Moves before `on_synced` is called."""
        return self._progress.flushed

    def barrier(self, callback: Callable[[], None]) -> None:
        """Call back, on the loop, once everything handed over so far is durable: at once if it is.

        After a failure callbacks are dropped; `on_failed` has told.
        """
        self._progress.call(callback)

    async def wait_flushed(self, ticket: int | None = None) -> None:
        """Return when `ticket` (by default: everything handed over so far) is durable.

        Raises DataDirectoryError if the log fails or is closed first.
        """
        await self._progress.wait(self._progress.handed if ticket is None else ticket)

    @property
    def waiting_s(self) -> float:
        """How long the disk has owed an answer, 0.0 if it owes none. A leader may step down before `stall_s`."""
        return self._progress.waiting_s

    # Room, numbers, the end.

    def release_reserve(self) -> None:
        """Give up the disk space that was held back, to finish replay and trimming. Blocks to remove a file."""
        self._reserve.release()

    def restore_reserve(self) -> bool:
        """Hold it back again, blocking; says whether there was room."""
        return self._reserve.hold()

    def figures(self) -> dict[str, int | float]:
        """Numbers for people and metrics."""
        segments = self._contents.frames.segments
        return {
            "first_index": self.first_index,
            "last_index": self.last_index,
            "synced_index": self.synced_index,
            "segments": len(segments),
            "segments_retired": self._files.retired_count,
            "segments_prepared": int(self._writer.prepared),
            "segment_bytes": sum(indexed.segment.size for indexed in segments),
            "reserve_bytes": self._reserve.held_bytes,
            "cache_bytes": self._contents.recent.bytes,
            "groups": self._groups,
            "group_entries": self._grouped_entries,
            "sync_s_last": self._sync_s_last,
            "sync_s_max": self._sync_s_max,
            "waiting_s": self.waiting_s,
        }

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what was handed over, close everything; blocks for it. Nothing is called back any more."""
        if self._closed:
            return
        self._closed = True
        self._progress.end("the log was closed")
        self._executor.submit(self._writer.finish)
        self._executor.close(timeout_s)

    # Inside.

    def _heard(self, report: Report) -> None:
        """The writer's reports, on the loop. After a failure even good news is not passed on."""
        if self._closed or self._failure is not None:
            return
        if isinstance(report, Failed):
            self._fail(report.reason)
            return
        self._progress.moved()
        if isinstance(report, Written):
            self._written(report)
        else:
            self._was_reset(report)

    def _written(self, written: Written) -> None:
        group = written.group
        self._groups += 1
        self._grouped_entries += len(group.entries)
        self._sync_s_last = written.seconds
        self._sync_s_max = max(self._sync_s_max, written.seconds)
        if group.epoch == self._intake.epoch:
            self._contents.enter(written)
        self._flush(group.flushed)

    def _was_reset(self, done: ResetDone) -> None:
        self._resets -= 1
        if done.reset.epoch == self._intake.epoch:
            self._contents.frames.open_segment(done.segment, done.reset.base)
        self._flush(done.reset.ticket)

    def _handed_over(self) -> None:
        self._progress.hand_over(self._intake.ticket)
        self._writer.wake()

    def _flush(self, ticket: int) -> None:
        self._progress.flush(ticket)
        self.on_synced(self.synced_index)
        self._progress.release()

    def _stalled(self, seconds: float) -> None:
        self._fail(f"the log's disk has not answered for {seconds:.1f} s")

    def _fail(self, reason: str) -> None:
        if self._failure is None:
            self._failure = reason
            self._writer.stop()
            self._progress.end(reason)
            self._on_failed(reason)
