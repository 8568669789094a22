"""What a frame looks like on disk: one group of entries, checked against damage and against earlier lives.

A frame starts at a multiple of `FRAME_ALIGN` and is padded with zeros to the next, so a write never touches a
page that an earlier sync made durable, and a frame can be looked for without knowing where the last one ended.

```
header (40 bytes)   magic, header checksum, payload checksum, payload bytes, sequence, first index,
                    number of entries, flags, format
payload             base (index, term)       if the flag OPENS is set: the frame opens a segment
                    term, vote               if the flag STATE is set
                    one (term, kind, bytes) per entry
                    the entries' data
```
An entry's index is the frame's first index plus its place. A frame without entries still has a first index:
every frame cuts the log there, which is how a suffix is truncated without erasing anything in place.

Both checksums start from a seed made of the log's random id and the segment's number, so that what an earlier
life left in a segment that is used again never looks like a frame. A page of zeros is not a frame either.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Final, NamedTuple

from raftkv_core.interfaces.consensus import Entry, Position

__all__ = [
    "FORMAT",
    "FRAME_ALIGN",
    "HEADER_BYTES",
    "MAGIC",
    "VOTE_BYTES_MAX",
    "Content",
    "Header",
    "State",
    "decode_content",
    "decode_entries",
    "decode_header",
    "encode_frame",
    "frame_bytes",
    "segment_seed",
]

FORMAT: Final = 1
FRAME_ALIGN: Final = 4096
MAGIC: Final = b"RKLF"
VOTE_BYTES_MAX: Final = 254

_HEADER = struct.Struct("<4sIIIQQIBB2x")
_BASE = struct.Struct("<QQ")
_STATE = struct.Struct("<QB")
_RECORD = struct.Struct("<QBI")
_CRC_END = 8
"""The header checksum covers the header from here."""

HEADER_BYTES: Final = _HEADER.size

_OPENS: Final = 1
_STATEFUL: Final = 2
_PRIOR_SYNCED: Final = 4


class State(NamedTuple):
    """The small durable state of a Raft node. `vote` is the node id voted for in `term`, or None."""

    term: int
    vote: str | None


class Header(NamedTuple):
    """A header whose own checksum holds. `last_index` is `first_index - 1` if there are no entries."""

    payload_crc: int
    payload_bytes: int
    sequence: int
    first_index: int
    entry_count: int
    flags: int
    format: int

    @property
    def last_index(self) -> int:
        return self.first_index + self.entry_count - 1

    @property
    def size(self) -> int:
        """Bytes that the frame takes in its file, padding included."""
        return _padded(HEADER_BYTES + self.payload_bytes)

    @property
    def prior_synced(self) -> bool:
        """Whether every frame before this one was synced before this one was written."""
        return bool(self.flags & _PRIOR_SYNCED)


class Content(NamedTuple):
    """What a frame says besides its entries' data."""

    base: Position | None
    """Of a frame that opens a segment: the position before the first entry of that segment."""
    state: State | None
    terms: list[int]
    """The term of each entry."""


def segment_seed(log_id: bytes, number: int) -> int:
    """What the checksums of all frames of segment `number` start from."""
    return zlib.crc32(number.to_bytes(8, "little"), zlib.crc32(log_id))


def frame_bytes(entries: Sequence[Entry], state: State | None, *, opens: bool) -> int:
    """The size that `encode_frame` will give, padding included."""
    size = HEADER_BYTES + len(entries) * _RECORD.size + sum(len(entry.data) for entry in entries)
    if opens:
        size += _BASE.size
    if state is not None:
        size += _STATE.size + len((state.vote or "").encode())
    return _padded(size)


def encode_frame(
    seed: int,
    sequence: int,
    first_index: int,
    entries: Sequence[Entry],
    *,
    base: Position | None = None,
    state: State | None = None,
    prior_synced: bool = True,
) -> bytearray:
    """One frame, padded. `base` is given for the first frame of a segment and for no other."""
    flags = _PRIOR_SYNCED if prior_synced else 0
    parts = [bytes(HEADER_BYTES)]
    if base is not None:
        flags |= _OPENS
        parts.append(_BASE.pack(*base))
    if state is not None:
        flags |= _STATEFUL
        vote = b"" if state.vote is None else state.vote.encode()
        # One more than the length, so that 0 can mean that there is no vote.
        parts.append(_STATE.pack(state.term, 0 if state.vote is None else len(vote) + 1))
        parts.append(vote)
    parts.extend(_RECORD.pack(entry.term, entry.kind, len(entry.data)) for entry in entries)
    parts.extend(entry.data for entry in entries)
    frame = bytearray().join(parts)
    with memoryview(frame) as view:
        payload_crc = zlib.crc32(view[HEADER_BYTES:], seed)
    _HEADER.pack_into(
        frame, 0, MAGIC, 0, payload_crc, len(frame) - HEADER_BYTES, sequence, first_index, len(entries), flags, FORMAT
    )
    struct.pack_into("<I", frame, 4, zlib.crc32(frame[_CRC_END:HEADER_BYTES], seed))
    frame.extend(bytes(-len(frame) % FRAME_ALIGN))
    return frame


def decode_header(seed: int, data: bytes) -> Header | None:
    """The header at the start of `data`, or None if there is none of this log and segment."""
    if len(data) < HEADER_BYTES or data[:4] != MAGIC:
        return None
    _, header_crc, *fields = _HEADER.unpack_from(data)
    if zlib.crc32(data[_CRC_END:HEADER_BYTES], seed) != header_crc:
        return None
    return Header(*fields)


def decode_content(seed: int, header: Header, payload: bytes) -> Content | None:
    """What the payload says, or None if it is not the one that the header was written for."""
    if len(payload) != header.payload_bytes or zlib.crc32(payload, seed) != header.payload_crc:
        return None
    base = Position(*_BASE.unpack_from(payload)) if header.flags & _OPENS else None
    state = _state(header, payload)
    table = _table(header, payload)
    return Content(base, state, [term for term, _, _ in table])


def decode_entries(header: Header, payload: bytes) -> list[Entry]:
    """The entries of a payload that `decode_content` found good."""
    table = _table(header, payload)
    offset = _table_offset(header, payload) + header.entry_count * _RECORD.size
    entries = []
    for index, (term, kind, size) in enumerate(table, header.first_index):
        entries.append(Entry(index, term, kind, payload[offset : offset + size]))
        offset += size
    return entries


def _padded(size: int) -> int:
    return size + -size % FRAME_ALIGN


def _state_offset(header: Header) -> int:
    return _BASE.size if header.flags & _OPENS else 0


def _state(header: Header, payload: bytes) -> State | None:
    if not header.flags & _STATEFUL:
        return None
    offset = _state_offset(header)
    term, length = _STATE.unpack_from(payload, offset)
    if length == 0:
        return State(term, None)
    start = offset + _STATE.size
    return State(term, payload[start : start + length - 1].decode())


def _table_offset(header: Header, payload: bytes) -> int:
    offset = _state_offset(header)
    if header.flags & _STATEFUL:
        length = payload[offset + _STATE.size - 1]
        offset += _STATE.size + max(length - 1, 0)
    return offset


def _table(header: Header, payload: bytes) -> list[tuple[int, int, int]]:
    offset = _table_offset(header, payload)
    end = offset + header.entry_count * _RECORD.size
    return list(_RECORD.iter_unpack(payload[offset:end]))
