"""`/v1/kv/{key}`: values as they are, keys as bytes, conditions that hold or fail."""

from __future__ import annotations

from typing import Any

import pytest

from raftkv_core.machine import commands
from raftkv_core.machine.commands import Outcome


def test_a_value_comes_back_as_it_was_put(served: Any) -> None:
    """PUT then GET: the same bytes, with the revision in ETag and header, and the level that was had."""
    answer = served.request("PUT", "/v1/kv/a", b"\x00\xffvalue\r\n")
    assert (answer.status, answer.body) == (204, b"")
    assert (answer.headers["etag"], answer.headers["raftkv-revision"]) == ('"1"', "1")
    answer = served.get("/v1/kv/a")
    assert (answer.status, answer.body) == (200, b"\x00\xffvalue\r\n")
    assert answer.headers["etag"] == '"1"'
    assert answer.headers["raftkv-revision"] == "1"
    assert answer.headers["raftkv-level"] == "linearizable"
    assert answer.headers["raftkv-node"] == "node1"


def test_raw_values_cannot_attack_a_browser(served: Any) -> None:
    """A stored page is neither sniffed nor run, nor kept by a cache."""
    served.request("PUT", "/v1/kv/page", b"<script>alert(1)</script>", {"Content-Type": "text/html"})
    headers = served.get("/v1/kv/page").headers
    assert headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in headers["content-security-policy"]
    assert headers["cache-control"] == "no-store"


def test_every_byte_is_a_key_of_its_own(served: Any) -> None:
    """All 256 one-byte keys, and pairs that UTF-8 would confuse, stay distinct through a raw socket."""
    keys = [bytes([byte]) for byte in range(256)] + [b"\xff\xfe", b"\xfe\xff", b"\xc3\xa4", b"\xef\xbf\xbd"]
    for key in keys:
        target = b"".join(b"%%%02x" % byte for byte in key)
        value = key.hex().encode()
        request = b"PUT /v1/kv/%b HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%b"
        assert b"204 No Content" in served.raw(request % (target, len(value), value))
    for key in keys:
        target = b"".join(b"%%%02X" % byte for byte in key)
        answer = served.raw(b"GET /v1/kv/%b HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" % target)
        assert answer.endswith(b"\r\n\r\n" + key.hex().encode())
    listed = served.get("/v1/kv?limit=1000&keys_only=true").json()
    assert len(listed["rows"]) == len(keys)


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("a%2Fb", b"a/b"),
        ("a/b", b"a/b"),
        ("a//b", b"a//b"),
        ("/a", b"/a"),
        ("..", b".."),
        ("../../etc", b"../../etc"),
        ("./a", b"./a"),
        ("a/", b"a/"),
        ("a+b", b"a+b"),
        ("a%2Bb", b"a+b"),
        ("a%20b", b"a b"),
        ("%00", b"\x00"),
        ("%2525", b"%25"),
        ("a%3Fb", b"a?b"),
        ("a;b&c=d", b"a;b&c=d"),
        ("v1/kv/x", b"v1/kv/x"),
        ("%2e%2E", b".."),
    ],
)
def test_nothing_in_a_key_is_normalised(served: Any, path: str, key: bytes) -> None:
    """Slashes, dots and plus signs are bytes like others; percent-encoding is undone once."""
    assert served.request("PUT", f"/v1/kv/{path}", b"x").status == 204
    assert served.store.commands[-1] == commands.put(key, b"x")
    assert served.get(f"/v1/kv/{path}").body == b"x"


def test_keys_have_bounds(served: Any) -> None:
    """1 to 480 bytes, counted after decoding; a stray % is refused rather than guessed at."""
    for method in ("GET", "PUT", "DELETE"):
        served.request(method, "/v1/kv/", b"x").assert_problem(400, "empty_key")
        served.request(method, "/v1/kv/" + "k" * 481, b"x").assert_problem(400, "key_too_long")
        served.request(method, "/v1/kv/50%", b"x").assert_problem(400, "bad_percent_encoding")
        served.request(method, "/v1/kv/%zz", b"x").assert_problem(400, "bad_percent_encoding")
    assert served.request("PUT", "/v1/kv/" + "%FF" * 480, b"x").status == 204
    assert served.get("/v1/kv/" + "%FF" * 480).body == b"x"


