"""Served stores for the tests: our connections and applications on a loop in a thread, or real gunicorn."""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import httptools  # noqa: F401 - what the server needs
import pytest
import uvloop
from raftkv_transport_http_falcon.app import Site
from raftkv_transport_http_falcon.hub import Hub
from raftkv_transport_http_falcon.limits import Limits
from raftkv_transport_http_falcon.metrics import Counters
from raftkv_transport_http_falcon.plugin import HttpSettings
from raftkv_transport_http_falcon.routes import names
from raftkv_transport_http_falcon.service import Service
from uvicorn.server import ServerState

from raftkv_core.config import Config, LoggingSettings, Selected

PROGRAM = Path(__file__).with_name("machine_store.py")
DEADLINE_S = 20.0


def _machine_store() -> Any:
    spec = importlib.util.spec_from_file_location("raftkv_http_machine_store", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MachineStore


MachineStore = _machine_store()


class Answer(NamedTuple):
    """One HTTP answer, header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def assert_problem(self, status: int, code: str, outcome: str = "not_applied") -> dict[str, Any]:
        """The problem document, after looking at what every one must have."""
        assert (self.status, self.headers.get("content-type")) == (status, "application/problem+json"), self
        problem = self.json()
        assert set(problem) == {"type", "title", "status", "code", "detail", "outcome", "retryable"}
        assert (problem["status"], problem["code"], problem["outcome"]) == (status, code, outcome), problem
        return dict(problem)


class Endpoint:
    """A client of one listener."""

    def __init__(self, port: int) -> None:
        self.port = port

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request on a connection of its own; the path goes out as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            if body is not None and "Transfer-Encoding" not in (headers or {}):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            return read_answer(connection.getresponse())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, headers={name.replace("_", "-"): text for name, text in headers.items()})

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S)

    def raw(self, *parts: bytes) -> bytes:
        """Send bytes, close our side, and return everything that comes until the other side closes."""
        with self.connect() as connection:
            for part in parts:
                connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
            return read_all(connection)


def read_answer(response: http.client.HTTPResponse) -> Answer:
    return Answer(response.status, {name.lower(): text for name, text in response.getheaders()}, response.read())


def read_all(connection: socket.socket) -> bytes:
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    return received


class Served(Endpoint):
    """A store served in this process. `store` may be looked at and set up from the test."""

    def __init__(self, settings: HttpSettings, limits: Limits) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(settings, limits), daemon=True)
        self._thread.start()
        assert self._ready.wait(DEADLINE_S)
        super().__init__(self.ports[0])
        self.management = Endpoint(self.ports[1])

    def _run(self, settings: HttpSettings, limits: Limits) -> None:
        loop = uvloop.new_event_loop()
        try:
            loop.run_until_complete(self._serve(settings, limits))
        finally:
            loop.close()

    async def _serve(self, settings: HttpSettings, limits: Limits) -> None:
        self.loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self.store = MachineStore()
        config = Config(storage=Selected(name="memory"), consensus=Selected(name="solo"), transports=[])
        counters = Counters(names(), 1)
        service = Service(config, settings, counters)
        service.store = self.store
        site = Site(service, MachineStore)
        assert site.management is not None
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.ports = [each.getsockname()[1] for each in sockets]
        self.hub = Hub(
            site.data, (site.management, ("127.0.0.1", self.ports[1])), limits, counters.of(0), node_id="node1"
        )
        self.state = ServerState()
        self.state.default_headers = [(b"date", b"Mon, 01 Jan 2024 00:00:00 GMT")]

        def connection() -> asyncio.Protocol:
            return self.hub(server_state=self.state)

        servers = [await self.loop.create_server(connection, sock=each) for each in sockets]
        self._ready.set()
        await self._stop.wait()
        for server in servers:
            server.close()
        for each in list(self.state.connections):
            each.shutdown()
        while self.state.connections or self.state.tasks:  # noqa: ASYNC110 - uvicorn's sets have no event
            await asyncio.sleep(0.005)

    def call(self, function: Callable[[], Any]) -> Any:
        """Run it on the server's loop."""

        async def run() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(DEADLINE_S)

    def connections(self) -> int:
        return int(self.call(lambda: len(self.state.connections)))

    def close(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the server did not stop"


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Makes served stores: `serve(token_file=…)` with settings, of which the limits count too."""
    with ExitStack() as stack:

        def make(**settings: Any) -> Served:
            chosen = HttpSettings(**settings)
            served = Served(chosen, Limits.of(chosen))
            stack.callback(served.close)
            return served

        yield make


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    """A served store with default settings."""
    return serve()


class Gunicorn(Endpoint):
    """The whole transport as a process."""

    def __init__(self, folder: Path, environ: Mapping[str, str], settings: dict[str, Any]) -> None:
        ports = _free_ports(2)
        super().__init__(ports[0])
        self.management = Endpoint(ports[1])
        resolved = folder / "resolved.json"
        binds = {"bind": f"127.0.0.1:{ports[0]}", "management_bind": f"127.0.0.1:{ports[1]}"}
        resolved.write_bytes(
            Config(
                storage=Selected(name="memory"),
                consensus=Selected(name="solo"),
                transports=[Selected(name="http", settings={**binds, **settings})],
                logging=LoggingSettings(format="json"),
            ).to_json()
        )
        self._log = folder / "output.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(PROGRAM)],
                env={**os.environ, "RAFTKV_RESOLVED": str(resolved), **environ},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def output(self) -> str:
        return self._log.read_text()

    def wait_ready(self) -> None:
        def is_ready() -> bool:
            assert self.process.poll() is None, self.output()
            try:
                return self.get("/livez").status == 200
            except OSError:
                return False

        wait_for(is_ready, "an answer of the server")

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE_S)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """The first true result."""
    until = time.monotonic() + DEADLINE_S
    while not (result := condition()):
        assert time.monotonic() < until, f"{what} did not come"
        time.sleep(0.02)
    return result


@pytest.fixture
def gunicorn(tmp_path: Path) -> Iterator[Callable[..., Gunicorn]]:
    """Starts the whole transport: `gunicorn(workers=1, …)`; `environ` sets variables, `wait=False` does not wait."""
    numbers = count()
    with ExitStack() as stack:

        def make(*, environ: Mapping[str, str] | None = None, wait: bool = True, **settings: Any) -> Gunicorn:
            folder = tmp_path / str(next(numbers))
            folder.mkdir()
            made = Gunicorn(folder, environ or {}, {"workers": 1, **settings})
            stack.callback(made.stop)
            if wait:
                made.wait_ready()
            return made

        yield make


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """`eventually(condition, "what")` waits until it holds."""
    return wait_for
