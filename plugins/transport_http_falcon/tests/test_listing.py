"""`/v1/kv`: ranges, page by page, and removing them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import msgspec
import pytest


def keys(document: dict[str, Any]) -> list[str]:
    return [row["key"] for row in document["rows"]]


@pytest.fixture
def filled(served: Any) -> Any:
    """Keys a1, a2, a3, b1, b2, with their own names as values, revisions 1 to 5."""
    served.call(lambda: served.store.set_up(a1=b"a1", a2=b"a2", a3=b"a3", b1=b"b1", b2=b"b2"))
    return served


def test_a_list_shows_everything_that_is_known(filled: Any) -> None:
    """Rows in order of key, each with value and revisions; the page says as of which revision."""
    answer = filled.get("/v1/kv")
    document = answer.json()
    assert answer.headers["content-type"] == "application/json"
    assert (answer.headers["raftkv-revision"], answer.headers["raftkv-level"]) == ("5", "linearizable")
    assert (document["revision"], document["more"]) == (5, False)
    assert keys(document) == ["a1", "a2", "a3", "b1", "b2"]
    assert document["rows"][1] == {"key": "a2", "value": "a2", "create_revision": 2, "mod_revision": 2, "version": 1}
    assert "next" not in document


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("prefix=a", ["a1", "a2", "a3"]),
        ("prefix=", ["a1", "a2", "a3", "b1", "b2"]),
        ("prefix=c", []),
        ("prefix=%FF", []),
        ("start=a2", ["a2", "a3", "b1", "b2"]),
        ("end=a3", ["a1", "a2"]),
        ("start=a2&end=b1", ["a2", "a3"]),
        ("prefix=a&reverse", ["a3", "a2", "a1"]),
        ("prefix=a&after=a1", ["a2", "a3"]),
        ("prefix=a&after=a2&reverse=true", ["a1"]),
        ("after=b2", []),
        ("prefix=a&after=b1", []),
        ("prefix=b&after=a1", ["b1", "b2"]),
        ("prefix=b&after=a1&reverse", []),
        ("after=" + "%FF" * 480, []),
        ("after=" + "%FF" * 480 + "&reverse", ["b2", "b1", "a3", "a2", "a1"]),
        ("limit=2", ["a1", "a2"]),
        ("revision=2", ["a1", "a2"]),
    ],
)
def test_ranges(filled: Any, query: str, expected: list[str]) -> None:
    """Prefix, start (inclusive), end (exclusive), after (exclusive), in both directions."""
    assert keys(filled.get(f"/v1/kv?{query}").json()) == expected


def test_pages_follow_each_other_at_one_revision(filled: Any) -> None:
    """`next` leads through all pages; what is written meanwhile does not disturb them."""
    document = filled.get("/v1/kv?limit=2&prefix=").json()
    seen = keys(document)
    filled.request("PUT", "/v1/kv/a9", b"new")
    filled.request("DELETE", "/v1/kv/b2")
    while "next" in document:
        assert document["more"]
        assert document["after"] == seen[-1]
        answer = filled.get(document["next"])
        assert (answer.status, answer.json()["revision"]) == (200, 5)
        document = answer.json()
        seen += keys(document)
    assert seen == ["a1", "a2", "a3", "b1", "b2"]
    assert not document["more"]


def test_pages_go_backwards_too(filled: Any) -> None:
    """The same with reverse, which `next` keeps."""
    document = filled.get("/v1/kv?limit=2&reverse&keys_only=true").json()
    seen = keys(document)
    while "next" in document:
        document = filled.get(document["next"]).json()
        seen += keys(document)
        assert all("value" not in row for row in document["rows"])
    assert seen == ["b2", "b1", "a3", "a2", "a1"]


def test_next_survives_any_key(served: Any) -> None:
    """Keys that are not text are base64 in JSON, and the link still leads on."""
    for byte in range(250, 256):
        served.request("PUT", f"/v1/kv/%{byte:02x}%26%2B", bytes([byte]))
    document = served.get("/v1/kv?limit=1").json()
    seen = [document["rows"][0]]
    while "next" in document:
        document = served.get(document["next"]).json()
        seen += document["rows"]
    assert [base64.b64decode(row["key_base64"]) for row in seen] == [bytes([b]) + b"&+" for b in range(250, 256)]
    assert [base64.b64decode(row["value_base64"]) for row in seen] == [bytes([b]) for b in range(250, 256)]
    assert all("key" not in row and "value" not in row for row in seen)


def test_text_needs_no_decoding(served: Any) -> None:
    """What is UTF-8 stands there as text, whatever it is made of."""
    served.request("PUT", "/v1/kv/%C3%A4%00", "ü\u2028\x00".encode())
    assert served.get("/v1/kv").json()["rows"][0]["key"] == "ä\x00"
    assert served.get("/v1/kv").json()["rows"][0]["value"] == "ü\u2028\x00"


def test_msgpack_has_bytes(served: Any) -> None:
    """By Accept, and without base64."""
    served.request("PUT", "/v1/kv/%FF", b"\xfe", {"Content-Type": "image/png"})
    answer = served.get("/v1/kv", Accept="application/msgpack")
    assert answer.headers["content-type"] == "application/msgpack"
    row = msgspec.msgpack.decode(answer.body)["rows"][0]
    assert (row["key"], row["value"], row["content_type"]) == (b"\xff", b"\xfe", "image/png")


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("*/*", "application/json"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "application/json"),
        ("application/x-msgpack", "application/msgpack"),
        ("application/msgpack;q=1, */*", "application/msgpack"),
        ("application/json, application/msgpack", "application/json"),
    ],
)
def test_what_accept_gets(served: Any, accept: str, expected: str) -> None:
    """The first of the two forms that it names, JSON if it names none."""
    assert served.get("/v1/kv", Accept=accept).headers["content-type"] == expected


def test_what_cannot_be_had(served: Any) -> None:
    """406 for a form that does not exist."""
    served.get("/v1/kv", Accept="image/png").assert_problem(406, "not_acceptable")


def test_counting(filled: Any) -> None:
    """`count` is of the whole range; with limit=0 there is nothing else."""
    document = filled.get("/v1/kv?prefix=a&limit=1&count").json()
    assert (document["count"], keys(document), document["more"]) == (3, ["a1"], True)
    document = filled.get("/v1/kv?prefix=a&limit=0&count=true").json()
    assert (document["count"], document["rows"], document["more"]) == (3, [], True)
    assert "next" not in document


def test_large_values_make_short_pages(serve: Callable[..., Any]) -> None:
    """A page ends at page_bytes_max, all of it from one revision, and never holds much more in memory."""
    served = serve(page_bytes_max=1 << 20)
    for number in range(60):
        served.request("PUT", f"/v1/kv/k{number:02}", b"v" * 100_000)
    document = served.get("/v1/kv").json()
    assert 10 <= len(document["rows"]) <= 33
    assert document["more"]
    seen = keys(document)
    while "next" in document:
        document = served.get(document["next"]).json()
        seen += keys(document)
    assert seen == [f"k{number:02}" for number in range(60)]
    assert max(options["limit"] for what, options in served.store.asked if what == "range") <= 33


def test_many_small_rows_come_in_one_page(serve: Callable[..., Any]) -> None:
    """Asked for piece by piece, given as one."""
    served = serve()
    served.call(lambda: served.store.set_up(**{f"k{number:04}": b"v" for number in range(700)}))
    document = served.get("/v1/kv?limit=600&count").json()
    assert keys(document) == [f"k{number:04}" for number in range(600)]
    assert (document["count"], document["more"]) == (700, True)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("prefix=a&start=b", "bad_parameter"),
        ("start=b&end=a", "empty_range"),
        ("start=a&end=a", "empty_range"),
        ("limit=1001", "bad_parameter"),
        ("limit=-1", "bad_parameter"),
        ("limit=10x", "bad_parameter"),
        ("after=", "empty_key"),
        ("prefix=" + "k" * 481, "key_too_long"),
        ("keys_only=perhaps", "bad_parameter"),
        ("recurse=true", "unknown_parameter"),
        ("revision=100", "future_revision"),
    ],
)
def test_wrong_ranges_are_named(filled: Any, query: str, code: str) -> None:
    """Each with its own code, and nothing is read."""
    filled.get(f"/v1/kv?{query}").assert_problem(400, code)


class TestDelete:
    """Removing a range is one command."""

    def test_a_range_goes_at_once(self, filled: Any) -> None:
        """All its keys in one revision; the answer counts them."""
        answer = filled.request("DELETE", "/v1/kv?prefix=a")
        assert (answer.status, answer.json()) == (200, {"revision": 6, "deleted": 3})
        assert keys(filled.get("/v1/kv").json()) == ["b1", "b2"]
        assert filled.request("DELETE", "/v1/kv?start=b2").json()["deleted"] == 1

    def test_the_whole_store_takes_a_word_more(self, filled: Any) -> None:
        """An empty variable in a script must not empty the store."""
        for query in ("", "?prefix=", "?start=&end="):
            filled.request("DELETE", f"/v1/kv{query}").assert_problem(400, "whole_store")
        assert filled.request("DELETE", "/v1/kv?all=true").json()["deleted"] == 5

    def test_too_many_keys_are_refused(self, serve: Callable[..., Any]) -> None:
        """A command touches 1,024 keys at most; beyond, it changes nothing."""
        served = serve()
        served.call(lambda: served.store.set_up(**{f"k{number:04}": b"v" for number in range(1_030)}))
        served.request("DELETE", "/v1/kv?prefix=k").assert_problem(413, "too_large")
        assert served.get("/v1/kv?limit=0&count").json()["count"] == 1_030

    def test_it_can_be_retried(self, filled: Any) -> None:
        """With an idempotency key."""
        headers = {"Idempotency-Key": "once"}
        first = filled.request("DELETE", "/v1/kv?prefix=a", None, headers).json()
        assert filled.request("DELETE", "/v1/kv?prefix=a", None, headers).json() == {**first, "replayed": True}
