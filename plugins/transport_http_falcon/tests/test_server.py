"""Starting up: the limit of open files."""

from __future__ import annotations

import resource

import pytest
from raftkv_transport_http_falcon.server import _allow_files


@pytest.mark.parametrize(
    ("soft", "hard", "connections", "fitting", "raised"),
    [
        (1024, 4096, 1_000, 1_000, 1_128),
        (1024, 4096, 500, 500, None),
        (256, 512, 1_000, 384, 512),
        (100, 100, 1_000, 1, None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 1_000, 1_000, None),
    ],
)
def test_connections_fit_below_the_limit_of_open_files(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    soft: int,
    hard: int,
    connections: int,
    fitting: int,
    raised: int | None,
) -> None:
    """The limit is raised as far as it may be; what does not fit is given up, and said."""
    limits = [soft, hard]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.__setitem__(slice(None), new))
    assert _allow_files(connections) == fitting
    assert limits[0] == (soft if raised is None else raised)
    assert ("connections_max is" in caplog.text) == (fitting < connections)
