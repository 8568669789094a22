"""Read barriers: who shares a round, and what a reader is told when there is none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from raftkv_core.errors import InvalidRequest, Unavailable
from raftkv_core.interfaces.consensus import Level
from raftkv_core.node.barrier import ReadBarrier

Virtual = Callable[[Any], Any]


class Bench:
    """An engine whose rounds are answered by hand, and a storage whose visible index is."""

    def __init__(self) -> None:
        self.asked: list[tuple[Level, asyncio.Future[int]]] = []
        self.shown: list[tuple[int, asyncio.Future[None]]] = []
        self.barrier = ReadBarrier(self.read_index, self.visible)

    async def read_index(self, level: Level, timeout_s: float) -> int:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.asked.append((level, future))
        return await future

    def visible(self, index: int) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.shown.append((index, future))
        return future

    def reach(self, level: Level = "linearizable", timeout_s: float = 5.0) -> asyncio.Future[int]:
        return asyncio.ensure_future(self.barrier.reach(level, timeout_s))


async def ticks() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_readers_share_only_a_round_that_began_after_them(virtual: Virtual) -> None:
    """Those of one tick share a round; who comes while it is under way waits for the next, together."""

    async def work() -> None:
        bench = Bench()
        early = [bench.reach(), bench.reach()]
        await ticks()
        late = [bench.reach(), bench.reach()]
        await ticks()
        assert len(bench.asked) == 1
        bench.asked[0][1].set_result(5)
        await ticks()
        assert len(bench.asked) == 2
        bench.shown[0][1].set_result(None)
        assert await asyncio.gather(*early) == [5, 5]
        assert not any(reader.done() for reader in late)
        bench.asked[1][1].set_result(6)
        await ticks()
        bench.shown[1][1].set_result(None)
        assert await asyncio.gather(*late) == [6, 6]
        assert (bench.barrier.rounds, bench.barrier.readers) == (2, 4)

    virtual(work())


def test_a_read_waits_until_storage_shows_the_index(virtual: Virtual) -> None:
    """An index is no use before a read transaction sees it."""

    async def work() -> None:
        bench = Bench()
        reader = bench.reach()
        await ticks()
        bench.asked[0][1].set_result(9)
        await ticks()
        assert bench.shown[0][0] == 9
        assert not reader.done()
        bench.shown[0][1].set_result(None)
        assert await reader == 9

    virtual(work())


def test_levels_have_rounds_of_their_own(virtual: Virtual) -> None:
    """A lease read does not wait for a quorum."""

    async def work() -> None:
        bench = Bench()
        readers = [bench.reach("linearizable"), bench.reach("lease")]
        await ticks()
        assert [level for level, _future in bench.asked] == ["linearizable", "lease"]
        for reader in readers:
            reader.cancel()

    virtual(work())


def test_a_failed_round_fails_its_readers_and_not_the_next(virtual: Virtual) -> None:
    """No leader now says nothing about the readers who come later."""

    async def work() -> None:
        bench = Bench()
        first = bench.reach()
        await ticks()
        second = bench.reach()
        bench.asked[0][1].set_exception(Unavailable("no leader"))
        with pytest.raises(Unavailable, match="no leader"):
            await first
        await ticks()
        bench.asked[1][1].set_result(1)
        await ticks()
        bench.shown[0][1].set_result(None)
        assert await second == 1

    virtual(work())


def test_an_engines_bug_is_the_readers_error(virtual: Virtual) -> None:
    """A read fails and names the fault; nobody waits for ever."""

    async def work() -> None:
        bench = Bench()
        reader = bench.reach()
        await ticks()
        bench.asked[0][1].set_exception(ZeroDivisionError("oops"))
        with pytest.raises(Unavailable, match="oops"):
            await reader

    virtual(work())


def test_storage_that_does_not_follow_ends_the_wait(virtual: Virtual) -> None:
    """The deadline covers the wait for storage too."""

    async def work() -> None:
        bench = Bench()
        reader = bench.reach(timeout_s=2.0)
        await ticks()
        bench.asked[0][1].set_result(9)
        with pytest.raises(Unavailable, match="log index 9"):
            await reader
        assert asyncio.get_running_loop().time() == pytest.approx(2.0)

    virtual(work())


def test_a_reader_who_leaves_disturbs_nobody(virtual: Virtual) -> None:
    """The others of the round are served."""

    async def work() -> None:
        bench = Bench()
        leaves, stays = bench.reach(), bench.reach()
        await ticks()
        leaves.cancel()
        bench.asked[0][1].set_result(3)
        await ticks()
        bench.shown[0][1].set_result(None)
        assert await stays == 3

    virtual(work())


def test_closing_ends_all_waits(virtual: Virtual) -> None:
    """At stop, both those whose round is under way and those who gather hear of it."""

    async def work() -> None:
        bench = Bench()
        readers = [bench.reach()]
        await ticks()
        readers.append(bench.reach())
        await ticks()
        await bench.barrier.close()
        for reader in readers:
            with pytest.raises(Unavailable, match="stopping"):
                await reader

    virtual(work())


def test_a_stale_read_has_no_barrier(virtual: Virtual) -> None:
    """Asking for one is a mistake of the caller."""

    async def work() -> None:
        with pytest.raises(InvalidRequest):
            Bench().barrier.reach("stale", 1.0)

    virtual(work())
