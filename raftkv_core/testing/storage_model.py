"""The storage contract, part four: any engine against a plain dictionary, under random sequences of calls.

Hypothesis draws the calls: writes of every kind, commits and abandoned transactions, snapshots of all ages,
restores, reopenings. After each, what the engine shows must be what the model says. A failure is shrunk to the
shortest sequence and printed as a program.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from raftkv_core.errors import StorageError
from raftkv_core.interfaces.storage import ReadTransaction, Restore, Storage, WriteTransaction
from raftkv_core.testing.storage_kit import Rows, StorageKit, contents, quick_folder

__all__ = ["ModelContract", "storage_machine"]

SNAPSHOTS_MAX = 4

tables = st.sampled_from(["kv", "changes", "meta"])
keys = st.one_of(
    st.text("\x00ab\xff", min_size=1, max_size=3).map(lambda text: text.encode("latin-1")),
    st.sampled_from([b"a" * 511, b"a" * 510 + b"b", b"\xff" * 511]),
)
values = st.one_of(st.binary(max_size=40), st.just(b"x" * 2_200))
rows = st.lists(st.tuples(keys, values), max_size=10)


class Scan(NamedTuple):
    """Arguments of a scan."""

    table: str
    start: bytes
    end: bytes | None
    reverse: bool
    limit: int | None


scans = st.builds(
    Scan,
    tables,
    keys,
    st.none() | keys,
    reverse=st.booleans(),
    limit=st.none() | st.integers(min_value=0, max_value=6),
)


class StorageMachine(RuleBasedStateMachine):
    """Subclassed by `storage_machine`, which sets the first two."""

    make: Callable[[Path], Storage]
    durable: bool

    def __init__(self) -> None:
        super().__init__()
        self.root = quick_folder()
        self.storage = self.make(self.root / "storage")
        self.committed: Rows = {}
        self.generation = self.storage.generation
        self.writing: WriteTransaction | None = None
        self.pending: Rows = {}
        self.snapshots: list[tuple[ReadTransaction, Rows]] = []
        self.restore: Restore | None = None
        self.restored: Rows = {}

    def teardown(self) -> None:
        self.storage.close()
        shutil.rmtree(self.root)

    # ---------------------------------------------------------------- writing

    @precondition(lambda self: self.writing is None)
    @rule()
    def begin_write(self) -> None:
        self.writing, self.pending = self.storage.write(), _copy(self.committed)

    @precondition(lambda self: self.writing is not None)
    @rule(table=tables, key=keys, value=values)
    def put(self, table: str, key: bytes, value: bytes) -> None:
        assert self.writing is not None
        self.writing.put(table, key, value)
        self.pending.setdefault(table, {})[key] = value

    @precondition(lambda self: self.writing is not None)
    @rule(table=tables, rows=rows)
    def put_many(self, table: str, rows: list[tuple[bytes, bytes]]) -> None:
        assert self.writing is not None
        self.writing.put_many(table, iter(rows))
        self.pending.setdefault(table, {}).update(rows)

    @precondition(lambda self: self.writing is not None)
    @rule(table=tables, data=st.data())
    def delete(self, table: str, data: st.DataObject) -> None:
        assert self.writing is not None
        held = self.pending.get(table, {})
        key = data.draw(st.one_of(keys, st.sampled_from(sorted(held))) if held else keys)
        there = held.pop(key, None) is not None
        assert self.writing.delete(table, key) is there, "delete must say whether the row was there"

    @precondition(lambda self: self.writing is not None)
    @rule(table=tables, data=st.data())
    def delete_many(self, table: str, data: st.DataObject) -> None:
        assert self.writing is not None
        held = self.pending.get(table, {})
        removed = data.draw(st.lists(st.one_of(keys, st.sampled_from(sorted(held))) if held else keys, max_size=8))
        self.writing.delete_many(table, iter(removed))
        for key in removed:
            held.pop(key, None)

    @precondition(lambda self: self.writing is not None)
    @rule()
    def commit(self) -> None:
        assert self.writing is not None
        self.writing.commit()
        self.writing, self.committed = None, self.pending

    @precondition(lambda self: self.writing is not None)
    @rule()
    def abandon(self) -> None:
        assert self.writing is not None
        self.writing.close()
        self.writing = None

    @precondition(lambda self: self.writing is not None)
    @rule(scan=scans)
    def scan_own_writes(self, scan: Scan) -> None:
        assert self.writing is not None
        assert _scan(self.writing, scan) == _expected(self.pending, scan)

    # ---------------------------------------------------------------- snapshots

    @precondition(lambda self: len(self.snapshots) < SNAPSHOTS_MAX)
    @rule()
    def begin_snapshot(self) -> None:
        self.snapshots.append((self.storage.read(), _copy(self.committed)))

    @precondition(lambda self: self.snapshots)
    @rule(data=st.data())
    def end_snapshot(self, data: st.DataObject) -> None:
        txn, _wanted = self.snapshots.pop(data.draw(st.integers(0, len(self.snapshots) - 1)))
        txn.close()

    @precondition(lambda self: self.snapshots)
    @rule(scan=scans, data=st.data())
    def scan_snapshot(self, scan: Scan, data: st.DataObject) -> None:
        txn, wanted = self.snapshots[data.draw(st.integers(0, len(self.snapshots) - 1))]
        assert _scan(txn, scan) == _expected(wanted, scan)
        assert txn.get(scan.table, scan.start) == wanted.get(scan.table, {}).get(scan.start)

    # ---------------------------------------------------------------- restores and life

    @rule(rows=rows)
    def begin_restore(self, rows: list[tuple[bytes, bytes]]) -> None:
        self.restore, self.restored = self.storage.begin_restore(), {"kv": dict(rows)}
        with self.restore.write() as txn:
            txn.put_many("kv", rows)
            txn.commit()

    @precondition(lambda self: self.restore is not None and self.writing is None)
    @rule()
    def activate(self) -> None:
        assert self.restore is not None
        self.restore.activate()
        self.restore, self.committed = None, self.restored
        self.generation += 1

    @precondition(lambda self: self.restore is not None)
    @rule()
    def discard(self) -> None:
        assert self.restore is not None
        self.restore.discard()
        self.restore = None

    @precondition(lambda self: self.writing is None)
    @rule(sync=st.booleans())
    def keep(self, sync: bool) -> None:
        """What is called now and then, and must change nothing."""
        if sync:
            self.storage.sync()
        self.storage.maintain()
        assert self.storage.space().free_bytes > 0

    @rule()
    def reopen(self) -> None:
        if self.writing is None:
            self.storage.sync()
        else:
            self.writing.close()
            self.writing = None
        self.storage.close()
        for txn, _wanted in self.snapshots:
            with pytest.raises(StorageError):
                txn.get("kv", b"k")
            txn.close()
        self.snapshots, self.restore = [], None
        self.storage = self.make(self.root / "storage")
        if not self.durable:
            self.committed, self.generation = {}, self.storage.generation

    # ---------------------------------------------------------------- what must always hold

    @invariant()
    def the_newest_commit_is_what_a_reader_sees(self) -> None:
        assert contents(self.storage) == _without_empty(self.committed), "a new snapshot is not the newest commit"

    @invariant()
    def snapshots_are_what_they_were(self) -> None:
        for txn, wanted in self.snapshots:
            assert contents(txn) == _without_empty(wanted), "an open snapshot changed"

    @invariant()
    def a_write_reads_its_own_writes(self) -> None:
        if self.writing is not None:
            assert contents(self.writing) == _without_empty(self.pending), "a write transaction lost its own writes"

    @invariant()
    def the_generation_counts_activations(self) -> None:
        assert self.storage.generation == self.generation


def storage_machine(make: Callable[[Path], Storage], *, durable: bool) -> type[StorageMachine]:
    """The machine for an engine: `make(directory)` opens it; `durable`: what was committed outlives closing."""

    class Machine(StorageMachine):
        pass

    Machine.make = staticmethod(make)
    Machine.durable = durable
    return Machine


class ModelContract(StorageKit):
    """The engine agrees with a dictionary."""

    examples: int = 40
    """Sequences to try; raise it for a long run."""

    def test_it_agrees_with_a_dictionary(self) -> None:
        """Any sequence of calls leaves the engine with what a dictionary would hold, in every open snapshot."""
        run_state_machine_as_test(
            storage_machine(self.make, durable="durable" in self.capabilities()),
            settings=settings(
                max_examples=self.examples,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


def _copy(rows: Rows) -> Rows:
    return {table: dict(held) for table, held in rows.items()}


def _without_empty(rows: Rows) -> Rows:
    return {table: held for table, held in rows.items() if held}


def _scan(txn: ReadTransaction, scan: Scan) -> list[tuple[bytes, bytes]]:
    return list(txn.scan(scan.table, scan.start, scan.end, reverse=scan.reverse, limit=scan.limit))


def _expected(rows: Rows, scan: Scan) -> list[tuple[bytes, bytes]]:
    held = sorted(rows.get(scan.table, {}).items(), reverse=scan.reverse)
    found = [(key, row) for key, row in held if key >= scan.start and (scan.end is None or key < scan.end)]
    return found[: scan.limit]
