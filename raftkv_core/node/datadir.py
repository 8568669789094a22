"""The data directory: where things lie, who may use it, and whose it is.

    DATA/identity.json    cluster id, node id, engines, format version
    DATA/lock             held while a node runs; names the process that holds it
    DATA/log/  DATA/storage/  DATA/consensus/  DATA/streams/
    DATA/run/             resolved.json, socket (where the node socket is), node.pid

A process that only reads paths uses `Layout`. One that opens the data holds the lock:

    with DataDirectory.open(config) as data:
        data.storage, data.identity.cluster_id, data.adopt_cluster_id(...), data.prepare_socket()

The lock is `flock`, so it goes with the process, whatever ends it. The supervisor takes it first and hands
its descriptor to the node: the directory stays taken while a dead node is being replaced.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec

from raftkv_core.config import Config
from raftkv_core.errors import DataDirectoryError, DirectoryLocked, IdentityMismatch, Unavailable
from raftkv_core.node import socketdir

__all__ = ["FORMAT", "LOCK_FD", "DataDirectory", "DirectoryIdentity", "DirectoryLock", "Layout", "write_file"]

FORMAT: Final = 1
"""Version of the layout."""

LOCK_FD: Final = "RAFTKV_LOCK_FD"
"""Environment of the node: the lock's descriptor, when the supervisor holds it already."""


def write_file(path: Path, data: bytes) -> None:
    """Replace a file durably, readable by its owner alone: a crash leaves the old content or the new."""
    temporary = path.with_name(path.name + ".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)
        file.write(data)
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)
    _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Layout:
    """The paths in one data directory. Creates nothing."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.identity_file = self.path / "identity.json"
        self.lock_file = self.path / "lock"
        self.log = self.path / "log"
        self.storage = self.path / "storage"
        self.consensus = self.path / "consensus"
        self.streams = self.path / "streams"
        self.run = self.path / "run"
        self.resolved_file = self.run / "resolved.json"
        self.socket_file = self.run / "socket"
        self.pid_file = self.run / "node.pid"

    def node_socket(self) -> Path:
        """Where the node socket is. Raises Unavailable when no node has said so."""
        try:
            return Path(self.socket_file.read_text(encoding="utf-8").strip())
        except FileNotFoundError:
            raise Unavailable(
                f"no node runs on {self.path}; start it with: raftkv serve CONFIG", code="node_away"
            ) from None

    def holds_data(self) -> bool:
        """Whether a node ever wrote here: an identity, or anything in the folders that hold data."""
        folders = (self.log, self.storage, self.consensus, self.streams)
        return self.identity_file.exists() or any(folder.is_dir() and any(folder.iterdir()) for folder in folders)


class DirectoryIdentity(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What the directory remembers. `cluster_id` is 32 hex digits, or "" until the node has one."""

    format: int
    cluster_id: str
    node_id: str
    storage: str
    consensus: str


