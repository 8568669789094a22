"""The memory engine: the storage contract, and that its costs do not grow with what it holds."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import pytest

from raftkv_core.builtin import memory
from raftkv_core.builtin import plugin as builtin
from raftkv_core.builtin.memory import MemoryStorage
from raftkv_core.hookspecs import StoragePlugin
from raftkv_core.testing.storage import StorageContract, contents, fill


def _registered() -> StoragePlugin:
    found: list[StoragePlugin] = []
    builtin.raftkv_register_storage(found.append)
    return next(plugin for plugin in found if plugin.name == "memory")


class TestContract(StorageContract):
    """Every sentence of the interface."""

    plugin = _registered()


@pytest.fixture
def storage(tmp_path: Path) -> MemoryStorage:
    return MemoryStorage(tmp_path / "storage", None)


def _commit_s(storage: MemoryStorage, rows: int) -> float:
    """What a commit of 64 rows takes among `rows`, in the middle of 60 tries, apply's snapshot renewed after each."""
    took = []
    newest = storage.read()
    for round_ in range(60):
        changed = [(b"%08d" % ((round_ * 7_919 + number * 104_729) % rows), b"x" * 100) for number in range(64)]
        began = time.perf_counter()
        with storage.write() as txn:
            txn.put_many("kv", changed)
            txn.commit()
        renewed = storage.read()
        newest.close()
        newest = renewed
        took.append(time.perf_counter() - began)
    newest.close()
    return statistics.median(took)


def test_a_commit_costs_its_own_rows(storage: MemoryStorage) -> None:
    """With a hundred times the rows, and a backup's snapshot pinned meanwhile, it costs about the same."""
    fill(storage, {"kv": {b"%08d" % number: b"v" for number in range(2_000)}})
    small = _commit_s(storage, 2_000)
    fill(storage, {"kv": {b"%08d" % number: b"v" for number in range(200_000)}})
    with storage.read() as backup:
        large = _commit_s(storage, 200_000)
        assert backup.get("kv", b"%08d" % 104_729) == b"v"
    assert large < 10 * small, f"{1e6 * small:.0f} µs among 2,000 rows, {1e6 * large:.0f} µs among 200,000"


def test_nothing_of_a_closed_snapshot_is_kept(storage: MemoryStorage) -> None:
    """When the last snapshot of removed rows is closed, in any order, their memory and index slots are free."""
    empty = storage.space().used_bytes
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        snapshots = []
        for round_ in range(3):
            fill(storage, {"kv": {b"%d-%d" % (round_, number): bytes(1_000) for number in range(50)}})
            snapshots.append(storage.read())
        with storage.write() as txn:
            txn.delete_many("kv", [key for key, _row in txn.scan("kv")])
            txn.commit()
        for index in order:
            assert len(contents(snapshots[index])["kv"]) == 50 * (index + 1)
            snapshots[index].close()
        assert storage.space().used_bytes == empty
        assert storage.figures() == {"rows": 0, "snapshots_open": 0}
        table = storage._tables._tables["kv"]
        assert not table.ghosts
        assert not len(table.index)


def test_free_space_is_what_the_container_leaves(
    storage: MemoryStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lesser of the kernel's available memory and what a control group's limit leaves, its page cache aside."""
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    1000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert storage.space().free_bytes == 1000 << 10, "no control group: what the kernel says"
    for limit, free in (("max", 1000 << 10), ("500000", 500_000 - 400_000 + 50_000), ("300000", 0)):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("400000\n")
        (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 50000\n")
        assert storage.space().free_bytes == free
