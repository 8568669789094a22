"""A crash is repaired, damage is refused, and one is not taken for the other."""

from __future__ import annotations

import contextlib
import random
import struct
import zlib
from pathlib import Path

import pytest

from raftkv_core.errors import DataDirectoryError, LogDamaged
from raftkv_core.interfaces.consensus import Position
from raftkv_core.log.format import FRAME_ALIGN, HEADER_BYTES, decode_header, encode_frame, segment_seed
from raftkv_core.testing.disk import SimulatedCrash
from raftkv_core.testing.log import SimulatedLog, entries


def frames(sim: SimulatedLog, path: Path) -> list[int]:
    """Where frames begin in a segment that was never used before."""
    content = sim.disk.content(path)
    return [offset for offset in range(0, len(content), FRAME_ALIGN) if content[offset : offset + 4] == b"RKLF"]


def filled_log(groups: int = 9, **options: object) -> SimulatedLog:
    sim = SimulatedLog(**options)  # type: ignore[arg-type]
    for _ in range(groups):
        sim.append_synced(1, size=3000)
    return sim


@pytest.mark.parametrize("byte", [0, 5, 9, 17, 25, 33, HEADER_BYTES, HEADER_BYTES + 100, 3000])
def test_a_flipped_bit_below_the_last_frame_is_refused(byte: int) -> None:
    """Damage to what was synced is named with file and offset, wherever it is, and nothing is changed."""
    sim = filled_log()
    places = [(path, offset) for path in sim.segment_paths() for offset in frames(sim, path)]
    assert len({path for path, _ in places}) > 2
    if byte > HEADER_BYTES:
        del places[0]  # the first frame has no entries; what follows it is padding
    for path, offset in places[:-1]:
        sim.disk.damage(path, offset + byte)
        before = {path: sim.disk.content(path) for path in sim.segment_paths()}
        with pytest.raises(LogDamaged) as raised:
            sim.kill()
        assert f"{path} at offset {offset}:" in str(raised.value)
        assert {path: sim.disk.content(path) for path in sim.segment_paths()} == before
        sim.disk.damage(path, offset + byte)
    sim.kill()
    assert sim.log.last_index == 9


@pytest.mark.parametrize("byte", [0, 5, 20, HEADER_BYTES + 100])
def test_a_bad_last_frame_is_cut(byte: int) -> None:
    """A frame that a crash spoiled was never promised: it goes, and the log goes on in its place."""
    sim = filled_log()
    path = sim.segment_paths()[-2]
    offset = frames(sim, path)[-1]
    assert len(frames(sim, sim.segment_paths()[-1])) == 0
    sim.disk.damage(path, offset + byte)
    sim.kill()
    assert sim.log.last_index == 8
    assert len(sim.log.cuts) == (byte > HEADER_BYTES)
    new = sim.append_synced(2, 2)
    sim.power_loss()
    assert sim.all_entries()[-2:] == new
    assert sim.log.last_index == 10


def test_a_cut_frame_does_not_come_back() -> None:
    """What was cut once leaves nothing that a later crash could take for a frame, or for damage."""
    for seed in range(60):
        choice = random.Random(seed)
        sim = filled_log(groups=choice.randrange(1, 4))
        for _ in range(4):
            kept = sim.all_entries()
            sim.append(1, size=choice.choice([10, 3000, 9000, 14000]))
            sim.disk.crash_at = sim.disk.calls + choice.randrange(1, 8)
            with contextlib.suppress(SimulatedCrash):
                while True:
                    sim.executor.run()
                    sim.append(1, size=choice.choice([10, 3000]))
            synced = sim.log.synced_index
            sim.power_loss(choice)
            assert sim.log.last_index >= synced
            assert sim.all_entries()[: len(kept)] == kept


def test_a_missing_middle_segment_is_refused() -> None:
    """A segment that somebody removed is damage, not the end of the log."""
    for place in range(1, 4):
        sim = filled_log(12)
        missing = sim.segment_paths()[place]
        sim.disk.remove(missing)
        with pytest.raises(LogDamaged, match=f"{missing.name}, a segment of the log, is missing"):
            sim.kill()


def test_a_missing_first_segment_is_refused() -> None:
    """The log does not quietly begin later than it did."""
    sim = filled_log()
    first = sim.segment_paths()[0]
    sim.disk.remove(first)
    with pytest.raises(LogDamaged, match=first.name):
        sim.kill()


def test_a_missing_pointer_is_refused_while_there_are_entries() -> None:
    """A log that lost its pointer is never replaced by an empty one."""
    for groups in (1, 9):
        sim = filled_log(groups)
        sim.disk.remove(sim.directory / "pointer")
        with pytest.raises(LogDamaged, match="pointer is missing"):
            sim.kill()


def test_a_damaged_pointer_is_refused() -> None:
    """A flipped bit in the pointer file is named."""
    sim = filled_log()
    pointer = sim.directory / "pointer"
    for offset in range(len(sim.disk.content(pointer))):
        sim.disk.damage(pointer, offset)
        with pytest.raises(LogDamaged, match="pointer"):
            sim.kill()
        sim.disk.damage(pointer, offset)


def test_a_pointer_of_another_format_is_refused() -> None:
    """A release that does not know the format says so before it touches anything."""
    sim = filled_log()
    pointer = sim.directory / "pointer"
    body = bytearray(sim.disk.content(pointer)[8:])
    body[0] = 2
    sim.disk.damage(pointer, 4, zlib.crc32(body).to_bytes(4, "little") + body)
    with pytest.raises(DataDirectoryError, match="log format 2, this release reads 1"):
        sim.kill()


