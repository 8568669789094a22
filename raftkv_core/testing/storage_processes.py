"""The storage contract, part five: what `durable` and `shared_readers` claim, tried in other processes.

Processes are killed as `kill -9` and the kernel kill them. That is not power loss: the operating system still
writes what it was given.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from raftkv_core.errors import StorageError
from raftkv_core.interfaces.storage import Storage
from raftkv_core.testing.storage_child import NEW, OLD, Rows, Spec, numbered_rows, shown_rows
from raftkv_core.testing.storage_kit import StorageKit, contents, fill, needs, quick_folder

__all__ = ["Child", "ProcessesContract"]


class Child:
    """A process in a role of `storage_child`, killed at the end of the `with` block."""

    def __init__(self, role: str, spec: Spec) -> None:
        module, argument = "raftkv_core.testing.storage_child", msgspec.json.encode(spec).decode()
        self._start([sys.executable, "-m", module, role, argument])

    @classmethod
    def running(cls, command: list[str]) -> Child:
        """One that is not the module itself but speaks like it."""
        child = cls.__new__(cls)
        child._start(command)
        return child

    def _start(self, command: list[str]) -> None:
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_error: object) -> None:
        self.kill()

    def says(self) -> Any:
        """The next thing it says; None when it has ended well. Fails if it has failed."""
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        line = self._process.stdout.readline()
        if line:
            return msgspec.json.decode(line)
        status = self._process.wait()
        assert status == 0, f"the other process failed with status {status}: {self._process.stderr.read().decode()}"
        return None

    def ask(self, word: str) -> Any:
        """One step of the role `reader`; its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(word.encode() + b"\n")
        self._process.stdin.flush()
        return self.says()

    def rows(self, word: str) -> Rows:
        """The answer to `newest` or `pinned`."""
        answer = self.ask(word)
        assert isinstance(answer, list), f"the reading process failed at '{word}': {answer}"
        return shown_rows(answer)

    def kill(self) -> list[Any]:
        """kill -9; what it had said before and nobody heard. Killing twice is allowed."""
        self._process.kill()
        self._process.wait()
        said: list[Any] = []
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        if not self._process.stdout.closed:
            said = [msgspec.json.decode(line) for line in self._process.stdout if line.endswith(b"\n")]
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        self._process.stderr.close()
        return said


