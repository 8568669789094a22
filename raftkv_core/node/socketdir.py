"""A short place for the node socket.

A UNIX socket's path may have 107 bytes at most, a data directory's more. So the socket lies in a directory of
its own with a short name, which only its owner may enter, below XDG_RUNTIME_DIR or the folder for temporary
files; the data directory records where.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path
from typing import Final

__all__ = ["create", "remove", "reuse"]

PATH_BYTES_MAX: Final = 107
_PREFIX: Final = "raftkv-"
_NAME: Final = "node.sock"


def create() -> Path:
    """A socket path in a new directory."""
    for base in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp's is private
        if not base or not os.access(base, os.W_OK | os.X_OK):
            continue
        directory = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))
        if len(os.fsencode(directory / _NAME)) <= PATH_BYTES_MAX:
            return directory / _NAME
        directory.rmdir()
    raise OSError("no folder with a short path can be written to; set XDG_RUNTIME_DIR or TMPDIR to one")


def reuse(recorded: str) -> Path | None:
    """The recorded path, freed of a dead node's socket; None if its directory is not there or not safe."""
    path = Path(recorded)
    if not recorded or not _is_ours(path):
        return None
    path.unlink(missing_ok=True)
    return path


def remove(recorded: str) -> None:
    """Remove socket and directory, if they are ours."""
    path = Path(recorded)
    if _is_ours(path):
        path.unlink(missing_ok=True)
        path.parent.rmdir()


def _is_ours(path: Path) -> bool:
    """Whether `create` of this user made the directory and nobody opened it to others."""
    if path.name != _NAME or not path.parent.name.startswith(_PREFIX):
        return False
    try:
        status = path.parent.lstat()
    except FileNotFoundError:
        return False
    private = stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o700
    return private and status.st_uid == os.geteuid()
