"""The LMDB engine under the storage contract, for each combination of settings that changes what it does."""

from __future__ import annotations

from typing import ClassVar

from raftkv_storage_lmdb import plugin as lmdb_plugin

from raftkv_core.hookspecs import StoragePlugin
from raftkv_core.testing.storage import StorageContract


def _registered() -> StoragePlugin:
    found: list[StoragePlugin] = []
    lmdb_plugin.raftkv_register_storage(found.append)
    return found[0]


class TestByDefault(StorageContract):
    """Every sentence of the interface, with the settings that people have."""

    plugin = _registered()


class TestMetasync(StorageContract):
    """The same with each commit synced to the end. Creation and activation take the same steps as by default."""

    plugin = _registered()
    test_a_crash_in_creation_leaves_a_store_or_none = None
    test_a_crash_in_activation_leaves_the_old_store_or_the_new = None
    settings: ClassVar = {"metasync": True}


class TestNewEngine(StorageContract):
    """The same with LMDB 1.0. Creation and activation take the same steps as by default."""

    plugin = _registered()
    test_a_crash_in_creation_leaves_a_store_or_none = None
    test_a_crash_in_activation_leaves_the_old_store_or_the_new = None
    settings: ClassVar = {"engine": "1.0", "reserve_bytes": 0}
