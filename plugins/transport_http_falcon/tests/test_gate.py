"""Who may come in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from raftkv_transport_http_falcon.gate import Gate, TokenFile
from raftkv_transport_http_falcon.problems import Problem
from raftkv_transport_http_falcon.routes import ROUTES

from raftkv_core.errors import ConfigError

OPEN = {"/livez", "/readyz", "/health"}


@pytest.fixture
def protected(serve: Callable[..., Any], tmp_path: Path) -> Any:
    (tmp_path / "tokens").write_text("# comment\nfirst\n\nsecond\n")
    return serve(token_file=str(tmp_path / "tokens"))


@pytest.mark.parametrize(
    "credential",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "Bearer firs", "Bearer # comment", "Basic first", "first"],
)
def test_every_route_asks_for_the_token(protected: Any, credential: str | None) -> None:
    """All methods of all routes but the health checks, unknown paths and trailing slashes too."""
    headers = {} if credential is None else {"Authorization": credential}
    for route in ROUTES:
        endpoint = protected if route.listener == "http" else protected.management
        for method in (*route.methods, "OPTIONS", "PATCH"):
            for slash in ("", "/"):
                path = route.path.replace("{key}", "a") + slash
                answer = endpoint.request(method, path, headers=headers)
                expected = route.path not in OPEN or slash
                assert (answer.status == 401) == bool(expected), (method, path)
                if expected:
                    assert answer.headers["www-authenticate"] == "Bearer"
    assert protected.request("GET", "/nowhere", headers=headers).status == 401
    assert protected.store.commands == []


@pytest.mark.parametrize("credential", ["Bearer first", "bearer second", "BEARER  first "])
def test_a_token_opens_them(protected: Any, credential: str) -> None:
    """Any of the file's."""
    assert protected.request("PUT", "/v1/kv/a", b"1", {"Authorization": credential}).status == 204


class TestTokenFile:
    """The file may change while the server runs."""

    @pytest.fixture
    def file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(TokenFile, "LOOK_AGAIN_S", 0.0)
        path = tmp_path / "tokens"
        path.write_text("old")
        return path

    def test_a_change_counts_at_once(self, file: Path) -> None:
        """The new token is taken, the old one is not; the same when the file was replaced as a whole."""
        tokens = TokenFile(file)
        assert tokens.allows(b"old")
        file.write_text("newer")
        assert tokens.allows(b"newer")
        assert not tokens.allows(b"old")
        replacement = file.with_name("replacement")
        replacement.write_text("newest")
        replacement.replace(file)
        assert tokens.allows(b"newest")

    def test_a_missing_file_lets_nobody_in(self, file: Path) -> None:
        """Until it is back."""
        tokens = TokenFile(file)
        file.unlink()
        assert not tokens.allows(b"old")
        file.write_text("old")
        assert tokens.allows(b"old")

    @pytest.mark.parametrize("content", ["", "\n\n", "# only a comment\n"])
    def test_a_file_without_token_is_refused_at_start(self, file: Path, content: str) -> None:
        """An empty file must not mean that no token is asked for."""
        file.write_text(content)
        with pytest.raises(ConfigError, match="holds no token"):
            TokenFile(file)

    def test_no_file_is_refused_at_start(self, file: Path) -> None:
        """With the remedy."""
        with pytest.raises(ConfigError, match="create it"):
            TokenFile(file.with_name("missing"))


class TestBrowsers:
    """Pages of other sites cannot write here, nor read a store on somebody's machine."""

    @pytest.mark.parametrize(
        "headers",
        [
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://127.0.0.1:1"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
        ],
    )
    def test_cross_origin_writes_are_refused(self, served: Any, headers: dict[str, str]) -> None:
        """Also those that a browser sends without asking first, like a text/plain POST."""
        plain = {"Content-Type": "text/plain", **headers}
        served.request("POST", "/insert-val", b"x", plain).assert_problem(403, "cross_origin")
        served.request("PUT", "/v1/kv/a", b"x", headers).assert_problem(403, "cross_origin")
        served.request("DELETE", "/v1/kv/a", b"x", headers).assert_problem(403, "cross_origin")
        served.request("POST", "/v1/txn", b"{}", headers).assert_problem(403, "cross_origin")
        assert served.store.commands == []
        assert served.request("GET", "/v1/kv", None, headers).status == 200

    def test_the_stores_own_pages_may_write(self, served: Any) -> None:
        """Same origin."""
        headers = {"Host": f"127.0.0.1:{served.port}", "Origin": f"http://127.0.0.1:{served.port}"}
        request = "PUT /v1/kv/a HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in headers.items())
        answer = served.raw(f"{request}Sec-Fetch-Site: same-origin\r\nContent-Length: 1\r\n\r\nx".encode())
        assert answer.startswith(b"HTTP/1.1 204")

    @pytest.mark.parametrize(
        ("host", "is_known"),
        [
            ("127.0.0.1", True),
            ("127.0.0.1:8080", True),
            ("[::1]:8080", True),
            ("10.1.2.3", True),
            ("localhost:8080", True),
            ("LOCALHOST.", True),
            ("store.localhost", True),
            ("listed.example:8080", True),
            ("", True),
            ("evil.example", False),
            ("evil.example:8080", False),
            ("127.0.0.1.evil.example", False),
            ("notlocalhost", False),
        ],
    )
    def test_names_on_loopback(self, host: str, is_known: bool) -> None:
        """A name that somebody pointed at 127.0.0.1 is not answered for (DNS rebinding)."""
        gate = Gate("127.0.0.1:8080", hosts=["listed.example"])
        if is_known:
            gate.check({b"host": host.encode()}, "GET")
            gate.check({b"host": host.encode()}, "GET")
        else:
            with pytest.raises(Problem) as refused:
                gate.check({b"host": host.encode()}, "GET")
            assert (refused.value.status, refused.value.code) == (421, "unknown_host")

    def test_names_beyond_loopback(self, tmp_path: Path) -> None:
        """A listener that the network may reach has names that we cannot know, and a token to protect it."""
        Gate("0.0.0.0:8080").check({b"host": b"anything.example"}, "GET")
        (tmp_path / "token").write_text("t")
        gate = Gate("127.0.0.1:8080", token_file=str(tmp_path / "token"))
        gate.check({b"host": b"anything.example", b"authorization": b"Bearer t"}, "GET")