def test_values_have_a_bound(served: Any) -> None:
    """1 MiB is stored, one byte more is 413; an empty value is a value."""
    assert served.request("PUT", "/v1/kv/a", b"v" * (1 << 20)).status == 204
    assert len(served.get("/v1/kv/a").body) == 1 << 20
    served.request("PUT", "/v1/kv/a", b"v" * ((1 << 20) + 1)).assert_problem(413, "value_too_large")
    assert served.request("PUT", "/v1/kv/empty", b"").status == 204
    answer = served.get("/v1/kv/empty")
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "0")


def test_a_missing_key_is_a_problem_with_a_revision(served: Any) -> None:
    """404 says as of which revision the key was missing."""
    served.request("PUT", "/v1/kv/a", b"x")
    answer = served.get("/v1/kv/b")
    answer.assert_problem(404, "key_not_found")
    assert (answer.headers["raftkv-revision"], answer.headers["raftkv-level"]) == ("1", "linearizable")


def test_head_is_get_without_the_value(served: Any) -> None:
    """HEAD has GET's headers, length included, and no body."""
    served.request("PUT", "/v1/kv/a", b"12345")
    answer = served.request("HEAD", "/v1/kv/a")
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "5")
    assert answer.headers["etag"] == '"1"'
    assert served.request("HEAD", "/v1/kv/b").status == 404


def test_delete_says_what_it_removed(served: Any) -> None:
    """Removing is idempotent: a missing key is no error, and the header tells the difference."""
    served.request("PUT", "/v1/kv/a", b"x")
    answer = served.request("DELETE", "/v1/kv/a")
    assert (answer.status, answer.headers["raftkv-deleted"], answer.headers["raftkv-revision"]) == (204, "1", "2")
    answer = served.request("DELETE", "/v1/kv/a")
    assert (answer.status, answer.headers["raftkv-deleted"], answer.headers["raftkv-revision"]) == (204, "0", "2")
    assert served.get("/v1/kv/a").status == 404


