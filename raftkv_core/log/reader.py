"""Reads entries back from their frames, checking them again: what was good at open may have gone bad since."""

from __future__ import annotations

from raftkv_core.errors import LogDamaged
from raftkv_core.interfaces.consensus import Entry
from raftkv_core.log.format import HEADER_BYTES, decode_content, decode_entries, decode_header
from raftkv_core.log.index import Extent
from raftkv_core.log.segments import Segment

__all__ = ["FrameReader"]


class FrameReader:
    """Keeps the frame that it read last, so that reading on in small steps decodes each frame once."""

    def __init__(self) -> None:
        self._place: tuple[Segment, int] | None = None
        self._entries: list[Entry] = []

    def read(self, segment: Segment, extent: Extent) -> list[Entry]:
        """All entries of the frame, those that were truncated since included."""
        if self._place != (segment, extent.offset):
            self._entries = _read_frame(segment, extent)
            self._place = (segment, extent.offset)
        return self._entries


def _read_frame(segment: Segment, extent: Extent) -> list[Entry]:
    data = segment.file.read(extent.offset, extent.size)
    header = decode_header(segment.seed, data)
    if header is not None:
        payload = data[HEADER_BYTES : HEADER_BYTES + header.payload_bytes]
        if decode_content(segment.seed, header, payload) is not None:
            return decode_entries(header, payload)
    raise LogDamaged(
        f"{segment.path} at offset {extent.offset}: the frame with the entries {extent.first} to {extent.last} "
        "does not read back; replace this node"
    )
