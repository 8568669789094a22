"""The whole transport as processes: real gunicorn, real workers."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

Start = Callable[..., Any]
Eventually = Callable[..., Any]


def count(server: Any, path: str) -> float:
    """Good answers on a route, by /metrics."""
    line = f'raftkv_http_responses_total{{route="http:{path}",status="2xx"}} '
    text = server.get("/metrics").body.decode()
    return float(text.partition(line)[2].partition("\n")[0] or 0)


def workers(server: Any) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()


def test_both_listeners_answer(gunicorn: Start) -> None:
    """Data on one port, management on the other."""
    server = gunicorn()
    assert server.request("PUT", "/v1/kv/a", b"1").status == 204
    assert server.get("/v1/kv/a").body == b"1"
    assert server.management.get("/status").json()["is_leader"] is True
    assert server.management.get("/v1/kv/a").status == 404
    answer = server.get("/livez")
    assert answer.headers["raftkv-node"] == "node1"
    assert answer.headers["date"].endswith("GMT")
    assert "server" not in answer.headers
    assert server.stop() == 0


def test_without_a_management_listener(gunicorn: Start) -> None:
    """`management_bind = ""` leaves it out."""
    server = gunicorn(management_bind="")
    assert server.get("/livez").status == 200
    with pytest.raises(ConnectionRefusedError):
        server.management.get("/health")


def test_no_environment_variable_decides(gunicorn: Start, tmp_path: Path) -> None:
    """Variables that gunicorn and uvicorn read elsewhere change nothing here."""
    server = gunicorn(
        environ={
            "WEB_CONCURRENCY": "3",
            "PORT": "1",
            "FORWARDED_ALLOW_IPS": "*",
            "GUNICORN_CMD_ARGS": "--workers 5 --bind 127.0.0.1:1",
            "GUNICORN_PID": "1",
            "GUNICORN_FD": "0",
            "LISTEN_PID": "1",
            "LISTEN_FDS": "1",
            "XDG_RUNTIME_DIR": str(tmp_path / "runtime"),
            "HOME": str(tmp_path / "home"),
        }
    )
    assert len(workers(server)) == 1
    assert not (tmp_path / "runtime").exists(), "no control socket"
    assert not (tmp_path / "home").exists()


def test_a_dead_worker_is_replaced(gunicorn: Start, eventually: Eventually) -> None:
    """kill -9 of a worker: another one answers, and the counts go on."""
    server = gunicorn()
    for _ in range(5):
        server.request("PUT", "/v1/kv/a", b"1")
    eventually(lambda: count(server, "/v1/kv/{key}") == 5, "the counts")
    victim = workers(server)[0]
    victim.kill()
    eventually(lambda: [worker.pid for worker in workers(server) if worker.pid != victim.pid], "a new worker")
    server.wait_ready()
    assert count(server, "/v1/kv/{key}") == 5


def test_workers_count_together(gunicorn: Start, eventually: Eventually) -> None:
    """Each worker's /metrics shows the sum."""
    server = gunicorn(workers=2)
    eventually(lambda: len(workers(server)) == 2, "both workers")
    for _ in range(40):
        server.get("/version")
    eventually(lambda: count(server, "/version") == 40, "the sum")


def test_connections_are_dealt_out(gunicorn: Start, eventually: Eventually) -> None:
    """Each worker gets its part of many connections; those that wait for a dead one get its successor."""
    server = gunicorn(workers=2)
    connections = [server.connect() for _ in range(40)]

    def shares() -> list[int]:
        return [
            sum(1 for each in worker.net_connections("tcp") if each.status == psutil.CONN_ESTABLISHED)
            for worker in workers(server)
        ]

    eventually(lambda: sum(shares()) == 40, "all connections")
    assert min(shares()) > 5
    for connection in connections:
        connection.close()
    victim = workers(server)[0]
    victim.suspend()
    waiting = [server.connect() for _ in range(20)]
    for connection in waiting:
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    victim.kill()
    answers = [connection.recv(65536) for connection in waiting]
    for connection in waiting:
        connection.close()
    assert all(answer.startswith(b"HTTP/1.1 200") for answer in answers)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_no_worker_outlives_its_master(gunicorn: Start, eventually: Eventually, number: signal.Signals) -> None:
    """kill -9 of the master ends the workers and frees the ports, also those that were stopped meanwhile."""
    server = gunicorn(workers=2)
    processes = workers(server)
    if number is signal.SIGSTOP:
        processes[0].send_signal(signal.SIGSTOP)
    server.process.kill()
    server.process.wait()
    eventually(lambda: not any(process.is_running() for process in processes), "the end of the workers")
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", server.port))


def test_it_ends_with_its_supervisor(gunicorn: Start) -> None:
    """The master follows the process that RAFTKV_PARENT_PID names; one that is not its parent ends it at once."""
    server = gunicorn(environ={"RAFTKV_PARENT_PID": "1"}, wait=False)
    assert server.process.wait(20) == -signal.SIGKILL


