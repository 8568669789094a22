"""One node of `raftkv up`: its supervision, its newest status, its log."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, TextIO

from raftkv_core.cli._up_layout import Node
from raftkv_core.cli._up_ports import Bound, addresses
from raftkv_core.cli._up_status import ANSWER_S, StatusProbe, accepts
from raftkv_core.cli._up_view import Row
from raftkv_core.node.datadir import Layout
from raftkv_core.node.launch import prepare
from raftkv_core.node.lines import Lines
from raftkv_core.node.supervisor import State, Supervised
from raftkv_core.registry import Registry

__all__ = ["Member"]

STATUS_S: Final = 1.0
STARTING_S: Final = 0.03
"""How often a node is asked: usually, and while somebody waits for it."""
RESTART_S: Final = 2.0
"""How long after the end of everything a node is started anew, if it is to be."""
LOG_BYTES_MAX: Final = 8 << 20
"""A longer log makes room for a new one at the start; one older one is kept."""
LAST_LINES: Final = 5

_WORDS: Final = {
    State.STARTING: "starting",
    State.RESTARTING: "restarting",
    State.DRAINING: "stopping",
    State.STOPPING: "stopping",
    State.ENDED: "stopped",
}


class Member:
    """Holds the data directory's lock from the beginning until `close`."""

    def __init__(self, node: Node, registry: Registry, *, restart: bool) -> None:
        """Raises DirectoryLocked if somebody runs this node already."""
        self.node = node
        self._restart = restart
        self._bound = [bound for bound in addresses(node, registry) if bound.transport]
        self.urls: Final = [(bound.what, _url(node, bound)) for bound in self._bound]
        self._log = _open_log(node.log_file)
        self._launch = prepare(node.config, registry, output=self._log.buffer)
        self._probe = StatusProbe(Layout(node.config.node.data_dir), node.name)
        self._supervised: Supervised | None = None
        self._running_since: float | None = None
        """Since when its node can be expected to answer."""
        self._listening = False
        """Whether its transports were seen to accept connections."""
        self._ask_at = 0.0
        self._ended_at: float | None = None
        self._stopping = False
        self.down = False
        """It ended, or is about to, and nobody had asked for that."""
        self.failures: list[str] = []
        """What there is to say about ends that nobody asked for; who shows it takes it out."""

    def start(self) -> None:
        say = Lines(self.node.config.logging, self._log, node=self.node.name)
        self._supervised = Supervised(self._launch, say, restart=self._restart)
        self._listening = False
        self._ended_at = None
        self.down = False
        self._supervised.start()

    def stop(self) -> None:
        self._stopping = True
        if self._supervised is not None:
            self._supervised.stop()

    def force(self) -> None:
        self._stopping = True
        if self._supervised is not None:
            self._supervised.force()

    @property
    def ended(self) -> bool:
        """Nothing of it runs, and nothing will."""
        return self._ended_at is not None and (self._stopping or not self._restart)

    @property
    def exit_code(self) -> int:
        return 0 if self._supervised is None else self._supervised.exit_code

    @property
    def descriptors(self) -> list[int]:
        supervised = [] if self._supervised is None else self._supervised.descriptors
        return supervised + self._probe.descriptors

    @property
    def wake_at(self) -> float | None:
        """When to call `step` even if nothing happened."""
        if self._ended_at is not None:
            return self._ended_at + RESTART_S if self._restart and not self._stopping else None
        assert self._supervised is not None
        asks = self._supervised.state is State.RUNNING
        times = [self._supervised.wake_at, self._ask_at if asks else None]
        return min((time for time in times if time is not None), default=None)

    def step(self, now: float) -> None:
        """Take note of what happened, and do what follows."""
        supervised = self._supervised
        if supervised is None:
            return
        if self._ended_at is not None:
            if self._restart and not self._stopping and now >= self._ended_at + RESTART_S:
                self.start()
            return
        supervised.step()
        if supervised.exit_code and not self._stopping:
            self.down = True
        if supervised.state is State.RUNNING:
            self._look(now)
        else:
            self._running_since = None
            self._probe.forget()
        if supervised.state is State.ENDED:
            self._ended_at = now
            if self.down and not self._stopping:
                self.failures += _last_lines(self.node)

    def _look(self, now: float) -> None:
        self._running_since = self._running_since or now
        self._probe.read(now)
        if now < self._ask_at:
            return
        self._listening = self._listening or all(accepts(bound.address) for bound in self._bound)
        self._probe.ask(now)
        ready = self._listening and (self._probe.status(now) or {}).get("ready")
        self._ask_at = now + (STATUS_S if ready else STARTING_S)

    def row(self, now: float) -> Row:
        """How it stands."""
        supervised = self._supervised
        status = self._probe.status(now)
        state, detail = self._state(status, now)
        return Row(
            name=self.node.name,
            state=state,
            detail=detail,
            role=str(status["role"]) if status else "",
            urls=self.urls,
            pid=None if supervised is None else supervised.node_pid,
            revision=int(status["revision"]) if status else None,
        )

    def _state(self, status: dict[str, Any] | None, now: float) -> tuple[str, str]:
        supervised = self._supervised
        if supervised is None:
            return "starting", ""
        if self.down:
            return "down", ""
        if supervised.state is not State.RUNNING:
            return _WORDS[supervised.state], ""
        if status is not None and self._listening:
            return ("ready", "") if status["ready"] else ("waiting", str(status["reasons"][0]))
        overdue = self._running_since is not None and now - self._running_since > ANSWER_S
        return ("not answering" if overdue and status is None else "starting"), ""

    def close(self) -> None:
        """When everything has ended."""
        self._probe.close()
        self._launch.close()
        self._log.close()


def _url(node: Node, bound: Bound) -> str:
    """What a person pastes into a browser, or connects to."""
    transport = next(each for each in node.config.transports if each.name == bound.transport)
    host = "127.0.0.1" if bound.address.is_wildcard else bound.address.host
    scheme = "https" if transport.name == "http" and transport.settings.get("tls_cert_file") else transport.name
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{bound.address.port}"


def _open_log(path: Path) -> TextIO:
    if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
        path.replace(path.with_name(path.name + ".1"))
    return path.open("a", encoding="utf-8")


def _last_lines(node: Node) -> list[str]:
    """The end of the log, where the reason stands."""
    with node.log_file.open("rb") as file:
        file.seek(max(0, file.seek(0, 2) - (16 << 10)))
        lines = file.read().decode(errors="replace").splitlines()[-LAST_LINES:]
    return [f"{node.name} is down; the end of {node.log_file}:", *(f"  {line}" for line in lines)]
