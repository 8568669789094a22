"""`raftkv backup` and `raftkv restore`: a node's data to a file and back."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from raftkv_core.config import Config, load_config
from raftkv_core.errors import ConfigError
from raftkv_core.node.copies import Progress
from raftkv_core.node.copies import backup as make_backup
from raftkv_core.node.copies import restore as make_restore
from raftkv_core.registry import Registry

__all__ = ["backup", "restore"]

ConfigPath = Annotated[
    Path, typer.Option("--config", "-c", help="The node's configuration file.", show_default=False)
]


def backup(
    file: Annotated[Path, typer.Argument(help="Where to write the backup.", show_default=False)],
    config: ConfigPath,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Save a running node's data to a file, while it goes on serving.

    The file appears when it is complete and synced. It holds the data, its history and its idempotency keys,
    as of one moment.
    """
    if file.exists() and not force:
        raise ConfigError(f"{file} exists; name another file or use --force")
    resolved, _registry = _resolve(config)
    with _progress("backup") as progress:
        header = asyncio.run(make_backup(resolved, file, progress))
    typer.echo(
        f"{file}: revision {header.revision}, {header.length_bytes:,} bytes, cluster {header.cluster_id.hex()}"
    )


def restore(
    file: Annotated[Path, typer.Argument(help="A backup.", show_default=False)],
    config: ConfigPath,
) -> None:
    """Make an empty data directory from a backup; `raftkv serve` with the same configuration then serves it.

    Revisions go on far above those in the backup, and nodes that still hold the old data cannot join in.
    """
    resolved, registry = _resolve(config)
    with _progress("restore") as progress:
        meta = make_restore(resolved, registry, file, progress)
    typer.echo(f"{resolved.node.data_dir}: {meta.state.keys:,} keys as of revision {meta.revision}")


def _resolve(path: Path) -> tuple[Config, Registry]:
    registry = Registry.discover()
    return load_config(path, environ=os.environ, options={}, registry=registry).config, registry


@contextmanager
def _progress(what: str) -> Iterator[Progress]:
    """A bar on a terminal; elsewhere a line every tenth of the way."""
    if sys.stderr.isatty():
        with Bar(what, BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
            task = bar.add_task(what)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    tenths = 0

    def line(done: int, total: int) -> None:
        nonlocal tenths
        if total and done * 10 // total > tenths:
            tenths = done * 10 // total
            typer.echo(f"{what}: {done:,} of {total:,} bytes", err=True)

    yield line
