"""A durable log on a simulated disk, stepped by hand, that can crash and be opened again."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

from raftkv_core.interfaces.consensus import Entry, EntryKind
from raftkv_core.log import DurableLog
from raftkv_core.testing.disk import SimDisk
from raftkv_core.testing.executor import SteppedExecutor

__all__ = ["SimulatedLog", "entries"]


def entries(first: int, *terms: int, size: int = 10) -> list[Entry]:
    """One entry a term, from index `first` on; data of `size` bytes that differs from entry to entry."""
    return [
        Entry(index, term, EntryKind.COMMAND, (b"%d/%d " % (index, term) * (size // 3 + 1))[:size])
        for index, term in enumerate(terms, first)
    ]


class SimulatedLog:
    """Opens a log at once. `options` go to `DurableLog.open`, also when it is opened again."""

    directory = Path("/data/log")

    def __init__(self, disk: SimDisk | None = None, *, segment_bytes: int = 16 << 10, **options: Any) -> None:
        self.disk = SimDisk() if disk is None else disk
        self.options: dict[str, Any] = {"segment_bytes": segment_bytes, "cache_bytes": 4096, **options}
        self.executor: SteppedExecutor
        self.log: DurableLog
        self.synced: list[int] = []
        """What `on_synced` was called with since the log was opened."""
        self.failures: list[str] = []
        """What `on_failed` was called with since the log was opened."""
        self._ids = itertools.count(1)
        self.open()

    def open(self) -> None:
        """As a new process would."""
        self.executor = SteppedExecutor()
        self.synced, self.failures = [], []
        self.log = DurableLog.open(
            self.directory,
            disk=self.disk,
            executor=self.executor,
            on_synced=self.synced.append,
            on_failed=self.failures.append,
            random_bytes=lambda size: next(self._ids).to_bytes(size, "little"),
            **self.options,
        )

    def kill(self) -> None:
        """End the process and open the log again."""
        self.disk.kill()
        self.open()

    def power_loss(self, choice: random.Random | None = None) -> None:
        """Take the power away and open the log again."""
        self.disk.power_loss(choice)
        self.open()

    def append(self, *terms: int, size: int = 10) -> list[Entry]:
        """Append one entry a term, without waiting for anything."""
        new = entries(self.log.last_index + 1, *terms, size=size)
        self.log.append(new)
        return new

    def append_synced(self, *terms: int, size: int = 10) -> list[Entry]:
        """Append one entry a term and let the log do its work."""
        new = self.append(*terms, size=size)
        self.executor.run()
        return new

    def all_entries(self) -> list[Entry]:
        return self.log.read(self.log.first_index, 1 << 40)

    def segment_paths(self) -> list[Path]:
        """The segment files that there are, ascending."""
        names = self.disk.names(self.directory)
        return [self.directory / name for name in names if name.endswith(".segment")]
