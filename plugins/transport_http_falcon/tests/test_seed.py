"""The API of the store that this one replaces, as its clients know it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from raftkv_core.errors import OutcomeUnknown, Unavailable
from raftkv_core.machine.commands import Outcome

MSGPACK = {"Content-Type": "application/msgpack"}


def insert(served: Any, document: Any) -> Any:
    return served.request("POST", "/insert-val", msgpack.packb(document), MSGPACK)


def test_set_get_delete(served: Any) -> None:
    """Its own test client's round."""
    answer = insert(served, {"op": "SET", "key": "hello", "value": "world"})
    assert (answer.status, answer.body) == (200, b"ok")
    answer = served.get("/get-val?key=hello")
    assert (answer.status, answer.body) == (200, b"world")
    assert insert(served, {"op": "DELETE", "key": "hello", "value": ""}).body == b"ok"
    answer = served.get("/get-val?key=hello")
    assert (answer.status, answer.body) == (200, b"Key Not Found")


def test_one_store_behind_both_apis(served: Any) -> None:
    """What one writes the other reads."""
    insert(served, {"op": "SET", "key": "a/ü", "value": "1\n=2"})
    assert served.get("/v1/kv/a/%C3%BC").body == b"1\n=2"
    served.request("PUT", "/v1/kv/%FF", b"\xfe")
    assert served.get("/get-val?key=%FF").body == b"\xfe"


@pytest.mark.parametrize(
    "document",
    [
        {"op": "SET", "key": b"a", "value": b"1"},
        {"op": "SET", "key": "a", "value": ""},
        {"op": "SET", "key": "a", "value": "1", "ttl": 5},
        {"op": "DELETE", "key": "a"},
        {"op": "DELETE", "key": "missing", "value": "x"},
    ],
)
def test_ok(served: Any, document: Any) -> None:
    """Binary is as good as text, a deletion needs no value, deleting nothing is fine, more fields are ignored."""
    answer = insert(served, document)
    assert (answer.status, answer.body) == (200, b"ok")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc0",
        b"\x01",
        b"SET a b",
        msgpack.packb([]),
        msgpack.packb({}),
        msgpack.packb({"op": "SET", "key": "a"}),
        msgpack.packb({"op": "SET", "value": "a"}),
        msgpack.packb({"op": "SET", "key": "", "value": "1"}),
        msgpack.packb({"op": "SET", "key": "k" * 481, "value": "1"}),
        msgpack.packb({"op": "SET", "key": "a", "value": "v" * ((1 << 20) + 1)}),
        msgpack.packb({"op": "set", "key": "a", "value": "1"}),
        msgpack.packb({"op": "GET", "key": "a", "value": "1"}),
        msgpack.packb({"op": b"SET", "key": "a", "value": "1"}),
        msgpack.packb({"op": "SET", "key": "a", "value": 1}),
        msgpack.packb({"op": "SET", "key": "a", "value": True}),
        msgpack.packb({"op": "SET", "key": "a", "value": None}),
        msgpack.packb({"op": "SET", "key": "a", "value": float("nan")}),
        msgpack.packb({"op": "SET", "key": "a", "value": []}),
        msgpack.packb({"op": "SET", "key": ["a"], "value": "1"}),
        msgpack.packb({"op": "SET", "key": {"a": "b"}, "value": "1"}),
        msgpack.packb({"op": "DELETE", "key": "a", "value": 1}),
        msgpack.packb({"op": "SET", "key": "a", "value": msgpack.ExtType(5, b"x")}),
        msgpack.packb({"op": "SET", "key": "a", "value": msgpack.Timestamp(1, 1)}),
        msgpack.packb({1: 2, "op": "SET", "key": "a", "value": "1"}),
        msgpack.packb({"op": "SET", "key": "a", "value": "1"}) + b"\x00",
        msgpack.packb({"op": "SET", "key": "a", "value": "1"})[:-1],
        msgpack.packb({str(number): "" for number in range(14)} | {"op": "SET", "key": "a", "value": "1"}),
        b"\x84" + b"".join(map(msgpack.packb, ("op", "SET", "key", "a", "value", "1", "key", "b"))),
        b"\x83\xa2op\xa3SET\xa3key\xa1a\xa5value\xa2\xff\xfe",
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xffabc",
        b"\xc6\xff\xff\xff\xffabc",
        b"\x81" * 100_000,
        b"\x91" * 100_000,
        b"\x83\xa2op\xa3SET\xa3key\xa1a\xa5value\xcf\xff\xff\xff\xff\xff\xff\xff\xff",
    ],
)
def test_error(served: Any, body: bytes) -> None:
    """An invalid command is `error`, with status 200, and nothing is proposed: no ext types, no huge claims, no
    trailing bytes, no depth, no fields given twice."""
    answer = served.request("POST", "/insert-val", body, MSGPACK)
    assert (answer.status, answer.body) == (200, b"error")
    assert served.store.commands == []
    assert served.get("/livez").status == 200


