"""The distributions of this repository, as their pyproject.toml files describe them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Distribution", "distributions"]


@dataclass(frozen=True)
class Distribution:
    """One folder with a pyproject.toml; `import_package` is the top-level package that it installs."""

    directory: Path
    project: dict[str, Any]
    packages: list[str]

    @property
    def name(self) -> str:
        return str(self.project["name"])

    @property
    def version(self) -> str:
        return str(self.project["version"])

    @property
    def import_package(self) -> str:
        return self.packages[0].partition(".")[0]


def distributions(root: Path) -> list[Distribution]:
    """The core, then the plugins by name."""
    found = []
    for path in [root / "pyproject.toml", *sorted(root.glob("plugins/*/pyproject.toml"))]:
        values = tomllib.loads(path.read_text())
        found.append(Distribution(path.parent, values["project"], values["tool"]["setuptools"]["packages"]))
    return found
