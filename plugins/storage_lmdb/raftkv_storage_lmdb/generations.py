"""Which of the stores in the directory is the valid one, at every moment of a switch.

    CURRENT            one line of JSON: which generation, which LMDB version
    generation-3/      data.mdb, lock.mdb
    unfinished/        a store that is being made; nobody reads it
    reserve            see `space.py`

A store is filled in `unfinished/` and synced, renamed to its generation, and becomes the valid one when CURRENT
is replaced by rename. Each step is synced before the next. So after a crash
- `unfinished/` is rubbish;
- generations that CURRENT does not name are rubbish: the old one, or one that was about to become valid;
- no CURRENT and one generation is a new store that lacks only its CURRENT, and gets it; nothing else removes
  CURRENT, and several generations without it are refused rather than guessed at.
Only the writer tidies up. A reader follows CURRENT, and follows it again if the folder went away under it.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Final, Literal

import msgspec

from raftkv_core.errors import StorageError

__all__ = ["Current", "Generations", "read_current"]

_CURRENT: Final = "CURRENT"
_CURRENT_NEW: Final = "CURRENT.new"
_UNFINISHED: Final = "unfinished"
_FOLDER: Final = re.compile(r"generation-([1-9][0-9]*)")


class Current(msgspec.Struct, frozen=True, kw_only=True):
    """What CURRENT says."""

    format: Literal[1] = 1
    engine: str
    """LMDB version; its files cannot be read by another."""
    generation: int

    def folder(self, directory: Path) -> Path:
        return directory / f"generation-{self.generation}"


def read_current(directory: Path) -> Current | None:
    """None if there is no store yet. Raises StorageError for a file that says nothing sensible."""
    path = directory / _CURRENT
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StorageError(f"lmdb: {path} cannot be read: {error}") from error
    try:
        return msgspec.json.decode(data, type=Current)
    except msgspec.DecodeError as error:
        raise StorageError(
            f"lmdb: {path} is damaged or of a newer release ({error}): restore it, or replace this node"
        ) from error


class Generations:
    """The writer's view. Every method is crash safe at every step; none touches the valid store's files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def current(self) -> Current | None:
        return read_current(self._directory)

    def orphan(self) -> int | None:
        """The one generation there is, where CURRENT was never written. Raises StorageError for several."""
        found = sorted(self._numbers())
        if len(found) > 1:
            raise StorageError(
                f"lmdb: {self._directory} holds {len(found)} generations and no CURRENT to say which is valid:"
                " restore that file, or replace this node"
            )
        return found[0] if found else None

    def begin(self) -> Path:
        """An empty folder for a new store."""
        folder = self._directory / _UNFINISHED
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        return folder

    def discard(self) -> None:
        """Remove what `begin` made."""
        shutil.rmtree(self._directory / _UNFINISHED, ignore_errors=True)

    def finish(self, number: int) -> None:
        """The store in the folder of `begin` is whole and its data file synced: give it its name."""
        unfinished = self._directory / _UNFINISHED
        _sync_folder(unfinished)
        folder = self._directory / f"generation-{number}"
        shutil.rmtree(folder, ignore_errors=True)  # of a switch that failed before its CURRENT was written
        unfinished.rename(folder)
        _sync_folder(self._directory)

    def switch(self, current: Current) -> None:
        """Make a finished generation the valid one. Returns when that survives power loss."""
        new = self._directory / _CURRENT_NEW
        with new.open("wb") as file:
            file.write(msgspec.json.encode(current) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._directory / _CURRENT)
        _sync_folder(self._directory)

    def tidy(self, keep: int) -> None:
        """Remove every store but the valid one. Open environments in them go on working until closed.

        A folder is renamed before its files go, so that a reader on its way in finds all of a store or nothing.
        """
        self.discard()
        for number in self._numbers():
            if number != keep:
                (self._directory / f"generation-{number}").rename(self._directory / _UNFINISHED)
                self.discard()

    def _numbers(self) -> list[int]:
        found = (_FOLDER.fullmatch(path.name) for path in self._directory.iterdir())
        return [int(match[1]) for match in found if match]


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
