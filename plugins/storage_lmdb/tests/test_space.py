"""A full store: refused in time, deletes and the reserve as the way out, nothing half written."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from raftkv_storage_lmdb.engine import LmdbStorage

from raftkv_core.errors import StorageError, StorageFull
from raftkv_core.testing.storage import contents, fill

MIB = 1 << 20

Opens = Callable[..., LmdbStorage]


def _fill_up(storage: LmdbStorage, first: int = 0) -> int:
    """Commit rows of 10 KB, a hundred KB a time, until there is no room; says how many there are."""
    for number in itertools.count(first, 10):
        try:
            fill(storage, {"kv": {b"%06d" % each: bytes(10_000) for each in range(number, number + 10)}})
        except StorageFull:
            return number
    raise AssertionError


def test_a_full_store_refuses_puts_and_takes_deletes(opens: Opens) -> None:
    """At its size limit a put is StorageFull, naming the remedy; deletes commit, and puts are taken again."""
    storage = opens(size_max=16 * MIB, reserve_bytes=2 * MIB)
    rows = _fill_up(storage)
    assert 600 < rows < 1_400, "16 MiB less a reserve of 2 hold about 1,000 rows of 12 KB"
    with storage.write() as txn, pytest.raises(StorageFull, match="size_max"):
        txn.put("kv", b"another", bytes(200_000))
    with storage.write() as txn:
        txn.delete_many("kv", [b"%06d" % number for number in range(0, rows, 2)])
        txn.commit()
    for number in range(5):
        fill(storage, {"kv": {b"again %d" % number: bytes(10_000)}})
    assert len(contents(storage)["kv"]) == rows // 2 + 5


def test_deletes_alone_empty_a_full_store(opens: Opens) -> None:
    """The room held back is enough to delete everything, in small steps, without giving up the reserve."""
    storage = opens(size_max=16 * MIB, reserve_bytes=MIB)
    rows = _fill_up(storage)
    for first in range(0, rows, 10):
        with storage.write() as txn:
            for number in range(first, first + 10):
                assert txn.delete("kv", b"%06d" % number)
            txn.commit()
    assert contents(storage) == {}


def test_the_reserve_is_what_finishes_a_full_store(opens: Opens) -> None:
    """Given up, it takes what was refused; held again, it refuses again."""
    storage = opens(size_max=16 * MIB, reserve_bytes=2 * MIB)
    rows = _fill_up(storage)
    assert storage.space().reserve_bytes == 2 * MIB
    storage.release_reserve()
    assert storage.space().reserve_bytes == 0
    more = _fill_up(storage, rows)
    assert more - rows >= 100, "a reserve of 2 MiB must hold more than a MiB of rows"
    with storage.write() as txn:
        txn.delete_many("kv", [b"%06d" % number for number in range(more // 2)])
        txn.commit()
    storage.restore_reserve()
    assert storage.space().reserve_bytes == 2 * MIB


def test_what_does_not_fit_never_happened(opens: Opens, directory: Path) -> None:
    """A transaction larger than the room is StorageFull as a whole; the store is as before, now and reopened."""
    storage = opens(size_max=8 * MIB)
    fill(storage, {"kv": {b"kept": b"1"}})
    with storage.write() as txn:
        txn.put("meta", b"early", b"of the same transaction")
        with pytest.raises(StorageFull):
            txn.put_many("kv", [(b"%06d" % number, bytes(10_000)) for number in range(2_000)])
        with pytest.raises(StorageError, match="not committed"):
            txn.commit()
    assert contents(storage) == {"kv": {b"kept": b"1"}}
    storage.close()
    storage = opens(size_max=8 * MIB)
    assert contents(storage) == {"kv": {b"kept": b"1"}}
    fill(storage, {"kv": {b"next": b"2"}})


def test_space_counts_pages_that_can_be_used_again(opens: Opens) -> None:
    """What is deleted is free again, although the file does not shrink; used and free are near the truth."""
    storage = opens(size_max=64 * MIB)
    empty = storage.space()
    assert 63 * MIB < empty.free_bytes < 64 * MIB
    fill(storage, {"kv": {b"%06d" % number: bytes(10_000) for number in range(2_000)}})
    full = storage.space()
    assert 20 * MIB < full.used_bytes < 26 * MIB, "2,000 rows of 10 KB take three pages each"
    assert abs((empty.free_bytes - full.free_bytes) - (full.used_bytes - empty.used_bytes)) < MIB
    with storage.write() as txn:
        txn.delete_many("kv", [b"%06d" % number for number in range(2_000)])
        txn.commit()
    again = storage.space()
    assert again.used_bytes < MIB
    assert again.free_bytes > 63 * MIB
    assert storage.figures()["file_bytes"] > 20 * MIB


def test_the_reserve_is_really_on_the_disk(opens: Opens, directory: Path) -> None:
    """Its file has its blocks, a restart keeps it, another size replaces it, and 0 removes it."""
    for reserve_bytes in (4 * MIB, 4 * MIB, 2 * MIB, 0):
        storage = opens(reserve_bytes=reserve_bytes)
        assert storage.space().reserve_bytes == reserve_bytes
        reserve = directory / "reserve"
        assert reserve.exists() == bool(reserve_bytes)
        if reserve_bytes:
            assert reserve.stat().st_blocks * 512 >= reserve_bytes
        storage.close()


FULL_DISK = """
import itertools, os, pathlib, sys
from raftkv_core.errors import StorageFull
from raftkv_core.testing.storage_child import Spec
from raftkv_storage_lmdb.engine import LmdbStorage
from raftkv_storage_lmdb.plugin import LmdbSettings

directory = pathlib.Path(sys.argv[1]) / "storage"
settings = LmdbSettings(reserve_bytes=int(sys.argv[2]))
storage = LmdbStorage(directory, settings)

def commit(number):
    with storage.write() as txn:
        txn.put_many("kv", [(b"%06d" % each, bytes(10_000)) for each in range(number, number + 10)])
        txn.put("meta", b"rows", b"%d" % (number + 10))
        txn.commit()

def fill_up(number):
    while True:
        try:
            commit(number)
        except StorageFull as error:
            print("full:", error)
            return number
        number += 10

rows = fill_up(0)
assert rows > 100, rows
storage.close()
storage = LmdbStorage(directory, settings)
with storage.read() as txn:
    assert txn.get("meta", b"rows") == b"%d" % rows, "a commit that failed must not be there, one that did must"
    assert sum(1 for _ in txn.scan("kv")) == rows

if settings.reserve_bytes:
    assert storage.space().reserve_bytes == settings.reserve_bytes
    with storage.write() as txn:
        assert txn.delete("kv", b"000000")
        txn.commit()
    storage.release_reserve()
    more = fill_up(rows)
    assert more > rows + 50, f"the reserve must be usable: {more - rows} rows"
    storage.close()
    storage = LmdbStorage(directory, settings)
    assert storage.space().reserve_bytes == 0, "there is no room to hold it again"
print("done")
"""


@pytest.mark.needs("root", "mount")
@pytest.mark.parametrize("reserve_bytes", [0, 4 * MIB])
def test_a_full_file_system(tmp_path: Path, reserve_bytes: int) -> None:
    """StorageFull, no half commit after a restart, and the reserve as the way out."""
    mount = f'mount -t tmpfs -o size=24m none {tmp_path} && exec {sys.executable} -c "$0" {tmp_path} {reserve_bytes}'
    command = ["unshare", "--mount", "sh", "-c", mount, FULL_DISK]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done"
    assert "free space" in done.stdout
