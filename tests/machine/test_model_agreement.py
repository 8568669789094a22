"""Random commands: the state machine and a model that forgets nothing say the same, at every step."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from raftkv_core.interfaces.consensus import Entry, EntryKind
from tests.machine.checks import Pending, check_newest, check_numbers, check_reads, same_outcome
from tests.machine.harness import Node, Storages, genesis, small_bounds
from tests.machine.strategies import (
    KEYS,
    Sender,
    actions,
    examples,
    long_lists,
    small_model,
    small_settings,
    weighted,
)

steps = weighted(
    (6, st.tuples(st.just("entry"), st.lists(actions, min_size=1, max_size=4), st.sampled_from([0, 0, 0, 1]))),
    (3, st.tuples(st.sampled_from(["begin", "write", "end"]))),
    (1, st.tuples(st.sampled_from(["commit", "look", "noop"]))),
    (1, st.tuples(st.sampled_from(["restart", "install"]), st.integers(1, 9))),
)


@given(small_settings, long_lists(steps), st.integers(0, 3))
@examples(150)
def test_the_machine_agrees_with_a_model_that_forgets_nothing(
    storages: Storages, first: dict[str, int], plan: list[tuple], seed: int
) -> None:
    """Outcomes, reads of today and of every kept revision, changes, counters and digests are the model's."""
    random = Random(seed)
    sender = Sender(small_model())
    model = sender.model
    term = 1
    with small_bounds(), Node(storages) as node:
        opening = genesis(first)
        (outcome,) = node.do(opening)
        same_outcome(outcome, model.execute(opening, term))
        view = Pending(node.machine)
        for name, *rest in plan:
            if name == "entry":
                term += rest[1]
                _apply(node, sender, rest[0], term)
            elif name == "noop":
                node.apply(Entry(node.next_index, term, EntryKind.NOOP, b""))
            elif name == "look":
                check_reads(view, model, KEYS, random)
            elif name == "restart":
                node.restart(max(0, node.machine.applied.index - rest[0]))
                view = Pending(node.machine)
            elif name == "install":
                node.commit()
                node.commit()
                node.install(node.stream(), piece=7 * rest[0])
                view = Pending(node.machine)
            else:
                node.step(name)
            check_numbers(view, model)
            check_newest(view, model)
        check_reads(view, model, KEYS, random)
        node.commit()
        node.commit()
        with node.storage.read() as txn:
            check_numbers(txn, model)
            check_reads(txn, model, KEYS, random)


def _apply(node: Node, sender: Sender, batch: list, term: int) -> None:
    """One entry on both. The model runs first: what the commands say depends on where it stands."""
    encoded, expected = [], []
    model = sender.model
    for action in batch:
        command = sender.encode(action, term)
        encoded.append(command.data)
        expected.append(model.execute(command.data, term, valid=command.valid))
    for actual, wanted in zip(node.do(*encoded, term=term), expected, strict=True):
        same_outcome(actual, wanted)
    assert {name: tuple(report) for name, report in node.machine.members.items()} == model.members
