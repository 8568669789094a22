"""The durable log alone against the device's bare fdatasync of the same bytes.

    python benchmarks/log.py [--directory DIR] [--seconds S]

Both write to files on the same device, in turns, so that whatever else the device does hurts both alike.
"bare" is one thread that writes and syncs a block again and again into a file that was written before: nothing
can be faster. "log" is what an engine sees, from `append` to `on_synced` on the event loop.

The event loop is uvloop, as in the node. Two ways to use the log:

- one at a time: a group is appended when the one before was called synced;
- flowing: a second group waits while the first is synced, as under load.

The last columns: what `append` costs the loop an entry, and what it takes to open the log again.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import uvloop

from raftkv_core.interfaces.consensus import Entry
from raftkv_core.log import DurableLog, ThreadExecutor
from raftkv_core.log.format import frame_bytes

SHAPES = [(1, 300), (1, 6_000), (5, 6_000), (20, 6_000), (20, 300), (1, 1 << 20)]
"""Entries a group, bytes an entry."""
ROUND_S = 0.1
SEGMENT_BYTES = 64 << 20
APART_S = 0.0001
"""Two groups handed over together would become one."""

HEADING = (
    f"{'':>15}  {'device alone, us':>17}  {'log, one at a time, us':>25}  {'log, flowing, groups/s':>24}\n"
    f"{'group':>15}  {'p50':>8} {'p99':>8}  {'p50':>8} {'p99':>8} {'ratio':>7}"
    f"  {'device':>8} {'log':>8} {'ratio':>6}  {'entries/s':>9} {'MB/s':>6} {'append, us':>11} {'open, ms':>9}"
)


def row(entries: int, size: int, bare: list[float], single: list[float], flowing: list[float]) -> str:
    """Seconds a group, of which the ratios say how many times as long the log takes as the device alone."""
    bare_rate, log_rate = len(bare) / sum(bare), len(flowing) / sum(flowing)
    return (
        f"{entries:>3} x {size:>7,} B  {_p50(bare):>8,.0f} {_p99(bare):>8,.0f}"
        f"  {_p50(single):>8,.0f} {_p99(single):>8,.0f} {_p50(single) / _p50(bare):>7.2f}"
        f"  {bare_rate:>8,.0f} {log_rate:>8,.0f} {bare_rate / log_rate:>6.2f}"
        f"  {entries * log_rate:>9,.0f} {entries * size * log_rate / 1e6:>6,.0f}"
    )


def _p50(seconds: list[float]) -> float:
    return statistics.median(seconds) * 1e6


def _p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99)] * 1e6


class Bare:
    """A file written all over once, then again and again."""

    def __init__(self, path: Path, block_bytes: int) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.posix_fallocate(self._descriptor, 0, SEGMENT_BYTES)
        for offset in range(0, SEGMENT_BYTES, 1 << 20):
            os.pwrite(self._descriptor, bytes(1 << 20), offset)
        os.fsync(self._descriptor)
        self._block = os.urandom(block_bytes)
        self._offset = 0

    def measure(self) -> list[float]:
        times = []
        end = time.perf_counter() + ROUND_S
        while (began := time.perf_counter()) < end:
            if self._offset + len(self._block) > SEGMENT_BYTES:
                self._offset = 0
            os.pwrite(self._descriptor, self._block, self._offset)
            os.fdatasync(self._descriptor)
            self._offset += len(self._block)
            times.append(time.perf_counter() - began)
        return times

    def close(self) -> None:
        os.close(self._descriptor)


class Driver:
    """Hands a group over whenever fewer than `depth` are under way."""

    def __init__(self, log: DurableLog, entries: int, data: bytes) -> None:
        self.append_s = 0.0
        self.appended = 0
        self._log = log
        self._entries = entries
        self._data = data

    async def measure(self, depth: int) -> list[float]:
        loop = asyncio.get_running_loop()
        log = self._log
        done = loop.create_future()
        start = log.last_index
        times: list[float] = []
        last = time.perf_counter()
        end = last + ROUND_S

        def on_synced(index: int) -> None:
            nonlocal last
            now = time.perf_counter()
            groups = (index - start) // self._entries - len(times)
            if groups:
                times.extend([(now - last) / groups] * groups)
                last = now
            if now < end:
                append(groups)
            elif index == log.last_index and not done.done():
                log.trim(index)
                done.set_result(None)

        def append(groups: int) -> None:
            for place in range(groups):
                if place == 0:
                    self._append()
                else:
                    loop.call_later(place * APART_S, append_later)

        def append_later() -> None:
            if not done.done():
                self._append()

        log.on_synced = on_synced
        append(depth)
        await done
        return times

    def _append(self) -> None:
        began = time.perf_counter()
        first = self._log.last_index + 1
        self._log.append([Entry(first + place, 1, 0, self._data) for place in range(self._entries)])
        self.append_s += time.perf_counter() - began
        self.appended += self._entries


async def compare(directory: Path, entries: int, size: int, seconds: float) -> str:
    """One line of the table."""
    data = os.urandom(size)
    bare = Bare(directory / "bare", frame_bytes([Entry(1, 1, 0, data)] * entries, None, opens=False))
    log = _open(directory / f"log-{entries}-{size}")
    await _filled(log)
    driver = Driver(log, entries, data)
    alone: list[float] = []
    single: list[float] = []
    flowing: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        alone += bare.measure()
        single += await driver.measure(1)
        flowing += await driver.measure(2)
    bare.close()
    log.close()
    began = time.perf_counter()
    log = _open(directory / f"log-{entries}-{size}")
    opened_ms = (time.perf_counter() - began) * 1e3
    log.close()
    append_us = driver.append_s / driver.appended * 1e6
    return f"{row(entries, size, alone, single, flowing)} {append_us:>11.1f} {opened_ms:>9.0f}"


def _open(directory: Path) -> DurableLog:
    def failed(reason: str) -> None:
        raise SystemExit(reason)

    executor = ThreadExecutor(asyncio.get_running_loop())
    return DurableLog.open(directory, executor=executor, on_failed=failed, segment_bytes=SEGMENT_BYTES)


async def _filled(log: DurableLog) -> None:
    """Wait until the log has made and filled its segments, as one that runs for a minute has."""
    while not log.figures()["segments_prepared"]:  # noqa: ASYNC110 - polled here, to cost the log nothing
        await asyncio.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--directory", type=Path, default=Path(), help="where to write (default: here)")
    parser.add_argument("--seconds", type=float, default=6.0, help="for each line of the table")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="log-benchmark-", dir=options.directory))
    try:
        print(HEADING, flush=True)
        for entries, size in SHAPES:
            print(uvloop.run(compare(directory, entries, size, options.seconds)), flush=True)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
