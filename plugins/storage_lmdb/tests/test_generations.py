"""The directory: what is in it, what a crash may leave there, and what is refused instead of guessed at."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from raftkv_storage_lmdb.engine import LmdbReader, LmdbStorage
from raftkv_storage_lmdb.plugin import LmdbSettings

from raftkv_core.errors import StorageError
from raftkv_core.testing.storage import contents, fill

Opens = Callable[..., LmdbStorage]

ROWS = {"kv": {b"k": b"v"}}


@pytest.fixture
def filled(opens: Opens) -> None:
    """A store with ROWS, closed."""
    storage = opens()
    fill(storage, ROWS)
    storage.close()


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_nobody_else_may_read_it(opens: Opens, directory: Path) -> None:
    """Folders are for their owner only, and so are files."""
    fill(opens(reserve_bytes=1 << 20).begin_restore(), ROWS)
    for path in [directory, *directory.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        if path.is_dir():
            assert mode == 0o700, f"{path} has mode {mode:o}"
        else:
            assert not mode & 0o133, f"{path} has mode {mode:o}"


def test_old_generations_are_removed(opens: Opens, directory: Path) -> None:
    """After a switch only the new store is in the directory, though an old snapshot is still read."""
    storage = opens()
    fill(storage, ROWS)
    with storage.read() as old:
        storage.begin_restore().activate()
        assert _names(directory) == {"CURRENT", "generation-2"}
        assert contents(old) == ROWS
        assert storage.figures()["generations_retired"] == 1
    storage.maintain()
    assert storage.figures()["generations_retired"] == 0


@pytest.mark.usefixtures("filled")
def test_rubbish_of_a_crash_is_removed(opens: Opens, directory: Path) -> None:
    """Unfinished stores and generations that CURRENT does not name are removed at the next opening."""
    for name in ("unfinished", "generation-2", "generation-17"):
        shutil.copytree(directory / "generation-1", directory / name)
    (directory / "CURRENT.new").write_bytes(b"{")
    storage = opens()
    assert contents(storage) == ROWS
    storage.begin_restore().activate()
    assert storage.generation == 2
    assert _names(directory) == {"CURRENT", "generation-2"}


@pytest.mark.usefixtures("filled")
def test_a_store_without_its_current_is_found(opens: Opens, directory: Path) -> None:
    """One generation and no CURRENT is that generation, with its rows; a reader waits for the writer to say so."""
    (directory / "CURRENT").unlink()
    with pytest.raises(StorageError):
        LmdbReader(directory, LmdbSettings())
    assert contents(opens()) == ROWS


@pytest.mark.usefixtures("filled")
def test_several_generations_without_a_current_are_refused(opens: Opens, directory: Path) -> None:
    """Nobody guesses which of two stores is valid, and nothing is removed."""
    shutil.copytree(directory / "generation-1", directory / "generation-2")
    (directory / "CURRENT").unlink()
    with pytest.raises(StorageError, match="which is valid"):
        opens()
    assert _names(directory) == {"generation-1", "generation-2"}


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    "current",
    [b"", b"generation-1\n", b'{"format":2,"engine":"0.9","generation":1}', b'{"format":1,"engine":"0.9"}'],
    ids=["empty", "no JSON", "newer format", "incomplete"],
)
def test_a_damaged_current_is_refused(opens: Opens, directory: Path, current: bytes) -> None:
    """The message names the file; nothing is removed."""
    (directory / "CURRENT").write_bytes(current)
    for opening in (opens, lambda: LmdbReader(directory, LmdbSettings())):
        with pytest.raises(StorageError, match="CURRENT"):
            opening()
    assert "generation-1" in _names(directory)


@pytest.mark.usefixtures("filled")
def test_a_missing_store_is_refused(opens: Opens, directory: Path) -> None:
    """A CURRENT without its store is damage, not an empty store."""
    shutil.rmtree(directory / "generation-1")
    with pytest.raises(StorageError):
        opens()
    with pytest.raises(StorageError, match=r"damaged|missing"):
        LmdbReader(directory, LmdbSettings())


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("name", ["data.mdb", "lock.mdb"])
def test_a_reader_makes_no_file_that_is_missing(directory: Path, name: str) -> None:
    """LMDB would make it; a reader must not."""
    missing = directory / "generation-1" / name
    missing.unlink()
    with pytest.raises(StorageError, match=name):
        LmdbReader(directory, LmdbSettings())
    assert not missing.exists()


@pytest.mark.usefixtures("filled")
def test_another_lmdb_version_is_refused(opens: Opens, directory: Path) -> None:
    """A store belongs to the LMDB version that made it; the message says which, and both are named."""
    for opening in (opens, lambda **settings: LmdbReader(directory, LmdbSettings(**settings))):
        with pytest.raises(StorageError, match=r"'0\.9'.*'1\.0'"):
            opening(engine="1.0")
    assert json.loads((directory / "CURRENT").read_bytes())["engine"] == "0.9"
    assert contents(opens()) == ROWS


@pytest.mark.usefixtures("filled")
def test_a_file_that_is_no_store_is_refused(opens: Opens, directory: Path) -> None:
    """Overwritten pages at the beginning are noticed at opening."""
    data = directory / "generation-1" / "data.mdb"
    with data.open("r+b") as file:
        file.write(bytes(8192))
    with pytest.raises(StorageError):
        opens()
