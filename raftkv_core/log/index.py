"""What the log knows about itself in memory: where each entry lies, every entry's term, the newest entries.

All of it belongs to the loop thread. None of it grows with the entries' data: one small tuple a frame, one a
run of equal terms, and recent entries up to a bound.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from raftkv_core.interfaces.consensus import Entry, Position
from raftkv_core.log.segments import Segment

__all__ = ["Extent", "FrameIndex", "IndexedSegment", "RecentEntries", "Terms"]


class Extent(NamedTuple):
    """The entries `first` to `last` of the log lie in the frame at `offset`, of `size` bytes."""

    first: int
    last: int
    offset: int
    size: int


@dataclass(slots=True)
class IndexedSegment:
    """One segment and the frames in it that hold entries of the log."""

    segment: Segment
    base: Position
    """The position before its first entry."""
    can_open: bool = True
    """Whether the log may start here; not after the entry at `base` was truncated away."""
    extents: list[Extent] = field(default_factory=list)


class FrameIndex:
    """Finds the frame of an entry. Over all segments, extents are in order and without gaps."""

    def __init__(self) -> None:
        self.segments: list[IndexedSegment] = []

    def open_segment(self, segment: Segment, base: Position, *, can_open: bool = True) -> None:
        self.segments.append(IndexedSegment(segment, base, can_open))

    def add(self, first: int, last: int, offset: int, size: int) -> None:
        """A frame of the newest segment. One that holds nothing (any more) is left out."""
        if first <= last:
            self.segments[-1].extents.append(Extent(first, last, offset, size))

    def cut(self, index: int) -> None:
        """Forget the entries at `index` and above."""
        for segment in self.segments:
            if segment.base.index >= index:
                segment.can_open = False
            extents = segment.extents
            while extents and extents[-1].last >= index:
                extent = extents.pop()
                if extent.first < index:
                    extents.append(extent._replace(last=index - 1))

    def find(self, index: int) -> tuple[Segment, Extent] | None:
        for segment in reversed(self.segments):
            extents = segment.extents
            if extents and extents[0].first <= index <= extents[-1].last:
                place = bisect_right(extents, index, key=_first) - 1
                return segment.segment, extents[place]
        return None

    def trim(self, index: int) -> IndexedSegment | None:
        """Drop whole segments whose entries are all at or below `index`; the new first one if any went."""
        for place in range(len(self.segments) - 1, 0, -1):
            candidate = self.segments[place]
            if candidate.can_open and candidate.base.index <= index:
                del self.segments[:place]
                return candidate
        return None


def _first(extent: Extent) -> int:
    return extent.first


class Terms:
    """The term of every index from the base to the end, kept as runs of equal terms."""

    def __init__(self, base: Position) -> None:
        self.base = base
        self.last = base
        self._runs: list[tuple[int, int]] = [(base.index, base.term)]
        """(first index, term), ascending in both."""

    def append(self, index: int, term: int) -> None:
        if term != self._runs[-1][1]:
            self._runs.append((index, term))
        self.last = Position(index, term)

    def cut(self, index: int) -> None:
        """Forget `index` and above; `index` is above the base."""
        if index > self.last.index:
            return
        while self._runs[-1][0] >= index:
            self._runs.pop()
        self.last = Position(index - 1, self._runs[-1][1])

    def trim(self, base: Position) -> None:
        """Forget everything below `base`."""
        place = self._place(base.index)
        self._runs[: place + 1] = [(base.index, base.term)]
        self.base = base

    def at(self, index: int) -> int | None:
        if not self.base.index <= index <= self.last.index:
            return None
        return self._runs[self._place(index)][1]

    def _place(self, index: int) -> int:
        return bisect_right(self._runs, index, key=_run_first) - 1


def _run_first(run: tuple[int, int]) -> int:
    return run[0]


class RecentEntries:
    """The newest entries, without a gap. Those that are not on disk yet are kept whatever their size."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes = 0
        self._bytes_max = bytes_max
        self._entries: dict[int, Entry] = {}
        self._oldest = 0
        """Kept beside the dictionary: to ask one for its first key costs a walk over all that were removed."""

    def append(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            if not self._entries:
                self._oldest = entry.index
            self._entries[entry.index] = entry
            self.bytes += len(entry.data)

    def cut(self, index: int, last: int) -> None:
        """Forget `index` to `last`, which is the newest."""
        for number in range(last, index - 1, -1):
            entry = self._entries.pop(number, None)
            if entry is None:
                break
            self.bytes -= len(entry.data)

    def evict(self, written: int) -> None:
        """Drop the oldest down to the bound, but none above `written`."""
        while self.bytes > self._bytes_max and self._oldest <= written:
            self.bytes -= len(self._entries.pop(self._oldest).data)
            self._oldest += 1

    def clear(self) -> None:
        self._entries.clear()
        self.bytes = 0

    def get(self, index: int) -> Entry | None:
        return self._entries.get(index)
