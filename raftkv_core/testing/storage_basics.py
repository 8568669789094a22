"""The storage contract, part one: tables, rows, order, bounds, limits, and what an engine says of itself."""

from __future__ import annotations

import itertools
import re
import time
from pathlib import Path

import pytest

from raftkv_core.errors import StorageError
from raftkv_core.interfaces.storage import TABLES, ReadTransaction, Storage
from raftkv_core.limits import ROW_BYTES_MAX, TABLE_KEY_BYTES_MAX
from raftkv_core.testing.storage_kit import StorageKit, contents, fill

__all__ = ["BasicsContract"]

LONGEST = b"k" * TABLE_KEY_BYTES_MAX

KEYS = [b"\0", b"\0\0", b"\1", b"a", b"a\0", b"a\0\0", b"ab", b"b", LONGEST, b"\xfe", b"\xff", b"\xff\xff"]
"""In byte order; neighbours differ by what engines get wrong: zero bytes, prefixes, 0xff, the longest key."""

BOUNDS = [b"", *KEYS, b"a\x01", b"c", b"\xff\xff\xff", LONGEST[:-1], LONGEST + b"\x00", LONGEST + b"more"]


class BasicsContract(StorageKit):
    """Rows in, rows out."""

    def test_a_new_store_is_empty(self, storage: Storage) -> None:
        """A store that was just made has no rows and can be read."""
        assert contents(storage) == {}, "a new store must have no rows"

    def test_every_table_exists_and_no_other(self, storage: Storage) -> None:
        """Each of TABLES takes rows; another name is a KeyError, in every call."""
        rows = {table: {table.encode(): b"row"} for table in TABLES}
        fill(storage, rows)
        assert contents(storage) == rows, "each table must keep its own rows, and only those"
        with storage.read() as txn, storage.write() as writing:
            for calls in (txn, writing):
                _assert_no_such_table(calls)
            with pytest.raises(KeyError):
                writing.put("no_such_table", b"k", b"v")
            with pytest.raises(KeyError):
                writing.put_many("no_such_table", [(b"k", b"v")])
            with pytest.raises(KeyError):
                writing.delete("no_such_table", b"k")
            with pytest.raises(KeyError):
                writing.delete_many("no_such_table", [b"k"])

    def test_a_row_is_set_replaced_and_removed(self, storage: Storage) -> None:
        """`put` sets or replaces, `get` gives the newest or None, `delete` says whether a row was there."""
        for value in (b"first", b"", b"second, longer than the first"):
            fill(storage, {"kv": {b"key": value}})
            with storage.read() as txn:
                assert txn.get("kv", b"key") == value, "get must give what the last commit put"
                assert txn.get("kv", b"ke") is None, "a prefix of a key is another key"
                assert txn.get("meta", b"key") is None, "the same key in another table is another row"
        with storage.write() as txn:
            assert txn.delete("kv", b"key") is True, "delete must say that the row was there"
            assert txn.delete("kv", b"key") is False, "delete must say that the row was not there (any more)"
            assert txn.delete("kv", b"never was") is False
            txn.commit()
        assert contents(storage) == {}

    def test_put_many_is_put_for_each(self, storage: Storage) -> None:
        """Any iterable is taken, also none and one used up by reading; of a key given twice the last row counts."""
        with storage.write() as txn:
            txn.put_many("kv", [])
            txn.put_many("kv", ((b"%d" % number, b"row") for number in range(3)))
            txn.put_many("kv", [(b"1", b"first"), (b"9", b"new"), (b"1", b"last")])
            txn.commit()
        assert contents(storage) == {"kv": {b"0": b"row", b"1": b"last", b"2": b"row", b"9": b"new"}}

    def test_delete_many_is_delete_for_each(self, storage: Storage) -> None:
        """Any iterable is taken; keys that are not there, or are given twice, change nothing."""
        fill(storage, {"kv": {b"%d" % number: b"row" for number in range(5)}})
        with storage.write() as txn:
            txn.delete_many("kv", [])
            txn.delete_many("kv", (key for key in (b"1", b"never was", b"3", b"1")))
            txn.commit()
        assert contents(storage) == {"kv": {b"0": b"row", b"2": b"row", b"4": b"row"}}

    def test_the_largest_key_and_row_fit(self, storage: Storage) -> None:
        """The format's longest key and largest row come back whole, the smallest too."""
        assert storage.key_bytes_max >= TABLE_KEY_BYTES_MAX, "key_bytes_max must allow the format's longest key"
        assert storage.value_bytes_max >= ROW_BYTES_MAX, "value_bytes_max must allow the format's largest row"
        largest = bytes(range(256)) * (ROW_BYTES_MAX // 256)
        rows = {LONGEST: largest, b"\0": b"", b"\xff" * TABLE_KEY_BYTES_MAX: b"v"}
        fill(storage, {"kv": rows, "changes": rows})
        with storage.read() as txn:
            for table in ("kv", "changes"):
                for key, row in rows.items():
                    assert txn.get(table, key) == row, f"a row of {len(row)} bytes under {len(key)} bytes changed"

    @pytest.mark.parametrize("key", [b"", LONGEST + b"k"], ids=["empty key", "key too long"])
    def test_a_key_out_of_bounds_is_refused(self, storage: Storage, key: bytes) -> None:
        """A key that the format does not know is a StorageError when it is put, and nothing of it is stored."""
        for many in (False, True):
            with storage.write() as txn, pytest.raises(StorageError):
                txn.put_many("kv", [(key, b"v")]) if many else txn.put("kv", key, b"v")
        assert contents(storage) == {}

    def test_a_row_that_is_too_large_is_refused(self, storage: Storage) -> None:
        """A row above the largest is a StorageError when it is put, and nothing of it is stored."""
        with storage.write() as txn, pytest.raises(StorageError):
            txn.put("kv", b"k", bytes(storage.value_bytes_max + 1))
        assert contents(storage) == {}

    @pytest.mark.parametrize("reverse", [False, True], ids=["ascending", "descending"])
    def test_scans_of_every_range(self, storage: Storage, reverse: bool) -> None:
        """start <= key < end in byte order, whatever the bounds: rows or not, inverted, longer than any key."""
        fill(storage, {"kv": {key: key[:3] for key in reversed(KEYS)}, "meta": {b"a": b"of another table"}})
        with storage.read() as txn, storage.write() as writing:
            for start, end in itertools.product(BOUNDS, [None, *BOUNDS]):
                wanted = [(key, key[:3]) for key in KEYS if key >= start and (end is None or key < end)]
                if reverse:
                    wanted.reverse()
                for calls in (txn, writing):
                    found = list(calls.scan("kv", start, end, reverse=reverse))
                    assert found == wanted, f"wrong rows in {_short(start)} <= key < {_short(end)} {reverse=}"

    @pytest.mark.parametrize("reverse", [False, True], ids=["ascending", "descending"])
    def test_scans_of_many_rows(self, storage: Storage, reverse: bool) -> None:
        """A scan of thousands of rows gives each once, and `limit` cuts it anywhere, also at 0 and past the end."""
        keys = [b"%05d" % number for number in range(3_000)]
        fill(storage, {"changes": {key: key for key in keys}})
        wanted = keys[100:2_900]
        if reverse:
            wanted.reverse()
        with storage.read() as txn:
            for limit in (None, 0, 1, 2, 15, 16, 17, 255, 1_000, 2_799, 2_800, 2_801, 5_000):
                found = txn.scan("changes", keys[100], keys[2_900], reverse=reverse, limit=limit)
                assert [key for key, _row in found] == wanted[:limit], f"wrong rows with {limit=} {reverse=}"

    def test_closing_twice_is_allowed(self, directory: Path) -> None:
        """`close` may be called again, on transactions and on the storage."""
        storage = self.make(directory)
        read, write = storage.read(), storage.write()
        for _twice in range(2):
            read.close()
            write.close()
        for _twice in range(2):
            storage.close()

    def test_a_closed_storage_refuses(self, storage: Storage) -> None:
        """After `close`, transactions that were open and new ones raise StorageError; nothing hangs or crashes."""
        fill(storage, {"kv": {b"k": b"v"}})
        read = storage.read()
        storage.close()
        with pytest.raises(StorageError):
            read.get("kv", b"k")
        with pytest.raises(StorageError):
            list(read.scan("kv"))
        read.close()
        with pytest.raises(StorageError):
            storage.read()
        with pytest.raises(StorageError):
            storage.write()

    def test_space_is_told_truly_and_cheaply(self, storage: Storage) -> None:
        """`space` counts what rows take, has room for more, and can be asked many times a second."""
        before = storage.space()
        assert before.used_bytes >= 0
        assert before.free_bytes > 0, "a new store must have room"
        assert before.reserve_bytes >= 0
        fill(storage, {"kv": {b"%d" % number: bytes(1 << 16) for number in range(64)}})
        grown = storage.space().used_bytes - before.used_bytes
        assert grown >= 64 << 16, f"4 MiB of rows were put, but used_bytes grew by {grown}"
        began = time.perf_counter()
        for _often in range(50):
            storage.space()
        took_s = (time.perf_counter() - began) / 50
        assert took_s < 0.02, f"space() took {1000 * took_s:.1f} ms; it is asked once a second on the node's loop"

    def test_the_reserve_comes_and_goes(self, storage: Storage) -> None:
        """Giving up and holding the reserve, in any order and repeatedly, changes no row."""
        fill(storage, {"kv": {b"k": b"v"}})
        storage.restore_reserve()
        held = storage.space().reserve_bytes
        for _twice in range(2):
            storage.release_reserve()
        assert storage.space().reserve_bytes == 0, "a released reserve must not be counted"
        fill(storage, {"kv": {b"m": b"v"}})
        for _twice in range(2):
            storage.restore_reserve()
        assert storage.space().reserve_bytes == held, "there is room, so the reserve must be held again"
        assert contents(storage) == {"kv": {b"k": b"v", b"m": b"v"}}

    def test_what_it_says_of_itself(self, storage: Storage) -> None:
        """`figures` are snake_case numbers, `commits_at_risk` a count or None, `maintain` changes no row."""
        fill(storage, {"kv": {b"k": b"v"}})
        for name, value in storage.figures().items():
            assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name), f"{name!r} is not in snake_case"
            assert isinstance(value, int | float), f"figure {name} is {value!r}, which is no number"
        assert storage.commits_at_risk is None or storage.commits_at_risk >= 0
        if "durable" not in self.capabilities():
            assert storage.commits_at_risk is None, "an engine that is not durable cannot say that commits are"
        storage.maintain()
        storage.sync()
        assert contents(storage) == {"kv": {b"k": b"v"}}


def _assert_no_such_table(txn: ReadTransaction) -> None:
    with pytest.raises(KeyError):
        txn.get("no_such_table", b"k")
    with pytest.raises(KeyError):
        list(txn.scan("no_such_table"))


def _short(bound: bytes | None) -> str:
    return repr(bound) if bound is None or len(bound) < 20 else f"{bound[:5]!r}…({len(bound)} bytes)"
