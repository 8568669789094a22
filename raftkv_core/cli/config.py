"""`raftkv config new|check|show`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from raftkv_core.cli.lazy import installed_plugins
from raftkv_core.config import load_config
from raftkv_core.config_text import as_tables, fresh_cluster_id, render, show
from raftkv_core.errors import ConfigError
from raftkv_core.registry import Registry

__all__ = ["app"]

app = typer.Typer(add_completion=False, help="Write, check and show configuration files.")

_TITLE = """\
raftkv: configuration of node {node}, written by `raftkv config new`.
Every key is here; those that are commented out show their default. An environment variable
RAFTKV_<SECTION>__<KEY> wins over this file: RAFTKV_LOG__SYNC, RAFTKV_STORAGE__LMDB__MAP_SIZE.
Check it with `raftkv config check`, start the node with `raftkv serve`."""


@app.command()
def new(
    path: Annotated[Path, typer.Argument(metavar="[FILE]", help="Where to write; - is standard output.")] = Path(
        "raftkv.toml"
    ),
    node_id: Annotated[str, typer.Option("--node-id", help="The node's id, unique in its cluster.")] = "node1",
    storage: Annotated[str, typer.Option(help="Storage engine; lmdb if it is installed, else memory.")] = "",
    consensus: Annotated[str, typer.Option(help="Consensus engine.")] = "solo",
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that exists.")] = False,
) -> None:
    """Write a commented configuration file for the first node of a new cluster."""
    values: dict[str, Any] = {
        "cluster.name": "raftkv",
        "cluster.id": fresh_cluster_id(),
        "node.id": node_id,
        "node.data_dir": "data",
        "node.bootstrap": True,
        "consensus.use": consensus,
    }
    if storage:
        values["storage.use"] = storage
    text = render(installed_plugins(), values, title=_TITLE.format(node=node_id))
    if str(path) == "-":
        typer.echo(text, nl=False)
        return
    try:
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{path} exists; --force overwrites it, with a new cluster id") from None
    typer.echo(f"wrote {path}; start the node with: raftkv serve {path}")


@app.command()
def check(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The configuration file.")],
) -> None:
    """Check a file, together with this environment's variables, as `raftkv serve` would."""
    resolution = load_config(path, environ=os.environ, options={}, registry=Registry.discover())
    config = resolution.config
    for warning in resolution.warnings:
        typer.echo(f"warning: {warning}", err=True)
    transports = ", ".join(transport.name for transport in config.transports) or "none"
    typer.echo(
        f"{path}: ok (storage {config.storage.name}, consensus {config.consensus.name}, transport {transports})"
    )


@app.command("show")
def show_command(
    path: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="The configuration file; without one, the defaults.")
    ] = None,
    origin: Annotated[bool, typer.Option("--origin", help="Say where each value comes from.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON, for programs.")] = False,
) -> None:
    """Show the configuration that `raftkv serve` would use: file, environment and defaults together.

    Secrets are masked. With --json and --origin, an object of `config` and `origins`.
    """
    resolution = load_config(path, environ=os.environ, options={}, registry=Registry.discover())
    for warning in resolution.warnings:
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        tables = as_tables(resolution.config)
        plain = {"config": tables, "origins": resolution.origins} if origin else tables
        typer.echo(json.dumps(plain, indent=2))
    else:
        sys.stdout.write(show(resolution, origins=origin))
