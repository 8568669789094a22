"""Structured logs, to standard error: one line an event, for people (`console`) or programs (`json`).

    configure_logging(config.logging, node="node1")
    log = get_logger("raftkv.node")
    log.info("ready", port=8080)

What libraries log through `logging` takes the same way. Values under a key that names a secret are masked,
and a traceback never shows local variables. structlog costs tens of milliseconds to import, so this module
imports it only when it is used; the supervisor, which logs a handful of lines, does without (`node/lines.py`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, MutableMapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final, TextIO

from raftkv_core.schema import MASK, is_secret

if TYPE_CHECKING:
    from raftkv_core.config import LoggingSettings

__all__ = ["configure_logging", "get_logger"]

Event = MutableMapping[str, Any]

_COLOURS: Final = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "31;1"}
_SECRET_HEADERS: Final = frozenset({"authorization", "cookie", "set-cookie", "proxy-authorization"})


def configure_logging(settings: LoggingSettings, *, to: TextIO | None = None, **bound: object) -> None:
    """Send all logs of this process to `to` (standard error). `bound`: fields that every line carries."""
    import logging  # noqa: PLC0415

    import structlog  # noqa: PLC0415

    def bind(_logger: object, _method: str, event: Event) -> Event:
        return {**bound, **event}

    stream = to or sys.stderr
    level: int = getattr(logging, settings.level.upper())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        bind,
        _mask,
        _stamp,
    ]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _json_line if settings.format == "json" else _ConsoleLine(colours=stream.isatty()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )


def get_logger(name: str, **bound: object) -> Any:
    """A structlog logger: `log.info("event", key=value)`; `log.bind(key=value)` makes one that says more."""
    import structlog  # noqa: PLC0415

    return structlog.get_logger(name, **bound)


def _stamp(_logger: object, _method: str, event: Event) -> Event:
    now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    first = {"timestamp": now, "level": event.pop("level"), "event": event.pop("event")}
    return {**first, **event}


def _mask(_logger: object, _method: str, event: Event) -> Event:
    return {key: _masked(key, value) for key, value in event.items()}


def _masked(key: str, value: Any) -> Any:
    if is_secret(key.lower()) or key.lower() in _SECRET_HEADERS:
        return MASK
    # structlog's own fields hold the record and the formatter's state, and are taken out later
    if isinstance(value, Mapping) and not key.startswith("_"):
        return {inner: _masked(str(inner), item) for inner, item in value.items()}
    return value


def _json_line(_logger: object, _method: str, event: Event) -> str:
    return json.dumps(event, default=repr)


class _ConsoleLine:
    """Looks like the supervisor's lines (`node/lines.py`), with colours on a terminal."""

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours

    def __call__(self, _logger: object, _method: str, event: Event) -> str:
        level = str(event.pop("level"))
        exception = event.pop("exception", None)
        shown = f"[{level:<7}]"
        if self._colours:
            shown = f"\x1b[{_COLOURS.get(level, '0')}m{shown}\x1b[0m"
        parts = [str(event.pop("timestamp")), shown, _one_line(event.pop("event"))]
        parts += [f"{key}={_quoted(value)}" for key, value in event.items()]
        return " ".join(parts) + (f"\n{exception}" if exception else "")


def _one_line(value: object) -> str:
    """What came from outside may not begin a line of its own, nor move the terminal's cursor."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(value))


def _quoted(value: object) -> str:
    text = str(value)
    return text if text and text.isprintable() and not set(text) & set(" \"'=") else repr(text)
