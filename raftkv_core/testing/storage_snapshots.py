"""The storage contract, part two: what a transaction sees, and when others see what it did."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import islice

import pytest

from raftkv_core.errors import StorageError
from raftkv_core.interfaces.storage import ReadTransaction, Storage, WriteTransaction
from raftkv_core.testing.storage_kit import Rows, StorageKit, contents, fill

__all__ = ["SnapshotsContract"]


class SnapshotsContract(StorageKit):
    """Atomic commits, consistent snapshots."""

    def test_a_write_reads_its_own_writes(self, storage: Storage) -> None:
        """Within a write transaction, get and scan show what it put and removed, over what was committed."""
        fill(storage, {"kv": {b"%d" % number: b"old" for number in range(6)}})
        with storage.write() as txn:
            txn.put("kv", b"1", b"new")
            txn.put_many("kv", [(b"25", b"added"), (b"9", b"added")])
            assert txn.delete("kv", b"3")
            txn.delete_many("kv", [b"4", b"9"])
            txn.put("kv", b"4", b"again")
            assert txn.get("kv", b"1") == b"new"
            assert txn.get("kv", b"3") is None, "a row that this transaction removed is not there for it"
            assert txn.get("kv", b"9") is None, "neither is one that it put and then removed"
            wanted = list(
                {b"0": b"old", b"1": b"new", b"2": b"old", b"25": b"added", b"4": b"again", b"5": b"old"}.items()
            )
            assert list(txn.scan("kv")) == wanted, "a scan must merge what was put and removed, in order"
            assert list(txn.scan("kv", reverse=True)) == wanted[::-1]
            assert list(txn.scan("kv", b"1", b"4")) == wanted[1:4]
            assert list(txn.scan("kv", b"1", b"4", reverse=True, limit=2)) == [wanted[3], wanted[2]]
            assert list(txn.scan("kv", limit=4)) == wanted[:4]
            txn.commit()
        assert contents(storage) == {"kv": dict(wanted)}

    def test_what_is_not_committed_never_happened(self, storage: Storage) -> None:
        """Closing without a commit, by hand or by an exception, drops all; no one else ever sees it."""
        before: Rows = {"kv": {b"kept": b"1"}}
        fill(storage, before)
        txn = storage.write()
        _change_all(txn)
        assert contents(storage) == before, "what is not committed must not be seen by others"
        txn.close()
        assert contents(storage) == before, "close without commit must drop what was written"
        with suppress(ZeroDivisionError), storage.write() as txn:
            _change_all(txn)
            raise ZeroDivisionError
        assert contents(storage) == before, "leaving the with block without commit must drop what was written"
        fill(storage, {"kv": {b"next": b"2"}})
        assert contents(storage) == {"kv": {b"kept": b"1", b"next": b"2"}}, "the next transaction must start clean"

    def test_a_commit_is_for_those_who_begin_later(self, storage: Storage) -> None:
        """A snapshot never sees a commit made after it began: not by get, not by scan, not in part, not later."""
        fill(storage, {"kv": {b"%03d" % number: b"old" for number in range(400)}, "meta": {b"state": b"old"}})
        with storage.read() as old:
            wanted = contents(old)
            running = old.scan("kv")
            begun = list(islice(running, 5))
            with storage.write() as txn:
                txn.put_many("kv", [(b"%03d" % number, b"new") for number in range(0, 400, 2)])
                txn.delete_many("kv", [b"%03d" % number for number in range(1, 400, 2)])
                txn.put_many("kv", [(b"%03d+" % number, b"added") for number in range(400)])
                txn.put("meta", b"state", b"new")
                txn.commit()
            assert old.get("meta", b"state") == b"old"
            assert old.get("kv", b"001") == b"old", "a row removed later is there for an older snapshot"
            assert old.get("kv", b"001+") is None, "a row added later is not there for an older snapshot"
            assert dict([*begun, *running]) == wanted["kv"], "a scan that had begun must go on in its snapshot"
            assert contents(old) == wanted
            assert dict(old.scan("kv", reverse=True)) == wanted["kv"]
            with storage.read() as new:
                assert new.get("meta", b"state") == b"new"
                assert len(contents(new)["kv"]) == 600, "one that begins later must see all of the commit"
                assert contents(old) == wanted, "an older snapshot stays what it was beside a newer one"

    def test_snapshots_of_many_ages(self, storage: Storage) -> None:
        """Snapshots taken between commits each keep their own state, whichever is closed first."""
        for order in (list(range(8)), list(range(8))[::-1], [3, 0, 7, 1, 6, 2, 5, 4]):
            opened: list[tuple[ReadTransaction, Rows]] = []
            for round_ in range(8):
                opened.append((storage.read(), contents(storage)))
                with storage.write() as txn:
                    txn.put("kv", b"%d" % round_, b"%d" % round_)
                    txn.put("kv", b"always", b"%d" % round_)
                    txn.delete("kv", b"%d" % (round_ - 2))
                    txn.commit()
            for closing in order:
                for txn_, wanted in opened:
                    assert contents(txn_) == wanted, "a snapshot changed when another was closed"
                opened[closing][0].close()
                opened[closing] = (storage.read(), contents(storage))
            for txn_, wanted in opened:
                assert contents(txn_) == wanted
                txn_.close()

    def test_a_snapshot_outlives_many_commits(self, storage: Storage) -> None:
        """A backup's snapshot stays exact under hundreds of commits that change every row and take its space."""
        fill(storage, {"kv": {b"%03d" % number: bytes(500) for number in range(200)}})
        with storage.read() as pinned:
            wanted = contents(pinned)
            for round_ in range(300):
                with storage.write() as txn:
                    changed = [b"%03d" % ((7 * round_ + number) % 200) for number in range(20)]
                    txn.put_many("kv", [(key, b"x" * 500) for key in changed])
                    txn.delete("kv", b"%03d" % (round_ % 200))
                    txn.commit()
            assert contents(pinned) == wanted

    def test_an_ended_transaction_refuses(self, storage: Storage) -> None:
        """After close or commit every call is a StorageError, and a running scan stops with one."""
        fill(storage, {"kv": {b"%03d" % number: b"v" for number in range(500)}})
        read = storage.read()
        running = read.scan("kv")
        next(running)
        read.close()
        _assert_ended(lambda: read.get("kv", b"000"), lambda: list(read.scan("kv")), lambda: list(running))
        for committed in (True, False):
            write = storage.write()
            write.put("kv", b"x", b"v")
            write.commit() if committed else write.close()
            _assert_ended(
                lambda write=write: write.get("kv", b"x"),  # type: ignore[misc]
                lambda write=write: list(write.scan("kv")),  # type: ignore[misc]
                lambda write=write: write.put("kv", b"y", b"v"),  # type: ignore[misc]
                lambda write=write: write.delete("kv", b"x"),  # type: ignore[misc]
                write.commit,
            )
            write.close()
        assert b"y" not in contents(storage)["kv"]

    def test_one_write_transaction_at_a_time(self, storage: Storage) -> None:
        """A second one is a StorageError, not a deadlock; after the first ended, however, another may begin."""
        with storage.write() as first:
            with pytest.raises(StorageError):
                storage.write()
            first.put("kv", b"k", b"v")
            first.commit()
        with storage.write() as second:
            assert second.get("kv", b"k") == b"v", "a refused second transaction must not harm the first"

    def test_reader_threads_beside_the_writer(self, storage: Storage) -> None:
        """Every snapshot of every thread is whole: the rows of one commit, in two tables, all of one number."""
        keys = [b"%02d" % number for number in range(20)]

        def commit(number: int) -> None:
            row = b"%d" % number
            fill(storage, {table: dict.fromkeys(keys, row) for table in ("kv", "changes")})

        commit(0)
        stop = threading.Event()
        faults: list[str] = []

        def read_on() -> None:
            newest = 0
            while not stop.is_set() and not faults:
                with storage.read() as txn:
                    seen = {txn.get("kv", keys[0]), *(row for _key, row in txn.scan("changes"))}
                    seen |= {row for _key, row in txn.scan("kv", reverse=True)}
                number = int(next(iter(seen)) or b"-1")
                if len(seen) != 1:
                    faults.append(f"one snapshot saw rows of several commits: {seen}")
                elif number < newest:
                    faults.append(f"a later snapshot saw an older commit: {number} after {newest}")
                newest = number

        threads = [threading.Thread(target=_noting(read_on, faults)) for _number in range(4)]
        for thread in threads:
            thread.start()
        for number in range(1, 150):
            commit(number)
        stop.set()
        for thread in threads:
            thread.join()
        assert not faults, faults[0]


def _change_all(txn: WriteTransaction) -> None:
    txn.put("kv", b"kept", b"changed")
    txn.put("meta", b"added", b"1")
    txn.delete("kv", b"kept")


def _assert_ended(*calls: Callable[[], object]) -> None:
    for call in calls:
        with pytest.raises(StorageError):
            call()


def _noting(run: Callable[[], None], faults: list[str]) -> Callable[[], None]:
    """An exception in a thread is a fault like others, not a warning."""

    def noting() -> None:
        try:
            run()
        except Exception as error:  # noqa: BLE001
            faults.append(f"a reader thread failed: {error!r}")

    return noting