class TestStopping:
    """SIGTERM: what is under way is answered, then everything ends."""

    def test_requests_under_way_are_answered(self, gunicorn: Start) -> None:
        """A long poll that runs when the signal comes gets its answer."""
        server = gunicorn()
        answers = []
        waiting = threading.Thread(target=lambda: answers.append(server.get("/v1/changes?after=0&wait_s=1")))
        waiting.start()
        time.sleep(0.3)
        assert server.stop() == 0
        waiting.join()
        assert answers[0].status == 200
        assert answers[0].headers["connection"] == "close"

    def test_idle_connections_and_watches_do_not_hold_it_up(self, gunicorn: Start) -> None:
        """They are closed at once; the stop takes no more than a moment."""
        server = gunicorn()
        with server.connect() as idle, server.connect() as watch, server.connect() as half:
            idle.sendall(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert idle.recv(65536)
            watch.sendall(b"GET /v1/watch HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert watch.recv(65536)
            half.sendall(b"GET /livez HTTP/1.1\r\n")
            began = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - began < 5
        assert "Traceback" not in server.output()

    def test_it_is_quiet_about_it(self, gunicorn: Start) -> None:
        """A clean start and stop log one line, in the configured format."""
        server = gunicorn()
        server.stop()
        lines = server.output().splitlines()
        assert len(lines) == 1, lines
        assert '"event": "listening at http://127.0.0.1:' in lines[0]


CERTIFICATE = str(Path(__file__).with_name("certificate.pem"))
"""For localhost, with its key, signed by itself; good until 2119."""


class TestTls:
    """Certificates instead of tokens."""

    def request(self, server: Any, context: ssl.SSLContext) -> bytes:
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.sendall(
                b"PUT /v1/kv/a HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 300000\r\n\r\n"
            )
            connection.sendall(b"x" * 300_000)
            received = b""
            while part := connection.recv(65536):
                received += part
            return received

    def test_requests_over_tls(self, gunicorn: Start, eventually: Eventually) -> None:
        """Both listeners speak it; plain HTTP gets nothing."""
        server = gunicorn(wait=False, tls_cert_file=CERTIFICATE, tls_key_file=CERTIFICATE)
        context = ssl.create_default_context(cafile=CERTIFICATE)

        def answer() -> bytes:
            try:
                return self.request(server, context)
            except ConnectionRefusedError:
                return b""

        assert eventually(answer, "an answer").startswith(b"HTTP/1.1 204")
        assert server.raw(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") == b""

    def test_client_certificates(self, gunicorn: Start, eventually: Eventually) -> None:
        """With tls_client_ca_file, a client without one of its certificates is turned away."""
        server = gunicorn(
            wait=False, tls_cert_file=CERTIFICATE, tls_key_file=CERTIFICATE, tls_client_ca_file=CERTIFICATE
        )
        context = ssl.create_default_context(cafile=CERTIFICATE)

        def outcome() -> str:
            try:
                return self.request(server, context).decode()
            except ConnectionRefusedError:
                return ""
            except (ssl.SSLError, ConnectionError) as error:
                return f"turned away: {error}"

        assert "turned away" in eventually(outcome, "a refusal")
        context.load_cert_chain(CERTIFICATE)
        assert outcome().startswith("HTTP/1.1 204")


class TestRefusals:
    """What cannot work is said at start, in one line, with exit status 2."""

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"token_file": "/nowhere/token"}, "/nowhere/token: No such file"),
            ({"tls_cert_file": "/nowhere/cert", "tls_key_file": "/nowhere/key"}, "tls_cert_file"),
        ],
    )
    def test_missing_files(self, gunicorn: Start, settings: dict[str, str], message: str) -> None:
        """Before anything is bound."""
        server = gunicorn(wait=False, **settings)
        assert server.process.wait(20) == 2
        assert message in server.output()
        assert "Traceback" not in server.output()

    @pytest.mark.parametrize("workers", [1, 2])
    def test_a_port_in_use(self, gunicorn: Start, workers: int) -> None:
        """Another node on the same port is found out, though workers share theirs."""
        first = gunicorn(workers=2)
        second = gunicorn(wait=False, workers=workers, bind=f"127.0.0.1:{first.port}")
        assert second.process.wait(20) == 2
        assert "Address already in use; another process listens there" in second.output()

    def test_an_address_of_another_machine(self, gunicorn: Start) -> None:
        """Said with the option's name."""
        server = gunicorn(wait=False, bind="192.0.2.1:0", insecure=True)
        assert server.process.wait(20) == 2
        assert "transport.http.bind = '192.0.2.1:0'" in server.output()

    def test_without_a_configuration(self) -> None:
        """Started by hand, it says how to start it."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("RAFTKV_")}
        result = subprocess.run(
            [sys.executable, "-m", "raftkv_transport_http_falcon"],
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 2
        assert "raftkv serve" in result.stderr

    @pytest.mark.parametrize("module", ["httptools", "uvloop"])
    def test_without_its_fast_parts(self, module: str, tmp_path: Path) -> None:
        """Nothing slow is put in their place."""
        resolved = tmp_path / "resolved.json"
        resolved.write_text('{"storage": {"name": "memory"}, "consensus": {"name": "solo"}, "transports": []}')
        (tmp_path / f"{module}.py").write_text("raise ImportError('not here')")
        environ = {**os.environ, "PYTHONPATH": str(tmp_path), "RAFTKV_RESOLVED": str(resolved)}
        result = subprocess.run(
            [sys.executable, "-m", "raftkv_transport_http_falcon"],
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 2
        assert "reinstall raftkv-transport-http-falcon" in result.stderr