@pytest.mark.parametrize("error", [Unavailable("no leader"), OutcomeUnknown("no answer")])
def test_a_failed_write_is_error(served: Any, error: Exception) -> None:
    """200 `error`, whatever became of it."""
    served.store.error = error
    answer = insert(served, {"op": "SET", "key": "a", "value": "1"})
    assert (answer.status, answer.body) == (200, b"error")


def test_a_refused_write_is_error(served: Any) -> None:
    """The state machine's own refusals too."""
    served.store.outcome = Outcome(8, 1, "sealed")
    assert insert(served, {"op": "SET", "key": "a", "value": "1"}).body == b"error"


@pytest.mark.parametrize(
    ("method", "path", "content_type"),
    [
        ("POST", "/insert-val", "application/json"),
        ("POST", "/insert-val", ""),
        ("GET", "/insert-val", "application/msgpack"),
        ("PUT", "/insert-val", "application/msgpack"),
        ("OPTIONS", "/insert-val", "application/msgpack"),
        ("POST", "/get-val?key=a", ""),
        ("HEAD", "/get-val?key=a", ""),
        ("PROPFIND", "/get-val?key=a", ""),
        ("GET", "/", ""),
        ("GET", "/get-val/", ""),
        ("GET", "/nowhere", ""),
        ("POST", "/nowhere", ""),
    ],
)
def test_everything_else_is_404(served: Any, method: str, path: str, content_type: str) -> None:
    """Other routes, methods and content types, with its words."""
    answer = served.request(method, path, b"", {"Content-Type": content_type})
    assert answer.status == 404
    assert answer.body == (b"" if method == "HEAD" else b"404 Not Found")


def test_media_type_parameters_do_not_matter(served: Any) -> None:
    """Upper case and parameters are the same type."""
    body = msgpack.packb({"op": "SET", "key": "a", "value": "1"})
    answer = served.request("POST", "/insert-val", body, {"Content-Type": "Application/MsgPack; x=y"})
    assert answer.body == b"ok"


@pytest.mark.parametrize("query", ["", "?", "?key", "?key=", "?other=a", "?key=" + "k" * 481])
def test_keys_that_cannot_exist_are_not_found(served: Any, query: str) -> None:
    """A missing, empty or too long key."""
    answer = served.get(f"/get-val{query}")
    assert (answer.status, answer.body) == (200, b"Key Not Found")


def test_reads_are_linearizable_unless_asked_otherwise(served: Any) -> None:
    """It read locally; `level=stale` still does."""
    served.get("/get-val?key=a")
    assert served.store.asked[-1][1]["level"] == "linearizable"
    served.get("/get-val?key=a&level=stale")
    assert served.store.asked[-1][1]["level"] == "stale"


def test_a_failed_read_is_no_value(served: Any) -> None:
    """It could not fail; ours says so with a status."""
    served.store.error = Unavailable("the node is away")
    served.get("/get-val?key=a").assert_problem(503, "unavailable")


def test_with_a_token(serve: Callable[..., Any], tmp_path: Any) -> None:
    """Its routes are protected like all others."""
    (tmp_path / "token").write_text("secret\n")
    served = serve(token_file=str(tmp_path / "token"))
    body = msgpack.packb({"op": "SET", "key": "a", "value": "1"})
    served.request("POST", "/insert-val", body, MSGPACK).assert_problem(401, "unauthorized")
    answer = served.request("POST", "/insert-val", body, {**MSGPACK, "Authorization": "Bearer secret"})
    assert answer.body == b"ok"
