"""Settings that influence apply: they live in the store and change only through the log."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from raftkv_core.errors import InvalidRequest

__all__ = ["DEFAULTS", "SETTINGS", "Setting", "check_settings"]


class Setting(NamedTuple):
    """One replicated setting: default, smallest and largest value, and what it is for."""

    default: int
    least: int
    most: int
    doc: str


SETTINGS: Final[Mapping[str, Setting]] = MappingProxyType(
    {
        "format": Setting(1, 1, 1, "format of new entries and rows; raised once every member reads the new one"),
        "history_revisions": Setting(100_000, 0, 1 << 62, "newest revisions kept for older reads and watches"),
        "history_bytes": Setting(128 << 20, 0, 1 << 62, "bytes of changes kept, whichever limit is met first"),
        "dedupe_ttl_ms": Setting(600_000, 1_000, 86_400_000, "how long an idempotency key is remembered"),
        "dedupe_keys": Setting(100_000, 0, 100_000_000, "idempotency keys remembered at once"),
        "dedupe_outcome_bytes": Setting(4_096, 0, 65_536, "a larger outcome is remembered as done, without payload"),
        "tick_ms": Setting(1_000, 100, 60_000, "how far one tick moves the cluster's clock"),
    }
)

DEFAULTS: Final[Mapping[str, int]] = MappingProxyType({name: s.default for name, s in SETTINGS.items()})


def check_settings(changes: Mapping[str, int]) -> None:
    """Raise InvalidRequest for an unknown name or a value out of range."""
    for name, value in changes.items():
        setting = SETTINGS.get(name)
        if setting is None:
            known = ", ".join(SETTINGS)
            raise InvalidRequest(f"there is no setting {name!r}; known: {known}", code="unknown_setting")
        if isinstance(value, bool) or not isinstance(value, int) or not setting.least <= value <= setting.most:
            raise InvalidRequest(
                f"{name} is an integer from {setting.least} to {setting.most}, not {value!r}", code="bad_setting"
            )
