"""The storage contract, part three: a store made beside the live one, and the switch to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from raftkv_core.errors import StorageError
from raftkv_core.interfaces.storage import Storage
from raftkv_core.testing.storage_kit import Rows, StorageKit, contents, fill, needs

__all__ = ["RestoresContract"]

OLD: Rows = {"kv": {b"old": b"1", b"both": b"old"}, "meta": {b"state": b"old"}}
NEW: Rows = {"kv": {b"new": b"2", b"both": b"new"}, "changes": {b"c": b"new"}}


class RestoresContract(StorageKit):
    """begin_restore, activate, discard."""

    def test_a_restore_begins_empty_beside_the_live_store(self, storage: Storage) -> None:
        """While it is filled, by several commits, the live store goes on: each sees only its own rows."""
        fill(storage, OLD)
        restore = storage.begin_restore()
        assert contents(restore) == {}, "a restore must begin empty"
        fill(restore, {"kv": NEW["kv"]})
        fill(storage, {"kv": {b"meanwhile": b"3"}})
        fill(restore, {"changes": NEW["changes"]})
        assert contents(restore) == NEW
        assert contents(storage) == {**OLD, "kv": {**OLD["kv"], b"meanwhile": b"3"}}
        restore.discard()

    def test_activate_switches_whole(self, storage: Storage) -> None:
        """After `activate` the storage has exactly the restored rows, reads and writes them, and counts one up."""
        fill(storage, OLD)
        before = storage.generation
        restore = storage.begin_restore()
        fill(restore, NEW)
        assert storage.generation == before, "the generation must not change before activate"
        restore.activate()
        assert contents(storage) == NEW, "nothing of the old store may be left, nothing of the new may lack"
        assert storage.generation == before + 1
        restore.discard()
        assert contents(storage) == NEW, "discard after activate must do nothing"
        fill(storage, {"kv": {b"later": b"3"}})
        assert contents(storage)["kv"] == {**NEW["kv"], b"later": b"3"}

    def test_an_empty_restore_can_be_activated(self, storage: Storage) -> None:
        """A restore without rows, never written to, makes an empty store."""
        fill(storage, OLD)
        storage.begin_restore().activate()
        assert contents(storage) == {}

    def test_open_snapshots_of_the_old_store_stay(self, storage: Storage) -> None:
        """A transaction that was open before `activate` sees the old store until it is closed, and after later
        commits and activations too."""
        fill(storage, OLD)
        with storage.read() as old:
            for round_ in range(2):
                restore = storage.begin_restore()
                fill(restore, NEW)
                restore.activate()
                assert contents(old) == OLD, "an open snapshot changed at activate"
                fill(storage, {"kv": {b"old": b"%d" % round_}})
                storage.maintain()
                assert contents(old) == OLD, "an open snapshot of an old store changed later"
        assert contents(storage)["kv"][b"old"] == b"1"

    def test_discard_leaves_the_live_store(self, storage: Storage) -> None:
        """A discarded restore leaves nothing: not in the live store, not in the next restore. Twice is allowed."""
        fill(storage, OLD)
        restore = storage.begin_restore()
        fill(restore, NEW)
        restore.discard()
        restore.discard()
        assert contents(storage) == OLD
        with pytest.raises(StorageError):
            restore.write()
        again = storage.begin_restore()
        assert contents(again) == {}, "a new restore must not contain rows of a discarded one"
        again.discard()

    def test_beginning_again_discards_the_unfinished(self, storage: Storage) -> None:
        """The older of two restores is gone when the newer begins; the newer one is empty."""
        fill(storage, OLD)
        first = storage.begin_restore()
        fill(first, NEW)
        second = storage.begin_restore()
        assert contents(second) == {}
        with pytest.raises(StorageError):
            first.activate()
        assert contents(storage) == OLD, "activating a discarded restore must do nothing"
        fill(second, {"kv": {b"second": b"2"}})
        second.activate()
        assert contents(storage) == {"kv": {b"second": b"2"}}

    def test_a_closed_storage_drops_its_restore(self, directory: Path) -> None:
        """Closing the storage ends an unfinished restore; the next opening begins one that is empty."""
        storage = self.make(directory)
        fill(storage.begin_restore(), NEW)
        storage.close()
        storage = self.make(directory)
        restore = storage.begin_restore()
        assert contents(restore) == {}
        storage.close()

    @needs("durable")
    def test_reopening_finds_what_was_committed(self, directory: Path) -> None:
        """A storage that is closed and opened has the same rows and the same generation, time and again."""
        wanted: Rows = {"kv": {}}
        for round_ in range(4):
            storage = self.make(directory)
            assert contents(storage).get("kv", {}) == wanted["kv"]
            with storage.write() as txn:
                txn.put("kv", b"dropped", b"not committed")
            fill(storage, {"kv": {b"%d" % round_: b"v"}})
            wanted["kv"][b"%d" % round_] = b"v"
            storage.sync()
            storage.close()

    @needs("durable")
    def test_reopening_finds_what_was_activated(self, directory: Path) -> None:
        """After a reopening it is the activated store, and its generation, that count; also after several."""
        storage = self.make(directory)
        first = storage.generation
        fill(storage, OLD)
        for round_ in range(1, 4):
            restore = storage.begin_restore()
            fill(restore, {"kv": {b"round": b"%d" % round_}})
            restore.activate()
            unfinished = storage.begin_restore()
            fill(unfinished, NEW)
            storage.close()
            storage = self.make(directory)
            assert contents(storage) == {"kv": {b"round": b"%d" % round_}}
            assert storage.generation == first + round_, "the generation must survive a reopening"
        storage.close()
