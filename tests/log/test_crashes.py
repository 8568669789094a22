"""After a crash at any call, the log is what a model of its promises allows, and nothing else."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from raftkv_core.interfaces.consensus import Entry, Position
from raftkv_core.log.format import State
from raftkv_core.testing.disk import SimulatedCrash
from raftkv_core.testing.log import SimulatedLog, entries


class View(NamedTuple):
    """What the log must say after one call: entries above `origin`, trimming aside."""

    ticket: int
    epoch: int
    origin: Position
    entries: tuple[Entry, ...]
    state: State
    history: bytes

    @property
    def last(self) -> int:
        return self.origin.index + len(self.entries)

    def term_at(self, index: int) -> int:
        return self.origin.term if index == self.origin.index else self.entries[index - self.origin.index - 1].term

    def between(self, above: int, last: int) -> tuple[Entry, ...]:
        return self.entries[above - self.origin.index : last - self.origin.index]


class Checked:
    """A log and the views that it may come back with: those since the last one known to be durable."""

    def __init__(self, **options: object) -> None:
        self.sim = SimulatedLog(**options)  # type: ignore[arg-type]
        self.view = View(0, 0, Position(0, 0), (), State(0, None), b"")
        self.views = [self.view]
        self.trimmed = 0
        self.other_history: bytes | None = None

    @property
    def log(self):
        return self.sim.log

    def _now(self, **changes: object) -> None:
        self.view = self.view._replace(ticket=self.log.flush_ticket(), **changes)
        self.views.append(self.view)

    def append(self, terms: list[int], size: int) -> None:
        new = entries(self.view.last + 1, *terms, size=size)
        self.log.append(new)
        self._now(entries=self.view.entries + tuple(new))

    def set_state(self, term: int, vote: str | None) -> None:
        self.log.set_state(term, vote)
        self._now(state=State(term, vote))

    def truncate(self, index: int) -> None:
        self.log.truncate(index)
        self._now(entries=self.view.between(self.view.origin.index, index - 1))

    def trim(self, index: int) -> None:
        self.trimmed = max(self.trimmed, index)
        self.log.trim(index)

    def reset(self, base: Position, history: bytes | None) -> None:
        self.log.reset(base, history)
        self.trimmed = base.index
        self._now(
            epoch=self.view.epoch + 1,
            origin=base,
            entries=(),
            history=self.view.history if history is None else history,
        )

    @property
    def resetting(self) -> bool:
        return any(view.epoch != self.view.epoch for view in self.candidates())

    def set_history(self, history: bytes) -> None:
        self.other_history = history
        self.log.set_history(history)
        self.other_history = None
        self.view = self.view._replace(history=history)
        self.views = [view._replace(history=history) for view in self.views]

    def candidates(self) -> list[View]:
        """The newest view that is known to be durable, and all after it."""
        flushed = self.log.flushed_ticket
        self.views = [v for v in self.views if v.ticket <= flushed][-1:] + [
            v for v in self.views if v.ticket > flushed
        ]
        return self.views

    def check_live(self) -> None:
        """What the log says while it is open is the newest view."""
        log, view = self.log, self.view
        assert view.origin.index <= log.base.index <= max(self.trimmed, view.origin.index)
        assert log.last_index == view.last
        assert log.first_index == log.base.index + 1
        assert (log.term, log.vote) == view.state
        assert log.history_id == view.history
        assert [log.term_at(i) for i in range(log.base.index, view.last + 1)] == [
            view.term_at(i) for i in range(log.base.index, view.last + 1)
        ]
        assert log.term_at(view.last + 1) is None
        assert log.base.index == 0 or log.term_at(log.base.index - 1) is None
        assert tuple(self.sim.all_entries()) == view.between(log.base.index, view.last)
        assert log.base.index <= log.synced_index <= log.last_index

    def recover(self, restart: Callable[[], None]) -> None:
        """Restart, compare with the views, go on with the one that came back."""
        candidates = self.candidates()
        synced, resetting, view = self.log.synced_index, self.resetting, self.view
        restart()
        log = self.log
        came_back = tuple(self.sim.all_entries())
        matches = []
        for place, candidate in enumerate(candidates):
            history = {candidate.history, self.other_history or candidate.history}
            kept = min(other.last for other in candidates[: place + 1] if other.epoch == candidate.epoch)
            matches += [
                candidate
                for last in range(kept, candidate.last + 1)
                if candidate.origin.index <= log.base.index <= max(self.trimmed, candidate.origin.index)
                and log.last_index == last
                and candidate.term_at(log.base.index) == log.base.term
                and candidate.between(log.base.index, last) == came_back
                and candidate.state == (log.term, log.vote)
                and log.history_id in history
            ]
        assert matches, f"{log.base} {came_back} {log.term} {log.vote} is none of {candidates}"
        if not resetting:
            assert view.between(log.base.index, synced) == came_back[: synced - log.base.index]
        assert log.synced_index == log.last_index
        found = matches[-1]
        origin = found.origin
        self.view = View(
            0,
            found.epoch,
            origin,
            found.between(origin.index, log.last_index),
            State(log.term, log.vote),
            log.history_id,
        )
        self.views = [self.view]
        self.trimmed = min(self.trimmed, self.view.last) if found.epoch == view.epoch else log.base.index
        self.other_history = None


def scenario(checked: Checked) -> None:
    """Everything a log does, once, with some of it overlapping."""
    run = checked.sim.executor.run
    step = checked.sim.executor.step
    checked.set_state(1, "a")
    checked.append([1], 100)
    run()
    checked.set_history(b"h" * 16)
    checked.append([1, 1, 1], 3000)
    step()
    checked.append([1, 2], 3000)
    checked.set_state(2, None)
    checked.truncate(4)
    run()
    checked.append([3, 3], 5000)
    run()
    checked.truncate(5)
    checked.append([4], 9000)
    step()
    checked.append([4], 20000)
    run()
    checked.trim(3)
    run()
    checked.trim(5)
    checked.append([4], 100)
    run()
    for _ in range(6):
        checked.append([4], 6000)
        step()
    run()
    checked.trim(checked.log.synced_index - 1)
    run()
    checked.append([4, 4], 6000)
    checked.reset(Position(100, 7), b"i" * 16)
    checked.append([7], 100)
    step()
    checked.set_state(8, "b")
    run()
    checked.append([8], 6000)
    run()


def scenario_length() -> tuple[int, int]:
    checked = Checked()
    before = checked.sim.disk.calls
    scenario(checked)
    return before, checked.sim.disk.calls


@pytest.mark.parametrize("choice", [None, 1, 2, 3])
def test_a_crash_at_every_call_leaves_what_was_promised(choice: int | None) -> None:
    """Wherever the power goes in a life that uses everything, all that was called durable comes back."""
    start, end = scenario_length()
    assert end - start > 150
    for call in range(start, end):
        checked = Checked()
        checked.sim.disk.crash_at = call
        with pytest.raises(SimulatedCrash):
            scenario(checked)
        source = None if choice is None else random.Random(choice * 100_000 + call)
        checked.recover(lambda source=source, checked=checked: checked.sim.power_loss(source))
        checked.check_live()
        checked.append([9], 100)
        checked.sim.executor.run()
        checked.recover(checked.sim.power_loss)
        checked.check_live()


@pytest.mark.parametrize("choice", [None, 1, 2])
def test_a_crash_at_every_call_of_opening_leaves_what_was_promised(choice: int | None) -> None:
    """A crash while a log is created or recovered changes nothing about what it holds."""
    for call in range(200):
        checked = Checked()
        checked.append([1, 1], 3000)
        checked.sim.executor.run()
        checked.append([1], 3000)
        checked.sim.disk.crash_at = checked.sim.disk.calls + 2  # written, not synced
        with pytest.raises(SimulatedCrash):
            checked.sim.executor.run()

        def restart(checked: Checked = checked, call: int = call) -> None:
            disk = checked.sim.disk
            disk.power_loss(random.Random(call))
            disk.crash_at = disk.calls + call
            try:
                checked.sim.open()
            except SimulatedCrash:
                checked.sim.power_loss(None if choice is None else random.Random(choice * 1000 + call))
            else:
                disk.crash_at = None

        before = checked.sim.disk.calls
        checked.recover(restart)
        if checked.sim.disk.calls - before < call:
            break
    else:
        pytest.fail("opening never ended")


def test_a_crash_at_every_call_of_creation_leaves_a_new_log() -> None:
    """A log whose creation was interrupted is created again."""
    total = SimulatedLog().disk.calls
    for call in range(total):
        for choice in (None, random.Random(call), random.Random(call + 1000)):
            with pytest.raises(SimulatedCrash):
                SimulatedLogThatCrashes(call)
            disk = SimulatedLogThatCrashes.last.disk
            disk.power_loss(choice)
            sim = SimulatedLog(disk)
            assert (sim.log.base, sim.log.last_index, sim.log.term, sim.log.vote) == (Position(0, 0), 0, 0, None)
            sim.append_synced(1)
            sim.power_loss()
            assert sim.log.last_index == 1


class SimulatedLogThatCrashes(SimulatedLog):
    """Keeps itself, because its constructor does not return."""

    last: SimulatedLogThatCrashes

    def __init__(self, call: int) -> None:
        type(self).last = self
        from raftkv_core.testing.disk import SimDisk

        disk = SimDisk()
        disk.crash_at = call
        super().__init__(disk)


class Life(Checked):
    """Moves that are valid whatever came before, from small numbers."""

    def grow(self, rises: list[bool], size: int) -> None:
        term = max(self.log.last.term, self.log.term)
        self.append([term := term + rise for rise in rises], size)

    def vote(self, rise: int, vote: str | None) -> None:
        self.set_state(self.log.term + rise, vote)

    def take_back(self, count: int) -> None:
        lowest = max(self.trimmed, self.log.base.index) + 1
        index = max(self.log.last_index + 1 - count, lowest)
        if index <= self.log.last_index:
            self.truncate(index)

    def let_go(self, keep: int) -> None:
        self.trim(max(self.log.synced_index - keep, self.log.base.index))

    def begin_anew(self, ahead: int, rise: int, history: bytes | None) -> None:
        last = self.log.last
        self.reset(Position(last.index + ahead, last.term + rise), history)

    def name_history(self, history: bytes) -> None:
        if not self.resetting:
            self.set_history(history)

    def work_meanwhile(self, calls: int, move: Callable[[], None]) -> None:
        """The loop makes a move in the middle of the writer's work."""

        def on_call(*_: object) -> None:
            nonlocal calls
            calls -= 1
            if calls == -1:
                move()

        self.sim.disk.on_call = on_call
        self.sim.executor.work()
        self.sim.executor.work()
        self.sim.disk.on_call = lambda *_: None

    def work(self) -> None:
        self.sim.executor.work()

    def tell(self) -> None:
        self.sim.executor.tell()

    def run(self) -> None:
        self.sim.executor.run()
        assert self.log.synced_index == self.log.last_index
        assert self.log.flushed_ticket == self.log.flush_ticket()

    def crash(self, calls: int, choice: random.Random | None, killed: bool) -> None:
        self.sim.disk.crash_at = self.sim.disk.calls + calls
        with contextlib.suppress(SimulatedCrash):
            self.sim.executor.run()
        if killed:
            self.recover(self.sim.kill)
        self.recover(lambda: self.sim.power_loss(choice))

    def check(self) -> None:
        self.check_live()
        assert self.sim.failures == []


