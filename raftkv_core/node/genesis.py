"""Begins a history: the leader of an empty store proposes `genesis`, before anything else is proposed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from raftkv_core.machine import commands
from raftkv_core.machine.commands import Outcome
from raftkv_core.machine.histories import REVISIONS_SKIPPED
from raftkv_core.machine.settings import DEFAULTS, check_settings
from raftkv_core.machine.state import StateMachine

__all__ = ["Genesis"]

TIMEOUT_S: Final = 10.0


class Genesis:
    """`poll` whenever leadership or the machine may have changed."""

    def __init__(
        self,
        machine: StateMachine,
        begin_history: Callable[[bytes, bytes, float], asyncio.Future[Outcome]],
        draw_id: Callable[[], bytes],
        *,
        cluster_id: bytes,
        settings: Mapping[str, int],
        logger: Any,
    ) -> None:
        """`cluster_id` b"": drawn too. `settings` override what a restored store brings, and that the defaults."""
        check_settings(settings)
        self._machine = machine
        self._begin_history = begin_history
        self._draw_id = draw_id
        self._cluster_id = cluster_id
        self._settings = dict(settings)
        self._logger = logger
        self._under_way = False
        self._term: int | None = None

    def led(self, term: int | None) -> None:
        """This node leads in `term`, or (None) does not lead."""
        self._term = term
        self.poll()

    def poll(self) -> None:
        """Propose it if this node leads an empty store and has not yet."""
        if self._term is None or self._under_way or self._machine.history_id:
            return
        self._under_way = True
        history_id = self._draw_id()
        state = self._machine.state
        # A store that has data and no history was restored, or its cluster was given up.
        skipped = REVISIONS_SKIPPED if state.revision else 0
        command = commands.genesis(
            self._cluster_id or self._draw_id(),
            history_id,
            {**DEFAULTS, **self._machine.settings, **self._settings},
            base_revision=state.revision + skipped,
            base_digest=state.kv_digest,
        )
        self._begin_history(command, history_id, TIMEOUT_S).add_done_callback(self._ended)

    def _ended(self, outcome: asyncio.Future[Outcome]) -> None:
        """A failed one is tried again at the next poll; if both are applied, the second is a refused result."""
        self._under_way = False
        if not outcome.cancelled() and (error := outcome.exception()) is not None:
            self._logger.warning("the first entry was not applied, trying again", error=str(error))
