"""Watches the room that is left, so that a store is refused growth before a commit can fail.

A commit that fails after its commands were acknowledged stops the node, so space is looked at ahead. A member
reports through the log when it crosses its threshold, and while any member is low every node refuses growth.
Deletes and `compact` pass; the leader then compacts history to the present, because otherwise a delete would
fill what is left with the records it removed.

The same report says which formats this member reads.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from raftkv_core.interfaces.storage import Storage
from raftkv_core.limits import FORMATS_READABLE
from raftkv_core.machine import commands
from raftkv_core.machine.commands import Outcome
from raftkv_core.machine.state import StateMachine

__all__ = ["SpaceWatch", "free_bytes"]

TIMEOUT_S: Final = 10.0
_RECOVERED: Final = 1.125
"""A member is no longer low when it has this many times the threshold: at the threshold it would say so and
take it back all the time."""


def free_bytes(directory: Path) -> int:
    """What the file system grants this user in `directory`."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


class SpaceWatch:
    """`poll` about once a second and after each commit of note."""

    def __init__(
        self,
        machine: StateMachine,
        storage: Storage,
        propose: Callable[[bytes, float], asyncio.Future[Outcome]],
        *,
        node_id: str,
        directories: Sequence[Path],
        low_bytes: int,
        logger: Any,
        free: Callable[[Path], int] = free_bytes,
    ) -> None:
        """`directories`: where else this node writes (its log). `low_bytes` is the threshold."""
        self._machine = machine
        self._storage = storage
        self._propose = propose
        self._node_id = node_id
        self._directories = directories
        self._low_bytes = low_bytes
        self._logger = logger
        self._free = free
        self._reporting = False
        self._compacting = False
        self._leads = False
        self.low = False
        """This member is below its threshold."""
        self.used_bytes = 0
        self.free_bytes = 0

    def led(self, leads: bool) -> None:
        self._leads = leads

    def growth_refused(self) -> str | None:
        """Why nothing that grows the store is admitted now, or None."""
        if self.low:
            return f"node {self._node_id} has only {self.free_bytes} bytes of space left"
        for node_id, report in self._machine.members.items():
            if report.low_space:
                return f"node {node_id} is low on space"
        return None

    def measure(self) -> None:
        """Look at the room, and note when it crosses the threshold."""
        space = self._storage.space()
        self.used_bytes = space.used_bytes
        self.free_bytes = min([space.free_bytes, *(self._free(directory) for directory in self._directories)])
        was = self.low
        self.low = self.free_bytes < self._low_bytes * (_RECOVERED if was else 1)
        if self.low and not was:
            self._logger.warning(
                "space is low: nothing that grows the store is admitted until there is more",
                free_bytes=self.free_bytes,
                threshold_bytes=self._low_bytes,
            )
        elif was and not self.low:
            self._logger.info("there is enough space again", free_bytes=self.free_bytes)

    def poll(self) -> None:
        """Measure, then say through the log what the others must know."""
        self.measure()
        if not self._machine.history_id:
            return
        self._report()
        self._compact()

    def _report(self) -> None:
        """What the members table says of this node is to be so; asked again until it is."""
        said = self._machine.members.get(self._node_id)
        if self._reporting or (said is not None and said == (FORMATS_READABLE, self.low)):
            return
        self._reporting = True

        def ended(outcome: asyncio.Future[Outcome]) -> None:
            self._reporting = False
            _seen(outcome)

        command = commands.report(self._node_id, FORMATS_READABLE, low_space=self.low)
        self._propose(command, TIMEOUT_S).add_done_callback(ended)

    def _compact(self) -> None:
        """While growth is refused, whatever moved the revision removed something: let history go too."""
        machine = self._machine
        if self._compacting or not self._leads or machine.compacted >= machine.revision or not self.growth_refused():
            return
        self._compacting = True

        def ended(outcome: asyncio.Future[Outcome]) -> None:
            self._compacting = False
            _seen(outcome)

        self._propose(commands.compact(machine.revision), TIMEOUT_S).add_done_callback(ended)


def _seen(outcome: asyncio.Future[Outcome]) -> None:
    """A failure needs no care: the next poll asks again."""
    if not outcome.cancelled():
        outcome.exception()
