"""Entries: what the proposer writes into the log, and only the proposer.

| field | bytes | |
|---|---|---|
| format, kind | 1, 1 | kind 0: commands |
| flags | 2 | none known |
| history id | 16 | an entry of another history is refused |
| incarnation, sequence | 8, 8 | with the node id: the proposal id |
| node id length, commands | 1, 2 | |
| checksum | 4 | CRC-32 of everything else: damage before replication would otherwise be equal everywhere |
| node id, then each command | | a command is preceded by its length (4) |
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple
from zlib import crc32

import msgpack

from raftkv_core.errors import MachineFault
from raftkv_core.limits import COMMAND_REPLACED_BYTES_MAX, ENTRY_COMMANDS_MAX, FORMAT, VALUE_BYTES_MAX
from raftkv_core.machine.commands import Op

__all__ = [
    "COMMAND_OVERHEAD_BYTES",
    "ENTRY_WEIGHT_MAX",
    "DecodedEntry",
    "ProposalId",
    "check_entry",
    "command_weight",
    "decode_entry",
    "encode_entry",
    "entry_header_bytes",
]

_HEAD: Final = Struct(">BBH16sQQBH")
_CRC: Final = Struct(">I")
_LENGTH: Final = Struct(">I")
_BODY: Final = _HEAD.size + _CRC.size

COMMAND_OVERHEAD_BYTES: Final = _LENGTH.size

_WEIGHT_HEAVY: Final = COMMAND_REPLACED_BYTES_MAX // VALUE_BYTES_MAX
ENTRY_WEIGHT_MAX: Final = 256
"""In largest values: an entry replaces at most this many MiB of records, so a write buffer that takes whole
entries only stays bounded. (A cap at apply would have to be refused work; a cap at packing costs nobody.)"""


class ProposalId(NamedTuple):
    """Names one proposal for ever. `incarnation` is random per process start, so an entry of an earlier life
    never resolves a waiter of this one."""

    node_id: str
    incarnation: int
    sequence: int


class DecodedEntry(NamedTuple):
    history_id: bytes
    proposal: ProposalId
    commands: list[bytes]


def entry_header_bytes(node_id: str) -> int:
    return _BODY + len(node_id.encode())


def encode_entry(history_id: bytes, proposal: ProposalId, commands: Sequence[bytes]) -> bytes:
    """`history_id` is 16 bytes; 1 to 256 commands."""
    assert 1 <= len(commands) <= ENTRY_COMMANDS_MAX
    node = proposal.node_id.encode()
    head = _HEAD.pack(FORMAT, 0, 0, history_id, proposal.incarnation, proposal.sequence, len(node), len(commands))
    pack = _LENGTH.pack
    parts = [node]
    for command in commands:
        parts.append(pack(len(command)))
        parts.append(command)
    body = b"".join(parts)
    return head + _CRC.pack(crc32(body, crc32(head))) + body


def check_entry(data: bytes) -> None:
    """Raise MachineFault unless format and checksum are right; an engine calls it before it appends."""
    try:
        (crc,) = _CRC.unpack_from(data, _HEAD.size)
    except StructError as error:
        raise MachineFault(f"an entry of {len(data)} bytes is too short to be one") from error
    if data[0] != FORMAT or data[1] or data[2] or data[3]:
        raise MachineFault(
            f"an entry of format {data[0]} is unknown to this release (it reads {FORMAT}); upgrade raftkv"
        )
    view = memoryview(data)
    if crc32(view[_BODY:], crc32(view[: _HEAD.size])) != crc:
        raise MachineFault("an entry's checksum does not match: it was damaged on its way or at rest")


def decode_entry(data: bytes) -> DecodedEntry:
    """Check and take apart. Raises MachineFault."""
    check_entry(data)
    _form, _kind, _flags, history, incarnation, sequence, node_length, count = _HEAD.unpack_from(data)
    at = _BODY + node_length
    try:
        proposal = ProposalId(data[_BODY:at].decode(), incarnation, sequence)
        commands = []
        for _ in range(count):
            (length,) = _LENGTH.unpack_from(data, at)
            at += _LENGTH.size
            commands.append(data[at : at + length])
            at += length
    except (StructError, UnicodeDecodeError) as error:
        raise MachineFault("an entry's checksum holds but its layout does not: a proposer's bug") from error
    if at != len(data) or not commands:
        raise MachineFault("an entry's length does not match its commands: a proposer's bug")
    return DecodedEntry(history, proposal, commands)


def command_weight(command: bytes) -> int:
    """An upper bound on the records a command may replace, in largest values (1 to 16)."""
    if command[1] == Op.PUT:
        return 1
    decoded = msgpack.unpackb(command)
    if decoded[0] == Op.DELETE:
        return 1 if decoded[3] is None else _WEIGHT_HEAVY
    if decoded[0] == Op.TXN:
        return max(_operations_weight(decoded[3]), _operations_weight(decoded[4]))
    return 1


def _operations_weight(operations: Sequence[Sequence[object]]) -> int:
    if any(operation[0] != Op.PUT and operation[2] is not None for operation in operations):
        return _WEIGHT_HEAVY
    return min(_WEIGHT_HEAVY, max(1, len(operations)))
