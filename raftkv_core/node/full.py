"""The engine of a node that found no space to replay its log: it serves stale reads and takes nothing.

Without it a node whose disk is full would start, fail and be started again for ever, and show nobody what is
wrong. The runtime leaves this state by ending the process once there is space again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raftkv_core.errors import NoSpace, Unavailable
from raftkv_core.interfaces.consensus import (
    Consensus,
    ConsensusContext,
    ConsensusStatus,
    Level,
    Machine,
    Member,
    Position,
)
from raftkv_core.limits import ENTRY_BYTES_MAX

__all__ = ["FullEngine"]

_REMEDY = "this node has no space left to replay its log and only serves stale reads; free some space"


class FullEngine(Consensus):
    """Stopped from its start."""

    entry_bytes_max = ENTRY_BYTES_MAX

    def __init__(self, context: ConsensusContext, settings: Any) -> None:  # noqa: ARG002
        self._context = context

    async def bootstrap(self, members: Sequence[Member], base: Position) -> None:
        """Never: there is data."""

    async def start(self, machine: Machine) -> None:
        machine.on_role("stopped", 0, None)

    async def stop(self, *, transfer: bool, deadline_s: float) -> None:
        pass

    async def submit(self, entry: bytes, timeout_s: float) -> Position | None:  # noqa: ARG002
        raise NoSpace(_REMEDY)

    async def read_index(self, level: Level, timeout_s: float) -> int:  # noqa: ARG002
        raise Unavailable(_REMEDY, code="no_space")

    def status(self) -> ConsensusStatus:
        return ConsensusStatus("stopped", 0, None, 0, 0)

    def members(self) -> Sequence[Member]:
        return self._context.members
