"""Positions, commits, digests and the engine's state: what surrounds the data."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path

import pytest

from raftkv_core.builtin.memory import MemoryStorage
from raftkv_core.errors import Compacted, StorageError, StorageFull
from raftkv_core.interfaces.consensus import Entry, EntryKind, Position
from raftkv_core.machine import commands, reads
from raftkv_core.machine.commands import Status
from raftkv_core.machine.meta import read_meta
from raftkv_core.machine.state import DIGEST_EVERY_INDEXES, StateMachine
from tests.machine.checks import Pending, dump, logical
from tests.machine.harness import Node, Storages, genesis, position, small_bounds


def noop(node: Node, term: int = 1) -> None:
    node.apply(Entry(node.next_index, term, EntryKind.NOOP, b""))


# -------------------------------------------------------------------- positions


class Risky(MemoryStorage):
    """Memory that says about its commits what a disk engine would, and counts its syncs."""

    def __init__(self, at_risk: int | None) -> None:
        super().__init__(Path(), None)
        self.commits_at_risk = at_risk
        self.syncs = 0

    def sync(self) -> None:
        self.syncs += 1
        super().sync()


def on(storage: Risky, *, storage_durable: bool = True) -> Node:
    """A node on that very storage."""
    return Node(Storages("memory", Path()), storage, storage_durable=storage_durable)


@pytest.mark.parametrize(("at_risk", "behind"), [(0, 0), (1, 1), (2, 2), (None, None)])
def test_durable_follows_as_the_engine_says(at_risk: int | None, behind: int | None) -> None:
    """After each commit without a sync, durable is as many commits behind as a power loss may take."""
    node = on(Risky(at_risk))
    node.begin()
    ends = [position(0, 0)]
    for _ in range(5):
        generation = node.machine.begin_commit()
        assert generation is not None
        ends.append(node.machine.applied)
        noop(node)  # applied meanwhile: part of the next commit
        node.machine.write_commit(generation, sync=False)
        node.machine.end_commit(generation, synced=False)
        assert node.machine.visible == ends[-1]
        assert node.machine.durable == (ends[0] if behind is None else ends[max(0, len(ends) - 1 - behind)])
    generation = node.machine.begin_commit()
    assert generation is not None
    node.machine.write_commit(generation, sync=True)
    node.machine.end_commit(generation, synced=True)
    assert node.machine.applied == node.machine.visible == node.machine.durable
    assert node.storage.syncs == 2  # type: ignore[attr-defined]  # one at the start, one asked for
    node.close()


def test_durable_never_goes_back() -> None:
    """A sync from elsewhere may be ahead of what the next commits make durable by themselves."""
    node = on(Risky(2))
    node.begin()
    node.commit()
    noop(node)
    node.commit()
    node.machine.mark_durable(node.machine.visible)
    for _ in range(2):
        before = node.machine.durable
        noop(node)
        node.commit()
        assert node.machine.durable >= before
    node.close()


def test_a_storage_that_is_not_durable_is_durable_where_its_stream_file_is() -> None:
    """Neither commits nor syncs move durable, only the file that the core keeps beside it."""
    node = on(Risky(0), storage_durable=False)
    node.begin()
    node.commit(sync=True)
    assert node.machine.visible == (1, 1)
    assert node.machine.durable == (0, 0)
    node.machine.mark_durable(position(1))
    assert node.machine.durable == (1, 1)
    node.machine.mark_durable(position(0, 0))
    assert node.machine.durable == (1, 1)
    node.install(node.stream())
    assert (node.machine.visible, node.machine.durable) == ((1, 1), (0, 0))
    node.close()


def test_a_start_syncs_what_a_killed_process_committed() -> None:
    """What is visible at the start counts as durable, so it is synced first."""
    storage = Risky(None)
    node = on(storage)
    node.begin()
    node.commit()
    assert node.machine.durable == (0, 0)
    node.machine.close()
    syncs = storage.syncs
    again = StateMachine(storage)
    assert again.durable == again.visible == again.applied == (1, 1)
    assert storage.syncs == syncs + 1
    again.close()
    storage.close()


def test_outcomes_come_before_anything_is_visible(begun: Node) -> None:
    """Applied moves at once; visible with the end of the commit; a reader sees it with the write."""
    begun.commit()
    begun.do(commands.put(b"a", b"1"))
    assert (begun.machine.applied.index, begun.machine.visible.index) == (2, 1)
    begun.begin_commit()
    with begun.storage.read() as txn:
        assert reads.get(txn, b"a") is None
    begun.write_commit()
    with begun.storage.read() as txn:
        record = reads.get(txn, b"a")
        assert record is not None
        assert (record.value, read_meta(txn).position) == (b"1", (2, 1))
    assert begun.machine.visible.index == 1
    begun.end_commit()
    assert begun.machine.visible.index == 2


def test_there_is_one_commit_at_a_time(begun: Node) -> None:
    """While one is under way there is no other, and with nothing to do there is none at all."""
    assert begun.machine.commit_pending
    generation = begun.machine.begin_commit()
    assert generation is not None
    assert not begun.machine.commit_pending
    assert begun.machine.begin_commit() is None
    noop(begun)
    assert begun.machine.begin_commit() is None
    begun.machine.write_commit(generation, sync=False)
    begun.machine.end_commit(generation, synced=False)
    begun.commit()
    assert begun.machine.begin_commit() is None
    assert begun.machine.pending_bytes == 0


def test_the_writer_works_while_entries_are_applied(storages: Storages) -> None:
    """Commits in another thread, at any moment of apply, lose nothing and change nothing."""
    with Node(storages) as node, Node(Storages("memory", storages.root)) as still:
        for each in (node, still):
            each.begin({"history_revisions": 20})
        errors: list[BaseException] = []
        for turn in range(25):
            batch = [commands.put(b"%d" % (number % 9), b"%d" % turn) for number in range(40)]
            batch += [commands.delete(b"3", b"5"), commands.txn([], [commands.op_get(b"", b"")])]
            generation = node.machine.begin_commit()

            def write(generation: object = generation) -> None:
                try:
                    node.machine.write_commit(generation, sync=False)  # type: ignore[arg-type]
                except BaseException as error:  # noqa: BLE001
                    errors.append(error)

            writer = threading.Thread(target=write)
            if generation is not None:
                writer.start()
            for command in batch:
                assert node.do(command) == still.do(command)
            if generation is not None:
                writer.join()
                node.machine.end_commit(generation, synced=False)
        assert not errors
        assert logical(Pending(node.machine)) == logical(Pending(still.machine))


def test_a_failed_commit_leaves_the_store_as_it_was(storages: Storages) -> None:
    """Storage that is full raises in the writer; after a restart the log is replayed as if nothing had been."""
    with Node(storages) as node:
        node.begin()
        node.do(commands.put(b"a", b"1"))
        node.commit()
        with node.storage.read() as txn:
            before = dump(txn)
        node.do(commands.put(b"a", b"2"), commands.delete(b"a"), commands.put(b"b", b"3"))
        digest = node.machine.digest
        generation = node.machine.begin_commit()
        assert generation is not None
        generation.tables["kv"][b"k" * 600] = b"no engine takes such a key"
        with pytest.raises(StorageError):
            node.machine.write_commit(generation, sync=False)
        with node.storage.read() as txn:
            assert dump(txn) == before
        node.restart()
        assert node.machine.digest == digest
        record = reads.get(Pending(node.machine), b"b")
        assert record is not None
        assert record.value == b"3"


def test_storage_full_is_a_storage_error() -> None:
    """Who stops the node on a failed commit catches both."""
    assert issubclass(StorageFull, StorageError)


# -------------------------------------------------------------------- engine entries, engine state


def test_advance_moves_the_position_only_forward(begun: Node) -> None:
    """Entries without effect that were never handed over are passed; the next one follows without a gap."""
    begun.machine.advance(5, 2)
    assert begun.machine.applied == (5, 2)
    for index in (1, 5):
        begun.machine.advance(index, 9)
        assert begun.machine.applied == (5, 2)
    begun.do(commands.put(b"a", b"1"), term=2)
    assert begun.machine.applied == (6, 2)
    begun.commit()
    assert begun.machine.visible == (6, 2)
    begun.machine.advance(7, 3)
    begun.commit()
    with begun.storage.read() as txn:
        assert read_meta(txn).position == (7, 3)


def test_the_engines_state_is_stored_with_its_entry(begun: Node) -> None:
    """Seen by the engine at once; in storage with the entry that changes it, and not with the one before."""
    begun.commit()
    assert begun.machine.engine_state == b""
    at = begun.next_index + 1
    begun.machine.set_engine_state(b"three members", position(at))
    assert begun.machine.engine_state == b"three members"
    noop(begun)
    begun.commit()
    with begun.storage.read() as txn:
        assert read_meta(txn).engine_state == b""
    begun.apply(Entry(at, 1, EntryKind.CONFIG, b""))
    begun.do(commands.put(b"a", b"1"))
    begun.commit()
    with begun.storage.read() as txn:
        assert read_meta(txn).engine_state == b"three members"
    begun.restart()
    assert begun.machine.engine_state == b"three members"


def test_the_engines_state_follows_an_advance(begun: Node) -> None:
    """Passing over its entry stores it too."""
    begun.machine.set_engine_state(b"new", position(4))
    begun.machine.advance(6, 1)
    begun.commit()
    begun.restart()
    assert begun.machine.engine_state == b"new"


def test_each_change_of_the_engines_state_is_stored_with_its_own_entry(begun: Node) -> None:
    """Found by review: two changes announced before a run of entries; the first was never stored, so a crash
    between them left a position without its membership."""
    first, second = begun.next_index, begun.next_index + 2
    begun.machine.set_engine_state(b"three", position(first))
    begun.machine.set_engine_state(b"four", position(second))
    assert begun.machine.engine_state == b"four"
    for expected in (b"three", b"three", b"four"):
        begun.apply(Entry(begun.next_index, 1, EntryKind.CONFIG, b""))
        begun.commit()
        with begun.storage.read() as txn:
            assert read_meta(txn).engine_state == expected


def test_replaying_an_old_change_of_the_engines_state_does_not_bring_it_back(begun: Node) -> None:
    """Found by review: an engine that replays its log announces old changes again; they are in storage already,
    and a newer one must not be replaced by them."""
    begun.machine.set_engine_state(b"old", position(begun.next_index))
    noop(begun)
    begun.machine.set_engine_state(b"new", position(begun.next_index))
    noop(begun)
    begun.commit()
    begun.restart()
    begun.machine.set_engine_state(b"old", position(2))
    assert begun.machine.engine_state == b"new"
    noop(begun)
    begun.commit()
    begun.restart()
    assert begun.machine.engine_state == b"new"


def test_an_announced_change_that_is_replaced_in_the_log_is_forgotten(begun: Node) -> None:
    """A leader's entry that was never committed is overwritten by another term's at the same index."""
    begun.machine.set_engine_state(b"three", position(begun.next_index + 3))
    begun.machine.set_engine_state(b"two", position(begun.next_index, 2))
    noop(begun, term=2)
    assert begun.machine.engine_state == b"two"


def test_the_engines_state_is_lost_with_its_entry(begun: Node) -> None:
    """What was not committed is gone after a crash, state and entry together."""
    begun.commit()
    begun.machine.set_engine_state(b"lost", position(begun.next_index))
    noop(begun)
    begun.log.clear()
    begun.restart(99)
    assert (begun.machine.engine_state, begun.machine.applied) == (b"", (1, 1))


def test_the_engines_state_travels_in_streams(begun: Node, storages: Storages) -> None:
    """An installed store has the engine's state of its position."""
    begun.machine.set_engine_state(b"members", position(begun.next_index))
    noop(begun)
    with Node(storages) as copy:
        copy.machine.set_engine_state(b"pending on the old store", position(99))
        copy.install(begun.stream())
        assert copy.machine.engine_state == b"members"


