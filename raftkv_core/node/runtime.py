"""One node: its parts started and stopped in order, and what happens when one of them fails.

    with DataDirectory.open(config) as data:
        runtime = NodeRuntime(config, registry, data)
        await runtime.start()                   # ready, or clearly waiting for others
        notify_ready()
        await runtime.serve_until_stopped(stop) # until the event is set; raises NodeFailed after a fault

Start: storage, machine and log, the socket, consensus (which replays the log), transports that live in this
process. Stop: the other way round; what is in flight is waited for, leadership handed over and storage made
durable, so the next start replays nothing.
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Final

from raftkv_core.config import Config
from raftkv_core.errors import DataDirectoryError, RaftkvError
from raftkv_core.interfaces.consensus import Clock, Network
from raftkv_core.interfaces.transport import InProcessTransport, Store
from raftkv_core.node.assembly import Assembly, EngineFactory, Surroundings
from raftkv_core.node.datadir import DataDirectory
from raftkv_core.node.environment import SystemClock, SystemNetwork
from raftkv_core.node.full import FullEngine
from raftkv_core.node.space import free_bytes
from raftkv_core.observability import get_logger
from raftkv_core.registry import Registry

__all__ = ["NodeFailed", "NodeRuntime"]

STEP_S: Final = 3.0
"""For each step of a stop; the supervisor is more patient than all of them together."""

POLL_S: Final = 0.1
"""How often the ticker looks at its clock."""

HOUSEKEEPING_S: Final = 1.0
MAINTAIN_S: Final = 60.0

PATIENCE_S: Final = 3.0
"""A node that has had no leader for so long waits for others, clearly."""

LOG_LEAST_BYTES: Final = 1 << 20
"""With less than this free, a log that cannot be written is one that has no room."""

SWITCH_INTERVAL_S: Final = 0.0005
"""Threads hand the interpreter over faster than by default (5 ms), so that neither a storage commit nor a stream
holds the loop up, nor the loop the log's thread."""


class NodeFailed(RaftkvError):
    """The node cannot go on; the message says why. Started again, it replays its log."""


