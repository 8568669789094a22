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

TABLES_USED = ("kv", "meta")
KEYS = (
    b"\0", b"\0\0", b"a", b"a\0", b"aa", b"ab", b"b" * 510, b"b" * 511, b"c", b"\xfe", b"\xff", b"\xff\xff"
)  # fmt: skip
"""Few, so that calls meet."""

tables = st.sampled_from(TABLES_USED)
keys = st.sampled_from(KEYS)
values = st.one_of(st.binary(max_size=40), st.just(b"x" * 2_200))
rows = st.lists(st.tuples(keys, values), max_size=10)


class Scan(NamedTuple):
    """Arguments of a scan."""

    table: str
    start: bytes
    end: bytes | None
    reverse: bool
    limit: int | None


limits = st.sampled_from([None, 0, 1, 3])
scans = st.builds(Scan, tables, st.just(b"") | keys, st.none() | keys, st.booleans(), limits)


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
    @rule(table=tables, rows=rows, removed=st.lists(keys, max_size=4))
    def change(self, table: str, rows: list[tuple[bytes, bytes]], removed: list[bytes]) -> None:
        """A whole commit in one step, so that short sequences have some."""
        self.begin_write()
        self.put_many(table, rows)
        self.delete_many(table, removed)
        self.commit()

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
    @rule(table=tables, key=keys)
    def delete(self, table: str, key: bytes) -> None:
        assert self.writing is not None
        there = self.pending.setdefault(table, {}).pop(key, None) is not None
        assert self.writing.delete(table, key) is there, "delete must say whether the row was there"

    @precondition(lambda self: self.writing is not None)
    @rule(table=tables, removed=st.lists(keys, max_size=8))
    def delete_many(self, table: str, removed: list[bytes]) -> None:
        assert self.writing is not None
        self.writing.delete_many(table, iter(removed))
        for key in removed:
            self.pending.setdefault(table, {}).pop(key, None)

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

    @rule(wanted=st.lists(scans, min_size=4, max_size=8))
    def scan(self, wanted: list[Scan]) -> None:
        with self.storage.read() as newest:
            views = [(newest, self.committed), *self.snapshots]
            if self.writing is not None:
                views.append((self.writing, self.pending))
            for txn, rows in views:
                for each in wanted:
                    assert _scan(txn, each) == _expected(rows, each), each

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
        with self.storage.read() as txn:
            assert contents(txn) == _without_empty(self.committed), "a new snapshot is not the newest commit"
            _assert_gets(txn, self.committed)

    @invariant()
    def snapshots_are_what_they_were(self) -> None:
        for txn, wanted in self.snapshots:
            assert contents(txn) == _without_empty(wanted), "an open snapshot changed"
            _assert_gets(txn, wanted)

    @invariant()
    def a_write_reads_its_own_writes(self) -> None:
        if self.writing is not None:
            assert contents(self.writing) == _without_empty(self.pending), "a write transaction lost its own writes"
            _assert_gets(self.writing, self.pending)

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

    examples: int = 60
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


def _assert_gets(txn: ReadTransaction, wanted: Rows) -> None:
    for table in TABLES_USED:
        for key in KEYS:
            assert txn.get(table, key) == wanted.get(table, {}).get(key), "get and scan disagree"


def _scan(txn: ReadTransaction, scan: Scan) -> list[tuple[bytes, bytes]]:
    return list(txn.scan(scan.table, scan.start, scan.end, reverse=scan.reverse, limit=scan.limit))


def _expected(rows: Rows, scan: Scan) -> list[tuple[bytes, bytes]]:
    held = sorted(rows.get(scan.table, {}).items(), reverse=scan.reverse)
    found = [(key, row) for key, row in held if key >= scan.start and (scan.end is None or key < scan.end)]
    return found[: scan.limit]
