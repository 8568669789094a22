"""The durable log alone against the device's bare fdatasync of the same bytes.

    python benchmarks/log.py [--directory DIR] [--seconds S]

Both write to files on the same device, in turns, so that whatever else the device does hurts both alike.
"bare" is one thread that writes and syncs a block again and again into a file that was written before: nothing
can be faster. "log" is what an engine sees, from `append` to `on_synced` on the event loop.

The event loop is uvloop, as in the node. Two ways to use the log:

- one at a time: the next group is appended when the one before was called synced;
- flowing: two groups are under way, so that one gathers while the other syncs.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import uvloop

from raftkv_core.interfaces.consensus import Entry
from raftkv_core.log import DurableLog, ThreadExecutor
from raftkv_core.log.format import frame_bytes

SHAPES = [(1, 300), (1, 6_000), (5, 6_000), (20, 6_000), (20, 300), (1, 1 << 20)]
ROUND_S = 0.1
SEGMENT_BYTES = 64 << 20


class Result(NamedTuple):
    """Seconds a group."""

    bare: list[float]
    log: list[float]

    def row(self, name: str, entries: int, size: int, data: int) -> str:
        bare, log = statistics.median(self.bare), statistics.median(self.log)
        return (
            f"{name:<13} {entries:>3} x {size:>7,} B  {bare * 1e6:>8,.0f}  {_p99(self.bare) * 1e6:>8,.0f}"
            f"  {log * 1e6:>8,.0f}  {_p99(self.log) * 1e6:>8,.0f}  {log / bare:>5.2f}"
            f"  {len(self.log) / sum(self.log):>7,.0f}  {entries * len(self.log) / sum(self.log):>9,.0f}"
            f"  {data * len(self.log) / sum(self.log) / 1e6:>6,.0f}"
        )


HEADING = (
    f"{'':<13} {'group':>15}  {'bare p50':>8}  {'p99':>8}  {'log p50':>8}  {'p99':>8}  {'ratio':>5}"
    f"  {'groups/s':>7}  {'entries/s':>9}  {'MB/s':>6}"
)


def _p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


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
    """Appends a group whenever fewer than `depth` are under way."""

    def __init__(self, log: DurableLog, entries: int, data: bytes) -> None:
        self.append_s = 0.0
        self.appended = 0
        self._log = log
        self._entries = entries
        self._data = data

    async def measure(self, depth: int) -> list[float]:
        log = self._log
        done = asyncio.get_running_loop().create_future()
        times: list[float] = []
        last = time.perf_counter()
        end = last + ROUND_S
        target = log.last_index

        def on_synced(index: int) -> None:
            nonlocal last
            now = time.perf_counter()
            groups = (index - target) // self._entries - len(times)
            times.extend([(now - last) / groups] * groups if groups else [])
            last = now
            if now < end:
                self._append(groups)
            elif index == log.last_index:
                log.trim(index)
                done.set_result(None)

        log.on_synced = on_synced
        self._append(depth)
        await done
        return times

    def _append(self, groups: int) -> None:
        began = time.perf_counter()
        for _ in range(groups):
            first = self._log.last_index + 1
            self._log.append([Entry(first + place, 1, 0, self._data) for place in range(self._entries)])
        self.append_s += time.perf_counter() - began
        self.appended += groups * self._entries


async def compare(directory: Path, entries: int, size: int, seconds: float, say: Callable[[str], None]) -> None:
    data = os.urandom(size)
    bare = Bare(directory / "bare", frame_bytes([Entry(1, 1, 0, data)] * entries, None, opens=False))
    log = _open(directory / f"log-{entries}-{size}")
    await _filled(log)
    driver = Driver(log, entries, data)
    for name, depth in (("one at a time", 1), ("flowing", 2)):
        result = Result([], [])
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            result.bare.extend(bare.measure())
            result.log.extend(await driver.measure(depth))
        say(result.row(name, entries, size, entries * size))
    bare.close()
    log.close()
    began = time.perf_counter()
    log = _open(directory / f"log-{entries}-{size}")
    opened_s = time.perf_counter() - began
    held = log.last_index - log.base.index
    log.close()
    append_us = driver.append_s / driver.appended * 1e6
    say(
        f"  append takes {append_us:.1f} us of the loop an entry; opening takes {opened_s * 1e3:.0f} ms ({held:,} entries)"
    )


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
    parser.add_argument("--seconds", type=float, default=4.0, help="for each line of the table")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="log-benchmark-", dir=options.directory))
    try:
        print("microseconds a group, from handing it over to knowing that it is durable")
        print(HEADING, flush=True)
        for entries, size in SHAPES:
            uvloop.run(compare(directory, entries, size, options.seconds, lambda line: print(line, flush=True)))
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
