"""What the plugin tells the core, what its settings accept, and what its figures mean."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from raftkv_storage_lmdb import plugin as lmdb_plugin
from raftkv_storage_lmdb.engine import LmdbStorage
from raftkv_storage_lmdb.plugin import LmdbSettings

from raftkv_core.errors import StorageError
from raftkv_core.hookspecs import StoragePlugin
from raftkv_core.testing.storage import fill
from raftkv_core.testing.storage_child import Spec
from raftkv_core.testing.storage_processes import Child

Opens = Callable[..., LmdbStorage]


def test_it_is_known_without_importing_lmdb() -> None:
    """The module that is named in the entry point imports neither LMDB nor the engine."""
    program = "import sys, raftkv_storage_lmdb.plugin; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "raftkv_storage_lmdb.plugin" in imported
    assert not imported & {"lmdb", "raftkv_storage_lmdb.engine", "raftkv_storage_lmdb.store"}


@pytest.mark.parametrize("metasync", [False, True])
@pytest.mark.parametrize("engine", ["0.9", "1.0"])
def test_it_always_delivers_the_same(metasync: bool, engine: str) -> None:
    """Every combination of settings is durable and read from other processes."""
    registered: list[StoragePlugin] = []
    lmdb_plugin.raftkv_register_storage(registered.append)
    settings = msgspec.convert({"metasync": metasync, "engine": engine}, registered[0].settings)
    assert registered[0].capabilities(settings) == {"durable", "shared_readers"}


@pytest.mark.parametrize(
    "settings",
    [{"map_sise": 1 << 40}, {"map_size": 1000}, {"engine": "2.0"}, {"size_max": 16 << 20}, {"max_readers": 0}],
    ids=["unknown key", "too small", "unknown engine", "no room beside the reserve", "no readers"],
)
def test_wrong_settings_are_refused(settings: dict[str, object]) -> None:
    """They do not get as far as the engine."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(settings, LmdbSettings)


def test_commits_at_risk_follow_metasync(opens: Opens) -> None:
    """The core trims its log by this number."""
    storage = opens(metasync=False)
    assert storage.commits_at_risk == 1
    storage.close()
    assert opens(metasync=True).commits_at_risk == 0


def test_too_many_readers_are_told_so(opens: Opens) -> None:
    """The error names the setting; closing one makes room."""
    storage = opens(max_readers=8)
    reads = [storage.read() for _number in range(8)]
    with pytest.raises(StorageError, match="max_readers"):
        storage.read()
    reads.pop().close()
    reads.append(storage.read())
    for read in reads:
        read.close()


def test_the_slot_of_a_dead_reader_is_freed(opens: Opens, directory: Path) -> None:
    """`maintain` after a reader was killed gives its snapshot's slot, and so its pages, back."""
    storage = opens()
    fill(storage, {"kv": {b"k": b"v"}})
    spec = Spec(
        "raftkv_storage_lmdb.engine:LmdbStorage", "raftkv_storage_lmdb.plugin:LmdbSettings", {}, str(directory)
    )
    before = storage.figures()["readers"]
    with Child("reader", spec) as reader:
        reader.ask("open")
        reader.ask("begin")
        assert storage.figures()["readers"] > before
    assert storage.figures()["readers"] > before, "a killed reader's slot stays taken"
    storage.maintain()
    assert storage.figures()["readers"] == before


def test_figures_add_up(opens: Opens) -> None:
    """Rows, pages and file agree with what was stored."""
    storage = opens()
    fill(storage, {"kv": {b"%05d" % number: bytes(500) for number in range(2_000)}, "meta": {b"m": b"v"}})
    figures = storage.figures()
    assert figures["rows"] == 2_001
    assert figures["depth"] >= 2
    assert figures["file_bytes"] == (figures["pages_used"] + figures["pages_free"]) * figures["page_bytes"]
    assert figures["pages_used"] * figures["page_bytes"] >= 2_000 * 500
    assert figures["generation"] == 1
    with storage.read():
        assert storage.figures()["snapshots_open"] == 1