class TestConditions:
    """ETags: compare-and-set without a lost update, and reads that cost nothing when nothing changed."""

    def test_if_match_takes_only_the_newest(self, served: Any) -> None:
        """PUT and DELETE with the current ETag succeed, with an older one they are 412 and change nothing."""
        served.request("PUT", "/v1/kv/a", b"1")
        assert served.request("PUT", "/v1/kv/a", b"2", {"If-Match": '"1"'}).headers["etag"] == '"2"'
        served.request("PUT", "/v1/kv/a", b"3", {"If-Match": '"1"'}).assert_problem(412, "precondition_failed")
        served.request("DELETE", "/v1/kv/a", None, {"If-Match": '"1"'}).assert_problem(412, "precondition_failed")
        assert served.get("/v1/kv/a").body == b"2"
        answer = served.request("DELETE", "/v1/kv/a", None, {"If-Match": '"2"'})
        assert (answer.status, answer.headers["raftkv-deleted"]) == (204, "1")

    @pytest.mark.parametrize(
        "tag", ['"0"', '"01"', '"x"', "1", 'W/"1"', '"-1"', '"' + "9" * 30 + '"', '"9223372036854775808"']
    )
    def test_a_tag_that_no_key_can_have_never_matches(self, served: Any, tag: str) -> None:
        """Nor is "0", which the machine sees in a missing key, a way to create one."""
        served.request("PUT", "/v1/kv/a", b"1")
        for key in ("a", "missing"):
            answer = served.request("PUT", f"/v1/kv/{key}", b"2", {"If-Match": tag})
            answer.assert_problem(412, "precondition_failed")
        assert served.get("/v1/kv/a").body == b"1"
        assert served.get("/v1/kv/missing").status == 404

    def test_if_match_star_needs_a_key(self, served: Any) -> None:
        """`If-Match: *` changes, and never creates."""
        served.request("PUT", "/v1/kv/a", b"1", {"If-Match": "*"}).assert_problem(412, "precondition_failed")
        served.request("PUT", "/v1/kv/a", b"1")
        assert served.request("PUT", "/v1/kv/a", b"2", {"If-Match": "*"}).status == 204

    def test_if_none_match_star_only_creates(self, served: Any) -> None:
        """`If-None-Match: *` creates, and never replaces."""
        assert served.request("PUT", "/v1/kv/a", b"1", {"If-None-Match": "*"}).status == 204
        served.request("PUT", "/v1/kv/a", b"2", {"If-None-Match": "*"}).assert_problem(412, "precondition_failed")
        assert served.get("/v1/kv/a").body == b"1"

    def test_if_none_match_with_a_tag(self, served: Any) -> None:
        """A PUT that must not hit a certain revision."""
        served.request("PUT", "/v1/kv/a", b"1")
        served.request("PUT", "/v1/kv/a", b"2", {"If-None-Match": '"1"'}).assert_problem(412, "precondition_failed")
        assert served.request("PUT", "/v1/kv/a", b"2", {"If-None-Match": '"9"'}).status == 204

    @pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
    @pytest.mark.parametrize("value", ['"1", "2"', ""])
    def test_a_condition_that_cannot_be_kept_is_refused(self, served: Any, header: str, value: str) -> None:
        """A list, or nothing at all, must not become an unconditional write."""
        served.request("PUT", "/v1/kv/a", b"1", {header: value}).assert_problem(400, "bad_precondition")
        served.request("DELETE", "/v1/kv/a", None, {header: value}).assert_problem(400, "bad_precondition")

    @pytest.mark.parametrize("value", ['"1"', 'W/"1"', '"7", "1"', "*"])
    def test_get_if_none_match(self, served: Any, value: str) -> None:
        """304 without the value while it is the one that the client has."""
        served.request("PUT", "/v1/kv/a", b"1")
        answer = served.get("/v1/kv/a", If_None_Match=value)
        assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", '"1"')
        served.request("PUT", "/v1/kv/a", b"2")
        if value != "*":
            assert served.get("/v1/kv/a", If_None_Match=value).body == b"2"


def test_content_type_is_given_back(served: Any) -> None:
    """What was said at PUT is said at GET; what tools say when nobody asked them is not kept."""
    served.request("PUT", "/v1/kv/a", b"{}", {"Content-Type": "application/json; charset=utf-8"})
    assert served.get("/v1/kv/a").headers["content-type"] == "application/json; charset=utf-8"
    for unsaid in ("application/x-www-form-urlencoded", "application/octet-stream"):
        served.request("PUT", "/v1/kv/b", b"x", {"Content-Type": unsaid})
        assert served.get("/v1/kv/b").headers["content-type"] == "application/octet-stream"
        assert served.store.commands[-1] == commands.put(b"b", b"x")
    for bad in ("text/\xe4", "t" * 300):
        served.request("PUT", "/v1/kv/c", b"x", {"Content-Type": bad}).assert_problem(400, "bad_content_type")


def test_a_stored_content_type_cannot_split_the_response(served: Any) -> None:
    """Another transport may have stored anything; it is not copied into a header."""
    evil = {"content_type": "text/plain\r\nSet-Cookie: a=b"}
    served.call(lambda: served.store._apply(commands.put(b"a", b"x", attributes=evil)))
    answer = served.get("/v1/kv/a")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert "set-cookie" not in answer.headers


def test_compressed_bodies_are_refused(served: Any) -> None:
    """Nothing is decompressed, so nothing can blow up, and nothing is stored by mistake."""
    answer = served.request("PUT", "/v1/kv/a", b"x", {"Content-Encoding": "gzip"})
    answer.assert_problem(415, "content_encoding")
    assert served.request("PUT", "/v1/kv/a", b"x", {"Content-Encoding": "identity"}).status == 204


