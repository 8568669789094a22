"""The same commands lead to the same state, however they were grouped, committed, interrupted or stored."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import xxhash
from hypothesis import given
from hypothesis import strategies as st

from raftkv_core.machine.commands import Outcome
from tests.machine.checks import Pending, dump, logical
from tests.machine.harness import Node, Storages, genesis, small_bounds
from tests.machine.strategies import (
    Command,
    Sender,
    actions,
    examples,
    long_lists,
    small_model,
    small_settings,
    weighted,
)

commands = long_lists(st.tuples(actions, st.sampled_from([0, 0, 0, 0, 1])), 70)
interruptions = weighted(
    (4, st.just(("nothing",))),
    (4, st.sampled_from([("begin",), ("write",), ("end",)])),
    (1, st.just(("commit",))),
    (1, st.tuples(st.sampled_from(["restart", "install"]), st.integers(0, 5))),
)
schedules = st.lists(st.tuples(st.booleans(), interruptions), min_size=1, max_size=15)
"""For each command: whether the next joins its entry, and what happens after it. Repeated as often as needed."""


def make(first: dict[str, int], plan: list[tuple[Any, int]]) -> list[tuple[Command, int]]:
    """Bytes and term of each command."""
    sender = Sender(small_model())
    opening = Command(genesis(first))
    sender.model.execute(opening.data, 1)
    made = [(opening, 1)]
    term = 1
    for action, step in plan:
        term += step
        command = sender.encode(action, term)
        sender.model.execute(command.data, term, valid=command.valid)
        made.append((command, term))
    return made


class Run:
    """What one node made of the commands: outcomes, and the state at the entries' ends."""

    def __init__(self, node: Node, sent: list[tuple[Command, int]], schedule: list[tuple[bool, tuple]]) -> None:
        self.node = node
        self.outcomes: list[Outcome] = []
        self.states: dict[int, tuple[int, ...]] = {}
        self._made = xxhash.xxh3_64()  # every row of history, as it was made
        by_index: dict[int, list[Outcome]] = {}
        batch: list[bytes] = []
        for number, ((command, term), (joined, then)) in enumerate(zip(sent, cycle(schedule), strict=False)):
            batch.append(command.data)
            if joined and 0 < number < len(sent) - 1 and sent[number + 1][1] == term:
                continue
            revision = node.machine.revision
            outcomes = node.do(*batch, term=term)
            for row in Pending(node.machine).scan("changes", (revision + 1).to_bytes(8, "big")):
                self._made.update(b"".join(row))
            by_index[node.machine.applied.index] = outcomes
            self.outcomes += outcomes
            batch = []
            machine = node.machine
            numbers = (machine.digest, machine.digest_local, machine.revision, machine.compacted)
            self.states[number] = (*numbers, self._made.intdigest())
            name, *rest = then
            self._then(name, rest, by_index)

    def _then(self, name: str, rest: list[int], by_index: dict[int, list[Outcome]]) -> None:
        node = self.node
        if name == "restart":
            for applied in node.restart(max(0, node.machine.applied.index - rest[0])):
                assert applied.outcomes == by_index[applied.index]
        elif name == "install":
            if rest[0] == 0:  # else some history above C, and some below it, is there still
                node.commit()
            node.install(node.stream())
        else:
            node.step(name)


@given(small_settings, commands, schedules, schedules)
@examples(80)
def test_grouping_commits_restarts_and_engines_change_nothing(
    storages: Storages, first: dict[str, int], plan: list, schedule: list, other: list
) -> None:
    """Outcomes, digests, compacted revision and every row above it are equal on nodes that lived differently."""
    sent = make(first, plan)
    with small_bounds(), Node(Storages("memory", storages.root)) as plain:
        expected = Run(plain, sent, [(False, ("nothing",))])
        for grouped in (schedule, [(False, then) for _joined, then in other]):
            with Node(storages) as lived:
                actual = Run(lived, sent, grouped)
                assert actual.outcomes == expected.outcomes
                for number, state in actual.states.items():
                    assert state == expected.states[number], number
                assert logical(Pending(lived.machine)) == logical(Pending(plain.machine))
                lived.commit()
                with lived.storage.read() as txn:
                    assert logical(txn) == logical(Pending(plain.machine))
                if grouped is not schedule:
                    assert lived.stream() == plain.stream()


@given(small_settings, commands, schedules)
@examples(40)
def test_trimming_catches_up_and_leaves_nothing_behind(
    storages: Storages, first: dict[str, int], plan: list, schedule: list
) -> None:
    """When a node has been idle for long enough, its tables hold what is above C and not one row more."""
    with small_bounds(), Node(storages) as node:
        Run(node, make(first, plan), schedule)
        node.commit()
        for _ in range(200):
            if not node.machine.trim_pending:
                break
            node.commit()
        assert node.machine.begin_commit() is None
        with node.storage.read() as txn:
            rows, meaning = dump(txn), logical(txn)
            for table in ("changes", "next", "tombstones"):
                assert rows[table] == meaning[table], table
