"""Frames survive the way to disk and back, and nothing else is taken for one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv_core.interfaces.consensus import Entry, Position
from raftkv_core.log.format import (
    FRAME_ALIGN,
    HEADER_BYTES,
    Content,
    State,
    decode_content,
    decode_entries,
    decode_header,
    encode_frame,
    frame_bytes,
    segment_seed,
)
from raftkv_core.log.index import RecentEntries, Terms
from raftkv_core.testing.disk import SimDisk
from raftkv_core.testing.log import entries

SEED = segment_seed(b"x" * 16, 7)
NUMBERS = st.integers(0, 2**64 - 1)


@given(
    sequence=NUMBERS,
    first=st.integers(1, 2**63),
    records=st.lists(st.tuples(NUMBERS, st.integers(0, 255), st.binary(max_size=5000)), max_size=5),
    base=st.none() | st.tuples(NUMBERS, NUMBERS),
    state=st.none() | st.tuples(NUMBERS, st.none() | st.text(max_size=60)),
    prior_synced=st.booleans(),
)
def test_a_frame_reads_back(sequence, first, records, base, state, prior_synced) -> None:
    """Whatever a frame holds comes back as it was, and its size is known before it is made."""
    group = [Entry(first + place, *record) for place, record in enumerate(records)]
    base = None if base is None else Position(*base)
    state = None if state is None else State(*state)
    frame = bytes(encode_frame(SEED, sequence, first, group, base=base, state=state, prior_synced=prior_synced))
    header = decode_header(SEED, frame)
    assert header is not None
    assert len(frame) == header.size == frame_bytes(group, state, opens=base is not None)
    assert len(frame) % FRAME_ALIGN == 0
    assert (header.sequence, header.first_index, header.entry_count) == (sequence, first, len(group))
    assert header.prior_synced == prior_synced
    payload = frame[HEADER_BYTES : HEADER_BYTES + header.payload_bytes]
    assert decode_content(SEED, header, payload) == Content(base, state, [entry.term for entry in group])
    assert decode_entries(header, payload) == group


def test_every_flipped_bit_of_a_frame_is_noticed() -> None:
    """A frame of which any byte changed is not a frame."""
    frame = encode_frame(SEED, 5, 1, entries(1, 1, 1, size=50), base=Position(0, 0), state=State(1, "a"))
    header = decode_header(SEED, bytes(frame))
    assert header is not None
    for offset in range(HEADER_BYTES + header.payload_bytes):
        bad = bytearray(frame)
        bad[offset] ^= 1 << offset % 8
        found = decode_header(SEED, bytes(bad))
        if found is not None:
            payload = bytes(bad[HEADER_BYTES : HEADER_BYTES + found.payload_bytes])
            assert decode_content(SEED, found, payload) is None


def test_a_frame_belongs_to_one_segment_of_one_log() -> None:
    """The same bytes mean nothing under another log id or segment number, and zeros mean nothing at all."""
    frame = bytes(encode_frame(SEED, 5, 1, entries(1, 1)))
    assert decode_header(SEED, frame) is not None
    assert decode_header(segment_seed(b"x" * 16, 8), frame) is None
    assert decode_header(segment_seed(b"y" * 16, 7), frame) is None
    assert decode_header(SEED, bytes(FRAME_ALIGN)) is None
    assert decode_header(SEED, b"") is None
    assert decode_header(SEED, frame[: HEADER_BYTES - 1]) is None


@given(st.lists(st.tuples(st.sampled_from(["append", "cut", "trim"]), st.integers(0, 5)), max_size=30))
def test_terms_are_those_of_the_entries(steps: list[tuple[str, int]]) -> None:
    """Every index from the base to the end has its own term, and no other index has one."""
    terms, model = Terms(Position(0, 0)), {0: 0}
    for what, amount in steps:
        first, last = min(model), max(model)
        if what == "append":
            model[last + 1] = model[last] + amount // 4
            terms.append(last + 1, model[last + 1])
        elif what == "cut" and last - amount > first:
            terms.cut(last - amount)
            model = {index: term for index, term in model.items() if index < last - amount}
        elif what == "trim" and first + amount <= last:
            terms.trim(Position(first + amount, model[first + amount]))
            model = {index: term for index, term in model.items() if index >= first + amount}
        assert terms.base == Position(min(model), model[min(model)])
        assert terms.last == Position(max(model), model[max(model)])
        for index in range(min(model) - 2, max(model) + 3):
            assert terms.at(index) == model.get(index)


def test_entries_in_memory_are_bounded_but_for_those_not_written() -> None:
    """The oldest go first, and none that is not on disk yet."""
    recent = RecentEntries(100)
    recent.append(entries(1, *[1] * 10, size=30))
    recent.evict(0)
    assert recent.bytes == 300
    recent.evict(4)
    assert [recent.get(index) is not None for index in range(1, 11)] == [False] * 4 + [True] * 6
    recent.cut(8, 10)
    assert (recent.bytes, recent.get(8)) == (90, None)
    recent.append(entries(8, 2, size=30))
    recent.evict(8)
    assert [index for index in range(1, 11) if recent.get(index)] == [6, 7, 8]
    recent.clear()
    recent.append(entries(50, 2, size=30))
    assert (recent.bytes, recent.get(50) is not None) == (30, True)


class TestSimDisk:
    """The simulated disk does what a disk may do."""

    path = Path("/d/file")

    def disk(self) -> SimDisk:
        disk = SimDisk()
        disk.make_directory(self.path.parent)
        return disk

    def test_it_forgets_what_was_not_synced(self) -> None:
        """Only synced data of synced names survives a power loss."""
        disk = self.disk()
        disk.open(self.path, create=True).write(0, b"a", sync=True)
        disk.power_loss()
        assert disk.names(self.path.parent) == []
        file = disk.open(self.path, create=True)
        disk.sync_directory(self.path.parent)
        file.write(0, b"a" * 600, sync=False)
        file.sync()
        file.write(100, b"b" * 600, sync=False)
        assert file.read(99, 2) == b"ab"
        disk.power_loss()
        assert disk.content(self.path) == b"a" * 600

    def test_it_keeps_any_part_of_the_rest(self) -> None:
        """Of writes that were not synced, sectors survive in any combination, and some are torn."""
        outcomes = set()
        for seed in range(200):
            disk = self.disk()
            file = disk.open(self.path, create=True)
            disk.sync_directory(self.path.parent)
            file.write(0, bytes(1536), sync=True)
            file.write(0, b"a" * 1024, sync=False)
            file.write(1024, b"b" * 512, sync=False)
            disk.power_loss(random.Random(seed))
            content = disk.content(self.path)
            outcomes.add(tuple(content[start] != 0 for start in (0, 511, 512, 1023, 1024, 1535)))
        assert (False,) * 6 in outcomes
        assert (True,) * 6 in outcomes
        assert (False, False, False, False, True, True) in outcomes
        assert any(begin and not end for begin, end, *_ in outcomes)

    def test_a_failed_sync_forgets(self) -> None:
        """As on Linux: after a failed sync the next one succeeds and has done nothing."""
        disk = self.disk()
        file = disk.open(self.path, create=True)
        disk.sync_directory(self.path.parent)
        file.write(0, b"a", sync=False)
        disk.fail("sync")
        with pytest.raises(OSError, match="Input/output error"):
            file.sync()
        file.sync()
        assert disk.content(self.path) == b"a"
        disk.power_loss()
        assert disk.content(self.path) == b""

    def test_a_file_of_a_dead_process_is_closed(self) -> None:
        """Nothing of an earlier life can write any more."""
        disk = self.disk()
        file = disk.open(self.path, create=True)
        disk.kill()
        with pytest.raises(RuntimeError, match="dead"):
            file.write(0, b"a", sync=False)
