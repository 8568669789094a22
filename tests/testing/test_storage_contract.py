"""The storage contract itself: it must catch engines that are wrong in the ways engines are wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from raftkv_core.builtin import memory
from raftkv_core.builtin.memory import MemoryStorage
from raftkv_core.hookspecs import StoragePlugin
from raftkv_core.interfaces.storage import StorageCapability
from raftkv_core.testing.storage import StorageContract, storage_machine

READ, WRITE = memory._MemoryRead, memory._MemoryWrite


def _contract(*claims: StorageCapability) -> type[StorageContract]:
    """The contract for the memory engine, under a name that hides its true capabilities."""
    held = frozenset(claims)
    plugin = StoragePlugin("broken", "raftkv_core.builtin.memory:MemoryStorage", lambda _settings: held)
    return type("Contract", (StorageContract,), {"plugin": plugin})


def end_included(
    self: Any, table: str, start: bytes = b"", end: bytes | None = None, **options: Any
) -> Iterator[Any]:
    return scan(self, table, start, None if end is None else end + b"\0", **options)


def no_limit_of_zero(self: Any, *bounds: Any, limit: int | None = None, **options: Any) -> Iterator[Any]:
    return scan(self, *bounds, limit=limit or None, **options)


def descends_from_the_end(self: Any, *bounds: Any, reverse: bool = False, **options: Any) -> Iterator[Any]:
    return scan(self, bounds[0], reverse=True, **options) if reverse else scan(self, *bounds, **options)


def sees_later_commits(self: Any, table: str, key: bytes) -> bytes | None:
    return self._tables.get(table, key, None)


def always_there(self: Any, table: str, key: bytes) -> bool:
    delete(self, table, key)
    return True


def commits_at_close(self: Any) -> None:
    if self._open:
        self._tables.apply(self._changed)
    close(self)


def forgets_its_own_writes(self: Any, table: str, key: bytes) -> bytes | None:
    return self._tables.get(table, key, None)


def mixes_stores(self: Any, tables: Any) -> None:
    tables.apply({name: dict(table.rows) for name, table in self._tables._tables.items()})
    switch(self, tables)


scan, delete, close, switch = READ.scan, WRITE.delete, WRITE.close, MemoryStorage._switch

BROKEN: list[tuple[type[Any], str, Callable[..., Any], str, dict[str, Any]]] = [
    (READ, "scan", end_included, "test_scans_of_every_range", {"reverse": False}),
    (READ, "scan", descends_from_the_end, "test_scans_of_every_range", {"reverse": True}),
    (READ, "scan", no_limit_of_zero, "test_scans_of_many_rows", {"reverse": False}),
    (READ, "get", sees_later_commits, "test_a_commit_is_for_those_who_begin_later", {}),
    (WRITE, "get", forgets_its_own_writes, "test_a_write_reads_its_own_writes", {}),
    (WRITE, "delete", always_there, "test_a_row_is_set_replaced_and_removed", {}),
    (WRITE, "close", commits_at_close, "test_what_is_not_committed_never_happened", {}),
    (MemoryStorage, "_switch", mixes_stores, "test_activate_switches_whole", {}),
]


@pytest.mark.parametrize(
    ("owner", "method", "wrong", "test", "arguments"), BROKEN, ids=[f"{row[2].__name__}-{row[3]}" for row in BROKEN]
)
def test_a_broken_engine_is_caught(
    owner: type[Any],
    method: str,
    wrong: Callable[..., Any],
    test: str,
    arguments: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The test that states the broken sentence fails, and so does the comparison with a dictionary."""
    contract = _contract()()
    getattr(contract, test)(storage=contract.make(tmp_path), **arguments)
    monkeypatch.setattr(owner, method, wrong)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        getattr(contract, test)(storage=contract.make(tmp_path), **arguments)
    quickly = settings(max_examples=500, phases=(Phase.generate,), deadline=None, database=None)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        run_state_machine_as_test(storage_machine(contract.make, durable=False), settings=quickly)


def test_a_false_claim_to_be_durable_is_caught(tmp_path: Path) -> None:
    """An engine that forgets, but says it does not, fails the tests that its claim gives it."""
    contract = _contract("durable")()
    for test in (
        contract.test_reopening_finds_what_was_committed,
        contract.test_reopening_finds_what_was_activated,
        contract.test_a_killed_writer_leaves_whole_commits,
    ):
        with pytest.raises(AssertionError):
            test(directory=tmp_path / "storage")


def test_a_false_claim_of_shared_readers_is_caught(tmp_path: Path) -> None:
    """An engine that cannot be read from other processes, but says so, fails."""
    contract = _contract("shared_readers")()
    storage = contract.make(tmp_path)
    with pytest.raises(AssertionError, match="open_reader failed"):
        contract.test_a_reader_elsewhere_sees_each_commit(directory=tmp_path, storage=storage)


def test_what_is_not_claimed_is_not_tested() -> None:
    """Tests of a capability exist for engines that claim it, and are no skips for others."""
    assert _contract().test_a_killed_writer_leaves_whole_commits is None
    assert _contract("durable").test_a_killed_writer_leaves_whole_commits is not None
    assert _contract("durable").test_a_reader_elsewhere_sees_each_commit is None


def test_the_program_for_other_processes_needs_no_test_library() -> None:
    """It must run where only the core and the engine are installed."""
    import subprocess
    import sys

    program = "import sys, raftkv_core.testing.storage_child; print('hypothesis' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
