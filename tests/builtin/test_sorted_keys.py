"""Keys in blocks behave like one sorted list."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raftkv_core.builtin import sorted_keys
from raftkv_core.builtin.sorted_keys import SortedKeys

keys = st.binary(min_size=1, max_size=2)


@pytest.fixture(autouse=True, scope="module")
def small_blocks() -> None:
    """Few keys already take several blocks."""
    patch = pytest.MonkeyPatch()
    patch.setattr(sorted_keys, "BLOCK_KEYS_MAX", 3)
    yield
    patch.undo()


@given(
    steps=st.lists(st.tuples(st.booleans(), keys), max_size=60),
    start=st.just(b"") | keys,
    end=st.none() | keys,
    limit=st.integers(1, 70),
)
def test_it_is_a_sorted_list(steps: list[tuple[bool, bytes]], start: bytes, end: bytes | None, limit: int) -> None:
    """After any additions and removals, each range comes in order, from either end, cut at the limit."""
    index, model = SortedKeys(), set[bytes]()
    for adding, key in steps:
        if adding and key not in model:
            index.add(key)
            model.add(key)
        elif not adding and key in model:
            index.remove(key)
            model.remove(key)
    wanted = sorted(key for key in model if key >= start and (end is None or key < end))
    assert index.ascending(start, end, limit) == wanted[:limit]
    assert index.descending(start, end, limit) == wanted[::-1][:limit]
    assert len(index) == len(model)


def test_removing_what_is_not_there_is_an_error() -> None:
    """It would mean that the owner has lost count."""
    index = SortedKeys()
    index.add(b"b")
    with pytest.raises(KeyError):
        index.remove(b"a")
