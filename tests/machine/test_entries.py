"""Entries: the same commands come out, and nothing damaged, foreign or out of order gets in."""

from __future__ import annotations

import contextlib
from struct import pack_into
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv_core.errors import MachineFault
from raftkv_core.interfaces.consensus import Entry, EntryKind
from raftkv_core.limits import ENTRY_COMMANDS_MAX, NODE_ID_BYTES_MAX
from raftkv_core.machine import commands, entries
from raftkv_core.machine.commands import Status
from raftkv_core.machine.entries import (
    ProposalId,
    check_entry,
    command_weight,
    decode_entry,
    encode_entry,
    entry_header_bytes,
)
from raftkv_core.machine.records import decode_change
from tests.machine.checks import Pending, dump
from tests.machine.harness import HISTORY, Node, Storages, genesis, small_bounds
from tests.machine.strategies import Sender, actions, examples, long_lists, small_model

U64 = (1 << 64) - 1
node_ids = st.text(min_size=1, max_size=NODE_ID_BYTES_MAX).filter(lambda s: len(s.encode()) <= NODE_ID_BYTES_MAX)
proposals = st.builds(ProposalId, node_ids, st.integers(0, U64), st.integers(0, U64))
SAMPLE = encode_entry(HISTORY, ProposalId("node", 7, 9), [commands.put(b"a", b"1"), commands.tick(1)])


def resealed(data: bytes) -> bytes:
    """The entry with a checksum that is right for what it says now."""
    sealed = bytearray(data)
    at = entries._HEAD.size
    pack_into(">I", sealed, at, crc32(sealed[at + 4 :], crc32(sealed[:at])))
    return bytes(sealed)


@given(st.binary(min_size=16, max_size=16), proposals, st.lists(st.binary(max_size=50), min_size=1, max_size=300))
@examples(100)
def test_what_goes_in_comes_out(history: bytes, proposal: ProposalId, batch: list[bytes]) -> None:
    """History, proposal id and commands survive, and the size is what the proposer reckons with."""
    batch = batch[:ENTRY_COMMANDS_MAX]
    data = encode_entry(history, proposal, batch)
    check_entry(data)
    assert decode_entry(data) == (history, proposal, batch)
    framing = entry_header_bytes(proposal.node_id) + entries.COMMAND_OVERHEAD_BYTES * len(batch)
    assert len(data) == framing + sum(map(len, batch))


def test_as_many_commands_as_allowed_fit() -> None:
    """256 commands make an entry; none or 257 make none."""
    proposal = ProposalId("n" * 64, U64, U64)
    assert len(decode_entry(encode_entry(HISTORY, proposal, [b"x"] * 256)).commands) == 256
    for count in (0, 257):
        with pytest.raises(AssertionError):
            encode_entry(HISTORY, proposal, [b"x"] * count)


def test_every_flipped_bit_is_found_before_the_entry_is_appended() -> None:
    """Each single bit, the checksum's own included, is noticed by the engine's check."""
    for at in range(len(SAMPLE)):
        for bit in range(8):
            damaged = bytearray(SAMPLE)
            damaged[at] ^= 1 << bit
            with pytest.raises(MachineFault):
                check_entry(bytes(damaged))


def test_a_shortened_or_lengthened_entry_is_found() -> None:
    """Cut anywhere, or with a byte too many, it is refused; with a right checksum too."""
    for cut in range(len(SAMPLE)):
        with pytest.raises(MachineFault):
            decode_entry(SAMPLE[:cut])
        if cut >= entry_header_bytes(""):
            with pytest.raises(MachineFault):
                decode_entry(resealed(SAMPLE[:cut]))
    with pytest.raises(MachineFault):
        decode_entry(SAMPLE + b"\x00")
    with pytest.raises(MachineFault):
        decode_entry(resealed(SAMPLE + b"\x00"))


