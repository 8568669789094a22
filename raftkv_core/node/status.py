"""What a node says of itself: the dictionary behind `/v1/status`, and whether it is ready."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from raftkv_core import __version__
from raftkv_core.config import Config
from raftkv_core.interfaces.consensus import Consensus
from raftkv_core.machine.state import StateMachine
from raftkv_core.node.space import SpaceWatch

__all__ = ["NodeStatus"]


@dataclass
class NodeStatus:
    """Collects it on demand."""

    config: Config
    machine: StateMachine
    engine: Consensus
    space: SpaceWatch
    capabilities: Sequence[str]
    insecure_listeners: Sequence[str]
    figures: Mapping[str, Callable[[], Mapping[str, int | float]]]
    """By the part of the node that they are about."""
    replaying: Callable[[], bool]
    """The engine has not finished its start."""

    def __post_init__(self) -> None:
        self._began = time.monotonic()

    def reasons(self) -> list[str]:
        """Why the node cannot serve everything now; empty when it is ready."""
        status = self.engine.status()
        reasons = []
        if self.replaying():
            applied, last = self.machine.applied.index, status.last_index
            reasons.append(f"replaying the log: {applied} of {last}" if applied < last else "starting")
        elif status.leader is None:
            reasons.append(f"no leader is known (this node is {status.role})")
        if not self.machine.history_id:
            reasons.append("the store has no history yet")
        return reasons

    def __call__(self) -> dict[str, Any]:
        machine, status, config = self.machine, self.engine.status(), self.config
        reasons = self.reasons()
        return {
            "node_id": config.node.id,
            "cluster_id": machine.cluster_id.hex(),
            "cluster_name": config.cluster.name,
            "history_id": machine.history_id.hex(),
            "role": status.role,
            "leader": status.leader,
            "term": status.term,
            "commit_index": status.commit_index,
            "applied_index": machine.applied.index,
            "visible_index": machine.visible.index,
            "durable_index": machine.durable.index,
            "revision": machine.revision,
            "compacted_revision": machine.compacted,
            "digest": f"{machine.digest:016x}",
            "storage": config.storage.name,
            "consensus": config.consensus.name,
            "transports": [transport.name for transport in config.transports],
            "capabilities": sorted(self.capabilities),
            "version": __version__,
            "pid": os.getpid(),
            "ready": not reasons,
            "reasons": reasons,
            "members": [{"node_id": member.node_id, "address": member.address} for member in self.engine.members()],
            "space": {
                "used_bytes": self.space.used_bytes,
                "free_bytes": self.space.free_bytes,
                "low": self.space.low,
            },
            "limits": msgspec.to_builtins(config.limits),
            "insecure_listeners": list(self.insecure_listeners),
            "uptime_s": round(time.monotonic() - self._began, 3),
            "figures": {
                "consensus": status.figures,
                **{part: dict(figures()) for part, figures in self.figures.items()},
            },
        }
