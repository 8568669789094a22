"""Keeps one node and its transports running: starts them in order, watches them, stops them in order.

    start   the node; when it is ready, the transports
    watch   a dead node is started again, later each time, while transports answer that it is away;
            a node that refuses (configuration, data directory) or a dead transport ends everything
    stop    the transports first, so that nothing new comes in, then the node

`Supervised` never blocks and owns no thread: it is told to `step`, says with `descriptors` and `wake_at` what
it waits for, and one loop can drive several (`raftkv up` does). It imports no plugin and no event loop.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from raftkv_core.node.children import READY_FD, Child
from raftkv_core.node.launch import Launch, Say
from raftkv_core.node.signals import Signals

__all__ = ["Patience", "State", "Supervised", "run"]

EXIT_FAILED: Final = 1
REFUSALS: Final = frozenset({2, 3})
"""Exit statuses of a node that would refuse again: configuration, data directory (`raftkv_core.errors`)."""


class State(Enum):
    STARTING = "starting"
    """The node is not ready yet, for the first time; no transport runs."""
    RUNNING = "running"
    RESTARTING = "restarting"
    """The node is away, transports run."""
    DRAINING = "draining"
    """Transports finish what is under way."""
    STOPPING = "stopping"
    """The node stops."""
    ENDED = "ended"


@dataclass(frozen=True)
class Patience:
    """Times in seconds."""

    transport_stop: float = 30.0
    node_stop: float = 15.0
    restart_first: float = 0.1
    restart_most: float = 10.0
    """Restarts of a node that never gets ready wait twice as long each time, from the first to the most."""
    still_starting: float = 10.0
    """How often a node that is not ready yet is mentioned."""


@dataclass
class _Transport:
    name: str
    child: Child


@dataclass
class Supervised:
    """One node and its transports."""

    launch: Launch
    say: Say
    restart: bool = True
    """Start a dead node again; else its end ends everything."""
    patience: Patience = field(default_factory=Patience)
    clock: Callable[[], float] = time.monotonic

    state: State = field(default=State.STARTING, init=False)
    exit_code: int = field(default=0, init=False)
    """What the whole should end with; final when `state` is ENDED."""
    _node: Child | None = field(default=None, init=False)
    _transports: list[_Transport] = field(default_factory=list, init=False)
    _ready_pipe: int | None = field(default=None, init=False)
    _restart_delay: float = field(default=0.0, init=False)
    _wake_at: float | None = field(default=None, init=False)
    """When the present state must be looked at again: a restart, a deadline, a word to whoever waits."""

    @property
    def node_pid(self) -> int | None:
        return None if self._node is None else self._node.pid

    @property
    def pids(self) -> list[int]:
        """Every child that was not seen to end."""
        children = [transport.child for transport in self._transports]
        return [child.pid for child in (*children, self._node) if child is not None]

    @property
    def descriptors(self) -> list[int]:
        """When one can be read, call `step`."""
        return [] if self._ready_pipe is None else [self._ready_pipe]

    @property
    def wake_at(self) -> float | None:
        """When to call `step` even if nothing happened."""
        return self._wake_at

    def start(self) -> None:
        self._start_node()

    def step(self) -> None:
        """Take note of what happened and do what follows from it."""
        self._look_at_transports()
        self._look_at_node()
        self._look_at_ready_pipe()
        if self._wake_at is not None and self.clock() >= self._wake_at:
            self._wake_at = None
            self._on_time()
        self._go_on_stopping()

    def stop(self) -> None:
        """Stop in order; `step` until ENDED. Again: nothing."""
        if self.state not in (State.DRAINING, State.STOPPING, State.ENDED):
            self._drain()

    def force(self) -> None:
        """Kill everything now; `step` until ENDED."""
        self.stop()
        for transport in self._transports:
            transport.child.kill()
        if self._node is not None:
            self._node.kill()

    # the node

    def _start_node(self) -> None:
        self._ready_pipe, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._node = Child(
                self.launch.node,
                environ={**self.launch.node_environ, READY_FD: str(write)},
                pass_fds=(*self.launch.node_fds, write),
                output=self.launch.output,
            )
        finally:
            os.close(write)
        self._wake_at = self.clock() + self.patience.still_starting

    def _look_at_ready_pipe(self) -> None:
        if self._ready_pipe is None:
            return
        try:
            line = os.read(self._ready_pipe, 64)
        except BlockingIOError:
            return
        self._close_ready_pipe()
        if not line or self.state not in (State.STARTING, State.RESTARTING):
            return  # it ended, which `_look_at_node` sees; or it is to stop
        self._restart_delay = 0.0
        self._wake_at = None
        self.say("info", "node ready", pid=self.node_pid)
        first = self.state is State.STARTING
        self.state = State.RUNNING
        if first:
            self._start_transports()

    def _look_at_node(self) -> None:
        code = None if self._node is None else self._node.poll()
        if code is None:
            return
        self._node = None
        self._close_ready_pipe()
        if self.state in (State.DRAINING, State.STOPPING):
            if code not in (0, -signal.SIGTERM):  # the latter before it could catch it
                self._fail_with(EXIT_FAILED, "node did not stop cleanly", ended=_ending(code))
        elif code in REFUSALS:
            self._fail_with(code, "node refused to start", ended=_ending(code))
        elif self.state is State.STARTING or not self.restart:
            self._fail_with(code if code > 0 else EXIT_FAILED, "node ended", ended=_ending(code))
        else:
            self._plan_restart(code)

    def _plan_restart(self, code: int) -> None:
        doubled = max(self.patience.restart_first, 2 * self._restart_delay)
        self._restart_delay = min(doubled, self.patience.restart_most)
        self._wake_at = self.clock() + self._restart_delay
        self.state = State.RESTARTING
        self.say("error", "node ended, starting it again", ended=_ending(code), delay_s=self._restart_delay)

    def _close_ready_pipe(self) -> None:
        if self._ready_pipe is not None:
            os.close(self._ready_pipe)
            self._ready_pipe = None

    # the transports

    def _start_transports(self) -> None:
        for name, command in self.launch.transports:
            try:
                child = Child(command, environ=self.launch.environ, output=self.launch.output)
            except OSError as error:
                self._fail_with(EXIT_FAILED, "transport cannot be started", transport=name, error=str(error))
                return
            self._transports.append(_Transport(name, child))
            self.say("info", "transport started", transport=name, pid=child.pid)

    def _look_at_transports(self) -> None:
        for transport in list(self._transports):
            code = transport.child.poll()
            if code is None:
                continue
            self._transports.remove(transport)
            if self.state is not State.DRAINING:
                self._fail_with(
                    code if code in REFUSALS else EXIT_FAILED,
                    "transport ended, so everything ends",
                    transport=transport.name,
                    ended=_ending(code),
                )

    # stopping

    def _fail_with(self, code: int, event: str, **fields: object) -> None:
        """The first failure decides the exit status."""
        self.exit_code = self.exit_code or code
        self.say("error", event, **fields)
        self.stop()

    def _drain(self) -> None:
        self.state = State.DRAINING
        self._wake_at = self.clock() + self.patience.transport_stop
        for transport in self._transports:
            transport.child.terminate()

    def _go_on_stopping(self) -> None:
        if self.state is State.DRAINING and not self._transports:
            self.state = State.STOPPING
            self._wake_at = self.clock() + self.patience.node_stop
            if self._node is not None:
                self._node.terminate()
        if self.state is State.STOPPING and self._node is None:
            self.state = State.ENDED
            self._wake_at = None

    def _on_time(self) -> None:
        """The time that the present state waited for has come."""
        if self.state is State.DRAINING:
            for transport in self._transports:
                self.say("warning", "transport did not stop in time, killing it", transport=transport.name)
                transport.child.kill()
        elif self.state is State.STOPPING and self._node is not None:
            self.say("warning", "node did not stop in time, killing it", pid=self._node.pid)
            self._node.kill()
        elif self._node is None:
            self._start_node()
        elif self._ready_pipe is not None:
            self.say("info", "node is still starting", pid=self._node.pid)
            self._wake_at = self.clock() + self.patience.still_starting


def _ending(code: int) -> str:
    """How a process ended, for people."""
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def run(supervised: Supervised) -> int:
    """Drive one to its end, the way `raftkv serve` does; returns the exit status.

    SIGTERM or SIGINT stops in order, a second one at once.
    """
    with Signals() as signals:
        supervised.start()
        handled = 0
        while supervised.state is not State.ENDED:
            signals.wait(supervised.descriptors, until=supervised.wake_at)
            if signals.stops > handled:
                if signals.stops == 1:
                    supervised.say("info", "stopping")
                    supervised.stop()
                else:
                    supervised.say("warning", "stopping at once")
                    supervised.force()
                handled = signals.stops
            supervised.step()
            _reap_adopted(supervised.pids)
    return supervised.exit_code


def _reap_adopted(own: Collection[int]) -> None:
    """Bury what others left: as process 1 of a container, this process inherits every orphan."""
    while True:
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in own:
            return  # none, or one that the next step looks at
        os.waitpid(ended.si_pid, 0)
