"""`raftkv plugins`: what is installed, what it can do, and what is wrong with it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from raftkv_core.cli.lazy import installed_plugins
from raftkv_core.registry import PluginRow

__all__ = ["plugins"]

_COLOURS = {"ok": "green", "disabled": "yellow"}


def plugins(
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, for programs.")] = False,
    config: Annotated[
        Path | None, typer.Option("--config", help="Apply `[plugins] disabled` of this configuration file.")
    ] = None,
) -> None:
    """Show the plugins found, and what is wrong with them.

    Capabilities are those with default settings. A plugin that cannot be used is an error only for a
    configuration that uses it.
    """
    registry = installed_plugins()
    if config is not None:
        from raftkv_core.config_loading import disabled_plugins  # noqa: PLC0415

        registry.disable(disabled_plugins(config, os.environ))
    if as_json:
        typer.echo(json.dumps([_plain(row) for row in registry.rows], indent=2))
    else:
        _print_table(registry.rows)


def _plain(row: PluginRow) -> dict[str, Any]:
    return {
        "kind": row.kind,
        "name": row.name,
        "distribution": row.distribution,
        "version": row.version,
        "capabilities": list(row.capabilities),
        "status": row.status,
        "reason": row.reason,
        "summary": row.summary,
    }


def _print_table(rows: list[PluginRow]) -> None:
    from rich.console import Console  # noqa: PLC0415  (`--json` need not pay for it)
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=None, pad_edge=False)
    for title in ("kind", "name", "distribution", "version", "status", "capabilities"):
        table.add_column(title, overflow="fold")
    faults = []
    for row in _folded(rows):
        status = Text(row.status, style=_COLOURS.get(row.status, "red"))
        capabilities = Text(" ".join(row.capabilities) or "-")
        table.add_row(row.kind, Text(row.name), row.distribution, row.version, status, capabilities)
        if row.reason:
            faults.append(f"{row.kind} {row.name} ({row.distribution}): {row.reason}")
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1_000  # a pipe has no width: wrapping would only hurt whoever reads it
    console.print(table)
    if faults:
        console.print()
    for fault in faults:
        console.print(Text(fault), soft_wrap=True)


def _folded(rows: list[PluginRow]) -> list[PluginRow]:
    """Commands that work take one line a distribution: nobody looks for them one by one."""
    from dataclasses import replace  # noqa: PLC0415

    shown: list[PluginRow] = []
    for row in rows:
        previous = next(
            (
                number
                for number, other in enumerate(shown)
                if (other.kind, other.distribution, other.status) == ("command", row.distribution, "ok")
            ),
            None,
        )
        if row.kind == "command" and row.status == "ok" and previous is not None:
            shown[previous] = replace(shown[previous], name=f"{shown[previous].name} {row.name}")
        else:
            shown.append(row)
    return shown
