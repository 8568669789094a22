"""Streams: exact in length, the same state on the other side, and nothing damaged gets in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from random import Random

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from raftkv_core.errors import StreamInvalid
from raftkv_core.machine import commands
from raftkv_core.machine.meta import Meta
from raftkv_core.machine.stream import _END, _HEAD, _ROW, StreamSource, install, read_header
from tests.machine.checks import Pending, check_numbers, check_reads, dump, logical, same_outcome
from tests.machine.harness import CLUSTER, HISTORY, Node, Storages, genesis, position, small_bounds
from tests.machine.strategies import KEYS, Sender, actions, examples, long_lists, small_model, small_settings


def forged(body: bytes) -> bytes:
    """A stream whose checksum is right, whatever it says."""
    return body + _END.pack(255, xxhash.xxh3_64_intdigest(body))


def rows_of(stream: bytes) -> list[bytes]:
    """The rows of a stream, framing included."""
    at, rows = _HEAD.size, []
    while stream[at] != 255:
        _table, key_length, row_length = _ROW.unpack_from(stream, at)
        end = at + _ROW.size + key_length + row_length
        rows.append(stream[at:end])
        at = end
    return rows


def receive(storages: Storages, stream: bytes, piece: int = 1 << 16) -> Meta:
    """Verify a stream on a store beside an empty one, and throw it away."""
    restore = storages.scratch().begin_restore()
    try:
        return install((stream[at : at + piece] for at in range(0, len(stream), piece)), restore)
    finally:
        restore.discard()


@pytest.fixture
def sample(storages: Storages) -> Iterator[bytes]:
    """A small stream with rows of every kind: members, idempotency keys, attributes, deletions, txns."""
    with Node(storages) as node:
        node.begin({"history_revisions": 6})
        node.do(commands.report("n1", [1], low_space=False), commands.report("n2", [1], low_space=True))
        for number in range(4):
            node.do(commands.put(b"a%d" % number, b"value", idempotency_key=b"i%d" % number))
        node.do(commands.put(b"b", b"text", attributes={"content-type": "text/plain"}))
        node.do(commands.delete(b"a0"), commands.put(b"a0", b"again"), commands.delete(b"a1"))
        twice = [commands.op_put(b"t", b"1"), commands.op_put(b"t", b"2"), commands.op_delete(b"b")]
        node.do(commands.txn([], twice))
        node.machine.set_engine_state(b"engine", position(node.next_index))
        node.do(commands.tick(1))
        yield node.stream()


@given(small_settings, long_lists(actions, 30), long_lists(actions, 30), st.booleans(), st.integers(0, 3))
@examples(60)
def test_an_installed_store_is_the_same_and_goes_on_the_same(
    storages: Storages, first: dict[str, int], before: list, after: list, trimmed: bool, seed: int
) -> None:
    """Reads, changes, digests and remembered keys are those of the source, and so is all that follows."""
    random = Random(seed)
    sender = Sender(small_model())
    model = sender.model
    with small_bounds(), Node(storages) as source, Node(storages) as copy:
        opening = genesis(first)
        source.do(opening)
        model.execute(opening, 1)
        for action in before:
            command = sender.encode(action, 1)
            same_outcome(source.do(command.data)[0], model.execute(command.data, 1, valid=command.valid))
        if trimmed:
            source.commit()
        copy.install(source.stream(), piece=1 + 40 * seed)
        assert logical(Pending(copy.machine)) == logical(Pending(source.machine))
        assert copy.machine.applied == copy.machine.visible == copy.machine.durable == source.machine.applied
        check_reads(Pending(copy.machine), model, KEYS, random)
        for action in after:
            command = sender.encode(action, 1)
            expected = model.execute(command.data, 1, valid=command.valid)
            outcomes = [node.do(command.data)[0] for node in (source, copy)]
            assert outcomes[0] == outcomes[1]
            same_outcome(outcomes[0], expected)
            assert copy.machine.digest == source.machine.digest
            assert copy.machine.digest_local == source.machine.digest_local
        check_numbers(Pending(copy.machine), model)
        check_reads(Pending(copy.machine), model, KEYS, random)
        assert copy.stream() == source.stream()


def test_the_header_names_the_stream(storages: Storages, sample: bytes) -> None:
    """Cluster, history, position, revisions and length can be told from the first bytes."""
    header = read_header(sample[: _HEAD.size])
    assert (header.cluster_id, header.history_id) == (CLUSTER, HISTORY)
    assert header.length_bytes == len(sample)
    assert header.revision > header.compacted > 0
    assert receive(storages, sample).position == header.position


def test_an_empty_store_has_a_stream(storages: Storages) -> None:
    """A store before its genesis can be streamed too, and stays without a history."""
    with Node(storages) as empty, Node(storages) as copy:
        stream = empty.stream()
        assert read_header(stream).history_id == b""
        copy.install(stream)
        assert copy.machine.history_id == b""
        copy.begin()


def test_a_stream_is_what_its_transaction_saw(begun: Node, storages: Storages) -> None:
    """Commits made while a stream is taken change nothing in it, its length included."""
    for number in range(20):
        begun.do(commands.put(b"%d" % number, b"x" * number))
    begun.commit()
    with begun.storage.read() as txn:
        source = StreamSource(txn)
        before = b"".join(source.chunks())
        begun.do(commands.delete(b"", b""), commands.settings({"history_revisions": 0}))
        begun.commit()
        assert b"".join(source.chunks()) == before
        assert len(before) == source.length_bytes
        assert source.label == read_header(before).position


def test_large_rows_travel_in_pieces(begun: Node, storages: Storages) -> None:
    """Rows larger than a piece, and more of them than one storage transaction takes, arrive whole."""
    for number in range(12):
        begun.do(commands.put(b"big%d" % (number % 6), bytes([number]) * (1 << 20)))
    stream = begun.stream()
    steps: list[tuple[int, int]] = []
    storage = storages.new()
    restore = storage.begin_restore()
    install((stream[at : at + 300_000] for at in range(0, len(stream), 300_000)), restore, lambda *s: steps.append(s))
    restore.activate()
    with storage.read() as txn, begun.storage.read() as original:
        assert dump(txn) == dump(original)
    storage.close()
    assert steps[-1] == (len(stream), len(stream))
    assert steps == sorted(steps)


def test_every_flipped_bit_is_found(storages: Storages, sample: bytes) -> None:
    """Whatever single bit is wrong, the stream is refused as invalid, by no other exception."""
    random = Random(1)
    for at in range(0, len(sample), 1 if storages.kind == "memory" else 23):
        damaged = bytearray(sample)
        damaged[at] ^= 1 << random.randrange(8)
        with pytest.raises(StreamInvalid):
            receive(storages, bytes(damaged))


def test_every_shortened_or_lengthened_stream_is_found(storages: Storages, sample: bytes) -> None:
    """A stream that ends early or late is refused, and so is one without a byte in its middle."""
    for at in range(0, len(sample), 1 if storages.kind == "memory" else 23):
        with pytest.raises(StreamInvalid):
            receive(storages, sample[:at])
        with pytest.raises(StreamInvalid):
            receive(storages, sample[:at] + sample[at + 1 :])
        with pytest.raises(StreamInvalid):
            receive(storages, sample[:at] + b"\x00" + sample[at:])
    with pytest.raises(StreamInvalid):
        receive(storages, sample + b"\x00")
    with pytest.raises(StreamInvalid):
        receive(storages, sample + b"\x00", piece=len(sample))


def test_swapped_rows_are_found_though_the_checksum_is_right(storages: Storages, sample: bytes) -> None:
    """Two neighbours in the wrong order are refused, even by a sender that signs them."""
    rows = rows_of(sample)
    assert forged(sample[: _HEAD.size] + b"".join(rows)) == sample
    for at in range(len(rows) - 1):
        swapped = [*rows[:at], rows[at + 1], rows[at], *rows[at + 2 :]]
        with pytest.raises(StreamInvalid):
            receive(storages, forged(sample[: _HEAD.size] + b"".join(swapped)))


def with_length(header: bytes, rows: list[bytes]) -> bytes:
    """Header and rows, the header's length right for these rows."""
    body = b"".join(rows)
    return _HEAD.pack(*_HEAD.unpack(header)[:-1], _HEAD.size + len(body) + _END.size) + body


