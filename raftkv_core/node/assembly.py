"""The parts of a running node, put together; `runtime` gives them life.

Nothing here decides when: `open` builds everything from the bottom up without starting the engine or the
socket, `close` takes it apart again.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from raftkv_core.config import Config
from raftkv_core.config_checks import capabilities, insecure_listeners
from raftkv_core.errors import IdentityMismatch
from raftkv_core.interfaces.consensus import (
    Clock,
    Consensus,
    ConsensusContext,
    Identity,
    Member,
    Network,
    Position,
    Role,
)
from raftkv_core.interfaces.storage import Storage
from raftkv_core.log import DurableLog, ThreadExecutor
from raftkv_core.machine.state import StateMachine
from raftkv_core.node.admission import Admission
from raftkv_core.node.barrier import ReadBarrier
from raftkv_core.node.calls import Calls
from raftkv_core.node.checks import check_limits, reconcile_log
from raftkv_core.node.committer import Committer
from raftkv_core.node.datadir import DataDirectory
from raftkv_core.node.figures import node_figures
from raftkv_core.node.genesis import Genesis
from raftkv_core.node.machine import NodeMachine
from raftkv_core.node.proposer import Proposer
from raftkv_core.node.server import NodeServer, Services
from raftkv_core.node.space import SpaceWatch, free_bytes
from raftkv_core.node.status import NodeStatus
from raftkv_core.node.store import LocalStore
from raftkv_core.node.streams import StreamFile
from raftkv_core.node.ticker import Ticker
from raftkv_core.node.watch import RevisionNews
from raftkv_core.registry import Registry

__all__ = ["Assembly", "Surroundings"]

TRIM_EVERY_ENTRIES: Final = 1_000
LOG_RESERVE_BYTES: Final = 16 << 20

EngineFactory = Callable[[ConsensusContext, Any], Consensus]


@dataclass(frozen=True)
class Surroundings:
    """What a node is put into; a simulation brings its own."""

    config: Config
    registry: Registry
    data: DataDirectory
    clock: Clock
    network: Network
    random: random.Random
    """Given to the engine: election time-outs and the like. Ids are drawn from the system."""
    logger: Any


class Assembly:
    """All parts of one node, by name."""

    def __init__(
        self,
        around: Surroundings,
        *,
        fatal: Callable[[str], None],
        spawn: Callable[[Coroutine[Any, Any, None], str], Any],
        make_engine: EngineFactory | None = None,
    ) -> None:
        """Opens storage, machine and log. `make_engine` stands in for the configured engine.

        Raises ConfigError, DataDirectoryError or StorageError; what was opened until then is closed.
        """
        self.around = around
        self._fatal = fatal
        self._spawn = spawn
        self._log: DurableLog | None = None
        self._trimmed_index = 0
        self.reserves_released = False
        """Replay was given what is held back for it."""
        self.maintenance_due = False
        """A reader process ended: it may have left something in storage."""
        self.storage: Storage
        keeper = self._open_storage()
        try:
            self._build(keeper, make_engine)
        except BaseException:
            self._close_opened()
            raise

    # ---------------------------------------------------------------- from the bottom up

    def _open_storage(self) -> StreamFile | None:
        config, registry, data = self.around.config, self.around.registry, self.around.data
        plugin = registry.storage(config.storage.name)
        settings = registry.settings(plugin, config.storage.settings)
        storage: Storage = registry.load(plugin)(data.storage, settings)
        try:
            check_limits(plugin.name, storage)
            self.storage_durable = "durable" in plugin.capabilities(settings)
            if storage.space().free_bytes < config.limits.space_low_bytes:
                storage.release_reserve()  # replay must not fail for want of what was held back for it
                self.reserves_released = True
            keeper = None if self.storage_durable else StreamFile(data.streams, storage)
            if keeper is not None:
                keeper.load()
        except BaseException:
            storage.close()
            raise
        self.storage = storage
        return keeper

    def _close_opened(self) -> None:
        if self._log is not None:
            self._log.close()
        self.storage.close()

    def _build(self, keeper: StreamFile | None, make_engine: EngineFactory | None) -> None:
        config, data, logger = self.around.config, self.around.data, self.around.logger
        self.machine = machine = StateMachine(self.storage, storage_durable=self.storage_durable)
        if keeper is not None:
            machine.mark_durable(machine.visible)
        self._check_identity()
        self.news = RevisionNews(machine.revision, on_watched=self._on_watched)
        self.committer = Committer(
            machine,
            self.storage,
            commit_delay_s=config.limits.commit_delay_ms / 1_000,
            buffer_bytes=config.limits.buffer_bytes,
            fatal=self._fail,
            keeper=keeper,
        )
        self.committer.on_visible.append(self._on_visible)
        self.committer.on_durable.append(self._on_durable)
        self.proposer = Proposer(
            config.node.id,
            int.from_bytes(os.urandom(8), "big"),
            submit=self._submit,
            history_id=lambda: machine.history_id,
            on_bug=self._fail,
            queue_commands=config.limits.queue_commands,
            queue_bytes=config.limits.queue_bytes,
        )
        self.node_machine = NodeMachine(
            machine,
            self.storage,
            self.committer,
            self.proposer,
            spool_directory=data.streams,
            pin_max_s=config.limits.pin_max_s,
            on_history=self._on_history,
            on_role=self._on_role,
            fatal=self._fatal,
        )
        self.engine = self._make_engine(make_engine)
        self.space = SpaceWatch(
            machine,
            self.storage,
            self.proposer.propose,
            node_id=config.node.id,
            directories=[data.log, data.storage],
            low_bytes=config.limits.space_low_bytes,
            logger=logger,
        )
        self.space.measure()
        self.ticker = Ticker(machine, self.around.clock, self.proposer.propose)
        self.genesis = Genesis(
            machine,
            self.proposer.begin_history,
            partial(os.urandom, 16),
            cluster_id=bytes.fromhex(data.identity.cluster_id),
            settings=config.cluster.settings,
            logger=logger,
        )
        self.node_machine.on_applied.append(self.genesis.poll)
        self.barrier = ReadBarrier(self.engine.read_index, self.committer.visible)
        self.admission = Admission(
            self.proposer, value_bytes=config.limits.value_bytes, growth_refused=self.space.growth_refused
        )
        self.started = False
        offered = capabilities(config, self.around.registry)
        self._replicated = "replicated" in offered
        self.status = NodeStatus(
            config=config,
            machine=machine,
            engine=self.engine,
            space=self.space,
            capabilities=sorted(offered),
            insecure_listeners=insecure_listeners(config, self.around.registry),
            figures=node_figures(self.proposer, self.committer, self.storage, machine, self.barrier),
            replaying=lambda: not self.started,
        )
        self.store = LocalStore(
            storage=self.storage,
            barrier=self.barrier,
            news=self.news,
            admission=self.admission,
            engine=self.engine,
            status=self.status,
            timeout_s=config.limits.request_timeout_s,
        )
        self.server = NodeServer(
            Services(
                node_id=config.node.id,
                admission=self.admission,
                barrier=self.barrier,
                news=self.news,
                calls=Calls(self.store),
                standing=lambda: (*machine.visible, self.storage.generation),
                begin_stream=self.node_machine.snapshot,
                worker_gone=self._on_worker_gone,
                logger=logger,
            )
        )
        self._generation = self.storage.generation

    def _make_engine(self, make_engine: EngineFactory | None) -> Consensus:
        config, registry = self.around.config, self.around.registry
        plugin = registry.consensus(config.consensus.name)
        settings = registry.settings(plugin, config.consensus.settings)
        factory: EngineFactory = make_engine or registry.load(plugin)
        return factory(self._context(), settings)

    def _context(self) -> ConsensusContext:
        around, config = self.around, self.around.config
        return ConsensusContext(
            directory=around.data.consensus,
            identity=Identity(
                node_id=config.node.id,
                cluster_name=config.cluster.name,
                cluster_id=around.data.identity.cluster_id,
                history_id=self.machine.history_id.hex(),
            ),
            bind=config.node.raft_bind,
            advertise=config.node.raft_advertise or config.node.raft_bind,
            members=self._members(),
            open_log=self._open_log,
            clock=around.clock,
            random=around.random,
            network=around.network,
            spawn=self._spawn,
            logger=around.logger.bind(engine=config.consensus.name),
        )

    def _members(self) -> list[Member]:
        node = self.around.config.node
        members = {node.id: node.raft_advertise or node.raft_bind, **self.around.config.cluster.members}
        return [Member(node_id, address) for node_id, address in members.items()]

    def _open_log(self) -> DurableLog:
        assert self._log is None, "the log is opened once"
        config, data = self.around.config, self.around.data
        self._log = log = DurableLog.open(
            data.log,
            executor=ThreadExecutor(asyncio.get_running_loop()),
            on_failed=self._fail,
            sync=config.log.sync,
            segment_bytes=config.log.segment_bytes,
            reserve_bytes=LOG_RESERVE_BYTES,
            stall_s=config.log.stall_s,
        )
        for cut in log.cuts:
            self.around.logger.info("the log was cut after a crash", what=cut)
        if self.reserves_released or free_bytes(data.log) < config.limits.space_low_bytes:
            log.release_reserve()
            self.reserves_released = True
        reconcile_log(log, data.log, self.machine.visible, self.machine.history_id)
        return log

    def _check_identity(self) -> None:
        known, stored = self.around.data.identity.cluster_id, self.machine.cluster_id.hex()
        if stored and known and stored != known:
            raise IdentityMismatch(
                f"the store in {self.around.data.storage} is of cluster {stored}, the data directory of {known}; "
                "put back the storage folder that belongs here, or replace this node"
            )

    # ---------------------------------------------------------------- what one part tells another

    def _submit(self, entry: bytes, timeout_s: float) -> Awaitable[Position | None]:
        return self.engine.submit(entry, timeout_s)

    def _fail(self, reason: str) -> None:
        self.node_machine.fatal(reason)

    def _on_watched(self, watched: bool) -> None:
        self.committer.watch(watched)

    def _on_visible(self) -> None:
        if self.storage.generation != self._generation:
            self._generation = self.storage.generation
            self.server.announce_generation()
        self.news.announce(self.committer.visible_revision)

    def _on_durable(self, durable: Position) -> None:
        """Let the log go, but for a tail that slow followers are served from, if there can be any."""
        index = durable.index - (self.around.config.log.keep_entries if self._replicated else 0)
        if index - self._trimmed_index >= TRIM_EVERY_ENTRIES and self.started:
            self._trimmed_index = index
            self.engine.trim(index)

    def _on_history(self, cluster_id: bytes, history_id: bytes) -> None:
        """A history begins, or is joined: directory and log remember it before storage does."""
        self.around.data.adopt_cluster_id(cluster_id.hex())
        if self._log is not None:
            known = self._log.history_id
            if known and known != history_id:
                raise IdentityMismatch(
                    f"the log is of history {known.hex()}, the data of {history_id.hex()}; replace this node"
                )
            self._log.set_history(history_id)
        self.around.logger.info("the store's history", cluster_id=cluster_id.hex(), history_id=history_id.hex())

    def _on_role(self, role: Role, term: int, leader: str | None) -> None:
        leads = term if role == "leader" else None
        self.ticker.led(leads)
        self.space.led(leads is not None)
        self.genesis.led(leads)
        self.around.logger.info("role", role=role, term=term, leader=leader)

    def _on_worker_gone(self) -> None:
        self.maintenance_due = True

    # ---------------------------------------------------------------- care

    async def maintain(self) -> None:
        """Free what dead readers left behind."""
        self.maintenance_due = False
        await self.committer.run_in_writer(self.storage.maintain)

    def hold_reserves(self) -> None:
        """There is space again: hold back what was given up."""
        self.reserves_released = False
        self.storage.restore_reserve()
        if self._log is not None:
            self._log.restore_reserve()

    async def bootstrap_if_told(self) -> None:
        """Begin a cluster here, if the configuration says so and the store is empty of history."""
        config = self.around.config
        if config.node.bootstrap and not self.machine.history_id and not self.machine.applied.index:
            await self.engine.bootstrap(self._members(), Position(0, 0))

    def close_storage(self) -> None:
        """The engine has stopped, which closed its log unless it failed to, and no commit is under way."""
        self.machine.close()
        self._close_opened()
