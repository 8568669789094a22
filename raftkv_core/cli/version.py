"""`raftkv version`."""

from __future__ import annotations

import platform

import typer

from raftkv_core import __version__
from raftkv_core.hookspecs import API_VERSION

__all__ = ["version"]


def version() -> None:
    """Show the version of raftkv, of its plugin API and of Python."""
    typer.echo(f"raftkv {__version__} (plugin API v{API_VERSION}, Python {platform.python_version()})")