@pytest.mark.parametrize("at", range(4))
def test_an_unknown_format_kind_or_flag_is_refused_by_name(at: int) -> None:
    """An entry of a newer release stops the node with the advice to upgrade, right checksum or not."""
    newer = SAMPLE[:at] + bytes([SAMPLE[at] + 1]) + SAMPLE[at + 1 :]
    with pytest.raises(MachineFault, match="upgrade"):
        check_entry(resealed(newer))


@given(st.integers(0, len(SAMPLE) - 1), st.binary(min_size=1, max_size=4))
@examples(300)
def test_no_bytes_under_a_right_checksum_raise_anything_else(at: int, put: bytes) -> None:
    """Whatever a proposer's bug signs is taken apart, or refused as a fault of the machine."""
    data = resealed((SAMPLE[:at] + put + SAMPLE[at + len(put) :])[: len(SAMPLE)])
    with contextlib.suppress(MachineFault):
        assert decode_entry(data).commands


# -------------------------------------------------------------------- handed to the machine


def unchanged_by(node: Node, *handed: Entry, prev_index: int | None = None) -> None:
    """The machine raises for these entries and is as before."""
    before, position = dump(Pending(node.machine)), node.machine.applied
    prev = node.machine.applied.index if prev_index is None else prev_index
    with pytest.raises(MachineFault):
        node.machine.apply(prev, handed)
    assert dump(Pending(node.machine)) == before
    assert node.machine.applied == position


def test_a_gap_stops_the_node(begun: Node) -> None:
    """An entry that does not follow what is applied is never applied."""
    entry = begun.entry([commands.put(b"a", b"1")])
    unchanged_by(begun, entry._replace(index=entry.index + 1))
    unchanged_by(begun, entry, prev_index=begun.machine.applied.index + 1)


def test_a_gap_between_entries_keeps_those_before_it(begun: Node) -> None:
    """What came in order stays applied; what lies beyond the gap is not."""
    first = begun.entry([commands.put(b"a", b"1")])
    beyond = first._replace(index=first.index + 2)
    with pytest.raises(MachineFault, match="gap"):
        begun.machine.apply(first.index - 1, [first, beyond])
    assert begun.machine.applied.index == first.index
    assert begun.machine.revision == 1


def test_a_damaged_entry_stops_the_node(begun: Node) -> None:
    """A checksum that does not hold leaves everything as it was."""
    entry = begun.entry([commands.put(b"a", b"1")])
    damaged = bytearray(entry.data)
    damaged[-1] ^= 1
    unchanged_by(begun, entry._replace(data=bytes(damaged)))
    unchanged_by(begun, entry._replace(data=b""))


def test_an_entry_of_another_history_stops_the_node(begun: Node) -> None:
    """Nodes of another history cannot mix in."""
    unchanged_by(begun, begun.entry([commands.put(b"a", b"1")], history=b"another-history!"))


def test_a_kind_of_a_newer_release_stops_the_node(begun: Node) -> None:
    """A kind of entry that this release does not know is refused with the advice to upgrade."""
    unchanged_by(begun, Entry(begun.next_index, 1, 3, b""))


def test_an_entry_without_commands_stops_the_node(begun: Node) -> None:
    """Found by review: a count of 0 under a right checksum was an IndexError, which is no fault with a name."""
    data = bytearray(encode_entry(HISTORY, ProposalId("n", 1, 1), [b"x"]))
    count_at = entries._HEAD.size - 2
    data[count_at : count_at + 2] = b"\x00\x00"
    entry = begun.entry([b"x"])
    unchanged_by(begun, entry._replace(data=resealed(bytes(data[: -entries.COMMAND_OVERHEAD_BYTES - 1]))))


@pytest.mark.parametrize("first", [b"", b"\x98", b"\x97\x01"])
def test_before_genesis_nothing_else_is_taken(node: Node, first: bytes) -> None:
    """Found by review: a first command of less than two bytes was an IndexError before genesis."""
    unchanged_by(node, node.entry([first]))
    unchanged_by(node, node.entry([commands.put(b"a", b"1"), genesis()]))


