"""What clients may propose: the last check before the queue.

Transports build commands with `raftkv_core.machine.commands`, which validates; but a transport is a plugin and
the log must not be at its mercy, so the node looks again. The common case, puts only, costs a few C calls for
a whole batch; anything else is looked at one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgpack

from raftkv_core import limits
from raftkv_core.errors import InvalidRequest, NoSpace, RequestError
from raftkv_core.machine.commands import Op
from raftkv_core.machine.entries import command_weight
from raftkv_core.node.batches import Batch, Sink
from raftkv_core.node.proposer import Proposer

__all__ = ["Admission"]

_CLIENTS: Final = frozenset(
    (
        Op.PUT,
        Op.DELETE,
        Op.TXN,
        Op.COMPACT,
        Op.SETTINGS,
        Op.LEASE_GRANT,
        Op.LEASE_KEEPALIVE,
        Op.LEASE_REVOKE,
    )
)
"""Everything else is said by nodes only."""

_FRAMING_BYTES: Final = 1_024 + limits.KEY_BYTES_MAX + limits.ATTRIBUTES_BYTES_MAX
"""A put is never longer than its value and this."""


class Admission:
    """Sorts commands into what the proposer takes and what is refused at once."""

    def __init__(self, proposer: Proposer, *, value_bytes: int, growth_refused: Callable[[], str | None]) -> None:
        """`value_bytes`: this node's limit. `growth_refused` says why nothing that grows is admitted now."""
        self._proposer = proposer
        self._value_bytes = value_bytes
        self._growth_refused = growth_refused

    def propose(self, sink: Sink, token: int, commands: Sequence[bytes], deadline: float) -> None:
        """Queue the commands or fail them; `sink` hears of each once, as number `token` and following."""
        try:
            puts = [command[1] for command in commands].count(Op.PUT) == len(commands)
        except IndexError:
            puts = False
        if puts and not self._growth_refused() and max(map(len, commands)) <= self._value_bytes:
            self._proposer.add(Batch(sink, token, commands, deadline))
        else:
            self._one_by_one(sink, token, commands, deadline)

    def _one_by_one(self, sink: Sink, token: int, commands: Sequence[bytes], deadline: float) -> None:
        """Cut the batch into runs of admitted commands; what lies between them is refused."""
        run: list[bytes] = []
        weights: list[int] = []
        start = 0
        for place, command in enumerate(commands):
            try:
                weight = self._weigh(command)
            except RequestError as error:
                if run:
                    self._proposer.add(Batch(sink, token + start, run, deadline, weights))
                    run, weights = [], []
                sink.failed(Batch(sink, token + place, [command], deadline), 0, 1, error)
                continue
            if not run:
                start = place
            run.append(command)
            weights.append(weight)
        if run:
            self._proposer.add(Batch(sink, token + start, run, deadline, weights))

    def _weigh(self, command: bytes) -> int:
        """The weight of a command that may be proposed now; raises what to answer otherwise."""
        if len(command) > limits.COMMAND_BYTES_MAX:
            raise InvalidRequest(
                f"the command has {len(command)} bytes; the largest allowed has {limits.COMMAND_BYTES_MAX}",
                code="command_too_large",
            )
        try:
            decoded = msgpack.unpackb(command)
            op = decoded[0]
            if op not in _CLIENTS:
                raise InvalidRequest(
                    "only nodes propose such a command; use put, delete, txn, compact or settings",
                    code="internal_command",
                )
            values = _values(decoded)
            weight = command_weight(command)
        except RequestError:
            raise
        except Exception as error:
            raise InvalidRequest(f"this is no command: {error}", code="malformed") from error
        largest = max(map(len, values), default=0)
        if largest > self._value_bytes:
            raise InvalidRequest(
                f"the value has {largest} bytes; this node takes at most {self._value_bytes} (limits.value_bytes)",
                code="value_too_large",
            )
        if (values or op == Op.LEASE_GRANT) and (reason := self._growth_refused()):
            raise NoSpace(f"{reason}; delete something or give it more room, then retry")
        return weight


def _values(decoded: Any) -> list[bytes]:
    """What the command would store."""
    if decoded[0] == Op.PUT:
        return [decoded[3]]
    if decoded[0] == Op.TXN:
        return [operation[2] for branch in decoded[3:5] for operation in branch if operation[0] == Op.PUT]
    return []
