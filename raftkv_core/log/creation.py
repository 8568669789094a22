"""Begins a log in an empty directory. The pointer file comes last: without it nothing was promised yet."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from raftkv_core.errors import LogDamaged
from raftkv_core.interfaces.consensus import Position
from raftkv_core.log.disk import Disk
from raftkv_core.log.format import FRAME_ALIGN, MAGIC, State, encode_frame, segment_seed
from raftkv_core.log.pointer import ID_BYTES, POINTER_NAME, PointerFile
from raftkv_core.log.segments import SegmentFiles, segment_name, segment_numbers

__all__ = ["create_log"]

_FIRST: Final = 1


def create_log(disk: Disk, directory: Path, segment_bytes: int, random_bytes: Callable[[int], bytes]) -> PointerFile:
    """Make the first segment and the pointer. What an interrupted attempt left is replaced.

    Raises LogDamaged if there are segments that were in use.
    """
    for number in segment_numbers(disk.names(directory)):
        if number != _FIRST or _was_used(disk, directory / segment_name(number)):
            raise LogDamaged(
                f"{directory / POINTER_NAME} is missing, but {segment_name(number)} beside it was in use; "
                "put the file back or replace this node"
            )
    log_id = random_bytes(ID_BYTES)
    segment = SegmentFiles(disk, directory, segment_bytes, []).make(_FIRST)
    try:
        base = Position(0, 0)
        frame = encode_frame(segment_seed(log_id, _FIRST), 1, base.index + 1, [], base=base, state=State(0, None))
        segment.file.write(0, frame, sync=True)
    finally:
        segment.file.close()
    return PointerFile.create(disk, directory, log_id, _FIRST)


def _was_used(disk: Disk, path: Path) -> bool:
    """Whether there is more than the first frame, which stands there before the pointer does."""
    file = disk.open(path)
    try:
        return file.read(FRAME_ALIGN, len(MAGIC)) == MAGIC
    finally:
        file.close()
