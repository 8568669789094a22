"""`raftkv status`, `get`, `put`, `delete`, `ls`: what they print, and how they end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from raftkv_core.cli.errors import ExitCode
from raftkv_core.errors import OutcomeUnknown, Overloaded, Unavailable

Run = Callable[..., "subprocess.CompletedProcess[bytes]"]


def run_at(url: str, *arguments: str | bytes, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("RAFTKV_")}
    code = "import sys; from raftkv_core.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**environ, "RAFTKV_URL": url, "COLUMNS": "200"},
        input=stdin,
        capture_output=True,
        check=False,
    )


@pytest.fixture
def run(served: Any) -> Run:
    """Runs `raftkv …` against the served store; the output is a pipe."""
    return lambda *arguments, stdin=b"": run_at(f"http://127.0.0.1:{served.port}", *arguments, stdin=stdin)


def test_put_get_delete(run: Run) -> None:
    """A round, with the revision of each change."""
    result = run("put", "greeting", "hello")
    assert (result.returncode, result.stdout) == (0, b"revision 1\n")
    assert run("get", "greeting").stdout == b"hello"
    assert run("delete", "greeting").stdout == b"removed, revision 2\n"
    assert run("delete", "greeting").stdout == b"nothing to remove, revision 2\n"


def test_bytes_stay_as_they_are(run: Run, served: Any) -> None:
    """Keys and values of any bytes, from arguments and standard input, to a pipe."""
    key, value = b"\xff/ %\n", b"\x00\xff\r\n"
    assert run("put", key, "-", stdin=value).returncode == 0
    assert served.get("/v1/kv/%FF/%20%25%0A").body == value
    assert run("get", key).stdout == value
    assert run("ls", "--null").stdout == key + b"\0"
    assert run("put", "empty", "").returncode == 0
    assert run("get", "empty").stdout == b""


def test_a_missing_key(run: Run) -> None:
    """Exit code 1, and nothing on standard output."""
    result = run("get", "missing")
    assert (result.returncode, result.stdout) == (1, b"")
    assert result.stderr == b"raftkv: the key does not exist\n"


def test_conditions(run: Run) -> None:
    """--create and --if-revision; a condition that does not hold is exit code 1."""
    assert run("put", "a", "1", "--create").returncode == 0
    assert run("put", "a", "2", "--create").returncode == 1
    assert run("put", "a", "2", "--if-revision", "1").returncode == 0
    assert run("delete", "a", "--if-revision", "1").returncode == 1
    assert run("get", "a").stdout == b"2"


def test_trying_again_is_safe_with_a_key(run: Run) -> None:
    """--idempotency-key applies once."""
    for _ in range(2):
        assert run("put", "a", "1", "--idempotency-key", "k").stdout == b"revision 1\n"


def test_content_type(run: Run, served: Any) -> None:
    """It is given back by HTTP."""
    run("put", "a", "{}", "--content-type", "application/json")
    assert served.get("/v1/kv/a").headers["content-type"] == "application/json"


def test_older_revisions_and_levels(run: Run) -> None:
    """--revision and --level."""
    run("put", "a", "1")
    run("put", "a", "2")
    assert run("get", "a", "--revision", "1").stdout == b"1"
    assert run("get", "a", "--level", "stale").stdout == b"2"
    assert run("get", "a", "--level", "wishful").returncode == ExitCode.CONFIGURATION


def test_ls_shows_everything(run: Run, served: Any) -> None:
    """In order, beyond one page, as of one revision; with a prefix and a limit."""
    served.call(lambda: served.store.set_up(**{f"k{number:04}": b"v" for number in range(2_100)}, other=b"x"))
    result = run("ls", "k")
    assert result.stdout.decode().split("\n") == [*(f"k{number:04}" for number in range(2_100)), ""]
    assert run("ls", "--limit", "2").stdout == b"k0000\nk0001\n"
    assert run("ls", "k", "--limit", "1500").stdout.count(b"\n") == 1_500
    assert run("ls", "nothing").stdout == b""


def test_status(run: Run, served: Any) -> None:
    """For people, and as JSON for programs."""
    result = run("status")
    assert result.returncode == 0
    assert b"node1, leader, ready" in result.stdout
    assert json.loads(run("status", "--json").stdout)["storage"] == "memory"
    served.store.facts.update(ready=False, reasons=["no [quorum]"])
    assert b"not ready: no [quorum]" in run("status").stdout


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unavailable("no leader"), ExitCode.NOT_APPLIED),
        (Overloaded("full"), ExitCode.NOT_APPLIED),
        (OutcomeUnknown("who knows"), ExitCode.OUTCOME_UNKNOWN),
    ],
)
def test_exit_codes_tell_the_outcome(run: Run, served: Any, error: Exception, code: int) -> None:
    """4: try again; 5: look first. The node's own words on standard error."""
    served.store.error = error
    result = run("put", "a", "1")
    assert (result.returncode, result.stderr.decode()) == (code, f"raftkv: {error}\n")


def test_nothing_answers() -> None:
    """Not applied, with the remedy."""
    result = run_at("http://127.0.0.1:1", "put", "a", "1")
    assert result.returncode == ExitCode.NOT_APPLIED
    assert b"raftkv up" in result.stderr


@contextmanager
def answering(*answer: bytes) -> Iterator[str]:
    """A server that takes one connection, reads, sends this, and closes; its URL."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            for part in answer:
                connection.sendall(part)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("put", "a", "1"), ExitCode.OUTCOME_UNKNOWN),
        (("delete", "a"), ExitCode.OUTCOME_UNKNOWN),
        (("get", "a"), ExitCode.NOT_APPLIED),
    ],
)
def test_a_connection_that_breaks(arguments: tuple[str, ...], code: int) -> None:
    """After a write was sent its outcome is unknown; a read can simply be tried again."""
    with answering() as url:
        assert run_at(url, *arguments).returncode == code
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf") as url:
        assert run_at(url, *arguments).returncode == code


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope", b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"],
)
def test_something_else_answers(answer: bytes) -> None:
    """Said so, and no redirect is followed with the token."""
    with answering(answer) as url:
        result = run_at(url, "status")
    assert result.returncode == ExitCode.ERROR
    assert b"does not answer like a RaftKV node" in result.stderr


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://127.0.0.1", "http://", "http://a:b", "http://a/x"])
def test_urls_that_are_none(url: str) -> None:
    """Exit code 2."""
    result = run_at(url, "status")
    assert result.returncode == ExitCode.CONFIGURATION
    assert b"expected a URL like" in result.stderr


def test_tokens(serve: Callable[..., Any], tmp_path: Any) -> None:
    """--token-file; without it, or with another, the command is refused."""
    (tmp_path / "token").write_text("# ours\nsecret\n")
    (tmp_path / "empty").write_text("")
    served = serve(token_file=str(tmp_path / "token"))
    url = f"http://127.0.0.1:{served.port}"
    assert run_at(url, "put", "a", "1", "--token-file", str(tmp_path / "token")).returncode == 0
    result = run_at(url, "put", "a", "2")
    assert result.returncode == ExitCode.CONFIGURATION
    assert b"token" in result.stderr
    assert run_at(url, "get", "a", "--token-file", str(tmp_path / "empty")).returncode == ExitCode.CONFIGURATION
    assert run_at(url, "get", "a", "--token-file", str(tmp_path / "none")).returncode == ExitCode.CONFIGURATION
