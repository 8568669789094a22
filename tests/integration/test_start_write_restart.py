"""The one test of the whole that runs on every interpreter."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools.start_write_restart import start_write_restart


@pytest.mark.lmdb
@pytest.mark.http
@pytest.mark.smoke
def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    """`raftkv up`, a PUT, Ctrl-C, `raftkv up`: the value is there, and both ends were clean."""
    start_write_restart(Path(sys.executable).parent / "raftkv", tmp_path)