def test_a_missing_row_is_found_though_the_checksum_is_right(storages: Storages, sample: bytes) -> None:
    """The length that the sender's counters promised is short of the row's bytes."""
    rows = rows_of(sample)
    for at in range(len(rows)):
        with pytest.raises(StreamInvalid):
            receive(storages, forged(sample[: _HEAD.size] + b"".join([*rows[:at], *rows[at + 1 :]])))


def test_a_doubled_row_is_found_though_checksum_and_length_are_right(storages: Storages, sample: bytes) -> None:
    """No row comes twice, whatever the header says."""
    rows = rows_of(sample)
    assert forged(with_length(sample[: _HEAD.size], rows)) == sample
    for at in range(len(rows)):
        with pytest.raises(StreamInvalid):
            receive(storages, forged(with_length(sample[: _HEAD.size], [*rows[: at + 1], *rows[at:]])))


@pytest.mark.parametrize("field", range(3, 10))
def test_a_header_that_differs_from_its_data_is_found(storages: Storages, sample: bytes, field: int) -> None:
    """Cluster, history, index, term, revision, compacted and length in the header are those of the data."""
    fields = list(_HEAD.unpack_from(sample))
    fields[field] = b"another-id-16-by" if isinstance(fields[field], bytes) else fields[field] + 1
    with pytest.raises(StreamInvalid):
        receive(storages, forged(_HEAD.pack(*fields) + sample[_HEAD.size : -_END.size]))