SEGMENT_BYTES = [8 << 10, 16 << 10, 64 << 10]
CACHE_BYTES = [0, 4096, 1 << 20]
SIZES = [0, 10, 3000, 9000]
VOTES = [None, "", "a", "ü" * 30]
HISTORIES = [b"j" * 16, b"k" * 16]


class CrashingLog(RuleBasedStateMachine):
    """Any moves in any order, as Hypothesis finds them and makes them small."""

    @initialize(segment_bytes=st.sampled_from(SEGMENT_BYTES), cache_bytes=st.sampled_from(CACHE_BYTES))
    def begin(self, segment_bytes: int, cache_bytes: int) -> None:
        self.life = Life(segment_bytes=segment_bytes, cache_bytes=cache_bytes)

    @rule(rises=st.lists(st.booleans(), min_size=1, max_size=4), size=st.sampled_from(SIZES))
    def grow(self, rises: list[bool], size: int) -> None:
        self.life.grow(rises, size)

    @rule(count=st.integers(1, 7))
    def take_back(self, count: int) -> None:
        self.life.take_back(count)

    @rule(keep=st.integers(0, 6))
    def let_go(self, keep: int) -> None:
        self.life.let_go(keep)

    @rule(
        what=st.integers(0, 7),
        rise=st.integers(0, 2),
        vote=st.sampled_from(VOTES),
        history=st.sampled_from(HISTORIES),
    )
    def change(self, what: int, rise: int, vote: str | None, history: bytes) -> None:
        if what == 0:
            self.life.begin_anew(rise, rise, history if vote else None)
        elif what == 1:
            self.life.name_history(history)
        else:
            self.life.vote(rise, vote)

    @rule()
    def work(self) -> None:
        self.life.work()

    @rule()
    def tell(self) -> None:
        self.life.tell()

    @rule()
    def run_all(self) -> None:
        self.life.run()

    @rule(calls=st.integers(0, 8), what=st.integers(0, 4), count=st.integers(1, 3))
    def work_meanwhile(self, calls: int, what: int, count: int) -> None:
        life = self.life
        moves: list[Callable[[], None]] = [
            lambda: life.grow([False] * count, 3000),
            lambda: life.take_back(count),
            lambda: life.let_go(count),
            lambda: life.begin_anew(count, 1, None),
            life.check,
        ]
        life.work_meanwhile(calls, moves[what])

    @rule(calls=st.integers(0, 12), choice=st.none() | st.randoms(use_true_random=False), killed=st.booleans())
    def crash(self, calls: int, choice: random.Random | None, killed: bool) -> None:
        self.life.crash(calls, choice, killed)

    @invariant()
    def check(self) -> None:
        if hasattr(self, "life"):
            self.life.check()