# -------------------------------------------------------------------- digests


def test_digests_of_the_last_64_multiples_are_kept(begun: Node) -> None:
    """Those of the state right after the index, taken inside a run of entries too; a restart begins anew."""
    step = DIGEST_EVERY_INDEXES
    begun.machine.advance(step - 2, 1)
    run = []
    for number in range(4):
        entry = begun.entry([commands.put(b"a", b"%d" % number)])
        run.append(entry._replace(index=step - 1 + number))
    begun.machine.apply(step - 2, run[:2])
    at_step = begun.machine.digest, begun.machine.digest_local
    begun.machine.apply(step, run[2:])
    assert dict(begun.machine.digests()) == {step: at_step}
    assert begun.machine.digest != at_step[0]
    for number in range(2, 71):
        begun.machine.advance(number * step, 1)
    assert list(begun.machine.digests()) == [number * step for number in range(7, 71)]
    begun.machine.advance(72 * step - 1, 1)
    begun.machine.advance(73 * step + 1, 1)
    assert 72 * step not in begun.machine.digests()  # passed over in one go: no digest is held for it
    begun.commit()
    begun.restart()
    assert not begun.machine.digests()


def test_digests_do_not_depend_on_commits(storages: Storages) -> None:
    """Nodes that commit at different moments hold the same digests for the same indexes."""
    with Node(storages) as often, Node(storages) as never:
        for node in (often, never):
            node.begin({"history_revisions": 3})
            node.machine.advance(DIGEST_EVERY_INDEXES - 10, 1)
        for number in range(20):
            for node in (often, never):
                node.do(commands.put(b"%d" % (number % 3), b"", idempotency_key=b"%d" % number))
            often.commit()
        assert len(often.machine.digests()) == 1
        assert often.machine.digests() == never.machine.digests()


