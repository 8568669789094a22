"""What the log holds, as its loop sees it: every entry handed over, whether or not it is on disk yet."""

from __future__ import annotations

from collections.abc import Sequence

from raftkv_core.interfaces.consensus import Entry, Position
from raftkv_core.log.index import FrameIndex, RecentEntries, Terms
from raftkv_core.log.reader import FrameReader
from raftkv_core.log.segments import Segment
from raftkv_core.log.writer import Written

__all__ = ["Contents"]


class Contents:
    """Terms of all entries, the places of those on disk, the data of recent ones. Used on the loop only."""

    def __init__(self, frames: FrameIndex, terms: Terms, cache_bytes: int) -> None:
        self.frames = frames
        self.terms = terms
        self.recent = RecentEntries(cache_bytes)
        self.synced_index = terms.last.index
        self._reader = FrameReader()
        self._cuts: list[tuple[int, int]] = []
        """(ticket, index) of truncations that the writer had not taken yet when last heard of."""

    def append(self, entries: Sequence[Entry]) -> None:
        """Raises ValueError, and changes nothing, if they do not continue the log."""
        index, term = self.terms.last
        for entry in entries:
            index += 1
            if entry.index != index or entry.term < term:
                raise ValueError(f"entry {entry.index} of term {entry.term} cannot follow {self.terms.last}")
            term = entry.term
        for entry in entries:
            self.terms.append(entry.index, entry.term)
        self.recent.append(entries)

    def truncate(self, index: int) -> None:
        """Forget `index` and above; `truncating` must follow."""
        self.recent.cut(index, self.terms.last.index)
        self.terms.cut(index)
        self.frames.cut(index)
        self.synced_index = min(self.synced_index, index - 1)

    def truncating(self, ticket: int, index: int) -> None:
        """The writer was told of a truncation: what it writes before that ticket is cut when it is entered."""
        self._cuts.append((ticket, index))

    def trim(self, index: int) -> Segment | None:
        """Forget whole segments at or below `index`; the one that the log begins with now, if any went."""
        first = self.frames.trim(index)
        if first is None:
            return None
        self.terms.trim(first.base)
        return first.segment

    def reset(self, base: Position) -> None:
        """Forget everything."""
        self.terms = Terms(base)
        self.frames = FrameIndex()
        self.recent.clear()
        self.synced_index = base.index
        self._cuts.clear()

    def enter(self, written: Written) -> None:
        """Note where a group lies, less what was truncated while it was on its way."""
        group = written.group
        self._cuts = [cut for cut in self._cuts if cut[0] > group.seen]
        end = min((index for _, index in self._cuts), default=group.last + 1)
        last = min(group.last, end - 1)
        if written.opened is not None:
            self.frames.open_segment(written.segment, written.opened, can_open=written.opened.index < end)
        self.frames.add(group.first, last, written.offset, written.size)
        self.synced_index = last
        self.recent.evict(last)

    def read(self, index: int, bytes_max: int) -> list[Entry]:
        """See `DurableLog.read`."""
        if index <= self.terms.base.index:
            raise LookupError(f"entry {index} was trimmed; the log begins at {self.terms.base.index + 1}")
        entries: list[Entry] = []
        room = bytes_max
        while index <= self.terms.last.index:
            recent = self.recent.get(index)
            for entry in self._stored(index) if recent is None else (recent,):
                room -= len(entry.data)
                if entries and room < 0:
                    return entries
                entries.append(entry)
            index = entries[-1].index + 1
        return entries

    def _stored(self, index: int) -> list[Entry]:
        found = self.frames.find(index)
        assert found is not None, "an entry is in memory until it is on disk"
        segment, extent = found
        entries = self._reader.read(segment, extent)
        start = index - entries[0].index
        return entries[start : start + extent.last - index + 1]
