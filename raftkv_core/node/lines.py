"""Log lines of processes that must start at once: the supervisor's.

They look like those of `raftkv_core.observability`, which every other process uses; importing structlog for a
handful of lines would double the time that the supervisor takes to start.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from datetime import datetime, timezone
from typing import IO, Any, Final

import msgspec

from raftkv_core.config import LoggingSettings

__all__ = ["Lines"]

_LEVELS: Final = ("debug", "info", "warning", "error")


class Lines:
    """Writes one line an event, in the configured format, to standard error unless told otherwise."""

    def __init__(self, settings: LoggingSettings, to: IO[str] | None = None, **bound: object) -> None:
        """`bound`: fields that every line carries."""
        self._json = settings.format == "json"
        self._lowest = _LEVELS.index(settings.level)
        self._to = to
        self._bound = bound

    def __call__(self, level: str, event: str, **fields: object) -> None:
        if _LEVELS.index(level) < self._lowest:
            return
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields = {**self._bound, **fields}
        if self._json:
            row: dict[str, Any] = {"timestamp": now, "level": level, "event": event, **fields}
            line = msgspec.json.encode(row, enc_hook=str).decode()
        else:
            parts = [f"{name}={_quoted(value)}" for name, value in fields.items()]
            line = " ".join([now, f"[{level:<7}]", event, *parts])
        with suppress(OSError):  # a full disk or a closed terminal is no reason to stop serving
            print(line, file=self._to or sys.stderr, flush=True)


def _quoted(value: object) -> str:
    text = str(value)
    return text if text.isprintable() and not set(text) & set(" \"'=") else repr(text)
