"""Keys in order, for the memory engine: a list cut into blocks.

One long list would move half of itself at each insertion. Blocks of a few hundred keys keep an insertion, a
removal and the start of a scan within microseconds at any size, without a dependency.

    keys = SortedKeys()
    keys.add(b"b"), keys.add(b"a")
    keys.ascending(b"", None, 10)     # [b"a", b"b"]
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Final

__all__ = ["SortedKeys"]

BLOCK_KEYS_MAX: Final = 1_024


class SortedKeys:
    """A sorted set of keys. Not safe for several threads: its owner holds a lock."""

    __slots__ = ("_blocks", "_lasts")

    def __init__(self) -> None:
        self._blocks: list[list[bytes]] = []
        """Never an empty block."""
        self._lasts: list[bytes] = []
        """The last key of each block: what the search for a block runs on."""

    def __len__(self) -> int:
        return sum(map(len, self._blocks))

    def add(self, key: bytes) -> None:
        """Insert a key that is not there."""
        lasts = self._lasts
        if not lasts or key > lasts[-1]:
            self._append(key)
            return
        at = bisect_left(lasts, key)
        block = self._blocks[at]
        insort(block, key)
        if len(block) > BLOCK_KEYS_MAX:
            half = len(block) // 2
            self._blocks.insert(at + 1, block[half:])
            del block[half:]
            lasts.insert(at, block[-1])

    def remove(self, key: bytes) -> None:
        """Remove a key that is there."""
        at = bisect_left(self._lasts, key)
        block = self._blocks[at]
        index = bisect_left(block, key)
        if block[index] != key:
            raise KeyError(key)
        del block[index]
        if not block:
            del self._blocks[at], self._lasts[at]
        elif index == len(block):
            self._lasts[at] = block[-1]

    def ascending(self, start: bytes, end: bytes | None, limit: int) -> list[bytes]:
        """The first keys with start <= key < end, at most `limit`."""
        found: list[bytes] = []
        at = bisect_left(self._lasts, start)
        while at < len(self._blocks) and len(found) < limit:
            block = self._blocks[at]
            first = bisect_left(block, start)
            stop = len(block) if end is None else bisect_left(block, end)
            found += block[first : min(stop, first + limit - len(found))]
            if stop < len(block):
                break
            at += 1
        return found

    def descending(self, start: bytes, end: bytes | None, limit: int) -> list[bytes]:
        """The last keys with start <= key < end, the last one first, at most `limit`."""
        found: list[bytes] = []
        at = len(self._blocks) - 1
        if end is not None:
            at = min(at, bisect_left(self._lasts, end))
        while at >= 0 and len(found) < limit:
            block = self._blocks[at]
            first = bisect_left(block, start)
            stop = len(block) if end is None else bisect_left(block, end)
            found += block[max(first, stop - limit + len(found)) : stop][::-1]
            if first > 0:
                break
            at -= 1
        return found

    def _append(self, key: bytes) -> None:
        """Rows that arrive in order (history does) fill their blocks instead of leaving half-empty ones."""
        if not self._blocks or len(self._blocks[-1]) >= BLOCK_KEYS_MAX:
            self._blocks.append([key])
            self._lasts.append(key)
        else:
            self._blocks[-1].append(key)
            self._lasts[-1] = key
