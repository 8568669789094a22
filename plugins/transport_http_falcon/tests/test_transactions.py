"""`POST /v1/txn`."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest


def send(served: Any, document: Any, **headers: str) -> Any:
    names = {name.replace("_", "-"): text for name, text in headers.items()}
    return served.request(
        "POST", "/v1/txn", json.dumps(document).encode(), {"Content-Type": "application/json", **names}
    )


def test_then_or_else(served: Any) -> None:
    """All compares hold: `then`; else `else`; the answer has a result for each operation."""
    transaction = {
        "compare": [{"key": "a", "target": "mod_revision", "operator": "=", "value": 0}],
        "then": [{"op": "put", "key": "a", "value": "1", "content_type": "text/plain"}, {"op": "get", "key": "a"}],
        "else": [{"op": "get", "key": "a"}, {"op": "delete", "key": "a", "end": "b"}],
    }
    answer = send(served, transaction)
    row = {
        "key": "a",
        "value": "1",
        "create_revision": 1,
        "mod_revision": 1,
        "version": 1,
        "content_type": "text/plain",
    }
    assert (answer.status, answer.headers["raftkv-revision"]) == (200, "1")
    assert answer.json() == {
        "revision": 1,
        "succeeded": True,
        "results": [{"op": "put"}, {"op": "get", "rows": [row]}],
    }
    assert send(served, transaction).json() == {
        "revision": 2,
        "succeeded": False,
        "results": [{"op": "get", "rows": [row]}, {"op": "delete", "deleted": 1}],
    }


@pytest.mark.parametrize(
    ("target", "operator", "value", "holds"),
    [
        ("create_revision", "=", 1, True),
        ("mod_revision", ">", 1, True),
        ("mod_revision", "<", 2, False),
        ("version", "!=", 1, True),
        ("lease", "=", 0, True),
        ("value", "=", "new", True),
        ("value", "!=", "new", False),
    ],
)
def test_compares(served: Any, target: str, operator: str, value: Any, holds: bool) -> None:
    """Every target and operator."""
    served.request("PUT", "/v1/kv/a", b"old")
    served.request("PUT", "/v1/kv/a", b"new")
    compare = {"key": "a", "target": target, "operator": operator, "value": value}
    assert send(served, {"compare": [compare]}).json()["succeeded"] is holds


def test_bytes_in_json(served: Any) -> None:
    """Base64 for what is no text, both ways."""
    document = {
        "compare": [{"key_base64": "/w==", "target": "value", "operator": "!=", "value_base64": "AA=="}],
        "then": [{"op": "put", "key_base64": "/w==", "value_base64": "/v8="}, {"op": "get", "key_base64": "/w=="}],
    }
    row = send(served, document).json()["results"][1]["rows"][0]
    assert (row["key_base64"], row["value_base64"]) == ("/w==", "/v8=")
    assert served.get("/v1/kv/%FF").body == b"\xfe\xff"


def test_msgpack_both_ways(served: Any) -> None:
    """Bytes need no base64 there."""
    document = {"then": [{"op": "put", "key": b"\xff", "value": b"\x00"}, {"op": "get", "key": b"\xff"}]}
    headers = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
    answer = served.request("POST", "/v1/txn", msgspec.msgpack.encode(document), headers)
    assert msgspec.msgpack.decode(answer.body)["results"][1]["rows"][0]["value"] == b"\x00"


def test_a_retry_applies_once(served: Any) -> None:
    """With an idempotency key."""
    document = {"then": [{"op": "put", "key": "a", "value": "1"}]}
    first = send(served, document, Idempotency_Key="k").json()
    assert send(served, document, Idempotency_Key="k").json() == {**first, "replayed": True}
    assert served.get("/v1/kv/a").headers["etag"] == '"1"'


PUT = {"op": "put", "key": "a", "value": "1"}
COMPARE = {"key": "a", "target": "version", "operator": "=", "value": 1}


@pytest.mark.parametrize(
    "document",
    [
        [],
        "text",
        None,
        {"them": [PUT]},
        {"then": PUT},
        {"then": [1]},
        {"then": [{**PUT, "op": "PUT"}]},
        {"then": [{"key": "a"}]},
        {"then": [{"op": "put", "key": "a"}]},
        {"then": [{"op": "put", "value": "a"}]},
        {"then": [{**PUT, "ttl": 5}]},
        {"then": [{**PUT, "key": 1}]},
        {"then": [{**PUT, "key_base64": "YQ=="}]},
        {"then": [{"op": "get", "key_base64": "&"}]},
        {"then": [{"op": "get", "key_base64": "YQ"}]},
        {"then": [{"op": "get", "key": "a", "limit": -1}]},
        {"then": [{"op": "get", "key": "a", "limit": True}]},
        {"then": [{"op": "get", "key": "a", "limit": 2**63}]},
        {"then": [{**PUT, "content_type": 1}]},
        {"compare": [{**COMPARE, "target": "size"}]},
        {"compare": [{**COMPARE, "operator": "=="}]},
        {"compare": [{**COMPARE, "value": "1"}]},
        {"compare": [{**COMPARE, "value": 1.0}]},
        {"compare": [{**COMPARE, "target": "value"}]},
    ],
)
def test_malformed_transactions_are_named(served: Any, document: Any) -> None:
    """400, and nothing is proposed."""
    send(served, document).assert_problem(400, "malformed_body")
    assert served.store.commands == []


@pytest.mark.parametrize(
    ("document", "status", "code"),
    [
        ({"then": [{**PUT, "key": ""}]}, 400, "empty_key"),
        ({"then": [{**PUT, "key": "k" * 481}]}, 400, "key_too_long"),
        ({"then": [{**PUT, "value": "v" * ((1 << 20) + 1)}]}, 413, "value_too_large"),
        ({"then": [PUT] * 1_025}, 413, "txn_too_large"),
        ({"then": [{**PUT, "value": "v" * (1 << 20)}] * 2}, 413, "command_too_large"),
        ({"then": [{"op": "delete", "key": "b", "end": "a"}]}, 400, "empty_range"),
    ],
)
def test_limits(served: Any, document: Any, status: int, code: str) -> None:
    """The format's limits have codes of their own."""
    send(served, document).assert_problem(status, code)


