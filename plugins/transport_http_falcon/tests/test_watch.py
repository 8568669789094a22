"""`/v1/watch` and `/v1/changes`: every change once, in order, from any revision on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from raftkv_transport_http_falcon.gate import TokenFile

from raftkv_core.errors import Compacted
from raftkv_core.machine import commands


class Stream:
    """A server-sent event stream, read the way a browser reads one."""

    def __init__(self, connection: Any, path: str, headers: str = "") -> None:
        self._connection = connection
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}\r\n".encode())
        self._file = connection.makefile("rb")
        self.head = b""
        while not self.head.endswith(b"\r\n\r\n"):
            self.head += self._file.read(1)
        self.last_event_id = ""
        self._buffer = b""

    def _line(self) -> bytes:
        while b"\n" not in self._buffer:
            size = int(self._file.readline(), 16)
            if size == 0:
                raise EOFError
            self._buffer += self._file.read(size)
            self._file.read(2)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def block(self) -> dict[str, str]:
        """The fields up to the next blank line."""
        fields = {}
        while line := self._line():
            name, _, value = line.decode().partition(": ")
            fields[name] = value
        self.last_event_id = fields.get("id", self.last_event_id)
        return fields

    def drain(self) -> None:
        """Read until it raises."""
        while True:
            self.block()

    def event(self) -> tuple[str, dict[str, Any]]:
        """The next event that has data."""
        while "data" not in (fields := self.block()):
            pass
        return fields["event"], json.loads(fields["data"])


@contextmanager
def watching(served: Any, path: str, headers: str = "") -> Iterator[Stream]:
    with served.connect() as connection:
        yield Stream(connection, path, headers)


def test_changes_arrive_as_they_happen(served: Any) -> None:
    """Puts and deletes, with what they made, under the prefix that is watched."""
    with watching(served, "/v1/watch?prefix=a") as stream:
        assert b"content-type: text/event-stream\r\n" in stream.head
        served.request("PUT", "/v1/kv/a", b"1")
        served.request("PUT", "/v1/kv/b", b"2")
        served.request("DELETE", "/v1/kv/a")
        assert stream.event() == (
            "put",
            {
                "type": "put",
                "revision": 1,
                "key": "a",
                "value": "1",
                "create_revision": 1,
                "mod_revision": 1,
                "version": 1,
            },
        )
        assert stream.event() == ("delete", {"type": "delete", "revision": 3, "key": "a"})
        assert stream.last_event_id == "3"


def test_a_watch_resumes_without_gap_or_repetition(served: Any) -> None:
    """By `after`, or by Last-Event-ID, which wins because an EventSource repeats its URL."""
    served.call(lambda: served.store.set_up(a=b"1", b=b"2", c=b"3"))
    with watching(served, "/v1/watch?after=1") as stream:
        assert [stream.event()[1]["key"] for _ in range(2)] == ["b", "c"]
    with watching(served, "/v1/watch?after=0", "Last-Event-ID: 2\r\n") as stream:
        assert stream.event()[1]["key"] == "c"


def test_a_transaction_is_never_half_resumed(served: Any) -> None:
    """Only its last change has an id."""
    operations = [commands.op_put(key, b"x") for key in (b"a", b"b", b"c")]
    served.call(lambda: served.store._apply(commands.txn([], operations)))
    with watching(served, "/v1/watch?after=0") as stream:
        blocks = [stream.block() for _ in range(4)][1:]
    assert [("id" in block, json.loads(block["data"])["key"]) for block in blocks] == [
        (False, "a"),
        (False, "b"),
        (True, "c"),
    ]


def test_previous_values_on_request(served: Any) -> None:
    """What a change replaced or removed."""
    served.request("PUT", "/v1/kv/a", b"old")
    with watching(served, "/v1/watch?after=1&previous") as stream:
        served.request("PUT", "/v1/kv/a", b"new")
        served.request("DELETE", "/v1/kv/a")
        assert stream.event()[1]["previous"]["value"] == "old"
        assert stream.event()[1]["previous"]["value"] == "new"


def test_silence_is_broken(serve: Callable[..., Any]) -> None:
    """Now and then an empty event, which moves the point to resume at past changes of other keys."""
    served = serve(heartbeat_s=0.05)
    with watching(served, "/v1/watch?prefix=a") as stream:
        assert stream.block() == {"retry": "1000"}
        assert stream.block() == {"id": "0"}
        served.request("PUT", "/v1/kv/b", b"1")
        while stream.last_event_id != "1":
            assert set(stream.block()) == {"id"}


def test_what_is_compacted_is_410(served: Any) -> None:
    """Changes that are gone are said to be gone."""
    served.call(lambda: served.store.set_up(a=b"1", b=b"2", c=b"3"))
    served.call(lambda: served.store.compact(2))
    served.get("/v1/watch?after=1").assert_problem(410, "compacted")
    served.get("/v1/changes?after=1").assert_problem(410, "compacted")
    assert [change["key"] for change in served.get("/v1/changes?after=2").json()["changes"]] == ["c"]


def test_a_watch_that_falls_behind_is_told(served: Any) -> None:
    """An event `error` with the problem, and the end; never a silent gap."""
    with watching(served, "/v1/watch") as stream:
        served.request("PUT", "/v1/kv/a", b"1")
        assert stream.event()[0] == "put"
        served.store.error = Compacted("gone")
        served.call(lambda: served.store._apply(commands.put(b"b", b"2")))
        name, problem = stream.event()
        assert (name, problem["status"], problem["code"]) == ("error", 410, "compacted")
        with pytest.raises(EOFError):
            stream.block()


def test_a_withdrawn_token_ends_its_watches(
    serve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the next event, not at the next connection."""
    monkeypatch.setattr(TokenFile, "LOOK_AGAIN_S", 0.0)
    file = tmp_path / "tokens"
    file.write_text("one\nother")
    served = serve(token_file=str(file), heartbeat_s=0.05)
    with watching(served, "/v1/watch", "Authorization: Bearer one\r\n") as stream:
        stream.block()
        file.write_text("other")
        name, problem = stream.event()
        assert (name, problem["code"]) == ("error", "unauthorized")
        with pytest.raises(EOFError):
            stream.block()


