"""After a crash at any call, the log is what a model of its promises allows, and nothing else."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

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


class CrashingLog(RuleBasedStateMachine):
    """Drives the log with any calls in any order, crashes it anywhere, compares with the views."""

    @initialize(
        segment_bytes=st.sampled_from([8 << 10, 16 << 10, 64 << 10]), cache_bytes=st.sampled_from([0, 4096, 1 << 20])
    )
    def begin(self, segment_bytes: int, cache_bytes: int) -> None:
        self.checked = Checked(segment_bytes=segment_bytes, cache_bytes=cache_bytes)

    @property
    def log(self):
        return self.checked.log

    @rule(
        rises=st.lists(st.booleans(), min_size=1, max_size=4),
        size=st.sampled_from([0, 10, 3000, 9000]),
    )
    def append(self, rises: list[bool], size: int) -> None:
        term = max(self.log.last.term, self.log.term)
        terms = [term := term + rise for rise in rises]
        self.checked.append(terms, size)

    @rule(rise=st.integers(0, 2), vote=st.sampled_from([None, "", "a", "ü" * 30]))
    def set_state(self, rise: int, vote: str | None) -> None:
        self.checked.set_state(self.log.term + rise, vote)

    @rule(back=st.integers(0, 6))
    def truncate(self, back: int) -> None:
        index = self.log.last_index - back
        if index > max(self.checked.trimmed, self.log.base.index) and index <= self.log.last_index:
            self.checked.truncate(index)

    @rule(back=st.integers(0, 6))
    def trim(self, back: int) -> None:
        index = self.log.synced_index - back
        if index > 0:
            self.checked.trim(index)

    @rule(ahead=st.integers(0, 3), rise=st.integers(0, 1), history=st.sampled_from([None, b"j" * 16, b"k" * 16]))
    def reset(self, ahead: int, rise: int, history: bytes | None) -> None:
        last = self.log.last
        self.checked.reset(Position(last.index + ahead, last.term + rise), history)

    @precondition(lambda self: not self.checked.resetting)
    @rule(history=st.sampled_from([b"l" * 16, b"m" * 16]))
    def set_history(self, history: bytes) -> None:
        self.checked.set_history(history)

    @rule()
    def work(self) -> None:
        self.checked.sim.executor.work()

    @rule()
    def tell(self) -> None:
        self.checked.sim.executor.tell()

    @rule()
    def run_all(self) -> None:
        self.checked.sim.executor.run()
        assert self.log.synced_index == self.log.last_index
        assert self.log.flushed_ticket == self.log.flush_ticket()

    @rule(skip=st.integers(0, 8), what=st.sampled_from(["append", "truncate", "trim", "reset", "read"]))
    def work_while_the_loop_goes_on(self, skip: int, what: str) -> None:
        """The loop does something in the middle of the writer's work."""

        def meanwhile(*_: object) -> None:
            nonlocal skip
            skip -= 1
            if skip == -1:
                {
                    "append": lambda: self.append([False, True], 3000),
                    "truncate": lambda: self.truncate(1),
                    "trim": lambda: self.trim(1),
                    "reset": lambda: self.reset(1, 1, None),
                    "read": self.checked.check_live,
                }[what]()

        disk = self.checked.sim.disk
        disk.on_call = meanwhile
        self.checked.sim.executor.work()
        self.checked.sim.executor.work()
        disk.on_call = lambda *_: None

    @rule(calls=st.integers(0, 12), choice=st.none() | st.randoms(use_true_random=False), killed=st.booleans())
    def crash(self, calls: int, choice: random.Random | None, killed: bool) -> None:
        sim = self.checked.sim
        sim.disk.crash_at = sim.disk.calls + calls
        with contextlib.suppress(SimulatedCrash):
            sim.executor.run()
        self.checked.recover(sim.kill if killed else lambda: sim.power_loss(choice))
        if killed:
            self.checked.recover(sim.power_loss)

    @invariant()
    def live(self) -> None:
        if hasattr(self, "checked"):
            self.checked.check_live()
            assert self.checked.sim.failures == []


TestCrashingLog = CrashingLog.TestCase
TestCrashingLog.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


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
        if source.random() < 0.1:
            sim.kill()
            assert sim.all_entries() == kept[sim.log.base.index :]
    sim.power_loss(source)
    came_back = sim.all_entries()
    assert any(view[: len(came_back)] == came_back for view in views)
    sim.append_synced(1, size=3000)
    sim.kill()
    assert sim.log.last_index == len(came_back) + 1
