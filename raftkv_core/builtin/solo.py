"""Consensus of one: the durable log with a quorum of one, for a single node that keeps everything it says.

An entry is committed when this node's log has synced it. There is nobody to elect, so the node leads from its
start, each time in a new term. It is also the smallest complete engine: read it as the example.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from raftkv_core.errors import ConfigError, InvalidRequest, MachineFault, NotApplied, Unavailable
from raftkv_core.interfaces.consensus import (
    Consensus,
    ConsensusContext,
    ConsensusStatus,
    Entry,
    EntryKind,
    Level,
    Machine,
    Member,
    Position,
    Role,
)
from raftkv_core.limits import ENTRY_BYTES_MAX
from raftkv_core.machine.entries import check_entry

__all__ = ["SoloConsensus"]

RUN_BYTES: Final = 256 << 10
"""Applied at one go; between two such runs the loop turns to others."""


class SoloConsensus(Consensus):
    """See the module. It has no settings."""

    entry_bytes_max = ENTRY_BYTES_MAX

    def __init__(self, context: ConsensusContext, settings: Any) -> None:  # noqa: ARG002
        self._context = context
        self._node_id = context.identity.node_id
        self._log = context.open_log()
        self._role: Role = "starting"
        self._machine: Machine | None = None
        self._unapplied: deque[Entry] = deque()
        """Appended since the start and not applied yet."""
        self._applying = False

    async def bootstrap(self, members: Sequence[Member], base: Position) -> None:
        """Nothing happens if the log was begun before."""
        others = [member.node_id for member in members if member.node_id != self._node_id]
        if others:
            raise ConfigError(
                f"consensus 'solo' is one node, but cluster.members also names {', '.join(others)}; "
                "choose a replicated consensus, or name this node only"
            )
        if self._log.term:
            return
        if base != Position(0, 0):
            self._log.reset(base)
        self._log.set_state(max(1, base.term), self._node_id)
        await self._log.wait_flushed()

    async def start(self, machine: Machine) -> None:
        if not self._log.term:
            raise ConfigError(
                "this data directory is empty and nothing says that a cluster begins here; "
                "set node.bootstrap = true (or BOOTSTRAP=true) once"
            )
        self._machine = machine
        self._log.set_state(self._log.term + 1, self._node_id)
        await self._replay(machine)
        self._log.on_synced = self._synced
        self._role = "leader"
        machine.on_role(self._role, self._log.term, self._node_id)

    async def stop(self, *, transfer: bool, deadline_s: float) -> None:  # noqa: ARG002 - there is nobody
        """What was appended is synced; nothing more is applied."""
        self._role = "stopped"
        if self._machine is not None:
            self._machine.on_role(self._role, self._log.term, None)
        self._log.close(deadline_s)

    async def submit(self, entry: bytes, timeout_s: float) -> Position | None:  # noqa: ARG002
        self._check_leads()
        try:
            check_entry(entry)
        except MachineFault as error:
            raise NotApplied(str(error), retryable=False) from error
        log = self._log
        appended = Entry(log.last_index + 1, log.term, EntryKind.COMMAND, entry)
        log.append((appended,))
        self._unapplied.append(appended)
        return Position(appended.index, appended.term)

    async def read_index(self, level: Level, timeout_s: float) -> int:  # noqa: ARG002 - every level is the same
        """Whatever was acknowledged was applied before."""
        self._check_leads()
        assert self._machine is not None
        return self._machine.applied.index

    def status(self) -> ConsensusStatus:
        leader = self._node_id if self._role == "leader" else None
        log = self._log
        return ConsensusStatus(self._role, log.term, leader, log.synced_index, log.last_index, log.figures())

    def members(self) -> Sequence[Member]:
        return (Member(self._node_id, self._context.advertise),)

    async def add_member(self, member: Member, timeout_s: float) -> None:  # noqa: ARG002
        raise InvalidRequest(
            f"consensus 'solo' is one node and cannot be joined, so {member.node_id} was not added; "
            "start a cluster on a replicated consensus, and restore a backup there",
            code="membership_unsupported",
        )

    def trim(self, index: int) -> None:
        self._log.trim(index)

    def _check_leads(self) -> None:
        if self._role != "leader":
            raise Unavailable(f"the node is {self._role}; retry")

    async def _replay(self, machine: Machine) -> None:
        """Apply what storage had not committed before the last end, however that came."""
        index = machine.applied.index
        while index < self._log.last_index:
            if not machine.room:
                await machine.wait_for_room()
            entries = self._log.read(index + 1, RUN_BYTES)
            machine.apply(index, entries)
            index = entries[-1].index
            await self._context.clock.sleep(0)

    def _synced(self, index: int) -> None:
        """The log's: everything up to `index` survives power loss, so it is committed."""
        if self._applying or not self._apply_run(index):
            return
        self._applying = True
        self._context.spawn(self._apply_rest(), "apply")

    def _apply_run(self, synced_index: int) -> bool:
        """Apply what is synced, one run of it; says whether there is more."""
        assert self._machine is not None
        unapplied = self._unapplied
        run: list[Entry] = []
        size = 0
        while unapplied and unapplied[0].index <= synced_index and size < RUN_BYTES and self._machine.room:
            run.append(unapplied.popleft())
            size += len(run[-1].data)
        if run:
            self._machine.apply(run[0].index - 1, run)
        return bool(unapplied) and unapplied[0].index <= synced_index

    async def _apply_rest(self) -> None:
        assert self._machine is not None
        try:
            while self._apply_run(self._log.synced_index):
                if self._machine.room:
                    await self._context.clock.sleep(0)
                else:
                    await self._machine.wait_for_room()
        finally:
            self._applying = False
