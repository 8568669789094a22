"""The command line, `raftkv`: one file a command or group, imported when it is used.

Importing this package imports no command's module and no plugin (a test holds that), so that `raftkv --help`
is quick. What a command's module must offer stands in `cli/lazy.py`; how commands end, in `cli/errors.py`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
import typer.main

from raftkv_core import __version__
from raftkv_core.cli.errors import ExitCode, report
from raftkv_core.cli.lazy import LazyGroup

__all__ = ["app", "main"]

app = typer.Typer(
    name="raftkv",
    cls=LazyGroup,
    help="A strongly consistent, durable, replicated key-value store.",
    epilog="Exit codes: 0 done, 1 error, 2 configuration or usage, 3 data directory, 4 not applied (safe to retry), "
    "5 outcome unknown, 6 node stopped itself, 130 interrupted.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"raftkv {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with an error.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if debug:
        os.environ["RAFTKV_DEBUG"] = "1"


def main(args: Sequence[str] | None = None) -> int:
    """Run `raftkv` with these arguments (the process's own by default) and return the exit code."""
    words = list(sys.argv[1:] if args is None else args)
    try:
        # without arguments a person wants to know what there is
        status = typer.main.get_command(app).main(words or ["--help"], prog_name="raftkv", standalone_mode=False)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:  # noqa: BLE001  (the last line of defence: a person reads it)
        return report(error)
    return status if isinstance(status, int) else ExitCode.OK
