"""A disk that does everything a disk may do: the log is tested on it, and a simulated node can run on it.

```python
disk, executor = SimDisk(), SteppedExecutor()
log = DurableLog.open(Path("/log"), disk=disk, executor=executor, on_failed=print)
log.append(entries)
executor.step()                          # one piece of the log's work, in this thread
disk.crash_at = disk.calls + 3           # or: die in the middle of something
...
disk.power_loss(random.Random(seed))     # synced data stays; of the rest, what the random source picks
log = DurableLog.open(Path("/log"), disk=disk, executor=SteppedExecutor(), on_failed=print)
```
`SimDisk` forgets what was not synced, keeps any part of it, in any order, with one sector torn, loses names that
were not synced with their directory, fails, is full, and can end the world at each call. Nothing in it is
random but what a given `random.Random` decides, so a seed or Hypothesis (`st.randoms()`) replays it.
A disk that hangs is a `SteppedExecutor` that is not stepped.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, NamedTuple

from raftkv_core.log.disk import DiskFile
from raftkv_core.testing.executor import SteppedExecutor

__all__ = ["Operation", "SimDisk", "SimulatedCrash", "SteppedExecutor"]

Operation = Literal["open", "read", "write", "allocate", "sync", "rename", "remove", "sync_directory"]

SECTOR_BYTES: Final = 512
"""What a disk writes in one piece, unless it tears it."""


class SimulatedCrash(BaseException):
    """The machine is down. Not an Exception, so that no error handling of what is tested catches it."""


class _Write(NamedTuple):
    offset: int
    data: bytes


@dataclass(eq=False)
class _Node:
    """A file without its name: as processes see it, as it is on the disk, and what is between the two."""

    seen: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    unsynced: list[_Write] = field(default_factory=list)

    def write(self, write: _Write) -> None:
        _apply(self.seen, write)
        self.unsynced.append(write)

    def sync(self) -> None:
        for write in self.unsynced:
            _apply(self.durable, write)
        self.unsynced.clear()

    def lose_power(self, choice: random.Random | None) -> None:
        if choice is not None:
            sectors = [sector for write in self.unsynced for sector in _sectors(write)]
            torn = choice.randrange(len(sectors)) if sectors and choice.random() < 0.5 else None
            share = choice.choice((0.0, 0.5, 1.0))
            for place, sector in enumerate(sectors):
                if place == torn:
                    _apply(self.durable, sector._replace(data=sector.data[: len(sector.data) // 3]))
                elif share == 1.0 or (share and choice.random() < share):
                    _apply(self.durable, sector)
        self.unsynced.clear()
        self.seen = bytearray(self.durable)


def _apply(data: bytearray, write: _Write) -> None:
    end = write.offset + len(write.data)
    if len(data) < end:
        data.extend(bytes(end - len(data)))
    data[write.offset : end] = write.data


def _sectors(write: _Write) -> list[_Write]:
    """Cut at sector boundaries of the file."""
    end = write.offset + len(write.data)
    first = write.offset - write.offset % SECTOR_BYTES
    edges = [write.offset, *range(first + SECTOR_BYTES, end, SECTOR_BYTES), end]
    return [
        _Write(start, write.data[start - write.offset : stop - write.offset])
        for start, stop in itertools.pairwise(edges)
    ]


class _NameChange(NamedTuple):
    """`old` goes, `new` names `node`; either may be None."""

    old: Path | None
    new: Path | None
    node: _Node

    def apply(self, names: dict[Path, _Node]) -> None:
        if self.old is not None:
            names.pop(self.old, None)
        if self.new is not None:
            names[self.new] = self.node


class _SimFile:
    def __init__(self, disk: SimDisk, path: Path, node: _Node) -> None:
        self._disk = disk
        self._path = path
        self._node = node
        self._life = disk.life

    def size(self) -> int:
        return len(self._node.seen)

    def written(self) -> int:
        return 0

    def read(self, offset: int, size: int) -> bytes:
        self._begin("read")
        return bytes(self._node.seen[offset : offset + size])

    def write(self, offset: int, data: bytes | bytearray, *, sync: bool) -> None:
        self._begin("write")
        self._disk.take_room(offset + len(data) - self.size())
        self._node.write(_Write(offset, bytes(data)))
        self._disk.point()
        if sync:
            self.sync()

    def allocate(self, size: int) -> None:
        self._begin("allocate")
        if size > self.size():
            self._disk.take_room(size - self.size())
            self._node.write(_Write(self.size(), bytes(size - self.size())))
        self._disk.point()

    def sync(self) -> None:
        try:
            self._begin("sync")
        except OSError:
            # As Linux does: the pages count as clean from now on, so that a second sync would do nothing.
            self._node.unsynced.clear()
            raise
        self._node.sync()
        self._disk.point()

    def close(self) -> None:
        pass

    def _begin(self, operation: Operation) -> None:
        if self._life != self._disk.life:
            raise RuntimeError(f"{self._path} was opened by a process that is dead")
        self._disk.begin(operation, self._path)


class SimDisk:
    """Implements `raftkv_core.log.disk.Disk`. One thread only."""

    def __init__(self, *, capacity_bytes: int | None = None) -> None:
        self.capacity_bytes = capacity_bytes
        """Files may not grow beyond it, all together; None for no limit."""
        self.on_call: Callable[[Operation, Path], None] = lambda *_: None
        """Called before each operation: whatever happens meanwhile in a real process can be made to happen here."""
        self.calls = 0
        """Moments so far at which the machine could have gone down: before and after each change, each sync."""
        self.crash_at: int | None = None
        """The value of `calls` at which `SimulatedCrash` is raised."""
        self.done: Counter[Operation] = Counter()
        """How often each operation was begun."""
        self.life = 0
        self._down = False
        self._failures: dict[Operation, int] = {}
        self._directories: set[Path] = set()
        self._seen: dict[Path, _Node] = {}
        self._durable: dict[Path, _Node] = {}
        self._unsynced: list[_NameChange] = []

    # What the log uses.

    def make_directory(self, path: Path) -> None:
        self._directories.update((path, *path.parents))

    def names(self, directory: Path) -> list[str]:
        if directory not in self._directories:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(directory))
        return sorted(path.name for path in self._seen if path.parent == directory)

    def open(self, path: Path, *, create: bool = False) -> DiskFile:
        self.begin("open", path)
        if create:
            self._change(_NameChange(None, path, _Node()))
            self.point()
        return _SimFile(self, path, self._node(path))

    def rename(self, old: Path, new: Path) -> None:
        self.begin("rename", old)
        self._change(_NameChange(old, new, self._node(old)))
        self.point()

    def remove(self, path: Path) -> None:
        self.begin("remove", path)
        if path in self._seen:
            self._change(_NameChange(path, None, self._seen[path]))
        self.point()

    def sync_directory(self, path: Path) -> None:
        self.begin("sync_directory", path)
        for change in self._unsynced:
            change.apply(self._durable)
        self._unsynced.clear()
        self.point()

    # What tests and simulations do to it.

    def fail(self, operation: Operation, times: int = 1) -> None:
        """Let the next `times` calls of it end with EIO. A failed sync also forgets what was to be synced."""
        self._failures[operation] = times

    def kill(self) -> None:
        """The process dies, the machine goes on: nothing is lost, what was not synced still is not."""
        self._restart()

    def power_loss(self, choice: random.Random | None = None) -> None:
        """The machine goes down and comes back: what was not synced is gone, but for what `choice` keeps."""
        for change in self._unsynced:
            if choice is not None and choice.random() < 0.5:
                change.apply(self._durable)
        self._unsynced.clear()
        self._seen = dict(self._durable)
        for node in self._seen.values():
            node.lose_power(choice)
        self._restart()

    def damage(self, path: Path, offset: int, data: bytes | None = None) -> None:
        """Overwrite what is on the disk, by default by flipping a bit of the byte at `offset`."""
        node = self._node(path)
        change = bytes([node.durable[offset] ^ 1]) if data is None else data
        for content in (node.durable, node.seen):
            _apply(content, _Write(offset, change))

    def content(self, path: Path) -> bytes:
        """What a process would read."""
        return bytes(self._node(path).seen)

    # What the files need.

    def begin(self, operation: Operation, path: Path) -> None:
        """An operation starts: it may fail, or the machine go down before it."""
        self._check_up()
        self.on_call(operation, path)
        self.done[operation] += 1
        if operation not in ("read", "open"):
            self.point()
        if self._failures.get(operation, 0):
            self._failures[operation] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    def point(self) -> None:
        """A moment at which the machine may go down."""
        self._check_up()
        if self.calls == self.crash_at:
            self._down = True
        self.calls += 1
        self._check_up()

    def take_room(self, growth: int) -> None:
        used = sum(len(node.seen) for node in self._seen.values())
        if self.capacity_bytes is not None and growth > 0 and used + growth > self.capacity_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _check_up(self) -> None:
        if self._down:
            raise SimulatedCrash

    def _restart(self) -> None:
        self._down = False
        self.crash_at = None
        self._failures.clear()
        self.life += 1

    def _node(self, path: Path) -> _Node:
        node = self._seen.get(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return node

    def _change(self, change: _NameChange) -> None:
        change.apply(self._seen)
        self._unsynced.append(change)
