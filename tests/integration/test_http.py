"""The HTTP API on a real node: LMDB behind it, gunicorn before it, raw sockets where a client would tidy up."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import msgpack
import psutil
import pytest

from raftkv_core.testing.deployment import Deployment, wait_for

pytestmark = [pytest.mark.lmdb, pytest.mark.http]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with Deployment(tmp_path_factory.mktemp("node"), storage="lmdb").started() as started:
        yield started


def raw(node: Deployment, *requests: bytes) -> bytes:
    """Everything that comes back for the requests, sent as they are, until the server closes."""
    with socket.create_connection(("127.0.0.1", node.port), timeout=20) as connection:
        connection.sendall(b"".join(requests))
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def test_the_seeds_client_works(node: Deployment) -> None:
    """Set, read, delete as the seed's README shows; a bad command answers `error`, another type 404."""
    headers = {"Content-Type": "application/msgpack"}

    def insert(op: str, key: str, value: object) -> bytes:
        body = msgpack.packb({"op": op, "key": key, "value": value})
        answer = node.request("POST", "/insert-val", body, headers)
        assert answer.status == 200
        return answer.body

    assert insert("SET", "seed", "a=b\nc") == b"ok"
    assert node.request("GET", "/get-val?key=seed").body == b"a=b\nc"
    assert insert("DELETE", "seed", "") == b"ok"
    assert insert("DELETE", "seed", "") == b"ok"
    assert node.request("GET", "/get-val?key=seed").body == b"Key Not Found"
    assert insert("SET", "", "x") == b"error"
    assert insert("FROB", "seed", "x") == b"error"
    assert node.request("POST", "/insert-val", b"{}", {"Content-Type": "application/json"}).status == 404


def test_management_port(node: Deployment) -> None:
    """Port 6000's routes answer as the seed's; a solo node refuses a joiner and says why."""
    port = node.management_port
    assert node.request("GET", "/health", port=port).body == b"OK"
    status = node.request("GET", "/status", port=port).json()
    assert status["is_leader"] is True
    assert status["leader_addr"]
    joined = node.request("GET", "/join?peerID=node2&peerAddress=127.0.0.1:9", port=port)
    assert joined.status == 400
    assert b"cannot be joined" in joined.body
    assert node.request("GET", "/join?peerID=node2", port=port).status == 400
    assert node.request("GET", "/v1/kv/x", port=port).status == 404


