"""A data directory is one node's, and one process's at a time."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from raftkv_core.config import Config
from raftkv_core.errors import DataDirectoryError, DirectoryLocked, IdentityMismatch, Unavailable
from raftkv_core.node.datadir import LOCK_FD, DataDirectory, DirectoryLock, Layout, write_file

CLUSTER = "0123456789abcdef" * 2


def identity(config: Config) -> str:
    return Layout(config.node.data_dir).identity_file.read_text()


def test_an_empty_directory_is_made_ready(config: Config) -> None:
    """The first node on a directory makes its folders and its identity, which only its owner may read."""
    config.cluster.id = CLUSTER
    with DataDirectory.open(config) as data:
        for folder in (data.path, data.log, data.storage, data.consensus, data.streams, data.run):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE(data.identity_file.stat().st_mode) == 0o600
        assert data.identity.cluster_id == CLUSTER
        assert data.pid_file.read_text() == f"{os.getpid()}\n"


def test_a_directory_opens_again_for_the_same_node(config: Config) -> None:
    """A second start finds the same identity."""
    with DataDirectory.open(config):
        first = identity(config)
    with DataDirectory.open(config):
        assert identity(config) == first


def test_a_second_opener_is_refused_with_the_pid_of_the_first(config: Config) -> None:
    """Whoever meets the lock is told which process to stop."""
    with DataDirectory.open(config), pytest.raises(DirectoryLocked, match=f"process {os.getpid()};.*stop"):
        DataDirectory.open(config)
    DataDirectory.open(config).close()


def test_the_lock_goes_with_a_killed_process(config: Config, until: Callable[..., object]) -> None:
    """kill -9 of the holder leaves a directory that opens."""
    code = (
        "import sys, time; from raftkv_core.node.datadir import DirectoryLock, Layout\n"
        "DirectoryLock.acquire(Layout(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, config.node.data_dir], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(DirectoryLocked, match=f"process {holder.pid};"):
            DataDirectory.open(config)
        holder.send_signal(signal.SIGKILL)
    DataDirectory.open(config).close()


def test_a_handed_down_lock_is_used(config: Config) -> None:
    """The node takes the supervisor's lock by its descriptor, and not just any descriptor."""
    lock = DirectoryLock.acquire(Layout(config.node.data_dir))
    handed = os.dup(lock.descriptor)
    with DataDirectory.open(config, environ={LOCK_FD: str(handed)}):
        assert not os.get_inheritable(handed)
    with pytest.raises(DirectoryLocked):
        DataDirectory.open(config, environ={})
    lock.close()
    other = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(DataDirectoryError, match=LOCK_FD):
        DataDirectory.open(config, environ={LOCK_FD: str(other)})
    os.close(other)


@pytest.mark.parametrize(
    ("what", "there", "here", "key"),
    [
        ("node", "node1", "node2", "node.id"),
        ("cluster", CLUSTER, "f" * 32, "cluster.id"),
        ("storage", "memory", "lmdb", "storage.use"),
        ("consensus", "solo", "pysyncobj", "consensus.use"),
    ],
)
def test_another_identity_is_refused(config: Config, what: str, there: str, here: str, key: str) -> None:
    """A directory names whose it is, who came, and how to go on; it opens for its owner afterwards."""

    def use(value: str) -> None:
        if what in ("storage", "consensus"):
            getattr(config, what).name = value
        else:
            getattr(config, what).id = value

    use(there)
    DataDirectory.open(config).close()
    use(here)
    with pytest.raises(IdentityMismatch, match=rf"belongs to {what} '{there}', not to '{here}'; set {key} = "):
        DataDirectory.open(config)
    use(there)
    DataDirectory.open(config).close()