class NodeRuntime:
    """See the module. `data` stays the caller's to close, after `stop` or NodeFailed."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        data: DataDirectory,
        *,
        clock: Clock | None = None,
        network: Network | None = None,
        random_source: random.Random | None = None,
        logger: Any = None,
    ) -> None:
        self._around = Surroundings(
            config=config,
            registry=registry,
            data=data,
            clock=clock or SystemClock(),
            network=network or SystemNetwork(),
            random=random_source or random.SystemRandom(),
            logger=logger or get_logger("raftkv.node"),
        )
        self._logger = self._around.logger
        self._parts: Assembly | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._transports: list[InProcessTransport] = []
        self._failed = asyncio.Event()
        self._failure: str | None = None
        self._read_only = False

    # ---------------------------------------------------------------- what others see

    @property
    def parts(self) -> Assembly:
        """Everything inside; for tests and benchmarks."""
        assert self._parts is not None, "the node was not started"
        return self._parts

    @property
    def store(self) -> Store:
        """For transports in this process."""
        return self.parts.store

    @property
    def ready(self) -> bool:
        """It serves reads and writes of every level."""
        return self._parts is not None and not self._parts.status.reasons()

    # ---------------------------------------------------------------- start

    async def start(self) -> None:
        """Returns when the node is ready, or clearly waits for others; the socket answers long before.

        Raises ConfigError, PluginError, DataDirectoryError, StorageError or NodeFailed; nothing is left open.
        """
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        try:
            await self._start_or_read_only()
            self._check_failure()
            self._spawn(self._poll(), "poll")
            self._spawn(self._keep_house(), "housekeeping")
            await self._start_transports()
            await self._settle()
            self._check_failure()
        except BaseException:
            await self._abandon()
            raise

    async def _start_or_read_only(self) -> None:
        try:
            await self._start(None)
        except DataDirectoryError:
            if self._parts is None or self._failure is None or not self._is_full():
                raise
        if self._failure is not None and self._is_full():
            await self._start_read_only()

    def _is_full(self) -> bool:
        """Whether the fault came for want of space, in storage or under the log."""
        return self.parts.committer.full or free_bytes(self._around.data.log) < LOG_LEAST_BYTES

    async def _start(self, make_engine: EngineFactory | None) -> None:
        parts = self._parts = Assembly(self._around, fatal=self._fatal, spawn=self._spawn, make_engine=make_engine)
        await parts.server.start(self._around.data.prepare_socket())
        await parts.bootstrap_if_told()
        await parts.engine.start(parts.node_machine)
        await self._see_replay_committed(parts)
        parts.started = True
        self._logger.info("started", index=parts.machine.applied.index, revision=parts.machine.revision)

    async def _see_replay_committed(self, parts: Assembly) -> None:
        """A storage that is too full for what was replayed shows it here, and not when clients are served."""
        committed = asyncio.ensure_future(parts.committer.visible(parts.machine.applied.index))
        failed = asyncio.ensure_future(self._failed.wait())
        await asyncio.wait((committed, failed), return_when=asyncio.FIRST_COMPLETED)
        failed.cancel()
        committed.cancel()
        await asyncio.gather(committed, return_exceptions=True)

    async def _start_read_only(self) -> None:
        """Replay failed for want of space: show what there is, instead of failing again and again."""
        self._logger.error("no space is left to replay the log: serving stale reads only", reason=self._failure)
        await self._abandon()
        self._failure = None
        self._failed.clear()
        self._read_only = True
        await self._start(FullEngine)

    async def _start_transports(self) -> None:
        registry = self._around.registry
        for selected in self._around.config.transports:
            plugin = registry.transport(selected.name)
            if plugin.load:
                factory = registry.load(plugin)
                transport: InProcessTransport = factory(self.store, registry.settings(plugin, selected.settings))
                await transport.start()
                self._transports.append(transport)

    async def _settle(self) -> None:
        """Wait until the node is ready, has failed, or has had no leader for so long that it must need others."""
        patience = self._around.clock.monotonic() + PATIENCE_S
        while not (self.ready or self._read_only or self._failure is not None):
            if self._around.clock.monotonic() >= patience:
                self._logger.info("waiting", reasons=self.parts.status.reasons())
                return
            await self._around.clock.sleep(0.005)

    # ---------------------------------------------------------------- run

    async def serve_until_stopped(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set, then stop in order. Raises NodeFailed after a fault, with nothing left open."""
        waits = [asyncio.ensure_future(event.wait()) for event in (stop, self._failed)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self._failure is None:
            await self.stop()
        else:
            await self._abandon()
        self._check_failure()

    async def stop(self) -> None:
        """Finish what is under way, make everything durable, close."""
        parts = self.parts
        self._logger.info("stopping")
        for transport in self._transports:
            await transport.stop(STEP_S)
        self._transports.clear()
        await parts.server.stop_accepting()
        await parts.proposer.drain(STEP_S)
        await self._stop_engine(transfer=True)
        await self._end_requests()
        await self._close(durable=not self._read_only)
        self._check_failure()
        self._logger.info("stopped")

    async def _abandon(self) -> None:
        """After a fault: end everything, acknowledge nothing, leave storage as it is.

        Clients are told first, because what failed may also be slow to stop.
        """
        for transport in self._transports:
            with suppress(Exception):
                await transport.stop(0.0)
        self._transports.clear()
        if self._parts is not None:
            await self._end_requests()
            await self._stop_engine(transfer=False)
            await self._close(durable=False)

    async def _stop_engine(self, *, transfer: bool) -> None:
        try:
            await self.parts.engine.stop(transfer=transfer, deadline_s=STEP_S)
        except Exception as error:  # noqa: BLE001 - whatever it is, everything else is still to be closed
            self._logger.warning("the consensus engine did not stop in order", error=repr(error))

    async def _end_requests(self) -> None:
        """Answer everybody who waits, truthfully, and end the connections."""
        parts = self.parts
        await parts.proposer.stop()
        await parts.barrier.close()
        await parts.store.close()
        await parts.server.close()

    async def _close(self, *, durable: bool) -> None:
        parts = self.parts
        await self._cancel_tasks()
        await parts.committer.close(durable=durable and self._failure is None)
        parts.close_storage()
        self._parts = None

    async def _cancel_tasks(self) -> None:
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---------------------------------------------------------------- faults

    def _fatal(self, reason: str) -> None:
        if self._failure is None:
            self._failure = reason
            self._logger.error("the node cannot go on", reason=reason)
            self._failed.set()

    def _check_failure(self) -> None:
        if self._failure is not None:
            raise NodeFailed(self._failure)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a task whose failure is the node's."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._logger.error("a task failed", task=name, exc_info=error)
                self._fatal(f"{name} failed: {error!r}")

        task.add_done_callback(ended)
        return task

    # ---------------------------------------------------------------- now and then

    async def _poll(self) -> None:
        while True:
            self.parts.ticker.poll()
            await self._around.clock.sleep(POLL_S)

    async def _keep_house(self) -> None:
        maintained = self._around.clock.monotonic()
        while True:
            parts = self.parts
            parts.space.poll()
            parts.genesis.poll()
            if self._read_only and not parts.space.low:
                self._fatal("there is space again: starting anew to replay the log")
            elif parts.reserves_released and not parts.space.low:
                parts.hold_reserves()
            if parts.maintenance_due or self._around.clock.monotonic() - maintained >= MAINTAIN_S:
                maintained = self._around.clock.monotonic()
                await parts.maintain()
            await self._around.clock.sleep(HOUSEKEEPING_S)
