"""Streams: the whole state as bytes, the same under every engine; for backup, restore, joiners and migration.

| part | bytes | |
|---|---|---|
| magic | 8 | `RAFTKVST` |
| stream format, flags | 2, 2 | |
| cluster id, history id | 16, 16 | |
| index, term, revision, compacted | 4 x 8 | the position and revisions of the data |
| length | 8 | of the whole stream, known before its first byte |
| rows | | table number (1), key length (2), value length (4), key, value |
| end | 1, 8 | 255, xxh3-64 of everything before |

Rows come table by table: `meta`, `members`, `dedupe`, `kv`, `changes` above the compacted revision. Tombstones,
`next` and the expiry indexes follow from them, so the receiver rebuilds them, and they count in no length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from struct import Struct
from struct import error as StructError
from typing import Final, NamedTuple

import xxhash

from raftkv_core.errors import StorageError, StreamInvalid
from raftkv_core.interfaces.consensus import Position
from raftkv_core.interfaces.storage import ReadTransaction, Restore, WriteTransaction
from raftkv_core.limits import IDEMPOTENCY_KEY_BYTES_MAX, KEY_BYTES_MAX, ROW_BYTES_MAX, TABLE_KEY_BYTES_MAX
from raftkv_core.machine.history import total_before
from raftkv_core.machine.meta import Meta, read_meta
from raftkv_core.machine.records import (
    CHANGE_DELETE,
    CHANGE_KEY,
    ROW_OVERHEAD,
    change_key,
    decode_change,
    encode_pointer,
    row_hash,
    table_key,
    user_key,
)

__all__ = ["StreamHeader", "StreamSource", "install", "read_header"]

STREAM_FORMAT: Final = 1
CHUNK_BYTES: Final = 256 << 10
BATCH_BYTES: Final = 8 << 20
"""Bytes of rows in one storage transaction of `install`."""

_MAGIC: Final = b"RAFTKVST"
_HEAD: Final = Struct(">8sHH16s16sQQQQQ")
_ROW: Final = Struct(">BHI")
_END: Final = Struct(">BQ")
_END_MARK: Final = 255

_TABLES: Final = ("meta", "members", "dedupe", "kv", "changes")
"""In stream order; a table's number is its place. Leases get the next numbers with the release that has them."""

_NO_ID: Final = bytes(16)
_MASK: Final = (1 << 64) - 1


class StreamHeader(NamedTuple):
    cluster_id: bytes
    history_id: bytes
    position: Position
    revision: int
    compacted: int
    length_bytes: int


class StreamSource:
    """A stream of what `txn` sees. The transaction is the caller's to close, after the last chunk."""

    def __init__(self, txn: ReadTransaction) -> None:
        self._txn = txn
        self._meta = meta = read_meta(txn)
        self.label: Position = meta.position
        state = meta.state
        meta_bytes = sum(ROW_OVERHEAD + len(key) + len(row) for key, row in txn.scan("meta"))
        kept = state.history_total - total_before(txn.get, state, state.compacted + 1)
        self.length_bytes: int = (
            _HEAD.size
            + meta_bytes
            + state.aux_bytes
            + state.live_bytes
            + ROW_OVERHEAD * state.keys
            + kept
            + _END.size
        )

    def chunks(self) -> Iterator[bytes]:
        """The bytes, in pieces of about 256 KiB (a row is never split)."""
        checksum = xxhash.xxh3_64()
        piece = [self._header()]
        size = _HEAD.size
        for table, key, row in self._rows():
            piece.append(_ROW.pack(table, len(key), len(row)))
            piece.append(key)
            piece.append(row)
            size += ROW_OVERHEAD + len(key) + len(row)
            if size >= CHUNK_BYTES:
                chunk = b"".join(piece)
                checksum.update(chunk)
                yield chunk
                piece, size = [], 0
        chunk = b"".join(piece)
        checksum.update(chunk)
        yield chunk + _END.pack(_END_MARK, checksum.intdigest())

    def _header(self) -> bytes:
        meta = self._meta
        return _HEAD.pack(
            _MAGIC,
            STREAM_FORMAT,
            0,
            meta.identity.cluster_id or _NO_ID,
            meta.identity.history_id or _NO_ID,
            *meta.position,
            meta.revision,
            meta.compacted,
            self.length_bytes,
        )

    def _rows(self) -> Iterator[tuple[int, bytes, bytes]]:
        for number, table in enumerate(_TABLES):
            start = change_key(self._meta.compacted + 1, 0) if table == "changes" else b""
            for key, row in self._txn.scan(table, start):
                yield number, key, row


