"""`raftkv serve` with a real node and no transport: refusals, crashes, long paths."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from raftkv_core.cli._up_status import StatusProbe
from raftkv_core.node.datadir import Layout

CONFIG = """
[node]
id = "{node_id}"
data_dir = "{data}"
bootstrap = true
[storage]
use = "memory"
[transport]
use = []
"""


class Serve:
    """A configuration file, and `raftkv serve` with it."""

    def __init__(self, folder: Path, until: Callable[..., object], data: str = "data") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "raftkv.toml"
        self.data = Layout(folder / data)
        self.said_file = folder / "said"
        self.until = until
        self.process: subprocess.Popen[bytes] | None = None
        self.write()

    def write(self, node_id: str = "node1", more: str = "") -> None:
        self.file.write_text(CONFIG.format(node_id=node_id, data=self.data.path) + more)

    def start(self) -> subprocess.Popen[bytes]:
        self.said_file.unlink(missing_ok=True)
        with self.said_file.open("ab") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "raftkv_core.cli", "serve", str(self.file)], stdout=said, stderr=said
            )
        return self.process

    @property
    def said(self) -> str:
        return self.said_file.read_text()

    def ready(self, times: int = 1) -> None:
        def there() -> bool:
            assert self.process is not None
            over = self.process.poll() is not None
            assert not over, self.said
            return len(re.findall("node ready", self.said)) >= times

        self.until(there)

    def stop(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=30)

    def clean_up(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()
        if self.data.socket_file.exists():  # a killed node's
            shutil.rmtree(self.data.node_socket().parent)


@pytest.fixture
def serve(tmp_path: Path, until: Callable[..., object]) -> Iterator[Serve]:
    made = Serve(tmp_path / "one", until)
    yield made
    made.clean_up()


def test_a_node_starts_and_stops(serve: Serve) -> None:
    """The node's lines and the supervisor's come out together; SIGTERM ends with 0; nothing is left in run/
    but the resolved configuration, for its owner's eyes."""
    serve.start()
    serve.ready()
    assert re.search(r"started .*node=node1", serve.said), "the node's own line"
    assert serve.stop() == 0
    assert [path.name for path in serve.data.run.iterdir()] == ["resolved.json"]
    assert serve.data.resolved_file.stat().st_mode & 0o777 == 0o600


def test_the_supervisor_imports_little() -> None:
    """Neither plugins' libraries nor an event loop, nor what is slow to import: it starts first, others wait."""
    code = (
        "import sys, os; import raftkv_core.cli.serve, raftkv_core.cli.up\n"
        "from raftkv_core.registry import Registry; from raftkv_core.config import load_config\n"
        "load_config(None, environ={}, options={}, registry=Registry.discover())\n"
        "print(*{'asyncio', 'uvloop', 'structlog', 'rich', 'lmdb', 'falcon', 'gunicorn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def test_another_node_is_refused_with_the_reason(serve: Serve) -> None:
    """A data directory of another node ends `serve` with 3 and the node's message, not in a restart loop."""
    serve.start()
    serve.ready()
    assert serve.stop() == 0
    serve.write(node_id="node2")
    assert serve.start().wait(timeout=30) == 3
    assert serve.said.count("belongs to node 'node1', not to 'node2'") == 1


def test_a_wrong_configuration_is_refused(serve: Serve) -> None:
    """A key that nothing knows ends `serve` with 2, before anything is made."""
    serve.write(more="[log]\nsink = true\n")
    assert serve.start().wait(timeout=30) == 2
    assert re.fullmatch(r"raftkv: .*raftkv\.toml:\d+: unknown key log\.sink; .*\n", serve.said)
    assert not serve.data.path.exists()


def test_what_is_unsafe_is_told_at_every_start(serve: Serve) -> None:
    """A configuration that can lose data says so each time, not only the first."""
    serve.write(more="[log]\nsync = false\n")
    for _ in range(2):
        serve.start()
        serve.ready()
        assert re.search(r"\[warning\] log\.sync = false", serve.said)
        assert serve.stop() == 0


def test_a_second_serve_changes_nothing(serve: Serve, tmp_path: Path) -> None:
    """Who comes second is told the first one's pid, and does not touch what the first one's children read."""
    first = serve.start()
    serve.ready()
    resolved = serve.data.resolved_file.read_bytes()
    second = Serve(tmp_path / "two", serve.until)
    second.data = serve.data
    second.write(more="[limits]\nrequest_timeout_s = 1.0\n")
    assert second.start().wait(timeout=30) == 3
    assert f"in use by process {first.pid};" in second.said
    assert serve.data.resolved_file.read_bytes() == resolved
    assert serve.stop() == 0


def test_a_killed_node_comes_back_where_it_was(serve: Serve) -> None:
    """After kill -9 of the node there is another one soon, on the same socket path; it stops cleanly."""
    serve.start()
    serve.ready()
    socket, pid = serve.data.node_socket(), int(serve.data.pid_file.read_text())
    os.kill(pid, signal.SIGKILL)
    serve.ready(times=2)
    assert serve.data.node_socket() == socket
    assert int(serve.data.pid_file.read_text()) != pid
    assert serve.stop() == 0
    assert not socket.parent.exists()


def test_a_killed_supervisor_takes_the_node_along(serve: Serve) -> None:
    """kill -9 of `raftkv serve` leaves no node behind, and the next start goes on."""
    process = serve.start()
    serve.ready()
    [node] = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    assert psutil.wait_procs([node], timeout=20)[1] == []
    serve.start()
    serve.ready()
    assert serve.stop() == 0


def test_a_stop_before_the_node_is_ready_is_clean(serve: Serve) -> None:
    """SIGTERM while the node still starts ends with 0 too."""
    process = serve.start()
    serve.until(lambda: psutil.Process(process.pid).children())
    assert serve.stop() == 0
    serve.start()
    serve.ready()
    assert serve.stop() == 0


def test_a_long_path_serves(tmp_path: Path, until: Callable[..., object]) -> None:
    """A data directory of more than 200 characters works, its socket answers."""
    serve = Serve(tmp_path, until, data=f"{'d' * 100}/{'e' * 100}")
    try:
        serve.start()
        serve.ready()
        probe = StatusProbe(serve.data, "node1")
        probe.ask(time.monotonic())

        def answered() -> object:
            probe.read(time.monotonic())
            return probe.status(time.monotonic())

        status = until(answered)
        probe.close()
        assert isinstance(status, dict)
        assert status["ready"]
        assert status["pid"] == int(serve.data.pid_file.read_text())
        assert serve.stop() == 0
    finally:
        serve.clean_up()