class DirectoryLock:
    """The right to use a data directory, held until `close` or the end of every process that holds it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor: Final = descriptor

    @classmethod
    def acquire(cls, layout: Layout) -> DirectoryLock:
        """Take the lock, making the directory if there is none. Raises DirectoryLocked, naming the holder."""
        try:
            layout.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(layout.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise DataDirectoryError(
                f"data directory {layout.path} cannot be used: {error.strerror}; "
                "make it writable for this user or choose another directory"
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise DirectoryLocked(
                f"data directory {layout.path} is in use by process {holder}; "
                "stop that process or choose another directory"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
        return cls(descriptor)

    @classmethod
    def inherit(cls, layout: Layout, environ: Mapping[str, str]) -> DirectoryLock | None:
        """The lock that the supervisor handed down, or None when this process was started without one."""
        number = environ.get(LOCK_FD)
        if number is None:
            return None
        descriptor = int(number)
        os.set_inheritable(descriptor, False)
        if not os.path.samestat(os.fstat(descriptor), layout.lock_file.stat()):
            raise DataDirectoryError(f"{LOCK_FD} is not the lock of {layout.path}; start the node without it")
        return cls(descriptor)

    def close(self) -> None:
        os.close(self.descriptor)


class DataDirectory(Layout):
    """A data directory that this process holds, and that is this node's."""

    def __init__(self, path: Path, lock: DirectoryLock, identity: DirectoryIdentity) -> None:
        super().__init__(path)
        self._lock: DirectoryLock | None = lock
        self.identity = identity

    @classmethod
    def open(cls, config: Config, *, environ: Mapping[str, str] = os.environ) -> DataDirectory:
        """Take the lock (or the supervisor's), check whose the directory is, and make its folders.

        Raises DirectoryLocked, IdentityMismatch, or DataDirectoryError when it cannot be used at all.
        """
        layout = Layout(config.node.data_dir)
        lock = DirectoryLock.inherit(layout, environ) or DirectoryLock.acquire(layout)
        try:
            identity = _identify(layout, config)
            for folder in (layout.log, layout.storage, layout.consensus, layout.streams, layout.run):
                folder.mkdir(mode=0o700, exist_ok=True)
            data = cls(layout.path, lock, identity)
            if not layout.identity_file.exists():
                data._write_identity()
            write_file(layout.pid_file, b"%d\n" % os.getpid())
        except BaseException:
            lock.close()
            raise
        return data

    def adopt_cluster_id(self, cluster_id: str) -> None:
        """Remember the cluster's id (32 hex digits) durably; for good, once it is not empty."""
        known = self.identity.cluster_id
        if known == cluster_id:
            return
        if known:
            raise IdentityMismatch(_mismatch(self, "cluster", known, cluster_id))
        self.identity.cluster_id = cluster_id
        self._write_identity()

    def prepare_socket(self) -> Path:
        """A free path for the node socket, short whatever the length of this directory's; recorded in `run`.

        A node that replaces a dead one gets the same path, so workers find it where it was.
        """
        recorded = self.socket_file.read_text(encoding="utf-8").strip() if self.socket_file.exists() else ""
        socket = socketdir.reuse(recorded) or socketdir.create()
        if str(socket) != recorded:
            write_file(self.socket_file, os.fsencode(socket) + b"\n")
        return socket

    def close(self) -> None:
        """Give the directory back: socket and pid file go, the lock last. Closing twice is allowed."""
        if self._lock is None:
            return
        if self.socket_file.exists():
            socketdir.remove(self.socket_file.read_text(encoding="utf-8").strip())
            self.socket_file.unlink()
        self.pid_file.unlink(missing_ok=True)
        self._lock.close()
        self._lock = None

    def __enter__(self) -> DataDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write_identity(self) -> None:
        text = msgspec.json.format(msgspec.json.encode(self.identity), indent=2)
        write_file(self.identity_file, text + b"\n")


def _identify(layout: Layout, config: Config) -> DirectoryIdentity:
    """What the directory remembers, or what it is to remember; refuses what belongs to something else."""
    wanted = DirectoryIdentity(
        format=FORMAT,
        cluster_id=config.cluster.id,
        node_id=config.node.id,
        storage=config.storage.name,
        consensus=config.consensus.name,
    )
    try:
        data = layout.identity_file.read_bytes()
    except FileNotFoundError:
        if layout.holds_data():
            raise DataDirectoryError(
                f"data directory {layout.path} holds data but no identity.json, so whose it is is not known; "
                "restore that file from a copy, or move the directory away and start with an empty one"
            ) from None
        return wanted
    try:
        found = msgspec.json.decode(data, type=DirectoryIdentity)
    except msgspec.DecodeError as error:
        raise DataDirectoryError(
            f"{layout.identity_file} is damaged ({error}); restore it from a copy, "
            "or move the directory away and start with an empty one"
        ) from None
    if found.format != FORMAT:
        raise IdentityMismatch(
            f"data directory {layout.path} has format {found.format}, this release knows format {FORMAT}; "
            "use the release that wrote it"
        )
    for what, there, here in (
        ("cluster", found.cluster_id, wanted.cluster_id),
        ("node", found.node_id, wanted.node_id),
        ("storage", found.storage, wanted.storage),
        ("consensus", found.consensus, wanted.consensus),
    ):
        if there != here and there and here:
            raise IdentityMismatch(_mismatch(layout, what, there, here))
    return found


_KEYS: Final = {
    "cluster": "cluster.id",
    "node": "node.id",
    "storage": "storage.use",
    "consensus": "consensus.use",
}


def _mismatch(layout: Layout, what: str, there: str, here: str) -> str:
    remedy = f"set {_KEYS[what]} = {there!r} or choose another node.data_dir"
    if what in ("storage", "consensus"):
        remedy += f"; data moves to another {what} engine with backup and restore"
    return f"data directory {layout.path} belongs to {what} {there!r}, not to {here!r}; {remedy}"
