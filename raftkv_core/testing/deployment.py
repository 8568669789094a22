"""A real node for tests: `raftkv serve` as a process, with its children, on free ports.

    with Deployment(tmp_path, storage="lmdb").started() as node:
        node.request("PUT", "/v1/kv/a", b"1")
        node.kill("node")                      # kill -9; the supervisor brings it back
        node.wait_ready()

Needs an HTTP transport plugin installed; speaks to it with the standard library only.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Answer", "Deployment", "free_ports", "wait_for"]

DEADLINE_S = 30.0


class Answer(NamedTuple):
    """One HTTP answer."""

    status: int
    body: bytes
    headers: Mapping[str, str]

    def json(self) -> Any:
        return json.loads(self.body)


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different, and that no other test run is likely to draw.

    They lie below those that the system gives to outgoing connections and to port 0: between the look and the
    use, one of those could be taken.
    """
    drawn: list[int] = []
    while len(drawn) < count:
        port = random.SystemRandom().randrange(10_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in drawn:
            drawn.append(port)
    return drawn


def wait_for(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The first true result of `condition`; AssertionError naming `what` after the deadline."""
    end = time.monotonic() + deadline_s
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < end, f"{what} did not happen within {deadline_s:.0f} s"
        time.sleep(0.01)


class Deployment:
    """One node in `folder`: its configuration, its processes, and a client."""

    def __init__(self, folder: Path, *, storage: str, extra: str = "", node_id: str = "node1") -> None:
        """`extra` is TOML that is put below the rest."""
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.data = folder / "data"
        self.config = folder / "raftkv.toml"
        self.port, self.management_port, raft_port = free_ports(3)
        self.log = folder / "output.log"
        self.process: subprocess.Popen[bytes] | None = None
        self._killed_node = 0
        self.config.write_text(
            f"""
[node]
id = "{node_id}"
data_dir = "{self.data}"
bootstrap = true
raft_bind = "127.0.0.1:{raft_port}"
[storage]
use = "{storage}"
[consensus]
use = "solo"
[transport]
use = ["http"]
[transport.http]
bind = "127.0.0.1:{self.port}"
management_bind = "127.0.0.1:{self.management_port}"
{extra}
"""
        )

    # ---------------------------------------------------------------- processes

    def start(self, *, wait: bool = True) -> None:
        assert self.process is None, "it runs already"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "raftkv_core.cli", "serve", str(self.config)],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        if wait:
            self.wait_ready()

    def stop(self) -> int:
        """SIGTERM, and the supervisor's exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=DEADLINE_S)
        self.process = None
        return status

    @contextmanager
    def started(self) -> Iterator[Deployment]:
        self.start()
        try:
            yield self
        finally:
            if self.process is not None and self.process.poll() is None:
                self.stop()
            self.process = None

    def kill(self, who: str) -> int:
        """kill -9 of `supervisor` or `node`; the pid that was killed."""
        assert self.process is not None
        pid = self.process.pid if who == "supervisor" else self._node_pid()
        os.kill(pid, signal.SIGKILL)
        self._killed_node = pid if who == "node" else 0
        if who == "supervisor":
            self.process.wait(timeout=DEADLINE_S)
            self.process = None
        return pid

    def wait_ready(self, deadline_s: float = DEADLINE_S) -> None:
        def ready() -> bool:
            assert self.process is None or self.process.poll() is None, f"it ended:\n{self.output()}"
            if self._killed_node and self._node_pid() == self._killed_node:
                return False  # a worker may not have noticed yet
            try:
                return self.request("GET", "/readyz").status == 200
            except OSError:
                return False

        wait_for(ready, f"readiness of the node in {self.folder}", deadline_s)

    def _node_pid(self) -> int:
        return int((self.data / "run" / "node.pid").read_text())

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    # ---------------------------------------------------------------- a client

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        port: int | None = None,
        timeout_s: float = DEADLINE_S,
    ) -> Answer:
        """One request on a connection of its own. Raises OSError when there is no answer."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=timeout_s)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, answer.read(), {k.lower(): v for k, v in answer.getheaders()})
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()

    def status(self) -> dict[str, Any]:
        answer = self.request("GET", "/v1/status")
        assert answer.status == 200, answer
        return dict(answer.json())
