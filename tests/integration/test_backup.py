"""Backup of a running node, restore into an empty directory, and what restore refuses."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from raftkv_core.testing.deployment import Deployment

pytestmark = [pytest.mark.lmdb, pytest.mark.http]

KEYS = 300


def raftkv(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "raftkv_core.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def fill(node: Deployment) -> None:
    for number in range(KEYS):
        assert node.request("PUT", f"/v1/kv/key-{number:03d}", b"v%d" % number).status == 204
    assert node.request("DELETE", "/v1/kv/key-007").status < 300


@pytest.fixture(scope="module")
def backup(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of an LMDB node that held 299 keys, taken while it was written to."""
    folder = tmp_path_factory.mktemp("backup")
    file = folder / "backup.stream"
    with Deployment(folder / "old", storage="lmdb").started() as node:
        fill(node)
        done = threading.Event()

        def go_on_writing() -> None:
            number = 0
            while not done.is_set():
                number += 1
                node.request("PUT", "/v1/kv/later", b"%d" % number)

        writer = threading.Thread(target=go_on_writing)
        writer.start()
        try:
            result = raftkv("backup", file, "--config", node.config)
        finally:
            done.set()
            writer.join()
        assert result.returncode == 0, result.stderr
        assert "revision" in result.stdout
    return file


@pytest.mark.parametrize("storage", ["lmdb", "memory"])
def test_restored_node_has_the_data_under_new_revisions(backup: Path, tmp_path: Path, storage: str) -> None:
    """A hot backup restores into either engine: the data is there, revisions go on far above, and it survives
    further restarts."""
    restored = Deployment(tmp_path / "new", storage=storage)
    result = raftkv("restore", backup, "--config", restored.config)
    assert result.returncode == 0, result.stderr
    with restored.started() as node:
        for number in (0, 6, 8, KEYS - 1):
            assert node.request("GET", f"/v1/kv/key-{number:03d}").body == b"v%d" % number
        assert node.request("GET", "/v1/kv/key-007").status == 404
        status = node.status()
        assert status["revision"] > 1 << 32
        assert status["compacted_revision"] == status["revision"]
        assert node.request("PUT", "/v1/kv/key-000", b"new").status == 204
        digest = node.status()["digest"]
        assert node.stop() == 0
        node.start()
        assert node.request("GET", "/v1/kv/key-000").body == b"new"
        assert node.status()["digest"] == digest


def test_restore_refuses_a_directory_that_holds_data(backup: Path, tmp_path: Path) -> None:
    """Data that is there is never replaced."""
    other = Deployment(tmp_path / "other", storage="lmdb")
    with other.started() as node:
        assert node.request("PUT", "/v1/kv/mine", b"1").status == 204
    result = raftkv("restore", backup, "--config", other.config)
    assert result.returncode == 3
    assert "holds data" in result.stderr
    with other.started() as node:
        assert node.request("GET", "/v1/kv/mine").body == b"1"


@pytest.mark.parametrize("damage", ["flipped", "short", "longer", "other format", "no stream"])
def test_restore_refuses_a_damaged_file_and_leaves_nothing(backup: Path, tmp_path: Path, damage: str) -> None:
    """A flipped byte, a missing end, an extra byte, another format: refused by name, and the directory is as
    empty as before, so the next try with a good file works."""
    data = bytearray(backup.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    elif damage == "short":
        del data[-100:]
    elif damage == "longer":
        data += b"x"
    elif damage == "other format":
        data[9] = 99
    else:
        data = bytearray(b"no stream at all")
    bad = tmp_path / "bad.stream"
    bad.write_bytes(data)
    target = Deployment(tmp_path / "target", storage="lmdb")
    result = raftkv("restore", bad, "--config", target.config)
    assert result.returncode == 1, result
    assert "stream" in result.stderr
    assert "Traceback" not in result.stderr
    assert raftkv("restore", backup, "--config", target.config).returncode == 0


def test_backup_without_a_node_or_onto_a_file_is_refused(tmp_path: Path) -> None:
    """No running node, or a file that exists: one line that names the remedy, and no file is made."""
    node = Deployment(tmp_path / "node", storage="lmdb")
    file = tmp_path / "b"
    result = raftkv("backup", file, "--config", node.config)
    assert result.returncode == 4
    assert "raftkv serve" in result.stderr
    assert not list(tmp_path.glob("b*"))
    file.write_bytes(b"precious")
    result = raftkv("backup", file, "--config", node.config)
    assert result.returncode == 2
    assert "--force" in result.stderr
    assert file.read_bytes() == b"precious"