def test_the_cluster_id_is_adopted_once(config: Config) -> None:
    """A directory without a cluster takes the id it is given, keeps it, and refuses any other."""
    with DataDirectory.open(config) as data:
        assert data.identity.cluster_id == ""
        data.adopt_cluster_id(CLUSTER)
        data.adopt_cluster_id(CLUSTER)
        with pytest.raises(IdentityMismatch, match=CLUSTER):
            data.adopt_cluster_id("f" * 32)
    with DataDirectory.open(config) as data:
        assert data.identity.cluster_id == CLUSTER
    config.cluster.id = "f" * 32
    with pytest.raises(IdentityMismatch):
        DataDirectory.open(config)


def test_a_later_format_is_refused(config: Config) -> None:
    """An older release leaves alone what a newer one wrote."""
    DataDirectory.open(config).close()
    file = Layout(config.node.data_dir).identity_file
    file.write_text(file.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(IdentityMismatch, match=r"format 9.*release"):
        DataDirectory.open(config)


def test_data_without_an_identity_is_refused(config: Config) -> None:
    """Data whose owner cannot be known is not taken over."""
    DataDirectory.open(config).close()
    layout = Layout(config.node.data_dir)
    (layout.log / "segment").write_bytes(b"entries")
    layout.identity_file.unlink()
    with pytest.raises(DataDirectoryError, match=r"no identity\.json"):
        DataDirectory.open(config)


def test_a_damaged_identity_is_refused(config: Config) -> None:
    """A half-written or edited identity is an error that names the file."""
    DataDirectory.open(config).close()
    Layout(config.node.data_dir).identity_file.write_text("{")
    with pytest.raises(DataDirectoryError, match=r"identity\.json is damaged"):
        DataDirectory.open(config)


def test_a_directory_that_cannot_be_made_is_an_error_with_its_path(config: Config, tmp_path: Path) -> None:
    """A file where the directory should be is named."""
    (tmp_path / "data").write_text("a file")
    with pytest.raises(DataDirectoryError, match=r"data .*cannot be used"):
        DataDirectory.open(config)


def test_the_socket_works_below_a_long_path(config: Config, tmp_path: Path) -> None:
    """A data directory of more than 200 characters has a node socket that can be bound and connected to."""
    config.node.data_dir = str(tmp_path / ("d" * 120) / ("e" * 120))

    async def talk(socket: Path) -> bytes:
        async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"here")
            writer.close()

        server = await asyncio.start_unix_server(answer, socket)
        reader, writer = await asyncio.open_unix_connection(socket)
        said = await reader.read()
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        return said

    with DataDirectory.open(config) as data:
        socket = data.prepare_socket()
        assert data.node_socket() == socket
        assert asyncio.run(talk(socket)) == b"here"
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    assert not socket.parent.exists()
    with pytest.raises(Unavailable, match="raftkv serve"):
        Layout(config.node.data_dir).node_socket()


def test_a_node_that_replaces_a_dead_one_has_the_same_socket_path(config: Config) -> None:
    """Workers find the restarted node where the dead one was."""
    with DataDirectory.open(config) as data:
        socket = data.prepare_socket()
        socket.touch()
        assert data.prepare_socket() == socket
        assert not socket.exists()


@pytest.mark.parametrize("fault", ["gone", "open to others", "foreign name"])
def test_a_recorded_socket_directory_that_is_not_ours_is_left_alone(
    config: Config, tmp_path: Path, fault: str
) -> None:
    """A path that somebody else could have made is neither used nor removed; a new one is made."""
    with DataDirectory.open(config) as data:
        recorded = data.prepare_socket()
        if fault == "gone":
            shutil.rmtree(recorded.parent)
        elif fault == "open to others":
            recorded.parent.chmod(0o755)
        else:
            shutil.rmtree(recorded.parent)
            recorded = tmp_path / "elsewhere" / "node.sock"
            recorded.parent.mkdir(mode=0o700)
            data.socket_file.write_text(f"{recorded}\n")
        fresh = data.prepare_socket()
        assert fresh.parent != recorded.parent
        assert recorded.parent.exists() == (fault != "gone")
    if fault == "open to others":
        recorded.parent.rmdir()


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    """`write_file` replaces content and mode, and leaves nothing beside it."""
    path = tmp_path / "file"
    path.write_text("old, and longer")
    path.chmod(0o644)
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]
