"""The news of revisions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from raftkv_core.errors import Unavailable
from raftkv_core.node.watch import LINGER_S, RevisionNews

Virtual = Callable[[Any], Any]


async def ticks() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_wait_ends_when_its_revision_is_shown(virtual: Virtual) -> None:
    """Waits for lower revisions end with it, waits for higher ones go on."""

    async def work() -> None:
        news = RevisionNews(4)
        await news.reached(3)
        waits = {revision: asyncio.ensure_future(news.reached(revision)) for revision in (5, 6, 7)}
        await ticks()
        news.announce(6)
        await ticks()
        assert [revision for revision, wait in waits.items() if wait.done()] == [5, 6]
        waits[7].cancel()

    virtual(work())


def test_listeners_hear_of_moves_only(virtual: Virtual) -> None:
    """The same revision again is no news; after unsubscribing nothing is."""

    async def work() -> None:
        news = RevisionNews(0)
        heard: list[int] = []
        stop = news.subscribe(heard.append)
        for revision in (1, 1, 2):
            news.announce(revision)
        stop()
        news.announce(3)
        assert heard == [1, 2]

    virtual(work())


def test_it_says_whether_anybody_listens(virtual: Virtual) -> None:
    """The committer hurries only while somebody does, and goes on for a moment after the last."""

    async def work() -> None:
        told: list[bool] = []
        news = RevisionNews(0, on_watched=told.append)
        stop = news.subscribe(lambda _revision: None)
        wait = asyncio.ensure_future(news.reached(9))
        await ticks()
        stop()
        assert told == [True]
        wait.cancel()
        await ticks()
        assert told == [True]
        await asyncio.sleep(LINGER_S + 0.1)
        assert told == [True, False]

    virtual(work())


def test_a_watcher_who_takes_page_after_page_counts_as_one(virtual: Virtual) -> None:
    """Between two waits it is not taken for gone."""

    async def work() -> None:
        told: list[bool] = []
        news = RevisionNews(0, on_watched=told.append)
        for revision in range(1, 6):
            wait = asyncio.ensure_future(news.reached(revision))
            await ticks()
            news.announce(revision)
            await wait
            await asyncio.sleep(LINGER_S / 2)
        assert told == [True]

    virtual(work())


def test_closing_fails_the_waits(virtual: Virtual) -> None:
    """Who waits for a revision that cannot come any more is told so."""

    async def work() -> None:
        news = RevisionNews(0)
        wait = asyncio.ensure_future(news.reached(1))
        await ticks()
        news.fail(Unavailable("stopping"))
        with pytest.raises(Unavailable):
            await wait

    virtual(work())
