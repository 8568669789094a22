"""Everything that touches the disk while the log is open: one piece of work a step, run by the executor.

The writer decides by itself what to do next, so one sync follows the other without a turn of the loop between
them. With nothing to write it makes the next segment and fills it. After the first failure it does nothing
more: what a failed write or sync left behind is known to nobody, so it is never tried again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from raftkv_core.interfaces.consensus import Position
from raftkv_core.log.executor import SyncExecutor
from raftkv_core.log.format import State, encode_frame, frame_bytes, segment_seed
from raftkv_core.log.intake import Group, Intake, Reset, Trim
from raftkv_core.log.pointer import ID_BYTES, PointerFile
from raftkv_core.log.segments import Segment, SegmentFiles, is_full

__all__ = ["Failed", "Report", "ResetDone", "Writer", "WriterState", "Written"]


class Written(NamedTuple):
    """A group is on disk: in `segment`, which it opened if `opened` says from where."""

    group: Group
    segment: Segment
    offset: int
    size: int
    opened: Position | None
    seconds: float


class ResetDone(NamedTuple):
    """A new log has begun, in `segment`."""

    reset: Reset
    segment: Segment


class Failed(NamedTuple):
    """The last report."""

    reason: str


Report = Written | ResetDone | Failed


@dataclass
class WriterState:
    """Where writing goes on."""

    segments: list[Segment]
    """Oldest first, the one written to last."""
    offset: int
    sequence: int
    """Of the last frame."""
    state: State
    """As the last frame that had one says."""
    next_segment: Segment | None


class Writer:
    """Takes work from the intake, reports on the loop. `wake` and `stop` are for the loop, the rest for jobs."""

    def __init__(
        self,
        at: WriterState,
        *,
        intake: Intake,
        files: SegmentFiles,
        pointer: PointerFile,
        executor: SyncExecutor,
        report: Callable[[Report], None],
        sync: bool,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._at = at
        self._intake = intake
        self._files = files
        self._pointer = pointer
        self._executor = executor
        self._report = report
        self._sync = sync
        self._random_bytes = random_bytes
        self.prepared = False
        """Whether there is nothing left to do ahead: the next segment is made and filled."""
        self._stopped = False
        self._starved = False
        """There was no room for the next segment; tried again when it is needed."""

    def wake(self) -> None:
        """There may be work."""
        if not self._stopped and self._intake.claim():
            self._executor.submit(self._step)

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopped = True

    def finish(self) -> None:
        """Submitted last of all: write what is left, close the files."""
        while not self._stopped and (work := self._intake.take()) is not None:
            self._try(partial(self._perform, work))
        self._stopped = True
        self._files.close()
        for segment in (*self._at.segments, self._at.next_segment):
            if segment is not None:
                segment.file.close()

    def _step(self) -> None:
        if self._stopped:
            return
        work = self._intake.take()
        busy = True
        if work is not None:
            self._try(partial(self._perform, work))
        else:
            busy = self._try(self._prepare)
        if not self._stopped and (busy or not self._intake.release()):
            self._executor.submit(self._step)

    def _try(self, action: Callable[[], bool]) -> bool:
        try:
            return action()
        except OSError as error:
            what = "the disk is full" if is_full(error) else "the disk failed"
            self._fail(f"the log cannot be written, {what}: {error}")
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing may be acknowledged after it
            self._fail(f"the log cannot be written: {error!r}")
        return False

    def _fail(self, reason: str) -> None:
        self._stopped = True
        self._tell(Failed(reason))

    def _tell(self, report: Report) -> None:
        self._executor.call_soon(partial(self._report, report))

    def _perform(self, work: Group | Trim | Reset) -> bool:
        if isinstance(work, Group):
            self._write_group(work)
        elif isinstance(work, Trim):
            self._trim(work.first)
        else:
            self._reset(work)
        return True

    def _write_group(self, group: Group) -> None:
        at, began = self._at, self._executor.time()
        if group.state is not None:
            at.state = group.state
        size = frame_bytes(group.entries, group.state, opens=False)
        base, state = None, group.state
        if at.offset + size > at.segments[-1].size:
            self._open_next(self._pointer.value.log_id)
            base, state = Position(group.first - 1, group.prior_term), at.state
        segment, offset = at.segments[-1], at.offset
        frame = encode_frame(
            segment.seed,
            at.sequence + 1,
            group.first,
            group.entries,
            base=base,
            state=state,
            prior_synced=self._sync,
        )
        self._write_frame(frame, sync=self._sync)
        self._tell(Written(group, segment, offset, len(frame), base, self._executor.time() - began))

    def _write_frame(self, frame: bytearray, *, sync: bool) -> None:
        at = self._at
        segment = at.segments[-1]
        segment.file.write(at.offset, frame, sync=sync)
        at.offset += len(frame)
        at.sequence += 1
        segment.filled = max(segment.filled, at.offset)
        segment.size = max(segment.size, at.offset)

    def _open_next(self, log_id: bytes) -> None:
        """Go on at the start of the next segment."""
        at = self._at
        segment = at.next_segment or self._files.make(at.segments[-1].number + 1)
        segment.seed = segment_seed(log_id, segment.number)
        at.next_segment = None
        at.segments.append(segment)
        at.offset = 0
        self._starved = False
        self.prepared = False

    def _prepare(self) -> bool:
        """One step towards the next segment being ready; says whether another one is due."""
        at = self._at
        if at.next_segment is None and not self._starved:
            try:
                at.next_segment = self._files.make(at.segments[-1].number + 1)
            except OSError as error:
                if not is_full(error):
                    raise
                self._starved = True
            return True
        ahead = self._sync and (
            self._files.fill(at.segments[-1], at.offset)
            or (at.next_segment is not None and self._files.fill(at.next_segment, 0))
        )
        self.prepared = not ahead and not self._starved
        return ahead

    def _trim(self, first: Segment) -> None:
        # The pointer may name it only once its first frame is on disk, which without `sync` nobody has seen to.
        first.file.sync()
        try:
            self._pointer.update(first=first.number)
        except OSError as error:
            if is_full(error):
                return  # nothing is lost by keeping them: the next trim takes these segments too
            raise
        self._retire_before(first)

    def _reset(self, reset: Reset) -> None:
        at = self._at
        log_id = self._random_bytes(ID_BYTES)
        self._open_next(log_id)
        segment = at.segments[-1]
        at.state = reset.state
        frame = encode_frame(
            segment.seed, at.sequence + 1, reset.base.index + 1, [], base=reset.base, state=reset.state
        )
        self._write_frame(frame, sync=True)
        # From here on the new log is the log: until now its segment was an unused one of the old log.
        self._pointer.update(log_id=log_id, history_id=reset.history_id, first=segment.number)
        self._retire_before(segment)
        self._tell(ResetDone(reset, segment))

    def _retire_before(self, first: Segment) -> None:
        place = self._at.segments.index(first)
        retired, self._at.segments = self._at.segments[:place], self._at.segments[place:]
        for segment in retired:
            self._files.retire(segment)
        self._starved = False