def read_header(data: bytes) -> StreamHeader:
    """The header from a stream's first bytes. Raises StreamInvalid."""
    if len(data) < _HEAD.size or not data.startswith(_MAGIC):
        raise StreamInvalid("this is no RaftKV stream: its first bytes are wrong")
    _magic, form, flags, cluster, history, index, term, revision, compacted, length = _HEAD.unpack_from(data)
    if form != STREAM_FORMAT or flags:
        raise StreamInvalid(
            f"this stream has format {form}, flags {flags:#x}; this release reads {STREAM_FORMAT}: upgrade raftkv"
        )
    return StreamHeader(
        b"" if cluster == _NO_ID else cluster,
        b"" if history == _NO_ID else history,
        Position(index, term),
        revision,
        compacted,
        length,
    )


def install(chunks: Iterable[bytes], restore: Restore, progress: Callable[[int, int], None] | None = None) -> Meta:
    """Fill an empty store from a stream and verify it; the caller activates it, or discards it on an error.

    Everything is recomputed: the checksum, both digests, the counters. `progress(bytes done, bytes in all)`.
    Raises StreamInvalid for whatever does not agree, and StorageError.
    """
    reader = _Reader(chunks, progress)
    header = reader.header()
    filler = _Filler(restore)
    try:
        for table, key, row in reader.rows():
            filler.add(table, key, row)
        meta = filler.finish()
    finally:
        filler.close()
    identity = meta.identity
    said = StreamHeader(
        identity.cluster_id, identity.history_id, meta.position, meta.revision, meta.compacted, header.length_bytes
    )
    if said != header:
        raise StreamInvalid("the stream's header and its data name different histories or positions")
    return meta


class _Reader:
    """Takes a stream apart, checking lengths and checksum."""

    def __init__(self, chunks: Iterable[bytes], progress: Callable[[int, int], None] | None) -> None:
        self._chunks = iter(chunks)
        self._progress = progress
        self._data = bytearray()
        self._at = 0
        self._taken = 0
        self._length = 0
        self._checksum = xxhash.xxh3_64()

    def header(self) -> StreamHeader:
        data = self._take(_HEAD.size)
        header = read_header(data)
        self._checksum.update(data)
        self._length = header.length_bytes
        return header

    def rows(self) -> Iterator[tuple[str, bytes, bytes]]:
        last = (0, b"")
        while True:
            head = self._take(1)
            if head[0] == _END_MARK:
                break
            head += self._take(_ROW.size - 1)
            number, key_length, row_length = _ROW.unpack(head)
            if number >= len(_TABLES) or not 1 <= key_length <= TABLE_KEY_BYTES_MAX or row_length > ROW_BYTES_MAX:
                raise StreamInvalid(f"the stream is damaged at byte {self._taken}: no row looks like that")
            body = self._take(key_length + row_length)
            self._checksum.update(head)
            self._checksum.update(body)
            this = (number, body[:key_length])
            if this <= last:
                raise StreamInvalid(f"rows of {_TABLES[number]} are out of order")
            last = this
            yield _TABLES[number], this[1], body[key_length:]
        (checksum,) = Struct(">Q").unpack(self._take(8))
        if checksum != self._checksum.intdigest():
            raise StreamInvalid("the stream's checksum does not match: it is damaged")
        if self._taken != self._length or self._at < len(self._data) or any(self._chunks):
            raise StreamInvalid(f"the stream says it has {self._length} bytes and has another number")

    def _take(self, count: int) -> bytes:
        while len(self._data) - self._at < count:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise StreamInvalid(f"the stream is cut short after {self._taken + len(self._data) - self._at} bytes")
            del self._data[: self._at]
            self._at = 0
            self._data += chunk
            if self._progress is not None and self._length:
                self._progress(min(self._taken + len(self._data), self._length), self._length)
        taken = bytes(self._data[self._at : self._at + count])
        self._at += count
        self._taken += count
        return taken


