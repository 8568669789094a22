"""Genesis: the first command of a history, on an empty store or on restored data."""

from __future__ import annotations

from random import Random

import pytest

from raftkv_core.errors import Compacted, MachineFault
from raftkv_core.machine import commands, reads
from raftkv_core.machine.commands import Status
from raftkv_core.machine.histories import REVISIONS_SKIPPED, begin_new_history
from raftkv_core.machine.settings import DEFAULTS
from tests.machine.checks import Pending, check_numbers, check_reads, dump, same_outcome
from tests.machine.harness import CLUSTER, HISTORY, Node, Storages, genesis, position
from tests.machine.model import Model
from tests.machine.strategies import KEYS

OTHER = b"other-history-id"


def test_a_history_begins(node: Node) -> None:
    """Cluster, history and settings are those of the command; the revision stays 0."""
    assert (node.machine.cluster_id, node.machine.history_id) == (b"", b"")
    (outcome,) = node.do(genesis({"tick_ms": 500}))
    assert outcome == (Status.OK, 0, None, False)
    assert (node.machine.cluster_id, node.machine.history_id) == (CLUSTER, HISTORY)
    assert node.machine.settings == {**DEFAULTS, "tick_ms": 500}
    assert (node.machine.revision, node.machine.compacted) == (0, 0)
    node.commit()
    node.restart()
    assert (node.machine.cluster_id, node.machine.history_id) == (CLUSTER, HISTORY)
    assert node.machine.settings == {**DEFAULTS, "tick_ms": 500}


def test_commands_beside_a_bad_genesis_are_refused(node: Node) -> None:
    """In an entry whose genesis is malformed, the rest finds a store without a history."""
    bad = genesis()[:-1] + b"\xc0"
    assert [o.status for o in node.do(bad, commands.put(b"a", b"1"))] == [Status.INVALID, Status.NO_GENESIS]
    assert node.machine.revision == 0


def test_a_second_genesis_is_refused(begun: Node) -> None:
    """It changes nothing and says so."""
    begun.do(commands.put(b"a", b"1"))
    before = dump(Pending(begun.machine))
    del before["meta"][b"state"]
    (outcome,) = begun.do(genesis({"tick_ms": 500}))
    assert outcome.status == Status.NO_GENESIS
    after = dump(Pending(begun.machine))
    del after["meta"][b"state"]
    assert after == before


def test_a_second_genesis_with_an_id_of_its_own_is_refused_and_stops_nobody(begun: Node) -> None:
    """Found by review: a leader that did not hear of its genesis proposes another, with a new history id; where
    both were committed, every member stopped with a fault, and again at each replay."""
    (outcome,) = begun.do(genesis(history=OTHER), history=OTHER)
    assert outcome.status == Status.NO_GENESIS
    assert begun.machine.history_id == HISTORY
    assert begun.do(commands.put(b"a", b"1"))[0].status == Status.OK


def test_nothing_hides_behind_a_second_genesis(begun: Node) -> None:
    """Other commands of another history stay a fault, also in one entry with its genesis."""
    with pytest.raises(MachineFault, match="history"):
        begun.do(genesis(history=OTHER), commands.put(b"a", b"1"), history=OTHER)
    with pytest.raises(MachineFault, match="history"):
        begun.do(commands.put(b"a", b"1"), history=OTHER)


@pytest.mark.parametrize(("revision", "digest"), [(0, 1), (5, 1 << 63)])
def test_another_digest_than_the_datas_stops_the_node(node: Node, revision: int, digest: int) -> None:
    """A node restored from another backup than its peers never takes part."""
    before = dump(Pending(node.machine))
    with pytest.raises(MachineFault, match="backup"):
        node.do(genesis(base_revision=revision, base_digest=digest))
    assert dump(Pending(node.machine)) == before
    assert node.machine.applied == (0, 0)