def test_entries_that_were_applied_are_skipped(begun: Node) -> None:
    """Handed over again, whole or in part, they change nothing and have no outcome again."""
    for number in range(5):
        begun.do(commands.put(b"a", b"%d" % number))
    before = dump(Pending(begun.machine))
    assert begun.machine.apply(0, begun.log) == []
    assert begun.machine.apply(3, begun.log[3:]) == []
    following = begun.entry([commands.put(b"b", b"")])
    assert [applied.index for applied in begun.machine.apply(2, [*begun.log[2:], following])] == [following.index]
    assert dump(Pending(begun.machine)) != before


def test_what_became_of_an_entry_names_its_proposal(begun: Node) -> None:
    """Index, term, proposal id and one outcome for each command; engine entries have neither."""
    entry = begun.entry([commands.put(b"a", b"1"), b"garbage", commands.delete(b"a")], term=3)
    applied = begun.apply(entry)
    assert applied[:3] == (entry.index, 3, ProposalId("node", 1, entry.index))
    assert [outcome.status for outcome in applied.outcomes] == [Status.OK, Status.INVALID, Status.OK]
    for kind in (EntryKind.NOOP, EntryKind.CONFIG):
        applied = begun.apply(Entry(begun.next_index, 4, kind, b"engine's own"))
        assert (applied.proposal, applied.outcomes) == (None, [])
        assert begun.machine.applied == (applied.index, 4)


# -------------------------------------------------------------------- weight


@given(long_lists(actions, 30))
@examples(60)
def test_no_command_replaces_more_than_its_weight(storages: Storages, plan: list) -> None:
    """Below the heaviest class, a command replaces at most as many records as it weighs."""
    sender = Sender(small_model())
    with small_bounds(keys=1_024, size=16 << 20), Node(storages) as node:
        sender.model.keys_max, sender.model.bytes_max = 1_024, 16 << 20
        node.do(genesis())
        sender.model.execute(genesis(), 1)
        for action in plan:
            command = sender.encode(action, 1)
            sender.model.execute(command.data, 1, valid=command.valid)
            revision = node.machine.revision
            (outcome,) = node.do(command.data)
            if outcome.status in (Status.INVALID, Status.UNSUPPORTED):
                continue
            weight = command_weight(command.data)
            assert 1 <= weight <= 16
            new = Pending(node.machine).scan("changes", (revision + 1).to_bytes(8, "big"))
            replaced = [row for _key, row in new if decode_change(row).preimage is not None]
            assert len(replaced) <= weight or weight == 16


@pytest.mark.parametrize(
    ("command", "weight"),
    [
        (commands.put(b"a", b""), 1),
        (commands.delete(b"a"), 1),
        (commands.delete(b"a", b"b"), 16),
        (commands.delete(b"", b""), 16),
        (commands.compact(1), 1),
        (commands.tick(1), 1),
        (commands.txn([], []), 1),
        (commands.txn([], [commands.op_put(b"a", b"")] * 3, [commands.op_delete(b"a")] * 5), 5),
        (commands.txn([], [commands.op_put(b"a", b"")] * 99), 16),
        (commands.txn([], [commands.op_get(b"a")] * 2), 2),
        (commands.txn([], [], [commands.op_get(b"a", b"b")]), 16),
        (commands.txn([], [commands.op_put(b"a", b""), commands.op_delete(b"", b"")]), 16),
    ],
)
def test_weights_count_what_may_be_replaced(command: bytes, weight: int) -> None:
    """A record at most for each key that is named; anything may lie in a range."""
    assert command_weight(command) == weight


def test_a_heavy_command_fits_an_entry() -> None:
    """No command is heavier than what one entry may weigh, or it could never be proposed."""
    assert entries.ENTRY_WEIGHT_MAX >= 16
