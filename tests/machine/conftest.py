"""Storages for the state machine's tests, and `--hypothesis-profile=long` for soaks."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.machine.harness import Node, Storages

settings.register_profile("long", max_examples=1_500, deadline=None, print_blob=True)

_KINDS = ["memory"]
if "lmdb" in os.environ.get("TEST_REQUIRE", "").split(","):
    _KINDS.append("lmdb")
_PARAMS = [pytest.param(kind, marks=[pytest.mark.lmdb] if kind == "lmdb" else []) for kind in _KINDS]


@pytest.fixture(scope="module", params=_PARAMS)
def storages(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storages]:
    """A maker of storages, of each kind that this environment must test."""
    made = Storages(request.param, tmp_path_factory.mktemp("storages"))
    yield made
    made.close()


@pytest.fixture
def node(storages: Storages) -> Iterator[Node]:
    """A machine without a history on an empty store."""
    with Node(storages) as made:
        yield made


@pytest.fixture
def begun(node: Node) -> Node:
    """A machine with a history and the default settings."""
    node.begin()
    return node


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A random test that failed may take some minutes more, to find its smallest example."""
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker(pytest.mark.timeout(1_800))
