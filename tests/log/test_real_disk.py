"""The log with its own thread, on files, in processes that die."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raftkv_core.errors import LogDamaged
from raftkv_core.interfaces.consensus import Entry, Position
from raftkv_core.log import DurableLog, RealDisk, ThreadExecutor
from raftkv_core.testing.log import entries

SEGMENT_BYTES = 1 << 20


def open_log(directory: Path, **options: object) -> DurableLog:
    def failed(reason: str) -> None:
        raise AssertionError(reason)

    return DurableLog.open(
        directory,
        executor=ThreadExecutor(asyncio.get_running_loop()),
        on_failed=failed,
        **{"segment_bytes": SEGMENT_BYTES, "cache_bytes": 10_000, **options},  # type: ignore[arg-type]
    )


def test_a_life_on_real_files(tmp_path: Path) -> None:
    """Appending, truncating, trimming and resetting work with a real thread, over several lives."""

    async def main() -> None:
        kept: list[Entry] = []
        for life in range(1, 4):
            log = open_log(tmp_path / "a" / "log")
            assert log.created == (life == 1)
            assert log.read(log.first_index, 1 << 30) == kept[log.base.index :]
            log.set_state(life, f"node{life}")
            for _ in range(100):
                new = entries(log.last_index + 1, *[life] * 5, size=6000)
                log.append(new)
                kept += new
                await asyncio.sleep(0)
            log.truncate(log.last_index - 2)
            del kept[-3:]
            await log.wait_flushed()
            assert log.synced_index == log.last_index == len(kept)
            assert log.read(log.first_index, 1 << 30) == kept[log.base.index :]
            log.trim(log.synced_index - 100)
            assert log.base.index > 0
            log.close()
        log = open_log(tmp_path / "a" / "log")
        assert (log.term, log.vote) == (3, "node3")
        log.reset(Position(5, 2), b"h" * 16)
        await log.wait_flushed()
        log.close()
        log = open_log(tmp_path / "a" / "log")
        assert (log.base, log.last_index, log.history_id) == (Position(5, 2), 5, b"h" * 16)
        log.close()
        assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "a" / "log").iterdir())

    asyncio.run(main())


def test_synced_is_told_on_the_loop(tmp_path: Path) -> None:
    """`on_synced` runs in the loop's thread, in order, and reaches what was appended."""
    import threading

    async def main() -> None:
        loop_thread = threading.get_ident()
        seen: list[int] = []
        done = asyncio.Event()

        def on_synced(index: int) -> None:
            assert threading.get_ident() == loop_thread
            seen.append(index)
            if index == 300:
                done.set()

        log = open_log(tmp_path)
        log.on_synced = on_synced
        for index in range(1, 301):
            log.append(entries(index, 1, size=500))
            if index % 7 == 0:
                await asyncio.sleep(0)
        await done.wait()
        assert seen == sorted(seen)
        assert log.figures()["groups"] == len(seen)
        log.close()

    asyncio.run(main())


def test_without_sync_nothing_is_synced_and_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    """`sync=False` writes all the same."""

    async def main() -> None:
        log = open_log(tmp_path, sync=False)
        new = entries(1, *[1] * 50, size=1000)
        log.append(new)
        await log.wait_flushed()
        assert log.synced_index == 50
        log.close()
        log = open_log(tmp_path)
        assert log.read(1, 1 << 20) == new
        log.close()

    asyncio.run(main())


def test_new_segments_are_filled_ahead(tmp_path: Path) -> None:
    """An idle log takes and fills the room for what comes, so that no group waits for the file system's notes."""

    async def main() -> None:
        log = open_log(tmp_path)
        log.append(entries(1, 1))
        await log.wait_flushed()
        while not log.figures()["segments_prepared"]:  # noqa: ASYNC110 - nobody is told of it
            await asyncio.sleep(0.001)
        log.close()
        names = [name for name in RealDisk().names(tmp_path) if name.endswith("segment")]
        assert len(names) == 2
        assert {(tmp_path / name).stat().st_size for name in names} == {SEGMENT_BYTES}

    asyncio.run(main())


def test_a_flipped_bit_in_a_file_is_refused(tmp_path: Path) -> None:
    """Damage in a real file is named."""

    async def main() -> None:
        log = open_log(tmp_path)
        for index in range(1, 4):
            log.append(entries(index, 1, size=5000))
            await log.wait_flushed()
        log.close()
        path = tmp_path / "000000000001.segment"
        with path.open("r+b") as file:
            file.seek(4096 + 1000)
            byte = file.read(1)[0]
            file.seek(4096 + 1000)
            file.write(bytes([byte ^ 4]))
        with pytest.raises(LogDamaged, match=f"{path} at offset 4096"):
            open_log(tmp_path)

    asyncio.run(main())


CHILD = """
import asyncio, sys
from pathlib import Path
from raftkv_core.log import DurableLog, ThreadExecutor
from raftkv_core.testing.log import entries

async def main():
    def on_synced(index):
        print(index, log.term, flush=True)
    log = DurableLog.open(Path(sys.argv[1]), executor=ThreadExecutor(asyncio.get_running_loop()),
                          on_failed=sys.exit, segment_bytes=1 << 18, cache_bytes=10_000)
    log.on_synced = on_synced
    life = log.term + 1
    log.set_state(life, f"node{life}")
    for round in range(100_000):
        log.append(entries(log.last_index + 1, *[life] * (1 + round % 4), size=100 + round * 37 % 9000))
        if round % 5 == 4:
            log.truncate(log.last_index)
        if round % 50 == 49:
            log.trim(log.synced_index - 20)
        await asyncio.sleep(0.0005)

asyncio.run(main())
"""


def test_killed_processes_lose_nothing_that_was_called_synced(tmp_path: Path) -> None:
    """After kill -9 in the middle of writes, again and again, every synced entry is there and correct."""
    synced = life = 0
    for life in range(1, 6):
        process = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        for _ in range(40):
            line = process.stdout.readline()
        os.kill(process.pid, signal.SIGKILL)
        line = (process.stdout.read().splitlines() or [line])[-1]
        process.stdout.close()
        process.wait()
        synced, term = map(int, line.split())
        assert term == life

        async def check(life: int = life, synced: int = synced) -> None:
            log = open_log(tmp_path)
            assert (log.term, log.vote) == (life, f"node{life}")
            # The entry called synced last may have been the one that was truncated after it.
            assert log.last_index >= synced - 1
            stored = log.read(log.first_index, 1 << 30)
            assert [entry.index for entry in stored] == list(range(log.first_index, log.last_index + 1))
            for entry in stored:
                assert entry.term == log.term_at(entry.index)
                assert entry.data == entries(entry.index, entry.term, size=len(entry.data))[0].data
            log.close()

        asyncio.run(check())
    assert life == 5
    assert synced > 100
