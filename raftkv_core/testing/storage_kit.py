"""What the parts of the storage contract share: how the engine under test is made, and which tests apply to it.

A test that only some capability makes meaningful is marked `@needs("durable")`; for an engine that does not
claim it the test does not exist, rather than being skipped.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec
import pytest

from raftkv_core.hookspecs import StoragePlugin
from raftkv_core.interfaces.storage import TABLES, ReadTransaction, Restore, Storage, StorageCapability

__all__ = ["Rows", "StorageKit", "contents", "fill", "needs", "quick_folder"]

Rows = dict[str, dict[bytes, bytes]]
"""Rows by table; tables without rows are left out."""

Test = TypeVar("Test", bound=Callable[..., Any])


def needs(capability: StorageCapability) -> Callable[[Test], Test]:
    """Only for engines that claim `capability` under the settings tested."""

    def mark(test: Test) -> Test:
        test.needs_capability = capability  # type: ignore[attr-defined]
        return test

    return mark


class StorageKit:
    """Makes the engine under test. See `raftkv_core.testing.storage` for its use."""

    plugin: ClassVar[StoragePlugin]
    """What the plugin registers."""
    settings: ClassVar[Mapping[str, Any]] = {}
    """The table `[storage.<name>]`, as a configuration would have it."""

    def __init_subclass__(cls) -> None:
        if not hasattr(cls, "plugin"):
            return
        held = cls.capabilities()
        for name in dir(cls):
            needed = getattr(getattr(cls, name), "needs_capability", None)
            if needed is not None and needed not in held:
                setattr(cls, name, None)

    @classmethod
    def checked_settings(cls) -> msgspec.Struct:
        """As the core does it: validated by the plugin's own schema."""
        return msgspec.convert(dict(cls.settings), cls.plugin.settings)

    @classmethod
    def capabilities(cls) -> frozenset[StorageCapability]:
        return cls.plugin.capabilities(cls.checked_settings())

    @classmethod
    def engine(cls) -> type[Storage]:
        module, _, name = cls.plugin.load.partition(":")
        found: type[Storage] = getattr(import_module(module), name)
        return found

    def make(self, directory: Path) -> Storage:
        """Open the engine on `directory`; again after closing it, to reopen."""
        return self.engine()(directory, self.checked_settings())

    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        """Where the storage keeps its files. It does not exist yet."""
        return tmp_path / "storage"

    @pytest.fixture
    def storage(self, directory: Path) -> Iterator[Storage]:
        """A new storage; closed after the test, so a test may close it too."""
        storage = self.make(directory)
        yield storage
        storage.close()


def quick_folder() -> Path:
    """A new folder, in memory where there is such a place, for tests that sync often and never need it.

    The caller removes it.
    """
    memory = Path("/dev/shm")  # noqa: S108
    return Path(tempfile.mkdtemp(prefix="raftkv-test-", dir=memory if os.access(memory, os.W_OK) else None))


def contents(source: Storage | Restore | ReadTransaction) -> Rows:
    """All rows."""
    if isinstance(source, ReadTransaction):
        scanned = {table: dict(source.scan(table)) for table in TABLES}
        return {table: rows for table, rows in scanned.items() if rows}
    with source.read() as txn:
        return contents(txn)


def fill(target: Storage | Restore, rows: Mapping[str, Mapping[bytes, bytes]]) -> None:
    """Put rows in one commit."""
    with target.write() as txn:
        for table, added in rows.items():
            txn.put_many(table, added.items())
        txn.commit()