def test_the_digest_is_of_the_data_and_the_local_one_of_the_rest(begun: Node) -> None:
    """Keys, settings, revision and compacted revision move the first; clock, members and retries the second."""

    def moved(command: bytes) -> tuple[bool, bool]:
        before = begun.machine.digest, begun.machine.digest_local
        begun.do(command)
        return begun.machine.digest != before[0], begun.machine.digest_local != before[1]

    assert moved(commands.put(b"a", b"1")) == (True, False)
    assert moved(commands.settings({"tick_ms": 500})) == (True, False)
    assert moved(commands.compact(1)) == (True, False)
    assert moved(commands.tick(1)) == (False, True)
    assert moved(commands.report("n", [1], low_space=False)) == (False, True)
    assert moved(commands.delete(b"none", idempotency_key=b"i")) == (False, True)
    assert moved(commands.delete(b"none")) == (False, False)


def test_deleting_everything_leaves_the_digest_of_nothing(begun: Node) -> None:
    """The sum over no rows is 0, however the rows came and went."""
    for number in range(50):
        begun.do(commands.put(b"%d" % number, b"x" * number), commands.put(b"%d" % (number // 2), b"y"))
    begun.do(commands.delete(b"", b""))
    state = begun.machine.state
    assert (state.kv_digest, state.keys, state.live_bytes) == (0, 0, 0)


# -------------------------------------------------------------------- history


def test_settings_shrink_history_at_once(begun: Node) -> None:
    """A smaller limit forgets in the command that sets it; a larger one brings nothing back."""
    for number in range(20):
        begun.do(commands.put(b"a", b"%02d" % number))
    assert begun.machine.compacted == 0
    begun.do(commands.settings({"history_revisions": 5}))
    assert begun.machine.compacted == 15
    with pytest.raises(Compacted):
        reads.get(Pending(begun.machine), b"a", 14)
    record = reads.get(Pending(begun.machine), b"a", 15)
    assert record is not None
    assert record.value == b"14"
    begun.do(commands.settings({"history_revisions": 100}), commands.put(b"a", b""))
    assert (begun.machine.revision, begun.machine.compacted) == (21, 15)
    begun.do(commands.settings({"history_bytes": begun.machine.history_bytes - 1}))
    assert begun.machine.compacted == 16
    begun.do(commands.settings({"history_bytes": 0}))
    assert (begun.machine.compacted, begun.machine.history_bytes) == (21, 0)
    begun.do(commands.put(b"a", b""))
    assert begun.machine.compacted == 22


@pytest.mark.parametrize("less", [-1, 0, 1])
@pytest.mark.parametrize("kept", [0, 1, 2, 3, 5, 8, 13, 21, 30, 33, 36, 38, 39, 40])
def test_the_byte_limit_is_exact_however_far_it_jumps(storages: Storages, kept: int, less: int) -> None:
    """A limit of exactly the bytes of the newest revisions keeps them all; one byte less forgets one more."""
    with Node(storages) as node:
        node.begin()
        for number in range(40):
            node.do(commands.put(b"a", bytes(number)))
        changes = [7 + len(key) + len(row) for key, row in Pending(node.machine).scan("changes")]
        exact = sum(changes[len(changes) - kept :])
        node.do(commands.settings({"history_bytes": max(0, exact - less)}))
        assert node.machine.compacted == 40 - kept + (1 if less == 1 and kept else 0)


def test_trimming_is_bounded_and_catches_up(storages: Storages) -> None:
    """A commit removes a bounded number of rows and says that there are more; the last one leaves none."""
    with small_bounds(trim_rows=10), Node(storages) as node:
        node.begin()
        for number in range(95):
            node.do(commands.put(b"%d" % (number % 7), b""))
        node.commit()
        node.do(commands.compact(95))
        left = []
        while node.machine.commit_pending or node.machine.trim_pending:
            generation = node.machine.begin_commit()
            assert generation is not None
            node.machine.write_commit(generation, sync=False)
            node.machine.end_commit(generation, synced=False)
            with node.storage.read() as txn:
                left.append(len(list(txn.scan("changes"))))
                assert len(list(txn.scan("next"))) <= left[-1]
        assert left[0] >= 80
        assert left[-1] == 0
        assert all(before - after <= 10 for before, after in pairwise(left))


def test_commits_of_trimming_alone_do_not_move_positions_back(storages: Storages) -> None:
    """Visible and durable stay at the newest entry while history is being removed."""
    with small_bounds(trim_rows=2), Node(storages) as node:
        node.begin()
        for number in range(30):
            node.do(commands.put(b"a", b"%d" % number))
        node.commit()
        node.do(commands.compact(30))
        node.commit(sync=True)
        assert node.machine.trim_pending
        end = node.machine.applied
        for _ in range(3):
            node.commit()
            assert node.machine.visible == end
            assert node.machine.durable == end


def test_history_survives_a_restart_with_rows_left_to_trim(storages: Storages) -> None:
    """Reads at a compacted revision are refused though the rows are still there, before and after a restart."""
    with small_bounds(trim_rows=2), Node(storages) as node:
        node.begin()
        for number in range(30):
            node.do(commands.put(b"a", b"%d" % number))
        node.commit()
        node.do(commands.compact(20))
        node.commit()
        for _ in range(2):
            with node.storage.read() as txn:
                assert next(iter(txn.scan("changes")))[0] < (20).to_bytes(8, "big")
                with pytest.raises(Compacted):
                    reads.changes(txn, 19)
                assert len(reads.changes(txn, 20).changes) == 10
            node.restart()
        for _ in range(30):
            node.do(commands.put(b"b", b""))
            node.commit()
        with node.storage.read() as txn:
            assert next(iter(txn.scan("changes")))[0] >= (21).to_bytes(8, "big")


# -------------------------------------------------------------------- members, formats


def test_members_say_what_they_can_read_and_whether_they_are_low(begun: Node) -> None:
    """The newest report of each counts; one that is gone is forgotten; all survives a restart."""
    begun.do(commands.report("n1", [1], low_space=False), commands.report("n2", [1, 2], low_space=True))
    begun.do(commands.report("n1", [1], low_space=True), commands.report("n3", [1], low_space=False, gone=True))
    expected = {"n1": ((1,), True), "n2": ((1, 2), True)}
    assert begun.machine.members == expected
    begun.commit()
    begun.restart()
    assert begun.machine.members == expected
    begun.do(commands.report("n2", [], low_space=False, gone=True))
    assert begun.machine.members == expected  # an empty list of formats is malformed, also of one who is gone
    begun.do(commands.report("n2", [1], low_space=False, gone=True))
    assert set(begun.machine.members) == {"n1"}


@pytest.mark.parametrize(
    ("table", "key"),
    [
        ("meta", b"state"),
        ("meta", b"identity"),
        ("meta", b"settings"),
        ("meta", b"engine"),
        ("members", b"n1"),
        ("dedupe", b"i"),
        ("kv", b"ka"),
    ],
)
@pytest.mark.parametrize("at", [0, 1])
def test_rows_of_an_unknown_format_are_refused(storages: Storages, table: str, key: bytes, at: int) -> None:
    """A format byte or a flag of a newer release is refused with the advice to upgrade, never guessed at."""
    with Node(storages) as node:
        node.begin()
        node.do(commands.report("n1", [1], low_space=False), commands.settings({"tick_ms": 500}))
        node.machine.set_engine_state(b"members", position(node.next_index))
        again = commands.put(b"a", b"1", idempotency_key=b"i")
        node.do(again)
        node.commit()
        with node.storage.write() as txn:
            row = bytearray(txn.get(table, key) or b"")
            row[at] |= 0x80
            txn.put(table, key, bytes(row))
            txn.commit()

        def use() -> None:
            node.restart()
            reads.get(Pending(node.machine), b"a")
            node.do(again)

        with pytest.raises(StorageError, match="upgrade"):
            use()


def test_the_number_of_entries_says_nothing_about_commands(begun: Node) -> None:
    """256 commands in one entry are 256 revisions; an engine's entry is none."""
    begun.do(*[commands.put(b"a", b"")] * 256)
    noop(begun)
    assert (begun.machine.revision, begun.machine.applied.index) == (256, 3)
    assert begun.do(genesis())[0].status == Status.NO_GENESIS
    assert begun.machine.applied == Position(4, 1)
