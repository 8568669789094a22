"""The memory engine: the storage contract, and that its costs do not grow with what it holds."""

from __future__ import annotations

from raftkv_core.builtin import plugin as builtin
from raftkv_core.hookspecs import StoragePlugin
from raftkv_core.testing.storage import StorageContract


def _registered() -> StoragePlugin:
    found: list[StoragePlugin] = []
    builtin.raftkv_register_storage(found.append)
    return next(plugin for plugin in found if plugin.name == "memory")


class TestContract(StorageContract):
    """Every sentence of the interface."""

    plugin = _registered()