def restored(storages: Storages, history_bytes: int = 1 << 30) -> tuple[Node, Model]:
    """A node on the data of another history, before its genesis, and the model of it."""
    node, model = Node(storages), Model()
    sent = [
        genesis({"history_bytes": history_bytes}),
        commands.put(b"a", b"1", idempotency_key=b"i"),
        commands.put(b"b", b"1"),
        commands.report("n1", [1], low_space=True),
        commands.delete(b"b"),
        commands.tick(1),
        commands.put(b"a", b"2"),
        commands.put(b"ab", b"3"),
    ]
    for command in sent:
        same_outcome(node.do(command)[0], model.execute(command, 1))
    node.machine.set_engine_state(b"members of the old cluster", position(node.next_index))
    node.do(commands.tick(1))
    model.execute(commands.tick(1), 1)
    node.commit()
    with node.storage.write() as txn:
        begin_new_history(txn)
        txn.commit()
    model.begin_new_history()
    node.log.clear()
    node.restart()
    return node, model


def test_a_new_history_begins_on_restored_data(storages: Storages) -> None:
    """Data and remembered keys stay; names, members and the engine's state go; old revisions are compacted."""
    node, model = restored(storages)
    with node:
        assert node.machine.applied == (0, 0)
        assert (node.machine.history_id, node.machine.engine_state, dict(node.machine.members)) == (b"", b"", {})
        check_numbers(Pending(node.machine), model)
        base = model.revision + REVISIONS_SKIPPED
        opening = genesis(history=OTHER, base_revision=base, base_digest=node.machine.state.kv_digest)
        (outcome,) = node.do(opening, history=OTHER)
        same_outcome(outcome, model.execute(opening, 1))
        assert node.machine.revision == node.machine.compacted == base
        for command in (commands.put(b"b", b"new"), commands.delete(b"a"), commands.put(b"b", b"newer")):
            same_outcome(node.do(command, history=OTHER)[0], model.execute(command, 1))
        for _ in range(3):
            check_numbers(Pending(node.machine), model)
            check_reads(Pending(node.machine), model, KEYS, Random(1))
            node.commit()
        with pytest.raises(Compacted):
            reads.get(Pending(node.machine), b"a", 2)
        with node.storage.read() as txn:
            assert len(list(txn.scan("changes"))) == 3


def test_a_restored_store_streams_and_installs_at_every_step(storages: Storages) -> None:
    """Before its genesis and after it, a store on restored data can be copied."""
    node, model = restored(storages)
    with node, Node(storages) as copy:
        copy.install(node.stream())
        check_numbers(Pending(copy.machine), model)
        base = model.revision + REVISIONS_SKIPPED
        opening = genesis(history=OTHER, base_revision=base, base_digest=node.machine.state.kv_digest)
        for each in (node, copy):
            each.do(opening, history=OTHER)
            each.do(commands.put(b"b", b"new"), history=OTHER)
        assert copy.stream() == node.stream()


@pytest.mark.parametrize("history_bytes", [0, 100, 200])
def test_history_bounds_hold_across_a_restore(storages: Storages, history_bytes: int) -> None:
    """Bytes of the old history do not count against the new one's limit."""
    node, model = restored(storages, history_bytes)
    with node:
        changes = {"history_bytes": history_bytes}
        base = model.revision + REVISIONS_SKIPPED
        opening = genesis(changes, history=OTHER, base_revision=base, base_digest=node.machine.state.kv_digest)
        same_outcome(node.do(opening, history=OTHER)[0], model.execute(opening, 1))
        for number in range(6):
            command = commands.put(b"a", b"%d" % number)
            same_outcome(node.do(command, history=OTHER)[0], model.execute(command, 1))
            check_numbers(Pending(node.machine), model)


def test_a_base_below_the_datas_revision_stops_the_node(storages: Storages) -> None:
    """Revisions never go back."""
    node, model = restored(storages)
    opening = genesis(base_revision=model.revision - 1, base_digest=node.machine.state.kv_digest)
    with node, pytest.raises(MachineFault):
        node.do(opening)
