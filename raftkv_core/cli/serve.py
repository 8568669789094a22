"""`raftkv serve CONFIG`: one node and its transports, until SIGTERM or Ctrl-C.

This process is the supervisor (`raftkv_core.node.supervisor`): it resolves the configuration once, starts the
node and then the transports, replaces a node that died, and stops everything in order.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from raftkv_core.config import load_config
from raftkv_core.node.launch import prepare
from raftkv_core.node.lines import Lines
from raftkv_core.node.supervisor import Supervised, run
from raftkv_core.registry import Registry

__all__ = ["app"]

app = typer.Typer(add_completion=False)


@app.command()
def serve(
    path: Annotated[Path, typer.Argument(metavar="CONFIG", help="The configuration file.")],
) -> None:
    """Run one node from its configuration file, in the foreground.

    SIGTERM or Ctrl-C finishes the requests under way and stops; a second one
    stops at once. Ends with 0 after a stop that was asked for, with the node's
    own status (2, 3) if it refuses its configuration or data directory, else
    with 1.
    """
    registry = Registry.discover()
    resolution = load_config(path, environ=os.environ, options={}, registry=registry)
    config = resolution.config
    say = Lines(config.logging, node=config.node.id)
    for warning in resolution.warnings:
        say("warning", warning)
    launch = prepare(config, registry)
    try:
        status = run(Supervised(launch, say))
    finally:
        launch.close()
    raise typer.Exit(status)