def test_every_byte_is_a_key_of_its_own(node: Deployment) -> None:
    """256 one-byte keys, percent-encoded or raw as far as HTTP lets them, stay distinct through LMDB and back."""
    for byte in range(256):
        assert node.request("PUT", f"/v1/kv/byte-%{byte:02X}", b"%d" % byte).status == 204
    for byte in range(256):
        sent = bytes([byte]) if chr(byte).isalnum() and byte < 128 else b"%%%02x" % byte
        answer = raw(node, b"GET /v1/kv/byte-" + sent + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert answer.endswith(b"\r\n\r\n%d" % byte)


@pytest.mark.parametrize("key", ["a//b", "a/../b", "a/", "a+b", "a%2Fb", ".", "..", "%00", "a%3Fb"])
def test_keys_are_taken_literally(node: Deployment, key: str) -> None:
    """Slashes, dots, plus signs and escapes mean themselves; `%2F` is a slash."""
    assert node.request("PUT", f"/v1/kv/lit/{key}", key.encode()).status == 204
    assert node.request("GET", f"/v1/kv/lit/{key}").body == key.encode()
    if key == "a%2Fb":
        assert node.request("GET", "/v1/kv/lit/a/b").body == key.encode()


def test_compare_and_set(node: Deployment) -> None:
    """ETags make a register: create only once, replace only what was read, 304 for what is known."""
    assert node.request("PUT", "/v1/kv/cas", b"1", {"If-None-Match": "*"}).status == 204
    assert node.request("PUT", "/v1/kv/cas", b"2", {"If-None-Match": "*"}).status == 412
    etag = node.request("GET", "/v1/kv/cas").headers["etag"]
    assert node.request("GET", "/v1/kv/cas", headers={"If-None-Match": etag}).status == 304
    assert node.request("PUT", "/v1/kv/cas", b"2", {"If-Match": etag}).status == 204
    refused = node.request("PUT", "/v1/kv/cas", b"3", {"If-Match": etag})
    assert refused.status == 412
    assert refused.json()["outcome"] == "not_applied"
    assert node.request("GET", "/v1/kv/cas").body == b"2"


def test_old_revisions_and_idempotency(node: Deployment) -> None:
    """A key reads as it was; the same idempotency key writes once; another body under it is 422."""
    first = int(node.request("PUT", "/v1/kv/past", b"old").headers["raftkv-revision"])
    key = {"Idempotency-Key": "once"}
    second = node.request("PUT", "/v1/kv/past", b"new", key).headers["raftkv-revision"]
    assert node.request("PUT", "/v1/kv/past", b"new", key).headers["raftkv-revision"] == second
    assert node.request("PUT", "/v1/kv/past", b"other", key).status == 422
    assert node.request("GET", f"/v1/kv/past?revision={first}").body == b"old"
    assert node.request("GET", f"/v1/kv/past?revision={int(second) + 1_000_000}").status == 400


@pytest.mark.parametrize("level", ["linearizable", "lease", "stale"])
def test_read_levels_say_what_they_had(node: Deployment, level: str) -> None:
    """The reply names the level, the revision and the node; after a write each level shows it in the end."""
    revision = int(node.request("PUT", f"/v1/kv/level-{level}", b"1").headers["raftkv-revision"])
    answer = node.request("GET", f"/v1/kv/level-{level}?level={level}&min_revision={revision}")
    assert answer.body == b"1"
    assert answer.headers["raftkv-level"] == level
    assert answer.headers["raftkv-node"] == "node1"
    assert int(answer.headers["raftkv-revision"]) >= revision


def test_errors_are_problems(node: Deployment) -> None:
    """A key or value that is too long is a 4xx with a code, and nothing is stored."""
    for path, body, status, code in (
        ("/v1/kv/" + "k" * 481, b"", 400, "key_too_long"),
        ("/v1/kv/big", b"v" * (1 << 20) + b"v", 413, "value_too_large"),
        ("/v1/kv/", b"x", 400, "empty_key"),
    ):
        answer = node.request("PUT", path, body)
        assert (answer.status, answer.json()["code"], answer.json()["outcome"]) == (status, code, "not_applied")
        assert answer.headers["content-type"] == "application/problem+json"
    assert node.request("GET", "/v1/kv/big").status == 404
    assert node.request("PUT", "/v1/kv/big", b"v" * (1 << 20)).status == 204
    assert len(node.request("GET", "/v1/kv/big").body) == 1 << 20


def test_status_metrics_and_health(node: Deployment) -> None:
    """What operators look at is there."""
    status = node.status()
    assert set(status) >= {
        "node_id",
        "cluster_id",
        "role",
        "leader",
        "term",
        "applied_index",
        "revision",
        "digest",
        "storage",
        "consensus",
        "version",
        "pid",
    }
    assert psutil.Process(status["pid"]).is_running()
    assert node.request("GET", "/livez").status == 200
    assert node.request("GET", "/readyz?verbose").status == 200
    assert json.loads(node.request("GET", "/health").body) == {"health": "true"}
    assert b"raftkv" in node.request("GET", "/metrics").body


def test_a_killed_worker_is_replaced_and_reads_go_on(node: Deployment) -> None:
    """kill -9 of every HTTP worker: gunicorn replaces them, and the data is where it was."""
    assert node.process is not None
    assert node.request("PUT", "/v1/kv/worker", b"1").status == 204

    children = psutil.Process(node.process.pid).children()
    (master,) = [child for child in children if "raftkv_transport_http_falcon" in child.cmdline()]

    def workers() -> set[int]:
        return {child.pid for child in master.children()}

    old = workers()
    assert old
    for pid in old:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: len(workers() - old) >= len(old), "new workers")
    node.wait_ready()
    assert node.request("GET", "/v1/kv/worker").body == b"1"


def test_data_survives_a_restart(tmp_path: Path) -> None:
    """Stop and start again: the same data, digest and revision; the supervisor ends with 0."""
    with Deployment(tmp_path, storage="lmdb").started() as node:
        for number in range(100):
            assert node.request("PUT", f"/v1/kv/{number}", b"x" * number).status == 204
        before = node.status()
        assert node.stop() == 0
        node.start()
        after = node.status()
        assert (after["digest"], after["revision"]) == (before["digest"], before["revision"])
        assert node.request("GET", "/v1/kv/99").body == b"x" * 99
