"""The map: enlarged under open snapshots and under readers elsewhere, smaller where the system insists."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from raftkv_storage_lmdb.engine import LmdbStorage

from raftkv_core.errors import StorageError
from raftkv_core.testing.storage import contents, fill
from raftkv_core.testing.storage_child import Spec
from raftkv_core.testing.storage_processes import Child

MIB = 1 << 20

Opens = Callable[..., LmdbStorage]


def _grow(storage: LmdbStorage, rounds: int, first: int = 0) -> None:
    """Commits of 250 KB."""
    for round_ in range(first, first + rounds):
        fill(storage, {"kv": {b"%04d-%04d" % (round_, number): bytes(10_000) for number in range(25)}})


def test_a_map_that_fills_up_is_enlarged(opens: Opens, directory: Path) -> None:
    """A store goes on past the map that it began with, and is opened again whatever map is asked for."""
    storage = opens(map_size=MIB)
    _grow(storage, 40)
    assert len(contents(storage)["kv"]) == 1_000
    figures = storage.figures()
    assert figures["map_bytes"] > figures["file_bytes"] > 10 * MIB
    storage.close()
    storage = opens(map_size=MIB)
    assert storage.figures()["map_bytes"] >= 2 * figures["file_bytes"], "a store must not begin with a full map"
    _grow(storage, 4, first=40)


def test_snapshots_of_the_newest_commit_live_through_it(opens: Opens) -> None:
    """Apply's snapshot, and a scan that is under way in it, do not notice that the map moved."""
    storage = opens(map_size=MIB)
    fill(storage, {"meta": {b"%03d" % number: b"old" for number in range(100)}})
    for round_ in range(30):
        before = storage.figures()["map_bytes"]
        with storage.read() as newest:
            wanted = contents(newest)
            forward, backward = newest.scan("meta"), newest.scan("meta", reverse=True)
            seen = [next(forward), next(forward)], [next(backward)]
            _grow(storage, 1, first=round_)
            assert contents(newest) == wanted
            assert [*seen[0], *forward] == list(wanted["meta"].items())
            assert [*seen[1], *backward][::-1] == list(wanted["meta"].items())
            if storage.figures()["map_bytes"] > before:
                return
    raise AssertionError("the map was never enlarged")


def test_an_old_snapshot_holds_growth_up_until_it_would_harm_the_writer(opens: Opens) -> None:
    """A backup's snapshot delays the enlargement; before the map is full it is given up, and says so."""
    storage = opens(map_size=8 * MIB)
    with storage.read() as old:
        _grow(storage, 23)
        assert storage.figures()["map_bytes"] == 8 * MIB, "more than three quarters are used: held up"
        assert contents(old) == {}
        _grow(storage, 17, first=23)
        assert storage.figures()["map_bytes"] > 8 * MIB
        with pytest.raises(StorageError, match="given up"):
            old.get("kv", b"k")
    assert len(contents(storage)["kv"]) == 1_000


def test_a_closed_old_snapshot_no_longer_holds_growth_up(opens: Opens) -> None:
    """The next commit after it enlarges the map."""
    storage = opens(map_size=8 * MIB)
    old = storage.read()
    _grow(storage, 23)
    assert storage.figures()["map_bytes"] == 8 * MIB
    old.close()
    _grow(storage, 1, first=23)
    assert storage.figures()["map_bytes"] == 16 * MIB


def test_the_size_limit_ends_growth(opens: Opens) -> None:
    """The map is never larger than `size_max`, however small it began."""
    storage = opens(map_size=MIB, size_max=5 * MIB)
    with pytest.raises(StorageError, match="size_max"):
        _grow(storage, 40)
    assert storage.figures()["map_bytes"] == 5 * MIB


def test_readers_elsewhere_follow_the_map(opens: Opens, directory: Path) -> None:
    """A reader that opened a small map reads what was stored beyond it; its older snapshot is given up, no more."""
    storage = opens(map_size=MIB)
    _grow(storage, 1)
    spec = Spec(
        "raftkv_storage_lmdb.engine:LmdbStorage", "raftkv_storage_lmdb.plugin:LmdbSettings", {}, str(directory)
    )
    program = (
        "import sys, msgspec; from raftkv_core.testing import storage_child as child;"
        "from raftkv_storage_lmdb.plugin import LmdbSettings;"
        f"child.Spec.checked = lambda self: LmdbSettings(map_size={MIB});"
        "child.reader(msgspec.json.decode(sys.argv[1], type=child.Spec))"
    )
    with Child.running([sys.executable, "-c", program, msgspec.json.encode(spec).decode()]) as reader:
        assert reader.ask("open") == "done"
        reader.ask("begin")
        _grow(storage, 40, first=1)
        wanted = contents(storage)
        assert reader.rows("newest") == wanted
        assert "given up" in reader.ask("pinned")["message"]
        reader.ask("begin")
        _grow(storage, 1, first=41)
        assert reader.rows("pinned") == wanted


SMALL_ADDRESS_SPACE = """
import pathlib, resource, sys
from raftkv_core.testing.storage import contents, fill
from raftkv_storage_lmdb.engine import LmdbStorage
from raftkv_storage_lmdb.plugin import LmdbSettings

resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))
storage = LmdbStorage(pathlib.Path(sys.argv[1]), LmdbSettings(reserve_bytes=0))
map_bytes = storage.figures()["map_bytes"]
assert 1 << 30 <= map_bytes <= 1 << 32, map_bytes
fill(storage, {"kv": {b"k": b"v"}})
restore = storage.begin_restore()
fill(restore, {"kv": {b"k": b"restored"}})
restore.activate()
assert contents(storage) == {"kv": {b"k": b"restored"}}
storage.close()
storage = LmdbStorage(pathlib.Path(sys.argv[1] + "-small"), LmdbSettings(reserve_bytes=0, map_size=1 << 20))
used = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (int(open("/proc/self/statm").read().split()[0]) * 4096 + (1 << 20), 1 << 32))
try:
    for number in range(100):
        fill(storage, {"kv": {b"%d" % number: bytes(50_000)}})
except Exception as error:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))
    assert "map_size" in str(error), error
    assert contents(storage)["kv"]
    print("done")
"""


def test_a_small_address_space(directory: Path) -> None:
    """Where the system refuses the map, a smaller one serves; where it cannot grow, that is said and nothing lost."""
    command = [sys.executable, "-c", SMALL_ADDRESS_SPACE, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
