"""Ranges of keys as a query names them: `prefix`, or `start` (inclusive) and `end` (exclusive)."""

from __future__ import annotations

from typing import Final

from raftkv_core.errors import InvalidRequest
from raftkv_core.limits import KEY_BYTES_MAX
from raftkv_core.machine import commands
from raftkv_transport_http_falcon.problems import Problem
from raftkv_transport_http_falcon.requests import Query

__all__ = ["RANGE_PARAMETERS", "above", "read_range"]

RANGE_PARAMETERS: Final = frozenset({"prefix", "start", "end"})


def read_range(query: Query) -> tuple[bytes, bytes | None]:
    """Start and end (None: past the last key). Raises Problem 400, InvalidRequest."""
    prefix = query.get("prefix")
    if prefix is not None:
        if "start" in query or "end" in query:
            raise Problem(400, "bad_parameter", "name a range by prefix, or by start and end, not by both")
        _check_bounds(prefix, None)
        return prefix, _above_prefix(prefix)
    start, end = query.get("start") or b"", query.get("end") or None
    _check_bounds(start, end)
    return start, end


def _check_bounds(start: bytes, end: bytes | None) -> None:
    commands.check_range(start, end or b"")
    if end is not None and end <= start:
        raise InvalidRequest("the range ends at or before its start", code="empty_range")


def _above_prefix(prefix: bytes) -> bytes | None:
    """The least byte string above all that begin with `prefix`; None if there is none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


def above(key: bytes) -> bytes | None:
    """The least key above `key`, as a bound; None if there is none."""
    return key + b"\x00" if len(key) < KEY_BYTES_MAX else _above_prefix(key)
