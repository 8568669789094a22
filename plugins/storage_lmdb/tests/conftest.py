"""What the LMDB tests share: engines on a fresh directory, small enough to fill up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from raftkv_storage_lmdb.engine import LmdbStorage
from raftkv_storage_lmdb.plugin import LmdbSettings

Opens = Callable[..., LmdbStorage]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "storage"


@pytest.fixture
def opens(directory: Path) -> Iterator[Opens]:
    """`opens(**settings)` opens the engine on `directory`; what is still open at the end is closed.

    The settings are not checked, so that a test may have a map that is full after a few rows.
    """
    opened: list[LmdbStorage] = []

    def open_it(**settings: Any) -> LmdbStorage:
        settings.setdefault("reserve_bytes", 0)
        opened.append(LmdbStorage(directory, LmdbSettings(**settings)))
        return opened[-1]

    yield open_it
    for storage in opened:
        storage.close()
