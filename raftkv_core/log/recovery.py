"""Finds out what a directory's segments hold after a crash, and tells a crash from damage.

A frame is written only after the frame before it was synced, and says so. So a crash spoils at most the last
frame, which is cut. If a bad frame is followed by one whose writer knew that all before it was synced, then
the bad one had been synced too: that is damage, and the log is refused rather than silently shortened.
Frames written without sync (`[log] sync = false`) promise nothing: the log ends where they stop making sense.

Recovering changes only what lies beyond the log's end, and may be interrupted and begun again at any point.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from raftkv_core.errors import DataDirectoryError, LogDamaged
from raftkv_core.log.disk import Disk, DiskFile
from raftkv_core.log.format import (
    FORMAT,
    FRAME_ALIGN,
    HEADER_BYTES,
    MAGIC,
    Content,
    Header,
    State,
    decode_content,
    decode_header,
    segment_seed,
)
from raftkv_core.log.index import FrameIndex, Terms
from raftkv_core.log.pointer import Pointer
from raftkv_core.log.segments import Segment, SegmentFiles, segment_name, segment_numbers

__all__ = ["Recovered", "recover"]

_WINDOW_BYTES = 4 << 20


class Recovered(NamedTuple):
    """The log as it is on disk, everything in it durable."""

    frames: FrameIndex
    terms: Terms
    state: State
    segments: list[Segment]
    """Oldest first; frames go on in the last one, at `offset`."""
    offset: int
    sequence: int
    """Of the last frame."""
    next_segment: Segment | None
    """An empty segment, made ahead."""
    files: SegmentFiles
    cuts: list[str]
    """Where unfinished frames were cut, for people."""


def recover(disk: Disk, directory: Path, pointer: Pointer, segment_bytes: int, *, sync: bool) -> Recovered:
    """Read everything, cut what a crash left unfinished, make the rest durable.

    Raises LogDamaged or, for frames of another release's format, DataDirectoryError.
    """
    opened: list[Segment] = []
    try:
        for number in segment_numbers(disk.names(directory)):
            path = directory / segment_name(number)
            file = disk.open(path)
            seed = segment_seed(pointer.log_id, number)
            opened.append(Segment(number, path, file, file.size(), file.written(), seed))
        return _recover(disk, directory, pointer, segment_bytes, opened, sync=sync)
    except (OSError, DataDirectoryError):
        for segment in opened:
            segment.file.close()
        raise


def _recover(
    disk: Disk, directory: Path, pointer: Pointer, segment_bytes: int, opened: list[Segment], *, sync: bool
) -> Recovered:
    beyond = [segment for segment in opened if segment.number >= pointer.first]
    present = [segment.number for segment in beyond]
    for expected in range(pointer.first, max(present, default=pointer.first) + 1):
        if expected not in present:
            # A segment is made only after the one before it was in the directory for good.
            raise LogDamaged(
                f"{directory / segment_name(expected)}, a segment of the log, is missing; "
                "put it back or replace this node"
            )
    reader = _Reader(beyond[0])
    while beyond and reader.read(beyond[0]):
        del beyond[0]
    strays = _strays(reader, beyond)
    retired = [segment for segment in opened if segment.number < pointer.first]
    files = SegmentFiles(disk, directory, segment_bytes, retired)
    for stray in strays:
        files.erase(stray.segment, stray.offset)
    while len(beyond) > 1 or (beyond and beyond[0].size < segment_bytes):
        files.discard(beyond.pop())
        disk.sync_directory(directory)  # one by one, so that a crash leaves no gap
    next_segment = beyond[0] if beyond else None
    if sync:
        _make_durable(reader, next_segment)
    return Recovered(
        frames=reader.index,
        terms=reader.terms,
        state=reader.state,
        segments=reader.segments,
        offset=reader.offset,
        sequence=reader.last.header.sequence,
        next_segment=next_segment,
        files=files,
        cuts=[f"{stray.segment.path} at offset {stray.offset}" for stray in strays],
    )


class _Frame(NamedTuple):
    header: Header
    content: Content
    offset: int


class _Reader:
    """Follows the frames from the first segment to wherever the sequence ends."""

    def __init__(self, first: Segment) -> None:
        opening = next(_frames(first), None)
        if opening is None or opening.content.base is None or opening.content.state is None:
            raise LogDamaged(
                f"{first.path} at offset 0: the log's first segment does not begin with a frame of this log; "
                "replace this node"
            )
        self.index = FrameIndex()
        self.terms = Terms(opening.content.base)
        self.state = opening.content.state
        self.segments: list[Segment] = []
        self.offset = 0
        """Where the last frame taken ends, in the last segment."""
        self.last = opening
        self._sequence = opening.header.sequence
        """What the next frame must carry."""

    def read(self, segment: Segment) -> bool:
        """Take the frames of this segment that go on from those before; says whether there is any."""
        for frame in _frames(segment):
            opens = frame.content.base is not None
            if frame.header.sequence != self._sequence or opens != (frame.offset == 0):
                break
            self._take(segment, frame)
        return bool(self.segments) and self.segments[-1] is segment

    def _take(self, segment: Segment, frame: _Frame) -> None:
        header, content, offset = frame
        if not self.terms.base.index < header.first_index <= self.terms.last.index + 1:
            raise _misfit(segment, offset, f"begins at entry {header.first_index}")
        self.index.cut(header.first_index)
        self.terms.cut(header.first_index)
        if content.base is not None:
            if content.base != self.terms.last:
                raise _misfit(segment, offset, f"goes on from entry {content.base.index}")
            self.index.open_segment(segment, content.base)
            self.segments.append(segment)
        self.index.add(header.first_index, header.last_index, offset, header.size)
        for index, term in enumerate(content.terms, header.first_index):
            self.terms.append(index, term)
        if content.state is not None:
            self.state = content.state
        self.offset = offset + header.size
        self.last = frame
        self._sequence += 1


def _misfit(segment: Segment, offset: int, what: str) -> LogDamaged:
    return LogDamaged(
        f"{segment.path} at offset {offset}: the frame {what}, which does not fit the frames before it; "
        "replace this node"
    )


class _Window:
    """Reads a file front to back in large pieces."""

    def __init__(self, file: DiskFile) -> None:
        self._file = file
        self._start = 0
        self._data = b""

    def read(self, offset: int, size: int) -> bytes:
        at = offset - self._start
        if at < 0 or at + size > len(self._data):
            self._data = self._file.read(offset, max(size, _WINDOW_BYTES))
            self._start = offset
            at = 0
        return self._data[at : at + size]


def _frames(segment: Segment) -> Iterator[_Frame]:
    """The good frames from the segment's start, each right behind the other."""
    window = _Window(segment.file)
    offset = 0
    while (header := decode_header(segment.seed, window.read(offset, HEADER_BYTES))) is not None:
        if header.format != FORMAT:
            raise DataDirectoryError(
                f"{segment.path} at offset {offset}: a frame of log format {header.format}, this release reads "
                f"{FORMAT}; start the release that wrote it"
            )
        content = decode_content(segment.seed, header, window.read(offset + HEADER_BYTES, header.payload_bytes))
        if content is None:
            return
        yield _Frame(header, content, offset)
        offset += header.size


