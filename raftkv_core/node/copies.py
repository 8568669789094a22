"""Copies of a node's data: to a file while the node runs, and from a file into an empty data directory.

A backup is a stream (`raftkv_core.machine.stream`) in a file, nothing else. Restoring it begins a new history
(`raftkv_core.machine.histories`): nodes of the old one cannot mix in, and no revision is given out twice.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from raftkv_core.config import Config
from raftkv_core.errors import DataDirectoryError, StreamInvalid, Unavailable
from raftkv_core.interfaces.storage import Storage
from raftkv_core.machine.histories import begin_new_history
from raftkv_core.machine.meta import Meta
from raftkv_core.machine.stream import StreamHeader, install, read_header
from raftkv_core.node.client import NodeClient
from raftkv_core.node.datadir import DataDirectory, Layout
from raftkv_core.node.streams import StreamFile
from raftkv_core.registry import Registry

__all__ = ["Progress", "backup", "restore"]

Progress = Callable[[int, int], None]
"""Bytes done, bytes in all."""

CONNECT_WITHIN_S: Final = 5.0
_READ_BYTES: Final = 1 << 20
_HEADER_BYTES: Final = 256


async def backup(config: Config, to: Path, progress: Progress) -> StreamHeader:
    """Write what the running node holds to `to`, whole and synced or not at all; returns its header.

    The node goes on serving. Raises Unavailable when no node runs there or it went away meanwhile.
    """
    client = NodeClient(Layout(config.node.data_dir).node_socket, config.node.id, pending_max=1)
    await client.start(CONNECT_WITHIN_S)
    partial = to.with_name(to.name + ".partial")
    try:
        if not client.connected:
            raise client.unavailable()
        stream = await client.backup()
        try:
            done = 0
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                async for chunk in stream.chunks():
                    file.write(chunk)
                    done += len(chunk)
                    progress(done, stream.length_bytes)
                file.flush()
                os.fsync(descriptor)
        finally:
            await stream.close()
        if done != stream.length_bytes:
            raise Unavailable(f"the node ended the backup after {done} of {stream.length_bytes} bytes; try again")
        partial.replace(to)
    finally:
        await client.close()
        partial.unlink(missing_ok=True)
    with to.open("rb") as file:
        return read_header(file.read(_HEADER_BYTES))


def restore(config: Config, registry: Registry, source: Path, progress: Progress) -> Meta:
    """Make the data directory of `config` from a backup; returns what it holds. The next start serves it.

    Refuses a directory that holds data. Whatever fails (StreamInvalid, StorageError, OSError) leaves the
    directory as empty as it was.
    """
    layout = Layout(config.node.data_dir)
    if layout.holds_data():
        raise DataDirectoryError(
            f"{layout.path} holds data; restore into an empty directory (move this one away, or set node.data_dir)"
        )
    with source.open("rb") as file:
        read_header(file.read(_HEADER_BYTES))
    with DataDirectory.open(config) as data:
        try:
            return _fill(data, config, registry, source, progress)
        except BaseException:
            for folder in (data.log, data.storage, data.consensus, data.streams):
                shutil.rmtree(folder, ignore_errors=True)
            data.identity_file.unlink(missing_ok=True)
            raise


def _fill(data: DataDirectory, config: Config, registry: Registry, source: Path, progress: Progress) -> Meta:
    plugin = registry.storage(config.storage.name)
    settings = registry.settings(plugin, config.storage.settings)
    storage: Storage = registry.load(plugin)(data.storage, settings)
    try:
        target = storage.begin_restore()
        try:
            meta = install(_chunks(source), target, progress)
            if not meta.identity.history_id:
                raise StreamInvalid(f"{source} is of a store without a history: there is nothing in it to restore")
            with target.write() as txn:
                begin_new_history(txn)
                txn.commit()
        except BaseException:
            target.discard()
            raise
        target.activate()
        if "durable" not in plugin.capabilities(settings):
            StreamFile(data.streams, storage).write()
    finally:
        storage.close()
    return meta


def _chunks(source: Path) -> Iterator[bytes]:
    with source.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            yield chunk