class _Filler:
    """Writes rows and what follows from them, counting and hashing as it goes."""

    def __init__(self, restore: Restore) -> None:
        self._restore = restore
        self._txn: WriteTransaction = restore.write()
        self._batch_bytes = 0
        self._meta: Meta | None = None
        self._kv_digest = self._local_digest = 0
        self._keys = self._live_bytes = 0
        self._aux_rows = self._aux_bytes = self._dedupe_keys = 0

    def add(self, table: str, key: bytes, row: bytes) -> None:
        if table != "meta" and self._meta is None:
            self._meta = self._read_meta()
        txn = self._txn
        txn.put(table, key, row)
        if table == "kv":
            self._keys += 1
            self._live_bytes += len(key) + len(row)
            self._kv_digest += row_hash(user_key(key), row)
        elif table == "changes":
            self._add_change(key, row)
        elif table != "meta":
            self._aux_rows += 1
            self._aux_bytes += ROW_OVERHEAD + len(key) + len(row)
            self._local_digest += row_hash(key, row)
            if table == "dedupe":
                self._dedupe_keys += 1
                if len(key) > IDEMPOTENCY_KEY_BYTES_MAX or len(row) < 18:
                    raise _unreadable(table)
                txn.put("dedupe_expiry", row[10:18] + key, row[:2])
        self._batch_bytes += len(key) + len(row)
        if self._batch_bytes >= BATCH_BYTES:
            txn.commit()
            self._txn = self._restore.write()
            self._batch_bytes = 0

    def _add_change(self, key: bytes, row: bytes) -> None:
        """Rebuild the tombstone of a key whose last change is a deletion, and `next`."""
        assert self._meta is not None
        txn = self._txn
        try:
            change = decode_change(row)
            this = encode_pointer(*CHANGE_KEY.unpack(key))
        except (StorageError, StructError) as error:
            raise _unreadable("changes") from error
        if not 1 <= len(change.key) <= KEY_BYTES_MAX:
            raise _unreadable("changes")
        if change.op == CHANGE_DELETE:
            txn.put("tombstones", table_key(change.key), this)
        else:
            txn.delete("tombstones", table_key(change.key))
        if change.prev[0] > self._meta.compacted:
            txn.put("next", change_key(*change.prev), this)

    def _read_meta(self) -> Meta:
        try:
            return read_meta(self._txn)
        except (StorageError, StructError, ValueError, TypeError, IndexError) as error:
            raise _unreadable("meta") from error

    def close(self) -> None:
        """End what is not committed, so that the store can be activated or discarded."""
        self._txn.close()

    def finish(self) -> Meta:
        meta = self._read_meta()
        state = meta.state
        self._txn.commit()
        counted = (
            self._kv_digest & _MASK,
            self._local_digest & _MASK,
            self._keys,
            self._live_bytes,
            self._aux_rows,
            self._aux_bytes,
            self._dedupe_keys,
        )
        said = (
            state.kv_digest,
            state.local_digest,
            state.keys,
            state.live_bytes,
            state.aux_rows,
            state.aux_bytes,
            state.dedupe_keys,
        )
        if counted != said:
            raise StreamInvalid("the stream's rows do not add up to the digest and counts it carries")
        return meta


def _unreadable(table: str) -> StreamInvalid:
    return StreamInvalid(f"the stream has a row of {table} that this release cannot read: damage, or a newer format")
