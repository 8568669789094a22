"""Moves the cluster's clock, if this node leads and anything can expire.

A tick moves the clock by one interval. They are proposed no closer together than an interval of
CLOCK_BOOTTIME, counted from when the one before was seen applied or failed, and the first of a term a full
interval after the term began. So the clock may lag behind real time and never runs ahead of it: nothing
expires early.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from raftkv_core.errors import RequestError
from raftkv_core.interfaces.consensus import Clock
from raftkv_core.machine import commands
from raftkv_core.machine.commands import Outcome
from raftkv_core.machine.state import StateMachine

__all__ = ["Ticker"]

TIMEOUT_S: Final = 10.0


class Ticker:
    """`poll` is called often enough (several times an interval); the rest follows."""

    def __init__(
        self,
        machine: StateMachine,
        clock: Clock,
        propose: Callable[[bytes, float], asyncio.Future[Outcome]],
    ) -> None:
        self._machine = machine
        self._clock = clock
        self._propose = propose
        self._term: int | None = None
        self._since = 0.0
        self._under_way = False

    def led(self, term: int | None) -> None:
        """This node leads in `term`, or (None) does not lead."""
        if term != self._term:
            self._term = term
            self._since = self._clock.boottime()

    def poll(self) -> None:
        """Propose a tick if one is due."""
        machine = self._machine
        if self._term is None or self._under_way or not machine.history_id:
            return
        if not (machine.dedupe_count or machine.lease_count):
            self._since = self._clock.boottime()
            return
        if self._clock.boottime() - self._since < machine.settings["tick_ms"] / 1_000:
            return
        self._under_way = True
        self._propose(commands.tick(self._term), TIMEOUT_S).add_done_callback(self._ended)

    def _ended(self, outcome: asyncio.Future[Outcome]) -> None:
        self._under_way = False
        self._since = self._clock.boottime()
        if not outcome.cancelled() and (error := outcome.exception()) is not None:
            assert isinstance(error, RequestError)  # not applied or unknown: the next one comes in time
