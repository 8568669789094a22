"""Status, health, metrics, version."""

from __future__ import annotations

from typing import Any

import pytest
from raftkv_transport_http_falcon.metrics import Counters

import raftkv_core
from raftkv_core.errors import Unavailable


def test_status_is_the_nodes_own(served: Any) -> None:
    """Everything that the node says of itself."""
    document = served.get("/v1/status").json()
    assert document["node_id"] == "node1"
    assert document["figures"] == {"log": {"syncs": 7}}
    served.store.error = Unavailable("the node process is away")
    problem = served.get("/v1/status").assert_problem(503, "unavailable")
    assert problem["retryable"]


def test_live_means_this_process(served: Any) -> None:
    """`/livez` stays ok while the node is away: restarting the worker would not help."""
    served.store.error = Unavailable("away")
    answer = served.get("/livez")
    assert (answer.status, answer.body) == (200, b"ok\n")


def test_ready(served: Any) -> None:
    """`/readyz` and `/health` say yes when the node does."""
    assert served.get("/readyz").body == b"ok\n"
    assert served.get("/readyz?verbose").body == b"[+]http ok\n[+]node ok\nreadyz check passed\n"
    answer = served.get("/health")
    assert (answer.status, answer.json()) == (200, {"health": "true"})


@pytest.mark.parametrize("is_away", [False, True])
def test_not_ready(served: Any, is_away: bool) -> None:
    """503 with the reasons, whether the node gives them or is away."""
    if is_away:
        served.store.error = Unavailable("no quorum")
    else:
        served.store.facts.update(ready=False, reasons=["no quorum"])
    answer = served.get("/readyz")
    assert (answer.status, answer.body) == (503, b"not ready: no quorum\n")
    answer = served.get("/readyz?verbose=true")
    assert answer.body == b"[+]http ok\n[-]node not ready\n[-]no quorum\nreadyz check failed\n"
    answer = served.get("/health")
    assert (answer.status, answer.json()) == (503, {"health": "false", "reason": "no quorum"})


def test_version(served: Any) -> None:
    """Of raftkv and of the API."""
    assert served.get("/version").json() == {"version": raftkv_core.__version__, "api": "v1"}


class TestMetrics:
    """Numbers for Prometheus."""

    def test_requests_and_node(self, served: Any) -> None:
        """Responses by route and class, latencies, connections, and the node's own numbers."""
        for _ in range(3):
            served.request("PUT", "/v1/kv/a", b"1")
        served.get("/v1/kv/b")
        served.raw(b"NONSENSE\r\n\r\n")
        answer = served.get("/metrics")
        text = answer.body.decode()
        assert answer.headers["content-type"].startswith("text/plain; version=")
        assert 'raftkv_http_responses_total{route="http:/v1/kv/{key}",status="2xx"} 3.0' in text
        assert 'raftkv_http_responses_total{route="http:/v1/kv/{key}",status="4xx"} 1.0' in text
        assert 'raftkv_http_responses_total{route="none",status="4xx"} 1.0' in text
        assert 'raftkv_http_request_seconds_count{route="http:/v1/kv/{key}"} 4.0' in text
        assert 'raftkv_http_request_seconds_bucket{le="+Inf",route="http:/v1/kv/{key}"} 4.0' in text
        assert "raftkv_node_up 1.0" in text
        assert "raftkv_node_revision 3.0" in text
        assert "raftkv_node_figures_log_syncs 7.0" in text
        assert "raftkv_node_ready 1.0" in text
        assert 'raftkv_node_role{role="leader"} 1.0' in text
        assert 'raftkv_node_info{cluster_id="cccccccccccccccccccccccccccccccc",consensus="solo"' in text

    def test_without_the_node(self, served: Any) -> None:
        """The worker's own numbers are there while the node is away."""
        served.store.error = Unavailable("away")
        text = served.get("/metrics").body.decode()
        assert "raftkv_node_up 0.0" in text
        assert "raftkv_http_connections" in text

    def test_openmetrics(self, served: Any) -> None:
        """By Accept."""
        answer = served.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        assert answer.body.endswith(b"# EOF\n")


class TestCounters:
    """Counts of all workers, and of those that are gone."""

    def test_totals_are_of_all_workers(self) -> None:
        """Each counts for itself; totals add them up."""
        counters = Counters(["none", "a"], 2)
        one, other = counters.of(counters.take(1)), counters.of(counters.take(2))
        one.observe(1, 200, 0.003)
        other.observe(1, 200, 20.0)
        other.observe(0, 404, 0.0)
        one.connections = 5
        other.connections = 6
        totals = counters.totals()
        assert sum(totals[:2]) == 11
        assert sum(totals) == 11 + 3 + 3 + 3_000 + 20_000_000

    def test_a_successor_goes_on(self) -> None:
        """A worker's counts survive it, its open connections do not."""
        counters = Counters(["none"], 1)
        slot = counters.take(1)
        counters.of(slot).observe(0, 200, 0.0)
        counters.of(slot).connections = 3
        overlapping = counters.take(2)
        assert overlapping != slot
        counters.give_back(slot)
        assert counters.take(3) == slot
        assert sum(counters.totals()) == 2

    def test_more_workers_than_planned(self) -> None:
        """They share an array instead of failing."""
        counters = Counters(["none"], 1)
        slots = [counters.take(age) for age in range(1, 6)]
        assert set(slots) == {0, 1}