def test_a_retry_with_an_idempotency_key_applies_once(served: Any) -> None:
    """The second answer is the first one's, marked; the same key with another request is 422."""
    headers = {"Idempotency-Key": "k1"}
    first = served.request("PUT", "/v1/kv/a", b"1", headers)
    second = served.request("PUT", "/v1/kv/a", b"1", headers)
    assert "raftkv-replayed" not in first.headers
    assert (second.status, second.headers["raftkv-replayed"], second.headers["etag"]) == (204, "true", '"1"')
    served.request("PUT", "/v1/kv/a", b"2", headers).assert_problem(422, "idempotency_mismatch")
    headers = {"Idempotency-Key": "k2", "If-Match": '"1"'}
    assert served.request("PUT", "/v1/kv/a", b"2", headers).status == 204
    assert served.request("PUT", "/v1/kv/a", b"2", headers).headers["raftkv-replayed"] == "true"
    for bad in ("", "k" * 129):
        answer = served.request("PUT", "/v1/kv/a", b"1", {"Idempotency-Key": bad})
        answer.assert_problem(400, "bad_idempotency_key")


def test_a_forgotten_outcome_is_not_called_a_success(served: Any) -> None:
    """A replayed condition whose result was too large to remember is said to be unknown."""
    served.store.outcome = Outcome(0, 7, None, replayed=True)
    answer = served.request("PUT", "/v1/kv/a", b"1", {"If-Match": '"1"', "Idempotency-Key": "k"})
    answer.assert_problem(504, "outcome_forgotten", "unknown")


def test_read_options_reach_the_store(served: Any) -> None:
    """Level, revision, minimum revision and time-out; the reply names the level."""
    served.request("PUT", "/v1/kv/a", b"1")
    served.request("PUT", "/v1/kv/a", b"2")
    answer = served.get("/v1/kv/a?level=stale&revision=1&min_revision=2&timeout_s=1.5")
    assert (answer.body, answer.headers["raftkv-level"], answer.headers["etag"]) == (b"1", "stale", '"1"')
    expected = {"level": "stale", "revision": 1, "min_revision": 2, "timeout_s": 1.5}
    assert served.store.asked[-1] == ("get", expected)
    served.request("PUT", "/v1/kv/a?timeout_s=2", b"1")
    assert served.store.asked[-1] == ("propose", {"timeout_s": 2.0})


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("level=strong", "bad_parameter"),
        ("levle=stale", "unknown_parameter"),
        ("revision=-1", "bad_parameter"),
        ("revision=1.5", "bad_parameter"),
        ("revision=9223372036854775808", "bad_parameter"),
        ("revision=%D9%A1", "bad_parameter"),
        ("revision=", "bad_parameter"),
        ("level=stale&level=stale", "repeated_parameter"),
        ("timeout_s=0", "bad_parameter"),
        ("timeout_s=nan", "bad_parameter"),
        ("timeout_s=inf", "bad_parameter"),
        ("timeout_s=61", "bad_parameter"),
        ("level=%", "bad_percent_encoding"),
        ("revision=99", "future_revision"),
    ],
)
def test_wrong_read_options_are_named(served: Any, query: str, code: str) -> None:
    """A misspelt option is an error, not a read of another kind."""
    served.get(f"/v1/kv/a?{query}").assert_problem(400, code)


def test_a_compacted_revision_is_gone(served: Any) -> None:
    """410 for a revision that is no longer kept."""
    for value in (b"1", b"2", b"3"):
        served.request("PUT", "/v1/kv/a", value)
    served.call(lambda: served.store.compact(2))
    served.get("/v1/kv/a?revision=1").assert_problem(410, "compacted")
    assert served.get("/v1/kv/a?revision=2").body == b"2"


def test_other_methods_are_405(served: Any) -> None:
    """With the list of those that are possible."""
    for method in ("POST", "PATCH", "TRACE", "PROPFIND"):
        answer = served.request(method, "/v1/kv/a", b"")
        answer.assert_problem(405, "method_not_allowed")
        assert {"GET", "PUT", "DELETE"} <= set(answer.headers["allow"].split(", "))
    answer = served.request("OPTIONS", "/v1/kv/a")
    assert (answer.status, "PUT" in answer.headers["allow"]) == (200, True)
