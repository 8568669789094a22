"""The storage contract as a test suite: every sentence of `raftkv_core/interfaces/storage.py`, for any engine.

In the plugin's tests, with pytest and Hypothesis (`pip install raftkv[testing]`):

    from raftkv_core.testing.storage import StorageContract
    from raftkv_storage_mine.plugin import MINE            # the StoragePlugin that is registered

    class TestMine(StorageContract):
        plugin = MINE
        settings = {"fast": True}                          # the table [storage.mine]; a class for each that matters

What an engine claims (`durable`, `shared_readers`, under these settings) decides which tests it has; a claim is
tested in other processes, which are killed at every step of what must not be interrupted.
Power loss itself cannot be had in a test suite: that `sync` reaches the disk is for the author to show.
"""

from __future__ import annotations

from raftkv_core.testing.storage_basics import BasicsContract
from raftkv_core.testing.storage_kit import StorageKit, contents, fill, needs
from raftkv_core.testing.storage_model import ModelContract, storage_machine
from raftkv_core.testing.storage_processes import ProcessesContract
from raftkv_core.testing.storage_restores import RestoresContract
from raftkv_core.testing.storage_snapshots import SnapshotsContract

__all__ = ["StorageContract", "StorageKit", "contents", "fill", "needs", "storage_machine"]


class StorageContract(BasicsContract, SnapshotsContract, RestoresContract, ProcessesContract, ModelContract):
    """All parts. Set `plugin`, and `settings` if they are not the defaults."""
