"""Counting requests in every worker, and showing all workers' counts from any of them.

The counts stand in anonymous shared memory that gunicorn's master makes before it forks: an array of numbers
per worker, written by that worker alone. So a count costs a tenth of a microsecond (prometheus-client's own
multi-process files take three), needs no files to clean up, and goes on where it was when a worker is replaced,
because its successor takes over the array. prometheus-client turns the sums into either exposition format.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

__all__ = ["BUCKETS_S", "Counters", "WorkerMetrics", "exposition"]

BUCKETS_S: Final = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.5, 5.0, 10.0)

_CLASSES: Final = 6
"""Responses by status class: 0 stands for none of 1xx to 5xx."""
_PER_ROUTE: Final = _CLASSES + len(BUCKETS_S) + 2
"""Then the histogram's buckets, the one beyond the last, and the sum in microseconds."""
_FIXED: Final = 2
_CONNECTIONS, _REFUSED = range(_FIXED)


class Counters:
    """The shared memory. Made in the master; workers inherit it."""

    def __init__(self, routes: Sequence[str], workers: int) -> None:
        """`routes` names what is counted apart; number 0 is for requests that reached none."""
        self.routes = tuple(routes)
        self._size = _FIXED + len(self.routes) * _PER_ROUTE
        # The owners of the arrays, by worker age; a worker that is being replaced still owns its own.
        self._owners: list[int | None] = [None] * (2 * workers)
        self._numbers = memoryview(mmap.mmap(-1, 8 * self._size * len(self._owners))).cast("Q")

    def take(self, worker: int) -> int:
        """In the master, before a worker is forked: the number of its array."""
        try:
            slot = self._owners.index(None)
        except ValueError:  # more workers at once than planned (a signal to gunicorn): they share
            return worker % len(self._owners)
        self._owners[slot] = worker
        return slot

    def give_back(self, slot: int) -> None:
        """In the master, when the worker has ended."""
        self._owners[slot] = None
        self._numbers[slot * self._size + _CONNECTIONS] = 0

    def of(self, slot: int) -> WorkerMetrics:
        start = slot * self._size
        return WorkerMetrics(self._numbers[start : start + self._size])

    def totals(self) -> list[int]:
        arrays = (self._numbers[start : start + self._size] for start in range(0, len(self._numbers), self._size))
        return [sum(column) for column in zip(*arrays, strict=True)]


class WorkerMetrics:
    """One worker's own counts."""

    __slots__ = ("_numbers",)

    def __init__(self, numbers: memoryview[int]) -> None:
        self._numbers = numbers

    def observe(self, route: int, status: int, seconds: float) -> None:
        """Called once per response; `route` is its number in `Counters.routes`."""
        numbers = self._numbers
        at = _FIXED + route * _PER_ROUTE
        numbers[at + status // 100] += 1
        at += _CLASSES
        numbers[at + bisect_left(BUCKETS_S, seconds)] += 1
        numbers[at + len(BUCKETS_S) + 1] += int(seconds * 1e6)

    @property
    def connections(self) -> int:
        """Open connections of this worker."""
        return self._numbers[_CONNECTIONS]

    @connections.setter
    def connections(self, value: int) -> None:
        self._numbers[_CONNECTIONS] = value

    @property
    def refused_connections(self) -> int:
        """Connections answered 503 because there were too many."""
        return self._numbers[_REFUSED]

    @refused_connections.setter
    def refused_connections(self, value: int) -> None:
        self._numbers[_REFUSED] = value


class _Collector:
    """Hands prometheus-client what was counted and what the node says of itself."""

    def __init__(self, counters: Counters, status: Mapping[str, Any] | None) -> None:
        self._counters = counters
        self._status = status

    def collect(self) -> Iterable[Any]:
        yield from self._requests()
        yield from _node(self._status)

    def _requests(self) -> Iterator[Any]:
        from prometheus_client.metrics_core import (  # noqa: PLC0415 - most workers never show metrics
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        totals = self._counters.totals()
        yield GaugeMetricFamily("raftkv_http_connections", "Open connections", totals[_CONNECTIONS])
        yield CounterMetricFamily(
            "raftkv_http_connections_refused", "Connections beyond connections_max", totals[_REFUSED]
        )
        responses = CounterMetricFamily(
            "raftkv_http_responses", "Responses by route and status class", labels=["route", "status"]
        )
        seconds = HistogramMetricFamily(
            "raftkv_http_request_seconds", "From the request's last byte to the response", labels=["route"]
        )
        for number, route in enumerate(self._counters.routes):
            start = _FIXED + number * _PER_ROUTE
            for status_class, count in enumerate(totals[start : start + _CLASSES]):
                if count:
                    responses.add_metric([route, f"{status_class}xx"], count)
            counts = totals[start + _CLASSES : start + _PER_ROUTE]
            if any(counts):
                seconds.add_metric([route], _cumulative(counts[:-1]), counts[-1] / 1e6)
        yield responses
        yield seconds


def _cumulative(counts: Sequence[int]) -> list[tuple[str, float]]:
    result = []
    total = 0
    for bound, count in zip([*map(str, BUCKETS_S), "+Inf"], counts, strict=True):
        total += count
        result.append((bound, float(total)))
    return result


def _node(status: Mapping[str, Any] | None) -> Iterator[Any]:
    """Every number of the node's status, under its own name; texts as labels of `raftkv_node_info`."""
    from prometheus_client.metrics_core import GaugeMetricFamily, InfoMetricFamily  # noqa: PLC0415

    yield GaugeMetricFamily("raftkv_node_up", "Whether the node process answers", float(status is not None))
    if status is None:
        return
    texts = {
        name: value
        for name, value in status.items()
        if isinstance(value, str) and name in ("node_id", "cluster_id", "storage", "consensus", "version")
    }
    yield InfoMetricFamily("raftkv_node", "What the node is", value=texts)
    roles = GaugeMetricFamily("raftkv_node_role", "1 for the role that the node has", labels=["role"])
    roles.add_metric([str(status.get("role"))], 1)
    yield roles
    for path, number in _numbers(status):
        yield GaugeMetricFamily(f"raftkv_node_{path}", f"{path} of /v1/status", number)


def _numbers(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, entry in value.items():
        path = f"{prefix}{_word(str(name))}"
        if isinstance(entry, bool | int | float):
            yield path, float(entry)
        elif isinstance(entry, Mapping):
            yield from _numbers(entry, f"{path}_")


def _word(name: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in name)


def exposition(counters: Counters, status: Mapping[str, Any] | None, accept: str) -> tuple[str, bytes]:
    """Content type and body, in the format that `accept` asks for. `status` None: the node is away."""
    from prometheus_client import CollectorRegistry  # noqa: PLC0415
    from prometheus_client.exposition import choose_encoder  # noqa: PLC0415

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(counters, status))
    encode, content_type = choose_encoder(accept)
    return content_type, encode(registry)
