"""Where the loop puts work and the writer takes it: what was handed over and not yet written, merged.

While one group is being written the next gathers here, so one sync covers everything that arrived meanwhile.
What a truncation takes back before it was written is never written at all.

Tickets count the calls that hand something over. They are how "everything up to here is durable" is said.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from raftkv_core.interfaces.consensus import Entry, Position
from raftkv_core.log.format import State
from raftkv_core.log.segments import Segment

__all__ = ["GROUP_BYTES_MAX", "Group", "Intake", "Reset", "Trim"]

GROUP_BYTES_MAX: Final = 1 << 20
"""A group takes no further entry once it is as large as this; one entry may be larger."""


class Group(NamedTuple):
    """What one frame will hold. It cuts the log at `first`."""

    epoch: int
    """Counts resets: what an earlier log had under way means nothing to a later one."""
    seen: int
    """The newest ticket whose effect is in this group or in one before it."""
    flushed: int
    """The newest ticket that is wholly durable with this group; 0 if none is because it was split."""
    first: int
    prior_term: int
    """The term of the entry before `first`."""
    entries: list[Entry]
    state: State | None

    @property
    def last(self) -> int:
        return self.first + len(self.entries) - 1


class Trim(NamedTuple):
    """Let the log begin with this segment."""

    first: Segment


class Reset(NamedTuple):
    """Begin a new log at `base`."""

    epoch: int
    ticket: int
    base: Position
    state: State
    history_id: bytes | None


@dataclass
class _Pending:
    first: int
    prior_term: int
    entries: list[Entry] = field(default_factory=list)
    state: State | None = None
    changed: bool = False


class Intake:
    """Filled by the loop thread, emptied by the writer's; each call holds a lock for microseconds."""

    def __init__(self, last: Position) -> None:
        self.ticket = 0
        """The newest ticket; changed by the loop only."""
        self.epoch = 0
        self._lock = threading.Lock()
        self._pending = _Pending(last.index + 1, last.term)
        self._orders: deque[Trim | Reset] = deque()
        self._scheduled = False

    def append(self, entries: Sequence[Entry]) -> None:
        with self._lock:
            self._pending.entries.extend(entries)
            self._note()

    def set_state(self, state: State) -> None:
        with self._lock:
            self._pending.state = state
            self._note()

    def cut(self, index: int, prior_term: int) -> None:
        """Take back the entries at `index` and above; `prior_term` is the term of the one before."""
        with self._lock:
            pending = self._pending
            if index > pending.first:
                del pending.entries[index - pending.first :]
            else:
                pending.entries.clear()
                pending.first, pending.prior_term = index, prior_term
            self._note()

    def trim(self, first: Segment) -> None:
        with self._lock:
            self._orders.append(Trim(first))

    def reset(self, base: Position, state: State, history_id: bytes | None) -> None:
        """Take back everything that is pending; what comes after goes to the new log."""
        with self._lock:
            self.ticket += 1
            self.epoch += 1
            self._pending = _Pending(base.index + 1, base.term)
            self._orders.append(Reset(self.epoch, self.ticket, base, state, history_id))

    def take(self) -> Group | Trim | Reset | None:
        """The next piece of work, None if there is none. Orders go before what was handed over after them."""
        with self._lock:
            if self._orders:
                return self._orders.popleft()
            pending = self._pending
            if not pending.changed:
                return None
            count = _group_length(pending.entries)
            entries, rest = pending.entries[:count], pending.entries[count:]
            group = Group(
                epoch=self.epoch,
                seen=self.ticket,
                flushed=0 if rest else self.ticket,
                first=pending.first,
                prior_term=pending.prior_term,
                entries=entries,
                state=pending.state,
            )
            prior_term = entries[-1].term if entries else pending.prior_term
            self._pending = _Pending(group.last + 1, prior_term, rest, changed=bool(rest))
            return group

    def claim(self) -> bool:
        """Whether the caller must get the writer going; until `release` nobody else is told so."""
        with self._lock:
            claimed = not self._scheduled
            self._scheduled = True
            return claimed

    def release(self) -> bool:
        """End a claim; False if there is work, and the claim goes on."""
        with self._lock:
            self._scheduled = self._pending.changed or bool(self._orders)
            return not self._scheduled

    def _note(self) -> None:
        self.ticket += 1
        self._pending.changed = True


def _group_length(entries: Sequence[Entry]) -> int:
    size = 0
    for count, entry in enumerate(entries, 1):
        size += len(entry.data)
        if size >= GROUP_BYTES_MAX:
            return count
    return len(entries)