@pytest.mark.parametrize(("form", "flags"), [(2, 0), (0, 0), (1, 1)])
def test_an_unknown_format_is_refused_by_name(storages: Storages, sample: bytes, form: int, flags: int) -> None:
    """A stream of a newer release is refused with the advice to upgrade."""
    newer = sample[:8] + bytes([0, form, 0, flags]) + sample[12 : -_END.size]
    with pytest.raises(StreamInvalid, match="upgrade"):
        receive(storages, forged(newer))


def test_something_else_is_no_stream(storages: Storages) -> None:
    """Any other file is told apart by its first bytes."""
    with pytest.raises(StreamInvalid, match="no RaftKV stream"):
        receive(storages, b"SQLite format 3\x00" + bytes(200))


@given(st.data())
@examples(300)
def test_no_forgery_raises_anything_else(storages: Storages, sample_once: bytes, data: st.DataObject) -> None:
    """Rows damaged in any way under a right checksum are refused as invalid, or they are harmless."""
    rows = rows_of(sample_once)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(rows) - 1))
        row = rows[at]
        table, key_length, _row_length = _ROW.unpack_from(row)
        key, value = row[_ROW.size :][:key_length], row[_ROW.size + key_length :]
        key = data.draw(st.sampled_from([key, b"k", b"k" * 511])) if data.draw(st.booleans()) else key
        cut = data.draw(st.integers(0, len(value)))
        value = value[:cut] + data.draw(st.binary(max_size=3)) + value[cut + data.draw(st.integers(0, 3)) :]
        rows[at] = _ROW.pack(table, len(key), len(value)) + key + value
    with contextlib.suppress(StreamInvalid):
        receive(storages, forged(with_length(sample_once[: _HEAD.size], rows)))


@pytest.fixture(scope="module")
def sample_once(storages: Storages) -> bytes:
    """As `sample`, for tests that change a copy of it."""
    with Node(storages) as node:
        node.begin({"history_revisions": 2})
        node.do(commands.report("n1", [1], low_space=False))
        node.do(commands.put(b"a", b"value", idempotency_key=b"i", attributes={"t": "x"}))
        node.do(commands.put(b"a", b"other"), commands.delete(b"a"), commands.put(b"b", b""))
        return node.stream()