class _Stray(NamedTuple):
    """Something beyond the log's end that carries a good header."""

    header: Header
    segment: Segment
    offset: int


def _strays(reader: _Reader, beyond: list[Segment]) -> list[_Stray]:
    """What could be taken for a frame beyond the end. Raises LogDamaged if it proves the end to be damage."""
    end = reader.segments[-1]
    found = []
    for segment, start in ((end, reader.offset), *((segment, 0) for segment in beyond)):
        window = _Window(segment.file)
        for offset in range(start, segment.size, FRAME_ALIGN):
            data = window.read(offset, HEADER_BYTES)
            if data.startswith(MAGIC) and (header := decode_header(segment.seed, data)) is not None:
                found.append(_Stray(header, segment, offset))
    sequence = reader.last.header.sequence
    for stray in found:
        # The frame after the last good one may be the one that a crash spoiled. Any later one proves, by
        # being there at all, that the one before it was synced.
        if stray.header.sequence > sequence + 1 and stray.header.prior_synced:
            path, offset = end.path, reader.offset
            opens_after = stray.segment.number - (stray.offset == 0) > end.number
            if opens_after and stray.header.sequence == sequence + 2:
                # Only one frame is missing, and it is the one that every segment begins with.
                path, offset = end.path.with_name(segment_name(end.number + 1)), 0
            raise LogDamaged(
                f"{path} at offset {offset}: the frame that was synced here does not read back "
                f"(a later one is in {stray.segment.path.name} at offset {stray.offset}); replace this node"
            )
    return found


def _make_durable(reader: _Reader, next_segment: Segment | None) -> None:
    """What was read may be in memory only: its writer was killed, or its sync failed.

    After a failed sync the operating system may hold the pages for clean, so that a later sync does nothing.
    Only the last frame can be in that state: writing it again settles it.
    """
    for segment in reader.segments:
        segment.file.sync()
    if next_segment is not None:
        next_segment.file.sync()
    file = reader.segments[-1].file
    file.write(reader.last.offset, file.read(reader.last.offset, reader.last.header.size), sync=True)
