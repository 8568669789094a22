"""The node's own numbers for people and metrics, by the part they are about."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raftkv_core.interfaces.storage import Storage
from raftkv_core.machine.state import StateMachine
from raftkv_core.node.barrier import ReadBarrier
from raftkv_core.node.committer import Committer
from raftkv_core.node.proposer import Proposer

__all__ = ["Figures", "node_figures"]

Figures = Mapping[str, int | float]


def node_figures(
    proposer: Proposer, committer: Committer, storage: Storage, machine: StateMachine, barrier: ReadBarrier
) -> dict[str, Callable[[], Figures]]:
    """Each is counted when asked; counters begin with the process."""

    def of_proposer() -> Figures:
        counted = proposer.figures
        return {
            "commands": counted.commands,
            "entries": counted.entries,
            "refused": counted.refused,
            "unknown": counted.unknown,
            "waiting": proposer.waiting_commands,
        }

    def of_storage() -> Figures:
        counted = committer.figures
        return {
            **storage.figures(),
            "commits": counted.commits,
            "syncs": counted.syncs,
            "commit_s_total": round(counted.commit_seconds, 6),
            "commit_s_max": round(counted.commit_seconds_max, 6),
            "buffer_bytes": machine.pending_bytes,
        }

    def of_state() -> Figures:
        state = machine.state
        return {
            "keys": state.keys,
            "live_bytes": state.live_bytes,
            "history_bytes": machine.history_bytes,
            "idempotency_keys": state.dedupe_keys,
            "clock_ms": machine.clock_ms,
        }

    def of_reads() -> Figures:
        return {"barriers": barrier.readers, "barrier_rounds": barrier.rounds}

    return {"proposer": of_proposer, "storage": of_storage, "state": of_state, "reads": of_reads}
