"""The shortest proof that an installation works: start a node, write, stop it, start it again, read.

Runs the command `raftkv` as a user would, from a folder outside the repository, and speaks HTTP with nothing but
the standard library, so that it also tells of an environment that holds only what a user installs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

__all__ = ["free_http_port", "start_write_restart"]

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
VALUE = b"survives a restart\x00\xff"


def start_write_restart(raftkv: Path, directory: Path) -> None:
    """Raises AssertionError with what the node printed, if anything is not as it should be."""
    port = free_http_port()
    with _node(raftkv, directory, port):
        assert _request("PUT", f"http://127.0.0.1:{port}/v1/kv/greeting", VALUE) in {200, 201, 204}
        assert _read(port) == VALUE
    with _node(raftkv, directory, port):
        assert _read(port) == VALUE


def free_http_port() -> int:
    """A port that is free now, and so are those that `--http-port` moves along with it (8080, 6000, 8088)."""
    for _ in range(100):
        with contextlib.ExitStack() as sockets:
            try:
                first = sockets.enter_context(socket.socket())
                first.bind(("127.0.0.1", 0))
                port = int(first.getsockname()[1])
                for offset in (6000 - 8080, 8088 - 8080):
                    sockets.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
            except OSError:
                continue
            return port
    raise AssertionError("no three free ports in 100 attempts")


@contextlib.contextmanager
def _node(raftkv: Path, directory: Path, port: int) -> Iterator[None]:
    """One node that answers; afterwards it is stopped as Ctrl-C would stop it, and must have ended well."""
    log = directory / "output.txt"
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("RAFTKV_", "PYTHONPATH"))}
    with log.open("wb") as output:
        node = subprocess.Popen(  # noqa: S603 - the installation under test
            [raftkv, "up", "--nodes", "1", "--data-dir", directory / "data", "--http-port", str(port)],
            cwd=directory,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        _await_ready(node, port, log)
        yield
        node.send_signal(signal.SIGINT)
        status = node.wait(STOP_TIMEOUT_S)
        assert status == 0, f"raftkv up ended with status {status}:\n{log.read_text()}"
    finally:
        if node.poll() is None:
            node.kill()
            node.wait()


def _await_ready(node: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while _request("GET", f"http://127.0.0.1:{port}/readyz") != 200:
        assert node.poll() is None, f"raftkv up ended with status {node.returncode}:\n{log.read_text()}"
        assert time.monotonic() < deadline, f"not ready in {START_TIMEOUT_S:.0f} s:\n{log.read_text()}"
        time.sleep(0.05)


def _read(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/kv/greeting", timeout=10) as reply:
        return bytes(reply.read())


def _request(method: str, url: str, body: bytes | None = None) -> int:
    """The HTTP status, or 0 if there was no answer."""
    request = urllib.request.Request(url, data=body, method=method)  # noqa: S310 - built here
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:  # noqa: S310 - the same
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
