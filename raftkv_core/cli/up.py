"""`raftkv up`: a cluster on this machine, to try things out.

One process supervises all nodes (`raftkv_core.node.supervisor`) and shows how they are. Unlike under
`raftkv serve`, a node that died stays down unless `--restart` is given: seeing what the others do then is part
of trying it out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from raftkv_core import __version__
from raftkv_core.cli import _up_ports
from raftkv_core.cli._up_layout import HTTP_PORT, Wanted, consensus_engines, lay_out, wipe
from raftkv_core.cli._up_member import Member
from raftkv_core.cli._up_view import Row, View, open_view
from raftkv_core.cli.lazy import installed_plugins
from raftkv_core.node.datadir import DirectoryLock, Layout
from raftkv_core.node.signals import Signals
from raftkv_core.registry import Registry

__all__ = ["app"]

app = typer.Typer(add_completion=False)


@app.command()
def up(
    *,
    nodes: Annotated[
        int | None,
        typer.Option(min=1, help="How many. Default: 3 if an installed consensus engine replicates, else 1."),
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Storage engine. Default: lmdb if it is installed, else memory.")
    ] = None,
    consensus: Annotated[
        str | None, typer.Option(help="Consensus engine. Default: one that replicates; solo for one node.")
    ] = None,
    data_dir: Annotated[Path, typer.Option(help="Where the nodes keep their data and configuration.")] = Path("data"),
    http_port: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=65_535,
            help=f"Client port of the first node; every other port moves along. Default: {HTTP_PORT}.",
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Remove the nodes and data of an earlier run first.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Start a node again when it dies.")] = False,
) -> None:
    """Run a cluster on this machine, in the foreground, to try things out.

    Ctrl-C or SIGTERM stops all nodes; their data stays, and the next run goes
    on with it. Each node's configuration stands in DATA_DIR/node1/raftkv.toml
    and so on; `raftkv serve` with it starts that node alone.
    """
    registry = installed_plugins()
    lock = DirectoryLock.acquire(Layout(data_dir))
    members: list[Member] = []
    try:
        if fresh:
            wipe(data_dir)
        wanted = Wanted(nodes, storage, consensus, http_port)
        laid_out = lay_out(data_dir, wanted, registry, os.environ)
        for node in laid_out:
            members.append(Member(node, registry, restart=restart))
        _up_ports.check(laid_out, registry)
        status = _run(members, _introduction(members, wanted, data_dir, registry))
    finally:
        for member in members:
            member.close()
        lock.close()
    raise typer.Exit(status)


def _introduction(members: Sequence[Member], wanted: Wanted, data_dir: Path, registry: Registry) -> list[str]:
    config = members[0].node.config
    count = "1 node" if len(members) == 1 else f"{len(members)} nodes"
    lines = [
        f"raftkv {__version__}: {count}, storage {config.storage.name}, consensus {config.consensus.name}, "
        f"data in {data_dir}"
    ]
    if wanted.nodes is None and not consensus_engines(registry):
        lines.append("One node, because no consensus engine that replicates is installed.")
    if not config.transports:
        lines.append(
            "No transport is installed, so only the node socket is served; "
            "install raftkv-transport-http-falcon for the HTTP API."
        )
    return lines + [f"{member.node.name}: {warning}" for member in members for warning in member.node.warnings]


def _run(members: Sequence[Member], introduction: Sequence[str]) -> int:
    """From the start of all nodes to the end of all; returns the exit status."""
    with Signals() as signals:
        for member in members:
            member.start()
        view = open_view()  # its imports overlap with the nodes' start
        try:
            with suppress(OSError):
                for line in introduction:
                    view.say(line)
            return _watch(members, view, signals)
        finally:
            with suppress(OSError):
                view.close()


def _watch(members: Sequence[Member], view: View, signals: Signals) -> int:
    handled = 0
    hints: list[str] = []
    while True:
        now = time.monotonic()
        if signals.stops > handled:
            for member in members:
                if signals.stops == 1:
                    member.stop()
                else:
                    member.force()
            handled = signals.stops
        for member in members:
            member.step(now)
        rows = [member.row(now) for member in members]
        hints = hints or _hints(rows)
        with suppress(OSError):  # a closed terminal or pipe is no reason to leave nodes without a clean stop
            view.show(rows, hints)
            for member in members:
                while member.failures:
                    view.say(member.failures.pop(0))
        if all(member.ended for member in members):
            asked = [member for member in members if not (handled and member.down)]
            return max((member.exit_code for member in asked), default=0)
        times = [member.wake_at for member in members]
        signals.wait(
            [descriptor for member in members for descriptor in member.descriptors],
            until=min((at for at in times if at is not None), default=None),
        )


def _hints(rows: Sequence[Row]) -> list[str]:
    """What to paste, as soon as a node answers."""
    for row in rows:
        url = dict(row.urls).get("http")
        if row.state == "ready" and url:
            return ["Try it:", f"  curl -X PUT -d world {url}/v1/kv/hello", f"  curl {url}/v1/kv/hello"]
    return []
