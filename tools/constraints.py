"""Chooses the versions that everybody installs: one file of pins per interpreter, `make constraints`.

The newest releases of some dependencies differ per interpreter, so one file for all would hold back the new
interpreters or break the old ones. Only releases with wheels are chosen: a fresh machine has no compiler. A
pin is `name==version` and nothing else, so that the files work with whatever index a machine uses.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tools.interpreters import SUPPORTED, dotted

ROOT = Path(__file__).resolve().parent.parent
DIRECTORY = ROOT / "constraints"
HEADER = "# Chosen by `make constraints`; not edited by hand.\n"
PIN = re.compile(r"[a-z0-9][a-z0-9._-]*==[0-9][0-9a-z.+!-]*")


def resolve(version: str) -> list[str]:
    """The pins for one interpreter, which need not be installed here."""
    command = [
        *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--upgrade"),
        *("--python-version", version, "--only-binary", ":all:"),
        *("--no-annotate", "--no-header", "--extra", "testing", "--group", "dev"),
        *("pyproject.toml", "requirements.txt"),
    ]
    environ = {**os.environ, "UV_PYTHON_DOWNLOADS": "never"}
    output = subprocess.run(  # noqa: S603 - our own command line
        command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    lines = [line for line in output.splitlines() if line and not line.startswith(("#", "-e "))]
    for line in lines:
        if not PIN.fullmatch(line):
            raise SystemExit(f"error: Python {version}: '{line}' is no plain pin (name==version)")
    return lines


def main() -> None:
    """Write every file, or none: a resolution that fails leaves the old files as they are."""
    pins = {}
    for version in map(dotted, SUPPORTED):
        pins[version] = resolve(version)
        print(f"Python {version}: {len(pins[version])} packages", flush=True)
    DIRECTORY.mkdir(exist_ok=True)
    for version, lines in pins.items():
        (DIRECTORY / f"py{version}.txt").write_text(HEADER + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
