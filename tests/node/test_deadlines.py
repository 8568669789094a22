"""Deadlines of many futures, one timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from raftkv_core.errors import Unavailable
from raftkv_core.node.deadlines import SWEEP_S, Deadlines

Virtual = Callable[[Any], Any]


def test_each_future_fails_at_its_own_time(virtual: Virtual) -> None:
    """In whatever order they were given; those that are done in time are left alone."""

    async def work() -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines(loop)
        futures = {after: loop.create_future() for after in (3.0, 0.1, 1.0, 2.0)}
        for after, future in futures.items():
            deadlines.watch(future, after, lambda _future: Unavailable("late"))
        futures[2.0].set_result("in time")
        for after in (0.1, 1.0, 3.0):
            with pytest.raises(Unavailable):
                await futures[after]
            assert after <= loop.time() <= after + SWEEP_S
        assert await futures[2.0] == "in time"

    virtual(work())


def test_futures_that_are_done_are_dropped(virtual: Virtual) -> None:
    """Many quick requests with long deadlines take no memory for long, and no timer when all are done."""

    async def work() -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines(loop)
        for _ in range(1_000):
            future = loop.create_future()
            deadlines.watch(future, 60.0, lambda _future: Unavailable("late"))
            future.set_result(None)
        await asyncio.sleep(2 * SWEEP_S)
        assert deadlines._watched == []
        assert deadlines._timer is None

    virtual(work())