def test_a_watcher_that_leaves_costs_nothing(served: Any, eventually: Callable[..., Any]) -> None:
    """Its task ends at once, however quiet the store is."""
    for _ in range(3):
        with watching(served, "/v1/watch"):
            pass
    eventually(lambda: served.call(lambda: not served.state.connections and not served.state.tasks), "the end")


def test_a_watcher_that_never_reads_is_cut_off(serve: Callable[..., Any], eventually: Callable[..., Any]) -> None:
    """What it does not take is not gathered for it."""
    served = serve(write_timeout_s=0.3)
    with served.connect() as connection:
        connection.setsockopt(1, 8, 4096)  # SOL_SOCKET, SO_RCVBUF
        connection.sendall(b"GET /v1/watch?after=0 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        for _ in range(20):
            served.request("PUT", "/v1/kv/a", b"v" * 1_000_000)
        eventually(lambda: served.connections() == 0, "the cut")
    assert served.get("/livez").status == 200


def test_stopping_ends_watches(served: Any) -> None:
    """A stop does not wait for those who listen."""
    with watching(served, "/v1/watch") as stream:
        stream.block()
        served.close()
        with pytest.raises((EOFError, ConnectionError, ValueError)):
            stream.drain()


class TestChanges:
    """One page at a time, for scripts."""

    def test_pages(self, served: Any) -> None:
        """Go on with the page's revision until there is nothing."""
        served.call(lambda: served.store.set_up(a=b"1", b=b"2", c=b"3"))
        page = served.get("/v1/changes?after=0&limit=2").json()
        assert ([change["key"] for change in page["changes"]], page["revision"]) == (["a", "b"], 2)
        page = served.get("/v1/changes?after=2").json()
        assert ([change["key"] for change in page["changes"]], page["revision"]) == (["c"], 3)
        assert served.get("/v1/changes?after=3").json() == {"revision": 3, "changes": []}
        assert served.get("/v1/changes").json() == {"revision": 3, "changes": []}

    def test_waiting(self, served: Any) -> None:
        """`wait_s` answers as soon as there is a change, and with none when the time is over."""
        assert served.get("/v1/changes?after=0&wait_s=0.05").json() == {"revision": 0, "changes": []}
        served.loop.call_soon_threadsafe(served.loop.call_later, 0.1, lambda: served.store.set_up(b=b"1", a=b"2"))
        page = served.get("/v1/changes?after=0&wait_s=20&prefix=a").json()
        assert [change["key"] for change in page["changes"]] == ["a"]

    @pytest.mark.parametrize("query", ["after=x", "after=-1", "limit=0", "limit=1001", "wait_s=61", "since=1"])
    def test_wrong_parameters(self, served: Any, query: str) -> None:
        """400."""
        assert served.get(f"/v1/changes?{query}").status == 400