TestCrashingLog = CrashingLog.TestCase
TestCrashingLog.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def wander(seed: int, steps: int) -> None:
    """Random moves in proportions that bring a log into every corner."""
    source = random.Random(seed)
    pick, some = source.choice, source.randrange
    life = Life(segment_bytes=pick(SEGMENT_BYTES), cache_bytes=pick(CACHE_BYTES))
    moves: dict[Callable[[], object], int] = {
        lambda: life.grow([source.random() < 0.2 for _ in range(some(1, 5))], pick(SIZES)): 30,
        lambda: life.take_back(some(1, 8)): 10,
        lambda: life.let_go(some(7)): 8,
        lambda: life.vote(some(3), pick(VOTES)): 5,
        lambda: life.begin_anew(some(4), some(2), pick([None, *HISTORIES])): 1,
        lambda: life.name_history(pick(HISTORIES)): 1,
        life.work: 20,
        life.tell: 10,
        life.run: 10,
    }
    for _ in range(steps):
        dice = source.random()
        if dice < 0.05:
            life.crash(some(13), pick([None, source]), source.random() < 0.5)
        elif dice < 0.15:
            life.work_meanwhile(some(9), pick([*list(moves)[:5], life.check]))
        else:
            source.choices(list(moves), list(moves.values()))[0]()
        life.check()


