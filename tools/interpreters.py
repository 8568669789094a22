"""Finds the Python interpreters of this machine, also those that are not on PATH.

A matrix that skips what it does not find looks green and tests little. pyenv keeps interpreters in folders
that are on PATH only while they are activated, and leaves shims on PATH that fail when they are not; so
each candidate is run and asked what it is.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

__all__ = ["SUPPORTED", "Interpreter", "dotted", "find_interpreters"]

SUPPORTED = ((3, 10), (3, 11), (3, 12), (3, 13), (3, 14))
"""Oldest first."""

ASK = """
import platform, ssl, sys, zlib
print(sys.implementation.name, *sys.version_info[:2], platform.python_version(), sys.executable)
"""


class Interpreter(NamedTuple):
    """One that runs and is CPython. `release` is the full version, for people; `path` is no shim."""

    version: tuple[int, int]
    release: str
    path: Path


def dotted(version: tuple[int, int]) -> str:
    """(3, 10) is 3.10."""
    return f"{version[0]}.{version[1]}"


def find_interpreters(environ: Mapping[str, str]) -> list[Interpreter]:
    """The supported interpreters of this machine, one of each version, oldest first; PATH comes first."""
    found: dict[tuple[int, int], Interpreter] = {}
    for directory in _directories(environ):
        for version in SUPPORTED:
            path = directory / f"python{dotted(version)}"
            if version not in found and path.is_file() and (interpreter := _ask(path)):
                found.setdefault(interpreter.version, interpreter)
    return sorted(found.values())


def _directories(environ: Mapping[str, str]) -> Iterator[Path]:
    for directory in environ.get("PATH", "").split(os.pathsep):
        if directory:
            yield Path(directory)
    home = Path(environ.get("HOME") or "/")
    pyenv = Path(environ.get("PYENV_ROOT") or home / ".pyenv")
    yield from sorted(pyenv.glob("versions/*/bin"), reverse=True)
    yield from sorted(home.glob(".local/share/uv/python/*/bin"), reverse=True)


def _ask(path: Path) -> Interpreter | None:
    try:
        answer = subprocess.run(  # noqa: S603 - an interpreter's own name in a folder of interpreters
            [path, "-I", "-c", ASK], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    name, major, minor, release, executable = answer.stdout.strip().split(" ", 4)
    if name != "cpython" or (int(major), int(minor)) not in SUPPORTED:
        return None
    return Interpreter((int(major), int(minor)), release, Path(executable))
