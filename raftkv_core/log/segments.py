"""The segment files: made ahead of need, filled with zeros, used again when they fall out of the log.

Syncing a write to blocks that were never written also syncs the file system's own notes about them, which
costs two to three times as much as syncing blocks that were. So a new segment is filled with zeros in small
steps while the log has nothing better to do, and a segment that was trimmed is renamed and used again: the
checksums are salted with the segment's number, so its old frames mean nothing in its new life.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from raftkv_core.log.disk import Disk, DiskFile
from raftkv_core.log.format import FRAME_ALIGN

__all__ = ["Segment", "SegmentFiles", "is_full", "segment_name", "segment_numbers"]

_NAME = re.compile(r"(\d{12})\.segment")
_FILL_BYTES = 256 << 10
"""Zeros written at once: what a group may have to wait for."""

RETIRED_MAX: Final = 2
"""Trimmed segments kept to be used again."""


def segment_name(number: int) -> str:
    return f"{number:012d}.segment"


def segment_numbers(names: Iterable[str]) -> list[int]:
    """The numbers of the segments among these file names, ascending."""
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def is_full(error: OSError) -> bool:
    """Whether an operation failed for want of room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


@dataclass(eq=False, slots=True)
class Segment:
    """An open segment file."""

    number: int
    path: Path
    file: DiskFile
    size: int
    """Bytes it takes without growing."""
    filled: int
    """Blocks below this have been written before."""
    seed: int = 0
    """What the checksums of its frames start from, while it is part of a log."""


class SegmentFiles:
    """Makes, fills, retires and removes segment files. After open it belongs to the writer's thread."""

    def __init__(self, disk: Disk, directory: Path, segment_bytes: int, retired: list[Segment]) -> None:
        self._disk = disk
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._retired: list[Segment] = []
        for segment in retired:
            self.retire(segment)

    @property
    def retired_count(self) -> int:
        return len(self._retired)

    def make(self, number: int) -> Segment:
        """An empty segment of that number, in the directory for good when this returns."""
        path = self._directory / segment_name(number)
        if self._retired:
            old = self._retired.pop()
            self._disk.rename(old.path, path)
            self._disk.sync_directory(self._directory)
            return Segment(number, path, old.file, old.size, old.size)
        file = self._disk.open(path, create=True)
        try:
            file.allocate(self._segment_bytes)
            file.sync()
            self._disk.sync_directory(self._directory)
        except OSError:
            file.close()
            self._disk.remove(path)
            raise
        return Segment(number, path, file, self._segment_bytes, 0)

    def fill(self, segment: Segment, above: int) -> bool:
        """Write one step of zeros at or above `above`; says whether there was anything left to fill."""
        start = max(segment.filled, above)
        if start >= segment.size:
            return False
        zeros = bytes(min(_FILL_BYTES, segment.size - start))
        segment.file.write(start, zeros, sync=True)
        segment.filled = start + len(zeros)
        return True

    def erase(self, segment: Segment, offset: int) -> None:
        """Take the frame at `offset` away for good: without its header it is nothing."""
        segment.file.write(offset, bytes(FRAME_ALIGN), sync=True)

    def retire(self, segment: Segment) -> None:
        """The log no longer reaches down to this one: keep it for later use, or remove it."""
        fits = self._segment_bytes <= segment.size <= 2 * self._segment_bytes
        if fits and len(self._retired) < RETIRED_MAX:
            self._retired.append(segment)
        else:
            self.discard(segment)

    def close(self) -> None:
        for segment in self._retired:
            segment.file.close()
        self._retired.clear()

    def discard(self, segment: Segment) -> None:
        """Close and remove it."""
        segment.file.close()
        self._disk.remove(segment.path)
