"""How `raftkv` ends: exit codes, and errors as one line on standard error.

| code | meaning |
|---|---|
| 0 | done |
| 1 | an error; the message says which |
| 2 | the configuration, a plugin or the command line is wrong: nothing was started or sent |
| 3 | the data directory cannot be used, or not by this node |
| 4 | the command was certainly not applied: it is safe to try again |
| 5 | the outcome is unknown: the command may have been applied, or may be yet |
| 6 | the node stopped itself, to keep its data from harm |
| 130 | interrupted (Ctrl-C) |

A traceback is shown with `raftkv --debug …` or RAFTKV_DEBUG=1 only.
"""

from __future__ import annotations

import os
import sys
import traceback
from enum import IntEnum
from typing import Any

from raftkv_core.errors import InvalidRequest, NotApplied, OutcomeUnknown, RaftkvError

__all__ = ["ExitCode", "debugging", "exit_code_of", "report"]


class ExitCode(IntEnum):
    """What the caller of `raftkv` is told."""

    OK = 0
    ERROR = 1
    CONFIGURATION = 2
    DATA_DIRECTORY = 3
    NOT_APPLIED = 4
    OUTCOME_UNKNOWN = 5
    NODE_STOPPED = 6
    INTERRUPTED = 130


def exit_code_of(error: BaseException) -> int:
    """The exit code for an error that ends a command."""
    if isinstance(error, InvalidRequest):
        return ExitCode.CONFIGURATION
    if isinstance(error, NotApplied):
        return ExitCode.NOT_APPLIED
    if isinstance(error, OutcomeUnknown):
        return ExitCode.OUTCOME_UNKNOWN
    return error.exit_code if isinstance(error, RaftkvError) else ExitCode.ERROR


def debugging() -> bool:
    """Whether tracebacks are wanted; children inherit it."""
    return os.environ.get("RAFTKV_DEBUG", "") not in {"", "0", "false"}


def report(error: BaseException) -> int:
    """Print an error as a person wants it and return the exit code."""
    if not isinstance(error, RaftkvError) and (code := _report_click(error)) is not None:
        return code
    if debugging():
        traceback.print_exception(type(error), error, error.__traceback__)
    if isinstance(error, RaftkvError):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = f"unexpected {type(error).__name__}: {error}; `raftkv --debug …` shows where"
    print(f"raftkv: {' '.join(text.split())}", file=sys.stderr)  # noqa: T201
    return exit_code_of(error)


def _report_click(error: Any) -> int | None:
    """The same for what click raises, None for what it does not. There may be two clicks in one process, the
    one inside typer and the one that a plugin's command is made of, so it is known by its shape."""
    name = type(error).__name__
    if name == "Exit" and hasattr(error, "exit_code"):
        return int(error.exit_code)
    if name == "Abort" and isinstance(error, RuntimeError):
        return ExitCode.INTERRUPTED if isinstance(error.__cause__, KeyboardInterrupt) else ExitCode.ERROR
    if not hasattr(error, "format_message"):
        return None
    usage = error.exit_code == ExitCode.CONFIGURATION
    path = error.ctx.command_path if getattr(error, "ctx", None) else "raftkv"
    text = error.format_message()
    if name != "NoArgsIsHelpError":  # its text is the help itself
        text = f"{path}: {' '.join(text.split())}" + (f" Try '{path} --help'." if usage else "")
    print(text, file=sys.stderr)  # noqa: T201
    return ExitCode.CONFIGURATION if usage else ExitCode.ERROR
