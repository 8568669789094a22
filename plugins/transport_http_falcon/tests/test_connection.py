"""Bytes from clients that are broken, slow, greedy or hostile: each gets a clear answer, and the server goes on."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

HOST = b"Host: 127.0.0.1\r\n"


def answers(received: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Every response in a byte stream, by Content-Length."""
    result = []
    while received:
        head, separator, received = received.partition(b"\r\n\r\n")
        assert separator, f"not a response: {head!r}"
        status_line, *lines = head.decode().split("\r\n")
        headers = {name.lower(): text for name, _, text in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", "0"))
        result.append((int(status_line.split()[1]), headers, received[:length]))
        received = received[length:]
    return result


def assert_refused(received: bytes, status: int, code: str) -> None:
    """The last answer is this problem, and says that the connection ends."""
    number, headers, body = answers(received)[-1]
    problem = json.loads(body)
    assert (number, problem["status"], problem["code"]) == (status, status, code)
    assert headers["connection"] == "close"
    assert headers["content-type"] == "application/problem+json"
    assert headers["x-content-type-options"] == "nosniff"


def assert_goes_on(served: Any) -> None:
    assert served.get("/livez").status == 200


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Content-Length: 1, 1\r\n\r\nx",
        b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\nx",
        b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Content-Length: +1\r\n\r\nx",
        b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Content-Length: 0x1\r\n\r\nx",
        b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Content-Length: \r\n\r\nx",
        b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\nx",
        b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n",
        b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\nx",
        b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n" + b"F" * 20 + b"\r\nx",
        b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nxx\r\n0\r\n\r\n",
        b"GET /v1/kv/a HTTP/1.1\r\n" + HOST + b"A : b\r\n\r\n",
        b"GET /v1/kv/a HTTP/1.1\r\n" + HOST + b"A: b\r\n c\r\n\r\n",
        b"GET /v1/kv/a HTTP/1.1\r\n" + HOST + b"A: b\x00c\r\n\r\n",
        b"GET /v1/kv/a HTTP/1.1\n" + HOST + b"\r\n",
        b"GET /v1/kv/a b HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /v1/kv/\xff HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /v1/kv/a HTTP/1.3\r\n" + HOST + b"\r\n",
        b"NONSENSE /v1/kv/a HTTP/1.1\r\n" + HOST + b"\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_malformed_requests_are_400(served: Any, request_bytes: bytes) -> None:
    """Whatever could be read in two ways is not read at all."""
    received = served.raw(request_bytes)
    statuses = [status for status, _, _ in answers(received)]
    assert statuses[-1] == 400
    assert_refused(received, 400, "malformed_request")
    assert served.store.commands == [] or b"xx" in request_bytes
    assert_goes_on(served)


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"GET /livez HTTP/1.1\r\n\r\n", 400, "bad_host"),
        (b"GET /livez HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400, "bad_host"),
        (b"GET /livez HTTP/2.0\r\n" + HOST + b"\r\n", 505, "http_version"),
        (b"GET /livez HTTP/0.9\r\n" + HOST + b"\r\n", 505, "http_version"),
        (b"GET /livez\r\n\r\n", 505, "http_version"),
        (b"CONNECT a:443 HTTP/1.1\r\n" + HOST + b"\r\n", 405, "method_not_allowed"),
        (b"GET ftp://x/livez HTTP/1.1\r\n" + HOST + b"\r\n", 400, "bad_target"),
        (b"GET /livez#x HTTP/1.1\r\n" + HOST + b"\r\n", 400, "bad_target"),
        (b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip, chunked\r\n\r\n", 501, "transfer_encoding"),
        (
            b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
            501,
            "transfer_encoding",
        ),
        (
            b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Expect: a-miracle\r\nContent-Length: 1\r\n\r\n",
            417,
            "expectation_failed",
        ),
        (b"PUT /v1/kv/a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", 400, "malformed_request"),
        (b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Content-Length: 4194305\r\n\r\n", 413, "body_too_large"),
        (b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Content-Length: 99999999999999\r\n\r\n", 413, "body_too_large"),
    ],
)
def test_requests_that_are_not_served_say_why(served: Any, request_bytes: bytes, status: int, code: str) -> None:
    """What is well-formed and not possible has a status and a code of its own."""
    assert_refused(served.raw(request_bytes), status, code)
    assert served.store.commands == []
    assert_goes_on(served)


def test_a_whole_url_as_target(served: Any) -> None:
    """The absolute form, as proxies send it, is the same request."""
    received = served.raw(b"GET http://anything/livez HTTP/1.1\r\n" + HOST + b"\r\n")
    assert answers(received)[0][0] == 200


class TestHeaders:
    """Request line and headers are bounded in size, number and time."""

    def test_too_many_bytes(self, served: Any) -> None:
        """One huge header, a huge target, or many small ones: 431, and the connection ends."""
        for head in (
            b"GET /livez HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 17_000 + b"\r\n\r\n",
            b"GET /" + b"x" * 17_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
            b"GET /livez HTTP/1.1\r\n" + HOST + (b"X: " + b"x" * 500 + b"\r\n") * 40 + b"\r\n",
        ):
            assert_refused(served.raw(head), 431, "header_too_large")
        assert_goes_on(served)

    def test_as_many_bytes_as_allowed(self, served: Any) -> None:
        """Just below the limit is served, whatever else arrives in the same read."""
        head = b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 15_000 + b"\r\nContent-Length: 200000\r\n\r\n"
        assert answers(served.raw(head + b"v" * 200_000))[0][0] == 204

    def test_too_many_headers(self, served: Any) -> None:
        """100 are taken, 101 are 431."""
        head = b"GET /livez HTTP/1.1\r\n" + HOST
        assert answers(served.raw(head + b"A: b\r\n" * 99 + b"\r\n"))[0][0] == 200
        assert_refused(served.raw(head + b"A: b\r\n" * 100 + b"\r\n"), 431, "header_too_large")

    def test_endless_headers(self, served: Any) -> None:
        """A header that never ends is cut off long before it fills memory."""
        with served.connect() as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\n" + HOST + b"X: ")
            received = flood(connection, b"x" * 65_536)
        assert_refused(received, 431, "header_too_large")
        assert_goes_on(served)

    def test_slow_headers(self, serve: Callable[..., Any]) -> None:
        """Headers that do not end in time are 408, however busily they trickle."""
        served = serve(header_timeout_s=0.3)
        with served.connect() as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\n")
            received = trickle(connection, b"X: y\r\n")
        assert_refused(received, 408, "header_timeout")
        assert_goes_on(served)

    def test_silence(self, serve: Callable[..., Any]) -> None:
        """A connection on which nothing is said is closed; so is one that only sends line ends."""
        served = serve(header_timeout_s=0.3)
        with served.connect() as connection:
            assert connection.recv(1) == b""
        with served.connect() as connection:
            assert trickle(connection, b"\r\n") == b""

    def test_idle_connections_are_closed(self, serve: Callable[..., Any]) -> None:
        """After keepalive_s without a request."""
        served = serve(keepalive_s=0.3)
        with served.connect() as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n")
            began = time.monotonic()
            received = b""
            while part := connection.recv(65_536):
                received += part
            assert answers(received)[0][0] == 200
            assert 0.2 < time.monotonic() - began < 5


def flood(connection: socket.socket, data: bytes) -> bytes:
    """Send without end; what came back once the other side had enough."""
    connection.settimeout(20)
    try:
        for _ in range(10_000):
            connection.sendall(data)
            connection.setblocking(False)
            try:
                first = connection.recv(65_536)
            except BlockingIOError:
                connection.settimeout(20)
                continue
            connection.settimeout(20)
            received = first
            while part := connection.recv(65_536):
                received += part
            return received
    except (BrokenPipeError, ConnectionResetError):
        return b""
    raise AssertionError("it took everything")


def trickle(connection: socket.socket, data: bytes) -> bytes:
    """Send a little again and again; what came back until the other side closed."""
    received = b""
    connection.settimeout(0.05)
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            part = connection.recv(65_536)
        except TimeoutError:
            pass
        except ConnectionResetError:
            return received
        else:
            if not part:
                return received
            received += part
            continue
        try:
            connection.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return received
    raise AssertionError("it went on")


class TestBodies:
    """Bodies are bounded one by one and together, in size, overhead and time."""

    def test_chunked_bodies_are_put_together(self, served: Any) -> None:
        """Chunks with extensions and trailers make one value."""
        request = b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
        body = b"3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\nX-Trailer: y\r\n\r\n"
        assert answers(served.raw(request, body))[0][0] == 204
        assert served.get("/v1/kv/a").body == b"abcde"

    def test_chunked_bodies_are_counted(self, served: Any) -> None:
        """One that never says how long it is ends at the limit."""
        with served.connect() as connection:
            connection.sendall(b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
            received = flood(connection, b"10000\r\n" + b"x" * 65_536 + b"\r\n")
        assert_refused(received, 413, "body_too_large")
        assert served.store.commands == []
        assert_goes_on(served)

    def test_overhead_is_counted(self, serve: Callable[..., Any]) -> None:
        """Chunk extensions and trailers without end are cut off too."""
        served = serve(body_bytes_max=2 << 20)
        for endless in (b"1;" + b"x" * 65_534, b"X: " + b"y" * 65_000 + b"\r\n"):
            with served.connect() as connection:
                connection.sendall(b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n")
                connection.sendall(b"0\r\n" if endless.startswith(b"X") else b"")
                received = flood(connection, endless)
            if received:  # a reset may overtake the answer
                assert answers(received)[-1][0] in (400, 413)
        assert_goes_on(served)

    def test_slow_bodies(self, serve: Callable[..., Any]) -> None:
        """A body that does not end in time is 408, and nothing of it is stored."""
        served = serve(body_timeout_s=0.3)
        for head in (b"Content-Length: 1000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"):
            with served.connect() as connection:
                connection.sendall(b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + head)
                received = trickle(connection, b"1\r\nx\r\n" if head.startswith(b"T") else b"x")
            assert_refused(received, 408, "body_timeout")
        assert served.store.commands == []
        assert_goes_on(served)

    def test_a_body_cut_short_is_not_stored(self, served: Any) -> None:
        """A client that goes away in the middle has not written half a value."""
        for head in (b"Content-Length: 10\r\n\r\n12345", b"Transfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n"):
            assert served.raw(b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + head) == b""
        assert served.store.commands == []

    def test_all_bodies_together_are_bounded(self, serve: Callable[..., Any], eventually: Callable[..., Any]) -> None:
        """Many unfinished bodies do not fill memory; when they are gone, there is room again."""
        served = serve(body_bytes_max=2 << 20, bodies_bytes_max=4 << 20)
        head = b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Content-Length: 2097152\r\n\r\n"
        held = [served.connect() for _ in range(2)]
        try:
            for connection in held:
                connection.sendall(head)
            eventually(lambda: served.hub.bodies_bytes == 4 << 20, "both reservations")
            assert_refused(served.raw(head), 503, "overloaded")
        finally:
            for connection in held:
                connection.close()
        eventually(lambda: served.hub.bodies_bytes == 0, "the room")
        assert served.request("PUT", "/v1/kv/a", b"x" * 1_000_000).status == 204
        assert served.hub.bodies_bytes == 0

    def test_expect_continue(self, served: Any) -> None:
        """A client that asks first is told to go on, or is refused before it sends anything."""
        with served.connect() as connection:
            connection.sendall(
                b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\n"
            )
            assert connection.recv(65_536) == b"HTTP/1.1 100 Continue\r\n\r\n"
            connection.sendall(b"x")
            assert connection.recv(65_536).startswith(b"HTTP/1.1 204")
        too_much = b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Expect: 100-continue\r\nContent-Length: 9999999\r\n\r\n"
        assert_refused(served.raw(too_much), 413, "body_too_large")

    def test_the_answer_arrives_though_the_body_is_not_read(self, served: Any) -> None:
        """The refusal is not lost to a reset while the client still sends."""
        with served.connect() as connection:
            connection.sendall(b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Content-Length: 6000000\r\n\r\n")
            connection.sendall(b"x" * 6_000_000)
            received = b""
            while part := connection.recv(65_536):
                received += part
        assert_refused(received, 413, "body_too_large")


class TestConnections:
    """Keep-alive, pipelining, half-closed connections, upgrades, and how many there may be."""

    def test_keep_alive(self, served: Any) -> None:
        """Many requests on one connection; HTTP/1.0 and `Connection: close` end it."""
        with served.connect() as connection:
            for _ in range(3):
                connection.sendall(b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n")
                assert connection.recv(65_536).startswith(b"HTTP/1.1 200")
            connection.sendall(b"GET /livez HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
            received = b""
            while part := connection.recv(65_536):
                received += part
        assert answers(received)[0][1]["connection"] == "close"
        with served.connect() as connection:
            connection.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            received = b""
            while part := connection.recv(65_536):
                received += part
        assert answers(received)[0][0] == 200

    def test_pipelined_requests_are_answered_in_order(self, served: Any) -> None:
        """200 requests in one write, the writes among them carried out one after the other."""
        requests = b"".join(
            b"PUT /v1/kv/a HTTP/1.1\r\n"
            + HOST
            + b"Content-Length: 3\r\n\r\n%03d" % number
            + b"GET /v1/kv/a HTTP/1.1\r\n"
            + HOST
            + b"\r\n"
            for number in range(100)
        )
        with served.connect() as connection:
            connection.sendall(requests)
            received = b""
            while received.count(b"HTTP/1.1 ") < 200 or not received.endswith(b"099"):
                received += connection.recv(65_536)
        assert [body for status, _, body in answers(received) if status == 200] == [b"%03d" % n for n in range(100)]

    def test_a_bad_request_after_good_ones(self, served: Any) -> None:
        """The good ones are answered first, then the bad one is, and the connection ends."""
        good = b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\nx"
        received = served.raw(good + good + b"NONSENSE\r\n\r\n" + good)
        assert [status for status, _, _ in answers(received)] == [204, 204, 400]
        assert len(served.store.commands) == 2

    def test_bytes_after_a_closing_request_are_nobodys(self, served: Any) -> None:
        """What follows `Connection: close` is neither answered nor carried out."""
        last = b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Connection: close\r\nContent-Length: 1\r\n\r\nx"
        received = served.raw(last + b"PUT /v1/kv/b HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\nx")
        assert [status for status, _, _ in answers(received)] == [204]
        assert len(served.store.commands) == 1

    def test_nothing_is_carried_out_after_a_last_request(self, served: Any) -> None:
        """Nor after one of HTTP/1.0, which we answer and close, whatever it asked for."""
        put = b"PUT /v1/kv/%b HTTP/1.0\r\nHost: 127.0.0.1\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx"
        get = b"GET /livez HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
        assert [status for status, _, _ in answers(served.raw(get + put % b"a"))] == [200]
        assert [status for status, _, _ in answers(served.raw(put % b"a" + put % b"b"))] == [204]
        assert len(served.store.commands) == 1

    def test_a_slow_reader_gets_everything(self, served: Any) -> None:
        """Also when the connection ends with the answer."""
        served.request("PUT", "/v1/kv/a", b"v" * 1_000_000)
        with served.connect() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(b"GET /v1/kv/a HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
            time.sleep(0.3)
            received = b""
            while part := connection.recv(65_536):
                received += part
        assert len(answers(received)[0][2]) == 1_000_000

    def test_pipelining_without_reading_is_bounded(
        self, serve: Callable[..., Any], eventually: Callable[..., Any]
    ) -> None:
        """A client that asks and asks and never reads is cut off, and costs little meanwhile."""
        served = serve(write_timeout_s=0.3)
        served.request("PUT", "/v1/kv/a", b"v" * 1_000_000)
        with served.connect() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(0.5)
            try:
                for _ in range(100_000):
                    connection.sendall((b"GET /v1/kv/a HTTP/1.1\r\n" + HOST + b"\r\n") * 100)
            except (TimeoutError, ConnectionResetError, BrokenPipeError):
                pass
            eventually(lambda: served.connections() == 0, "the cut")
        reads = sum(1 for what, _ in served.store.asked if what == "get")
        assert reads < 50
        assert_goes_on(served)

    def test_half_closed_clients_get_their_answer(self, served: Any) -> None:
        """Shutting down one's own side after the request is no reason not to answer."""
        received = served.raw(b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + b"Content-Length: 1\r\n\r\nx")
        assert answers(received)[0][0] == 204

    @pytest.mark.parametrize("split", [False, True])
    def test_upgrades_are_not_taken_up(self, served: Any, split: bool) -> None:
        """The offer of HTTP/2 that some clients make with each request changes nothing, body included."""
        offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
        head = b"PUT /v1/kv/a HTTP/1.1\r\n" + HOST + offer + b"Content-Length: 5\r\n\r\n"
        with served.connect() as connection:
            for _ in range(2):
                connection.sendall(head if split else head + b"value")
                if split:
                    time.sleep(0.05)
                    connection.sendall(b"value")
                assert connection.recv(65_536).startswith(b"HTTP/1.1 204")
            connection.sendall(b"GET /v1/kv/a HTTP/1.1\r\n" + HOST + offer + b"\r\n")
            assert connection.recv(65_536).endswith(b"value")

    def test_websocket_is_refused_as_a_path(self, served: Any) -> None:
        """There is nothing to upgrade to."""
        offer = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n"
        assert answers(served.raw(b"GET /ws HTTP/1.1\r\n" + HOST + offer + b"\r\n"))[0][0] == 404

    def test_too_many_connections(self, serve: Callable[..., Any], eventually: Callable[..., Any]) -> None:
        """Beyond the limit: 503 at once; when the others are gone, there is room again."""
        served = serve(connections_max=5)
        held = [served.connect() for _ in range(5)]
        try:
            eventually(lambda: served.connections() == 5, "five connections")
            with served.connect() as connection:
                received = b""
                while part := connection.recv(65_536):
                    received += part
            assert_refused(received, 503, "too_many_connections")
            assert "retry-after" in answers(received)[0][1]
        finally:
            for connection in held:
                connection.close()
        eventually(lambda: served.connections() == 0, "the room")
        assert_goes_on(served)

    def test_a_thousand_idle_connections(self, served: Any, eventually: Callable[..., Any]) -> None:
        """They fill the worker and starve it for no longer than they last."""
        held = [served.connect() for _ in range(1_000)]
        try:
            eventually(lambda: served.connections() >= 1_000, "all connections")
            assert served.get("/livez").status == 503
        finally:
            for connection in held:
                connection.close()
        eventually(lambda: served.connections() == 0, "the room")
        assert_goes_on(served)
