"""A file that only takes up room, so that there is some left to finish with when the disk is full."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from raftkv_core.log.disk import Disk
from raftkv_core.log.segments import is_full

__all__ = ["RESERVE_NAME", "Reserve"]

RESERVE_NAME: Final = "reserve"


class Reserve:
    """Held if there was room for it. `held_bytes` is 0 while it is not."""

    def __init__(self, disk: Disk, directory: Path, size: int) -> None:
        self.held_bytes = 0
        self._disk = disk
        self._path = directory / RESERVE_NAME
        self._size = size

    def hold(self) -> bool:
        """Take the room, or keep it; says whether it was to be had. A size of 0 holds nothing."""
        if self._size == 0:
            self.release()
            return True
        there = self._path.name in self._disk.names(self._path.parent)
        file = self._disk.open(self._path, create=not there)
        try:
            file.allocate(self._size)
        except OSError as error:
            self._disk.remove(self._path)
            if not is_full(error):
                raise
            return False
        finally:
            file.close()
        self.held_bytes = self._size
        return True

    def release(self) -> None:
        """Give the room up."""
        self._disk.remove(self._path)
        self.held_bytes = 0