class ProcessesContract(StorageKit):
    """Crashes, and readers in other processes."""

    def spec(self, directory: Path) -> Spec:
        schema = self.plugin.settings
        return Spec(
            self.plugin.load, f"{schema.__module__}:{schema.__qualname__}", dict(self.settings), str(directory)
        )

    # ---------------------------------------------------------------- durable

    @needs("durable")
    def test_a_killed_writer_leaves_whole_commits(self, directory: Path) -> None:
        """kill -9 amid commits leaves the first N of them, each whole, at least as many as were synced."""
        before = 0
        for rounds in (1, 40, 7, 90):
            synced = before
            with Child("committer", self.spec(directory)) as writer:
                for _number in range(rounds):
                    word, number = writer.says()
                    synced = number if word == "synced" else synced
                for word, number in writer.kill():
                    synced = number if word == "synced" else synced
            storage = self.make(directory)
            found = contents(storage)
            storage.close()
            before = int(found.get("meta", {}).get(b"number", b"0"))
            assert found == numbered_rows(before), f"commit {before} was left in part, or others beside it"
            assert before >= synced, f"commit {synced} was synced, yet only {before} are there"

    @needs("durable")
    def test_a_crash_in_creation_leaves_a_store_or_none(self) -> None:
        """A process that dies while it makes a store: the next one opens it, empty, and everything works."""
        for report in self._crashes("crash_in_creation"):
            found, where = self._after_crash(report)
            assert found == {}, f"a new store has rows after a crash before {where}"

    @needs("durable")
    def test_a_crash_in_activation_leaves_the_old_store_or_the_new(self) -> None:
        """A process that dies in `activate`: the next one finds the old rows or the new, whole, and can go on."""
        seen = set()
        for report in self._crashes("crash_in_activation"):
            found, where = self._after_crash(report)
            assert found in (OLD, NEW), f"neither the old rows nor the new after a crash before {where}: {found}"
            seen.add("new" if found == NEW else "old")
            assert report["storage"]["generation"] == (2 if found == NEW else 1), f"wrong generation, {where}"
        assert seen == {"old", "new"}, f"the crashes cannot have been at each step: they left only {seen}"

    def _crashes(self, role: str) -> Iterator[dict[str, Any]]:
        folder = quick_folder()
        try:
            with Child(role, self.spec(folder)) as child:
                while (report := child.says()) is not None:
                    yield report
        finally:
            shutil.rmtree(folder)

    def _after_crash(self, report: dict[str, Any]) -> tuple[Rows, str]:
        """The rows found; the same for the first reader, the next storage, and all that it does from then on."""
        where = report["where"] or "the end"
        assert "error" not in report["where"], f"the engine failed by itself: {report['where']}"
        storage, reader = report["storage"], report["reader"]
        assert "error" not in storage, f"after a crash before {where} the store cannot be used: {storage}"
        assert shown_rows(storage["rows_then"]) == NEW, f"a later activation failed after a crash before {where}"
        assert storage["generation_then"] == storage["generation"] + 1
        if "shared_readers" in self.capabilities():
            none_yet = reader.get("error") == "StorageError" and not storage["rows"]
            assert none_yet or reader["rows"] == storage["rows"], (
                f"after a crash before {where} a reader that came before the writer saw something else: {reader}"
            )
        return shown_rows(storage["rows"]), where

    # ---------------------------------------------------------------- shared_readers

    def test_readers_elsewhere_only_where_claimed(self, directory: Path, storage: Storage) -> None:
        """Without `shared_readers`, `open_reader` says so by NotImplementedError instead of half working."""
        if "shared_readers" not in self.capabilities():
            with pytest.raises(NotImplementedError):
                type(storage).open_reader(directory, self.checked_settings())

    @needs("shared_readers")
    def test_no_reader_without_a_store(self, tmp_path: Path) -> None:
        """Where there is no store yet, `open_reader` is a StorageError and makes nothing."""
        empty = tmp_path / "empty"
        empty.mkdir()
        for directory in (tmp_path / "absent", empty):
            with pytest.raises(StorageError):
                self.engine().open_reader(directory, self.checked_settings())
        assert os.listdir(tmp_path) == ["empty"], "a reader must not make the directory"  # noqa: PTH208
        assert os.listdir(empty) == [], "a reader must not make files"  # noqa: PTH208

    @needs("shared_readers")
    def test_a_reader_elsewhere_sees_each_commit(self, directory: Path, storage: Storage) -> None:
        """A commit is seen by every transaction that begins later in another process, and by none that was open."""
        fill(storage, OLD)
        with self._reader(directory) as reader:
            assert reader.rows("newest") == OLD
            reader.ask("begin")
            for number in range(50):
                fill(storage, {"kv": {b"old": b"%d" % number, b"added %d" % number: bytes(3_000)}})
                if number % 10 == 0:
                    assert reader.rows("newest") == contents(storage), "a commit is not seen in another process"
            assert reader.rows("pinned") == OLD, "a snapshot in another process changed"

    @needs("shared_readers")
    def test_a_reader_leaves_the_directory_alone(self, directory: Path, storage: Storage) -> None:
        """Opening, reading and closing elsewhere adds, removes and enlarges no file."""
        fill(storage, OLD)
        before = _listing(directory)
        with self._reader(directory) as reader:
            assert reader.rows("newest") == OLD
            assert _listing(directory) == before
            assert reader.ask("close") == "done"
        assert _listing(directory) == before

    @needs("shared_readers")
    def test_a_process_may_have_several_readers(self, directory: Path, storage: Storage) -> None:
        """Opening and closing another, of the same generation or a newer one, disturbs nothing that is open."""
        fill(storage, OLD)
        with self._reader(directory) as reader:
            reader.ask("begin")
            assert reader.rows("another") == OLD
            assert reader.rows("pinned") == OLD
            restore = storage.begin_restore()
            fill(restore, NEW)
            restore.activate()
            assert reader.rows("another") == NEW
            assert reader.rows("pinned") == OLD
            assert reader.rows("newest") == OLD

    @needs("shared_readers")
    def test_a_reader_elsewhere_across_activate(self, directory: Path, storage: Storage) -> None:
        """What it had open stays the old store until it reopens; then it has the new one."""
        fill(storage, OLD)
        with self._reader(directory) as reader:
            reader.ask("begin")
            for round_ in range(2):
                restore = storage.begin_restore()
                fill(restore, NEW)
                restore.activate()
                fill(storage, {"kv": {b"round": b"%d" % round_}})
            assert reader.rows("pinned") == OLD, "activate broke a snapshot in another process"
            assert reader.rows("newest") == OLD, "a reader of an older generation must see that, until it reopens"
            reader.ask("close")
            assert reader.ask("open") == "done"
            assert reader.rows("newest") == contents(storage), "a reader that reopens must find the new generation"

    @needs("shared_readers")
    def test_a_reader_elsewhere_outlives_the_writer(self, directory: Path) -> None:
        """The node may stop and come back: a reader that stayed open then sees the new commits."""
        storage = self.make(directory)
        fill(storage, OLD)
        with self._reader(directory) as reader:
            assert reader.rows("newest") == OLD
            storage.close()
            assert reader.rows("newest") == OLD, "a reader must go on working while no writer runs"
            storage = self.make(directory)
            fill(storage, {"kv": {b"later": b"3"}})
            assert reader.rows("newest") == contents(storage)
        storage.close()

    @needs("shared_readers")
    def test_a_reader_that_dies_harms_nobody(self, directory: Path, storage: Storage) -> None:
        """kill -9 of processes with open snapshots: after `maintain` the writer and new readers go on."""
        fill(storage, OLD)
        for number in range(3):
            with self._reader(directory) as reader:
                reader.ask("begin")
                reader.kill()
            storage.maintain()
            fill(storage, {"kv": {b"%d" % number: b"after"}})
        with self._reader(directory) as reader:
            assert reader.rows("newest") == contents(storage)

    @contextmanager
    def _reader(self, directory: Path) -> Iterator[Child]:
        with Child("reader", self.spec(directory)) as reader:
            assert reader.ask("open") == "done", "open_reader failed in another process"
            yield reader


def _listing(directory: Path) -> list[tuple[str, int]]:
    return sorted((str(path.relative_to(directory)), path.stat().st_size) for path in directory.rglob("*"))