def test_a_frame_of_another_format_is_refused() -> None:
    """A frame from a newer release is not taken for an unfinished one."""
    sim = filled_log(2)
    path = sim.segment_paths()[0]
    offset = frames(sim, path)[-1]
    seed = segment_seed((1).to_bytes(16, "little"), 1)
    header = bytearray(sim.disk.content(path)[offset : offset + HEADER_BYTES])
    assert decode_header(seed, bytes(header)) is not None
    header[37] = 9
    struct.pack_into("<I", header, 4, zlib.crc32(header[8:], seed))
    sim.disk.damage(path, offset, bytes(header))
    with pytest.raises(DataDirectoryError, match="log format 9"):
        sim.kill()


def test_a_frame_that_does_not_fit_is_refused() -> None:
    """A frame with good checksums that leaves a gap is named, not applied."""
    sim = filled_log(2)
    path = sim.segment_paths()[0]
    last = frames(sim, path)[-1]
    seed = segment_seed((1).to_bytes(16, "little"), 1)
    sequence = decode_header(seed, sim.disk.content(path)[last : last + HEADER_BYTES]).sequence  # type: ignore[union-attr]
    for first in (0, 4):
        frame = encode_frame(seed, sequence + 1, first, entries(first, 1))
        sim.disk.damage(path, last + FRAME_ALIGN, bytes(frame))
        with pytest.raises(LogDamaged, match=f"begins at entry {first}, which does not fit"):
            sim.kill()


def test_an_entry_that_looks_like_a_frame_is_not_one() -> None:
    """Data that holds a copy of the log's own frames is data."""
    sim = filled_log(2, segment_bytes=64 << 10)
    copy = sim.disk.content(sim.segment_paths()[0])[: 4 * FRAME_ALIGN]
    # As many bytes before it as make the copy lie where frames lie.
    sim.log.append([entries(3, 1)[0]._replace(data=bytes(FRAME_ALIGN - HEADER_BYTES - 13) + copy)])
    sim.disk.crash_at = sim.disk.calls + 2
    with pytest.raises(SimulatedCrash):
        sim.executor.run()
    path = sim.segment_paths()[0]
    offset = frames(sim, path)[3]
    sim.disk.damage(path, offset)
    sim.kill()
    assert sim.log.last_index == 2
    new = sim.append_synced(1)
    sim.kill()
    assert sim.all_entries()[2:] == new


def test_an_entry_is_checked_again_when_it_is_read() -> None:
    """What went bad after the log was opened is noticed by whoever reads it, with file and offset."""
    sim = filled_log(cache_bytes=0)
    path = sim.segment_paths()[0]
    offset = frames(sim, path)[1]
    sim.disk.damage(path, offset + 500)
    with pytest.raises(LogDamaged, match=f"{path.name} at offset {offset}: the frame with the entries 1 to 1"):
        sim.log.read(1, 100)
    assert sim.log.read(2, 1)[0].index == 2


def test_leftovers_of_an_unfinished_trim_are_no_part_of_the_log() -> None:
    """Segments below the first one named by the pointer go away, whichever of them a crash left."""
    for seed in range(20):
        sim = filled_log(16)
        new = sim.all_entries()
        sim.log.trim(13)
        base = sim.log.base
        sim.executor.run()
        sim.disk.power_loss(random.Random(seed))
        sim.open()
        assert sim.log.base == base
        assert sim.all_entries() == new[base.index :]
        assert sim.log.figures()["segments_retired"] <= 2


def test_an_interrupted_reset_leaves_the_old_log_or_the_new_one() -> None:
    """Until the pointer is switched the old log is there in full."""
    seen = set()
    for call in range(30):
        sim = filled_log(3)
        old = sim.all_entries()
        sim.log.set_history(b"h" * 16)
        sim.log.reset(Position(50, 3), b"i" * 16)
        sim.disk.crash_at = sim.disk.calls + call
        with contextlib.suppress(SimulatedCrash):
            sim.executor.run()
        sim.power_loss(random.Random(call))
        came_back = (sim.log.base, sim.log.history_id, sim.all_entries())
        assert came_back in [(Position(0, 0), b"h" * 16, old), (Position(50, 3), b"i" * 16, [])]
        seen.add(came_back[0])
        assert sim.append_synced(9)[0] == sim.all_entries()[-1]
    assert len(seen) == 2


def test_opening_on_a_full_disk_works() -> None:
    """A node whose disk is full can still open its log, to free something."""
    sim = filled_log(3, reserve_bytes=10_000)
    sim.disk.capacity_bytes = 0
    sim.disk.remove(sim.directory / "reserve")
    sim.power_loss()
    assert sim.log.last_index == 3
    assert sim.log.figures()["reserve_bytes"] == 0
    assert not sim.log.restore_reserve()


def test_a_directory_that_cannot_be_used_is_named() -> None:
    """An I/O error at open is one line with the directory, not a traceback."""
    sim = filled_log(1)
    for operation in ("open", "read", "sync", "sync_directory"):
        sim.disk.kill()
        sim.disk.fail(operation)  # type: ignore[arg-type]
        with pytest.raises(DataDirectoryError, match="/data/log"):
            sim.open()