@pytest.mark.parametrize("seed", range(50))
def test_a_random_life_keeps_what_was_promised(seed: int) -> None:
    """Long lives with many crashes: what Hypothesis seldom reaches."""
    wander(seed, 150)


@pytest.mark.parametrize("seed", range(40))
def test_without_sync_a_power_loss_leaves_a_prefix(seed: int) -> None:
    """A log that does not sync may lose its end, but opens, and what is left has no gap."""
    source = random.Random(seed)
    sim = SimulatedLog(sync=False)
    views: list[list[Entry]] = [[]]
    kept: list[Entry] = []
    for _ in range(source.randrange(1, 30)):
        if kept and source.random() < 0.2:
            cut = source.randrange(max(sim.log.first_index, len(kept) - 2), len(kept) + 1)
            if cut > sim.log.base.index:
                sim.log.truncate(cut)
                kept = kept[: cut - 1]
        kept = kept + sim.append(1, size=source.choice([10, 3000, 9000]))
        sim.executor.run()
        views.append(kept)
        if source.random() < 0.3:
            sim.log.trim(len(kept) - 2)
            sim.executor.run()
        if source.random() < 0.1:
            sim.kill()
            assert sim.all_entries() == kept[sim.log.base.index :]
    sim.power_loss(source)
    base, last = sim.log.base.index, sim.log.last_index
    assert any(view[base:last] == sim.all_entries() and base <= len(view) for view in views)
    sim.append_synced(1, size=3000)
    sim.kill()
    assert sim.log.last_index == last + 1
