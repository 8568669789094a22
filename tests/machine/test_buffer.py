"""The write buffer: reads through two generations as if every write were in storage already."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv_core.errors import StorageError
from raftkv_core.interfaces.storage import ReadTransaction, Storage
from raftkv_core.machine import commands
from raftkv_core.machine.buffer import Generation, WriteBuffer
from raftkv_core.machine.meta import State
from tests.machine.harness import Node, Storages
from tests.machine.strategies import examples, long_lists, weighted

keys = st.sampled_from([b"a", b"aa", b"b", b"c", b"d", b"\x00", b"\xff"])
bounds = st.one_of(st.just(b""), keys)
steps = weighted(
    (6, st.tuples(st.just("put"), keys, st.one_of(st.none(), st.binary(max_size=2)))),
    (2, st.tuples(st.just("scan"), bounds, st.one_of(st.none(), keys))),
    (1, st.tuples(st.sampled_from(["command", "undo"]))),
    (2, st.tuples(st.sampled_from(["begin", "write", "end"]))),
    (1, st.tuples(st.just("reload"))),
)


@given(long_lists(steps, 60))
@examples(150)
def test_it_reads_like_a_dictionary(storages: Storages, plan: list[tuple[Any, ...]]) -> None:
    """Get and scan see every pending write of both generations, deletions included, and undo takes back."""
    storage = storages.new()
    buffer = WriteBuffer(storage)
    expected: dict[bytes, bytes] = {}
    stored: dict[bytes, bytes] = {}
    taken: dict[bytes, bytes] = {}
    before: dict[bytes, bytes] = {}
    generation: Generation | None = None
    written = False
    for name, *rest in plan:
        if name == "put":
            key, row = rest
            buffer.put("kv", key, row)
            expected.pop(key, None)
            if row is not None:
                expected[key] = row
        elif name == "scan":
            start, end = rest
            found = list(buffer.scan("kv", start, end))
            assert found == sorted((k, v) for k, v in expected.items() if k >= start and (end is None or k < end))
        elif name == "command":
            buffer.begin_command()
            before = dict(expected)
        elif name == "undo":
            buffer.roll_back()
            expected = dict(before)
        elif name == "begin" and generation is None:
            generation, written = buffer.begin_commit(State()), False
            before, taken = dict(expected), dict(expected)
        elif name == "write" and generation is not None and not written:
            with storage.write() as txn:
                for key, row in generation.tables["kv"].items():
                    if row is None:
                        txn.delete("kv", key)
                    else:
                        txn.put("kv", key, row)
                txn.commit()
            written = True
        elif name == "end" and generation is not None and written:
            buffer.end_commit()
            generation, stored = None, taken
        elif name == "reload" and generation is None:
            buffer.reload()
            expected, before = dict(stored), dict(stored)
        for key in (b"a", b"aa", b"b", b"c"):
            assert buffer.get("kv", key) == expected.get(key)
        assert buffer.committing == (generation is not None)
    assert dict(buffer.scan("kv", b"", None)) == expected
    assert list(buffer.scan("changes", b"", None)) == []
    buffer.close()
    storage.close()


def test_pending_bytes_bound_what_is_held(storages: Storages) -> None:
    """They count rows and overhead of both generations, also of rows that were put twice, until the commit ends."""
    storage = storages.new()
    buffer = WriteBuffer(storage)
    assert buffer.pending_bytes == 0
    buffer.put("kv", b"a", bytes(1_000))
    first = buffer.pending_bytes
    assert first > 1_000
    buffer.put("kv", b"b", None)
    assert buffer.pending_bytes > first
    generation = buffer.begin_commit(State())
    buffer.put("kv", b"c", bytes(500))
    assert buffer.pending_bytes > first + 500
    assert generation.tables["kv"] == {b"a": bytes(1_000), b"b": None}
    buffer.end_commit()
    assert 500 < buffer.pending_bytes < 1_000
    buffer.close()
    storage.close()


class Watched(Storage):
    """Another storage's read transactions, with a look at what happens while one begins."""

    def __init__(self, inner: Storage) -> None:  # no directory: it opens nothing
        self.inner = inner
        self.on_read: Any = None

    def read(self) -> ReadTransaction:
        if self.on_read is not None:
            self.on_read()
        return self.inner.read()

    def write(self) -> Any:
        return self.inner.write()

    def sync(self) -> None:
        self.inner.sync()

    def begin_restore(self) -> Any:
        return self.inner.begin_restore()

    def space(self) -> Any:
        return self.inner.space()

    def close(self) -> None:
        self.inner.close()

    @property
    def generation(self) -> int:
        return self.inner.generation


def test_the_committing_generation_is_dropped_only_when_a_newer_snapshot_is_open(storages: Storages) -> None:
    """At no moment does apply see an older row than it wrote, and a snapshot that cannot be had loses nothing."""
    storage = Watched(storages.new())
    buffer = WriteBuffer(storage)
    buffer.put("kv", b"a", b"new")
    generation = buffer.begin_commit(State())
    with storage.write() as txn:
        txn.put("kv", b"a", b"new")
        txn.commit()
    assert buffer.txn.get("kv", b"a") is None
    assert buffer.get("kv", b"a") == b"new"
    seen = []
    storage.on_read = lambda: seen.append((buffer.get("kv", b"a"), list(buffer.scan("kv", b"", None))))

    def fail() -> None:
        raise StorageError("no snapshot to be had")

    storage.on_read, look = fail, storage.on_read
    with pytest.raises(StorageError):
        buffer.end_commit()
    assert (buffer.get("kv", b"a"), buffer.committing) == (b"new", True)
    storage.on_read = look
    buffer.end_commit()
    assert seen == [(b"new", [(b"a", b"new")])]
    assert generation.tables["kv"] == {b"a": b"new"}
    assert (buffer.get("kv", b"a"), buffer.txn.get("kv", b"a")) == (b"new", b"new")
    buffer.close()
    storage.close()


def test_a_transaction_reads_what_the_same_entry_wrote_before_and_after_a_commit(begun: Node) -> None:
    """Ranges inside a transaction see pending puts and deletions in every phase of a commit."""
    reader = commands.txn([], [commands.op_get(b"", b"")])

    def keys_seen() -> list[bytes]:
        (outcome,) = begun.do(reader)
        return [key for key, _row in outcome.payload[1][0]]

    begun.do(commands.put(b"a", b""), commands.put(b"b", b""), commands.put(b"d", b""))
    for expected in ([b"a", b"b", b"d"], [b"a", b"c", b"d"]):
        assert keys_seen() == expected
        begun.begin_commit()
        assert keys_seen() == expected
        begun.write_commit()
        assert keys_seen() == expected
        begun.do(commands.delete(b"a"), commands.put(b"c", b""))
        assert keys_seen() == sorted({*expected, b"c"} - {b"a"})
        begun.do(commands.put(b"a", b""), commands.delete(b"b"))
        begun.end_commit()
        assert keys_seen() == [b"a", b"c", b"d"]