@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b"{", "application/json", 400, "malformed_body"),
        (b"[" * 100_000, "application/json", 400, "malformed_body"),
        (b'{"then": []} x', "application/json", 400, "malformed_body"),
        (b'{"compare": [{"key": "\xff"}]}', "application/json", 400, "malformed_body"),
        (b"\xdf\xff\xff\xff\xff", "application/msgpack", 400, "malformed_body"),
        (b"\x91" * 100_000, "application/msgpack", 400, "malformed_body"),
        (b"\x80\x80", "application/msgpack", 400, "malformed_body"),
        (b"\x81\xa4then\xc7\x01\x05x", "application/msgpack", 400, "malformed_body"),
        (b"\x81\x01\x02", "application/msgpack", 400, "malformed_body"),
        (b"", "application/msgpack", 400, "malformed_body"),
        (b"{}", "text/plain", 415, "content_type"),
        (b"{}", "", 415, "content_type"),
    ],
)
def test_bodies_that_are_no_documents(served: Any, body: bytes, content_type: str, status: int, code: str) -> None:
    """Truncated, too deep, trailing bytes, huge claims, extension types, other content types."""
    answer = served.request("POST", "/v1/txn", body, {"Content-Type": content_type})
    answer.assert_problem(status, code)
    assert served.store.commands == []


def test_the_empty_transaction(served: Any) -> None:
    """Nothing to compare and nothing to do is allowed, and does nothing."""
    assert send(served, {}).json() == {"revision": 0, "succeeded": True, "results": []}
