"""Which logs and stores belong together."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from raftkv_core.builtin.memory import MemoryStorage
from raftkv_core.errors import DataDirectoryError, IdentityMismatch, PluginError
from raftkv_core.interfaces.consensus import Position
from raftkv_core.node.checks import check_limits, reconcile_log

OURS, OTHER = b"o" * 16, b"x" * 16
DIRECTORY = Path("data/log")
NOTHING = Position(0, 0)


@dataclass
class Log:
    """A log from `base` to `last`, all of term 1."""

    base: Position = NOTHING
    last_index: int = 0
    history_id: bytes = b""
    created: bool = False
    resets: list[Position] = field(default_factory=list)

    def term_at(self, index: int) -> int | None:
        if index == self.base.index:
            return self.base.term
        return 1 if self.base.index < index <= self.last_index else None

    def reset(self, base: Position) -> None:
        self.resets.append(base)


def check(log: Log, index: int, history: bytes = OURS, term: int = 1) -> list[Position]:
    reconcile_log(log, DIRECTORY, Position(index, term if index else 0), history)  # type: ignore[arg-type]
    return log.resets


def test_a_new_node_passes() -> None:
    """Both empty."""
    assert check(Log(created=True), 0, b"") == []


def test_a_log_that_goes_on_where_the_store_is_passes() -> None:
    """The usual start: what is above the store is replayed."""
    assert check(Log(last_index=9, history_id=OURS), 5) == []
    assert check(Log(base=Position(5, 1), last_index=9, history_id=OURS), 5) == []


def test_an_empty_store_is_filled_from_a_whole_log() -> None:
    """Before its first commit a store knows no history."""
    assert check(Log(last_index=9, history_id=OURS), 0, b"") == []


def test_a_store_ahead_of_its_log_in_the_same_history_resets_it() -> None:
    """A stream that was installed may be newer than the log; a crash came before the log's own reset."""
    assert check(Log(last_index=3, history_id=OURS), 7) == [Position(7, 1)]


@pytest.mark.parametrize("log", [Log(created=True), Log(last_index=0, history_id=b"")])
def test_a_lost_log_is_refused(log: Log) -> None:
    """What was acknowledged last is gone with it; the remedy is named."""
    with pytest.raises(DataDirectoryError, match=r"data/log.*replace this node"):
        check(log, 7)


def test_another_history_is_refused() -> None:
    """Even if the numbers would fit."""
    with pytest.raises(IdentityMismatch, match=OTHER.hex()):
        check(Log(last_index=9, history_id=OTHER), 5)


def test_a_store_below_the_logs_beginning_is_refused() -> None:
    """Entries in between are gone: the store was lost or is an old copy."""
    with pytest.raises(DataDirectoryError, match="begins after 5"):
        check(Log(base=Position(5, 1), last_index=9, history_id=OURS), 3)
    with pytest.raises(DataDirectoryError, match="begins after 5"):
        check(Log(base=Position(5, 1), last_index=9, history_id=OURS), 0, b"")


def test_a_store_of_another_term_at_that_index_is_refused() -> None:
    """Folders of two nodes were mixed."""
    with pytest.raises(DataDirectoryError, match="not of one node"):
        check(Log(last_index=9, history_id=OURS), 5, term=3)


def test_a_storage_that_is_too_small_for_the_format_is_refused(storage: MemoryStorage) -> None:
    """At start, naming what is missing; not at the first large value."""
    check_limits("memory", storage)

    class Small(MemoryStorage):
        key_bytes_max = 100

    with pytest.raises(PluginError, match=r"'small'.*100"):
        check_limits("small", Small(Path(), None))
