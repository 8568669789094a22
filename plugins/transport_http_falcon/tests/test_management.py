"""The management listener, and that the two listeners do not mix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from raftkv_transport_http_falcon.hub import Hub
from raftkv_transport_http_falcon.limits import Limits
from raftkv_transport_http_falcon.metrics import Counters
from raftkv_transport_http_falcon.routes import ROUTES, names

from raftkv_core.errors import NotApplied, Unavailable
from raftkv_core.interfaces.consensus import Member


def test_status_and_health(served: Any) -> None:
    """As the store that this one replaces answers them."""
    answer = served.management.get("/status")
    assert (answer.status, answer.json()) == (200, {"is_leader": True, "leader_addr": "127.0.0.1:8088"})
    answer = served.management.get("/health")
    assert (answer.status, answer.body) == (200, b"OK")


def test_status_of_a_follower(served: Any) -> None:
    """It names the leader's Raft address; without a leader, none."""
    served.store.facts.update(
        role="follower", leader="node2", members=[{"node_id": "node2", "address": "10.0.0.2:8088"}]
    )
    assert served.management.get("/status").json() == {"is_leader": False, "leader_addr": "10.0.0.2:8088"}
    served.store.facts["leader"] = None
    assert served.management.get("/status").json() == {"is_leader": False, "leader_addr": ""}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_solo_cannot_be_joined(served: Any, method: str) -> None:
    """The engine's own answer, as text."""
    answer = served.management.request(method, "/join?peerID=node2&peerAddress=10.0.0.2:8088")
    assert answer.status == 400
    assert b"cannot be joined" in answer.body
    assert served.store.asked[-1][1]["member"] == Member("node2", "10.0.0.2:8088")


def test_joining(served: Any) -> None:
    """By query or by form; the engine decides."""

    async def add(member: Any, *, timeout_s: float | None = None) -> None:
        served.joined = member

    served.store.add_member = add
    answer = served.management.get("/join?peerID=node2&peerAddress=10.0.0.2%3A8088")
    assert (answer.status, answer.body, served.joined) == (
        200,
        b"Joined successfully",
        Member("node2", "10.0.0.2:8088"),
    )
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = served.management.request("POST", "/join", b"peerID=node3&peerAddress=node3:8088", form)
    assert (answer.status, served.joined) == (200, Member("node3", "node3:8088"))


@pytest.mark.parametrize("error", [Unavailable("there is no leader"), NotApplied("node is not the leader")])
def test_a_join_that_fails(served: Any, error: Exception) -> None:
    """500 with the reason as text."""
    served.store.error = error
    answer = served.management.get("/join?peerID=node2&peerAddress=10.0.0.2:8088")
    assert (answer.status, answer.body.decode()) == (500, str(error))


@pytest.mark.parametrize("query", ["", "?peerID=node2", "?peerAddress=a:1", "?peerID=&peerAddress="])
def test_missing_parameters(served: Any, query: str) -> None:
    """400, with its words."""
    answer = served.management.get(f"/join{query}")
    assert (answer.status, answer.body) == (400, b"Missing peerAddress or peerID")


@pytest.mark.parametrize(
    ("node_id", "address"),
    [
        ("node2", "file:///etc/passwd"),
        ("node2", "10.0.0.2"),
        ("node2", "10.0.0.2:0"),
        ("node2", "10.0.0.2:99999"),
        ("node2", "0.0.0.0:8088"),
        ("node2", "%3A8088"),
        ("node2", "unix:/tmp/x"),
        ("node2", "a%20b:1"),
        ("no%2Fde", "10.0.0.2:8088"),
        ("n" * 65, "10.0.0.2:8088"),
        ("node2%0A", "10.0.0.2:8088"),
    ],
)
def test_members_that_cannot_be(served: Any, node_id: str, address: str) -> None:
    """Refused before the engine is asked."""
    answer = served.management.get(f"/join?peerID={node_id}&peerAddress={address}")
    assert answer.status == 400
    assert served.store.asked == []


def test_other_methods(served: Any) -> None:
    """405, with its words."""
    for path in ("/join", "/status", "/health"):
        for method in ("PUT", "DELETE", "OPTIONS", "PROPFIND"):
            answer = served.management.request(method, path)
            assert (answer.status, answer.body) == (405, b"Method not allowed")


def test_the_listeners_do_not_mix(served: Any) -> None:
    """No data on the management port, no joining on the data port."""
    for route in ROUTES:
        other = served if route.listener == "management" else served.management
        if (route.listener, route.path) not in (("http", "/health"), ("management", "/health")):
            path = route.path.replace("{key}", "a")
            assert other.request(route.methods[0], path).status == 404, route
    assert served.management.get("/health").body == b"OK"
    assert served.get("/health").json() == {"health": "true"}


@pytest.mark.parametrize(
    ("management_at", "server", "is_management"),
    [
        (("127.0.0.1", 6000), ("127.0.0.1", 6000), True),
        (("127.0.0.1", 6000), ("127.0.0.1", 8080), False),
        (("127.0.0.2", 8080), ("127.0.0.1", 8080), False),
        (("127.0.0.2", 8080), ("127.0.0.2", 8080), True),
        (("0.0.0.0", 6000), ("10.0.0.1", 6000), True),
        (("::", 6000), ("fe80::1", 6000, 0, 0), True),
    ],
)
def test_which_listener_a_connection_came_in_by(
    management_at: tuple[str, int], server: tuple[Any, ...], is_management: bool
) -> None:
    """Told by the address of its own end; wildcards take every address."""

    async def data(*_: Any) -> None: ...

    async def management(*_: Any) -> None: ...

    hub = Hub(data, (management, management_at), Limits(), Counters(names(), 1).of(0), node_id="n")
    assert hub.application_at(server) is (management if is_management else data)


def test_a_token_of_its_own(serve: Callable[..., Any], tmp_path: Any) -> None:
    """join_token_file protects the management listener alone; without it, token_file protects both."""
    (tmp_path / "join").write_text("join-secret")
    (tmp_path / "data").write_text("data-secret")
    served = serve(join_token_file=str(tmp_path / "join"))
    served.management.get("/join?peerID=a&peerAddress=b:1").assert_problem(401, "unauthorized")
    assert served.management.get("/status", Authorization="Bearer join-secret").status == 200
    assert served.management.get("/health").status == 200
    assert served.get("/v1/status").status == 200
    served = serve(token_file=str(tmp_path / "data"))
    assert served.management.get("/status").status == 401
    assert served.management.get("/status", Authorization="Bearer data-secret").status == 200
    served = serve(token_file=str(tmp_path / "data"), join_token_file=str(tmp_path / "join"))
    assert served.management.get("/status", Authorization="Bearer data-secret").status == 401
    assert served.get("/v1/status", Authorization="Bearer join-secret").status == 401


def test_a_web_page_cannot_join_a_node(served: Any) -> None:
    """Joining by GET changes something, so a browser's GET for another site is refused too."""
    answer = served.management.get("/join?peerID=a&peerAddress=b:1", Sec_Fetch_Site="cross-site")
    answer.assert_problem(403, "cross_origin")
