"""Reading a snapshot: examples that people can follow, beside the random ones."""

from __future__ import annotations

import pytest

from raftkv_core.errors import Compacted, InvalidRequest, StorageError
from raftkv_core.interfaces.transport import Record
from raftkv_core.machine import commands, reads
from raftkv_core.machine.records import change_key
from tests.machine.checks import Pending
from tests.machine.harness import Node


def value(node: Node, key: bytes, revision: int | None = None) -> bytes | None:
    record = reads.get(Pending(node.machine), key, revision)
    return None if record is None else record.value


def test_a_key_deleted_and_made_again_is_two_keys_in_time(begun: Node) -> None:
    """Each revision shows its own life; versions begin at 1 again."""
    begun.do(commands.put(b"a", b"1"), commands.put(b"a", b"2"), commands.delete(b"a"), commands.put(b"a", b"3"))
    assert [value(begun, b"a", revision) for revision in range(5)] == [None, b"1", b"2", None, b"3"]
    assert reads.get(Pending(begun.machine), b"a") == Record(4, 4, 1, 0, b"3", None)
    assert reads.get(Pending(begun.machine), b"a", 2) == Record(1, 2, 2, 0, b"2", None)


def test_several_changes_of_one_key_in_one_transaction_are_one_revision(begun: Node) -> None:
    """Readers see the state before and after it; watchers see each change."""
    begun.do(commands.put(b"a", b"0"))
    put, remove = commands.op_put, commands.op_delete
    begun.do(commands.txn([], [put(b"a", b"1"), remove(b"a"), put(b"a", b"2"), put(b"a", b"3"), remove(b"b")]))
    begun.do(commands.txn([], [remove(b"a"), put(b"a", b"4"), remove(b"a")]))
    assert [value(begun, b"a", revision) for revision in range(4)] == [None, b"0", b"3", None]
    page = reads.changes(Pending(begun.machine), 1, limit=1)
    assert (len(page.changes), page.revision) == (4, 2)
    made = [(c.sub, c.record and c.record.value, c.previous and c.previous.value) for c in page.changes]
    assert made == [(0, b"1", b"0"), (1, None, b"1"), (2, b"2", None), (3, b"3", b"2")]
    page = reads.changes(Pending(begun.machine), 2)
    assert [change.record and change.record.value for change in page.changes] == [None, b"4", None]


def test_the_compacted_revision_itself_can_be_read(begun: Node) -> None:
    """C is the oldest that can be read, and changes can be followed from it; one less is gone."""
    for number in range(1, 6):
        begun.do(commands.put(b"a", b"%d" % number))
    begun.do(commands.delete(b"a"), commands.compact(3))
    view = Pending(begun.machine)
    assert [value(begun, b"a", revision) for revision in (3, 4, 5, 6)] == [b"3", b"4", b"5", None]
    assert [change.revision for change in reads.changes(view, 3).changes] == [4, 5, 6]
    for read in (
        lambda: reads.get(view, b"a", 2),
        lambda: reads.range_rows(view, b"", None, revision=2),
        lambda: reads.changes(view, 2),
    ):
        with pytest.raises(Compacted, match="oldest that can be read is 3") as raised:
            read()
        assert raised.value.code == "compacted"


def test_everything_compacted_leaves_the_newest(begun: Node) -> None:
    """Without any history the present can still be read, by its revision too."""
    begun.do(commands.put(b"a", b"1"), commands.put(b"b", b"2"), commands.delete(b"b"), commands.compact(3))
    assert (value(begun, b"a", 3), value(begun, b"b", 3), value(begun, b"a")) == (b"1", None, b"1")
    assert reads.changes(Pending(begun.machine), 3) == ([], 3)
    begun.do(commands.put(b"b", b"4"))
    assert [(c.key, c.previous) for c in reads.changes(Pending(begun.machine), 3).changes] == [(b"b", None)]


def test_the_future_is_refused_by_name(begun: Node) -> None:
    """A revision that does not exist yet is no empty answer."""
    with pytest.raises(InvalidRequest, match="future") as raised:
        reads.get(Pending(begun.machine), b"a", 1)
    assert raised.value.code == "future_revision"


def test_ranges_have_an_inclusive_start_and_an_exclusive_end(begun: Node) -> None:
    """Also at the edges: the first key, the last key, the same key, the wrong way round."""
    for key in (b"\x00", b"a", b"b", b"\xff" * 480):
        begun.do(commands.put(key, b""))

    def found(start: bytes, end: bytes | None) -> list[bytes]:
        return [key for key, _record in reads.range_rows(Pending(begun.machine), start, end)[0]]

    assert found(b"", None) == [b"\x00", b"a", b"b", b"\xff" * 480]
    assert found(b"a", b"b") == [b"a"]
    assert found(b"a", b"b\x00") == [b"a", b"b"]
    assert found(b"a", b"a") == found(b"b", b"a") == found(b"", b"") == []
    assert found(b"\xff", None) == [b"\xff" * 480]


def test_keys_of_a_range_can_be_had_without_values_and_counted(begun: Node) -> None:
    """`keys_only` leaves the values out, `count` counts beyond the limit, attributes stay."""
    for number in range(5):
        begun.do(commands.put(b"%d" % number, b"value", attributes={"content-type": "text/plain"}))
    rows, more, count = reads.range_rows(Pending(begun.machine), b"", None, limit=2, keys_only=True, count=True)
    assert [key for key, _record in rows] == [b"0", b"1"]
    assert all(r.value == b"" and r.attributes == {"content-type": "text/plain"} for _key, r in rows)
    assert (more, count) == (True, 5)
    rows, more, count = reads.range_rows(Pending(begun.machine), b"", None, limit=0, count=True)
    assert (rows, more, count) == ([], True, 5)
    rows, more, count = reads.range_rows(Pending(begun.machine), b"", None, limit=5, reverse=True)
    assert ([key for key, _record in rows], more, count) == ([b"4", b"3", b"2", b"1", b"0"], False, None)


def test_a_page_of_changes_outside_the_key_range_still_gets_on(begun: Node) -> None:
    """A watcher of few keys in a busy store has empty pages, and each covers some revisions more."""
    for number in range(10):
        begun.do(commands.put(b"busy", b"%d" % number))
    begun.do(commands.put(b"quiet", b"1"))
    pages, after = [], 0
    while after < 11:
        page = reads.changes(Pending(begun.machine), after, b"quiet", b"quiet\x00", limit=4)
        assert page.revision > after
        pages.append(len(page.changes))
        after = page.revision
    assert pages == [0, 0, 1]


def test_a_store_that_contradicts_itself_is_named_as_such(begun: Node) -> None:
    """A change that must be there and is not is a fault of the store, and no missing key."""
    begun.do(commands.put(b"a", b"1"), commands.put(b"a", b"2"), commands.put(b"a", b"3"))
    begun.commit()
    with begun.storage.write() as txn:
        txn.delete("changes", change_key(2, 0))
        txn.commit()
    with begun.storage.read() as txn:
        assert reads.get(txn, b"a") is not None
        with pytest.raises(StorageError, match="contradicts itself"):
            reads.get(txn, b"a", 1)
        with pytest.raises(StorageError, match="contradicts itself"):
            reads.changes(txn, 0)
