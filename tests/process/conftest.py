"""What tests of processes share: waiting for a condition, and configurations without a file."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from raftkv_core.config import Config, Selected

Value = TypeVar("Value")
Until = Callable[[Callable[[], Value]], Value]


@pytest.fixture(scope="session")
def until() -> Until[object]:
    """`until(condition)` returns its first true value; fails when there is none within 20 seconds."""

    def wait(condition: Callable[[], object]) -> object:
        deadline = time.monotonic() + 20
        while not (value := condition()):
            assert time.monotonic() < deadline, f"still not true: {condition}"
            time.sleep(0.005)
        return value

    return wait


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """The configuration of a node that nobody starts."""
    made = Config(storage=Selected(name="memory"), consensus=Selected(name="solo"), transports=[])
    made.node.data_dir = str(tmp_path / "data")
    return made
