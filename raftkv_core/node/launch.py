"""What the supervisor starts, worked out once from the resolved configuration.

The data directory is locked here, before anything is written into it, and stays so until `close`: the node
gets the lock's descriptor. The resolved configuration is written where the children read it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Final, Protocol

from raftkv_core.config import Config
from raftkv_core.node.datadir import LOCK_FD, DirectoryLock, Layout, write_file
from raftkv_core.registry import Registry

__all__ = ["RESOLVED", "Launch", "Say", "prepare"]

RESOLVED: Final = "RAFTKV_RESOLVED"
"""Environment of a transport's processes: the resolved configuration."""


class Say(Protocol):
    """Writes one log line."""

    def __call__(self, level: str, event: str, **fields: object) -> None: ...


@dataclass(frozen=True)
class Launch:
    """Command lines and what they are run with."""

    node: Sequence[str]
    transports: Sequence[tuple[str, Sequence[str]]]
    """Name and command line of each that has processes of its own."""
    environ: Mapping[str, str]
    lock: DirectoryLock | None = None
    """The data directory's; the node inherits it."""
    output: IO[bytes] | None = None
    """Takes what the children print; None passes this process's own on."""

    @property
    def node_environ(self) -> dict[str, str]:
        handed_down = {} if self.lock is None else {LOCK_FD: str(self.lock.descriptor)}
        return {**self.environ, **handed_down}

    @property
    def node_fds(self) -> tuple[int, ...]:
        return () if self.lock is None else (self.lock.descriptor,)

    def close(self) -> None:
        """Give the data directory free; call it when every child has ended."""
        if self.lock is not None:
            self.lock.close()


def prepare(
    config: Config,
    registry: Registry,
    *,
    output: IO[bytes] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Launch:
    """Lock the data directory and write down what the children need. Raises DirectoryLocked, ConfigError."""
    transports: list[tuple[str, Sequence[str]]] = []
    for selected in config.transports:
        plugin = registry.transport(selected.name)
        settings = registry.settings(plugin, selected.settings)
        if plugin.command is not None:
            transports.append((plugin.name, plugin.command(settings)))
    layout = Layout(config.node.data_dir)
    lock = DirectoryLock.acquire(layout)
    layout.run.mkdir(mode=0o700, exist_ok=True)
    write_file(layout.resolved_file, config.to_json())
    return Launch(
        node=(sys.executable, "-m", "raftkv_core.node", str(layout.resolved_file)),
        transports=transports,
        environ={**environ, RESOLVED: str(layout.resolved_file)},
        lock=lock,
        output=output,
    )
