"""What the distributions say about themselves is true of the tree, and they say the same."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Environment, default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.distributions import distributions
from tools.interpreters import SUPPORTED, dotted
from tools.needs import PLUGINS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
CORE, *PLUGIN_DISTRIBUTIONS = distributions(ROOT)
EACH = pytest.mark.parametrize("distribution", [CORE, *PLUGIN_DISTRIBUTIONS], ids=lambda each: each.name)
EACH_PLUGIN = pytest.mark.parametrize("plugin", PLUGIN_DISTRIBUTIONS, ids=lambda each: each.name)
EACH_PYTHON = pytest.mark.parametrize("version", [dotted(version) for version in SUPPORTED])


def pins(version: str) -> dict[str, str]:
    lines = (ROOT / f"constraints/py{version}.txt").read_text().splitlines()
    split = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): release for name, release in split}


def environment(version: str) -> Environment:
    """The markers as that Python on Linux sees them."""
    values = default_environment()
    values.update(python_version=version, python_full_version=f"{version}.0", sys_platform="linux")
    return values


@EACH_PLUGIN
def test_one_version(plugin: Any) -> None:
    """All distributions carry the core's version, and a plugin asks for the core of its own minor version."""
    assert plugin.version == CORE.version
    minor = ".".join(CORE.version.split(".")[:2])
    asked = [Requirement(each) for each in plugin.project["dependencies"]]
    assert [str(each.specifier) for each in asked if each.name == "raftkv"] == [f"~={minor}.0"]


@EACH_PLUGIN
def test_names_follow_from_the_folder(plugin: Any) -> None:
    """plugins/X is distribution raftkv-X with import package raftkv_X, an entry point in raftkv.v1, a README."""
    folder = plugin.directory.name
    assert plugin.name == f"raftkv-{folder.replace('_', '-')}"
    assert plugin.import_package == f"raftkv_{folder}"
    assert plugin.project["entry-points"]["raftkv.v1"]
    assert (plugin.directory / "README.md").is_file()
    assert list((plugin.directory / "tests").glob("test_*.py"))


@EACH
def test_packages_are_those_of_the_tree(distribution: Any) -> None:
    """Every folder with modules is named in `packages`, is a package, and nothing else is named."""
    tree = distribution.directory / distribution.import_package
    folders = sorted({path.parent for path in tree.rglob("*.py")})
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []
    names = [".".join(folder.relative_to(distribution.directory).parts) for folder in folders]
    assert sorted(distribution.packages) == names


@EACH
def test_types_and_metadata_are_declared(distribution: Any) -> None:
    """Each is typed, for Python 3.10 and newer, under the MIT licence, with a readme."""
    assert (distribution.directory / distribution.import_package / "py.typed").is_file()
    assert distribution.project["requires-python"] == f">={dotted(SUPPORTED[0])}"
    assert distribution.project["license"] == "MIT"
    assert distribution.project["readme"] == "README.md"
    assert distribution.project["description"]


def test_classifiers_name_the_supported_pythons() -> None:
    """What the index shows is what the matrix tests."""
    shown = re.findall(r"Python :: (3\.\d+)", " ".join(CORE.project["classifiers"]))
    assert shown == [dotted(version) for version in SUPPORTED]


def test_requirements_install_everything() -> None:
    """`pip install -r requirements.txt` installs the core and every plugin."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    folders = [each.directory.relative_to(ROOT).as_posix() for each in PLUGIN_DISTRIBUTIONS]
    assert lines == ["-e .", *(f"-e {folder}" for folder in folders)]


def test_every_plugin_is_tested_and_type_checked() -> None:
    """A new plugin cannot be forgotten in the matrix, in the markers, or by mypy."""
    assert [each.directory.name for each in PLUGIN_DISTRIBUTIONS] == sorted(p.directory for p in PLUGINS.values())
    tox = (ROOT / "tox.ini").read_text()
    for name, plugin in PLUGINS.items():
        assert f"{name}: TEST_REQUIRE" in tox or f"{name},mid: TEST_REQUIRE" in tox
        assert f"plugins/{plugin.directory}" in tox
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    for each in PLUGIN_DISTRIBUTIONS:
        folder = each.directory.relative_to(ROOT).as_posix()
        assert f"$MYPY_CONFIG_FILE_DIR/{folder}" in mypy["mypy_path"]
        assert f"{folder}/{each.import_package}" in mypy["files"]


@EACH_PYTHON
def test_constraints_are_plain_pins(version: str) -> None:
    """A pin is `name==version`: no URL, no path, no option, so it works with any index."""
    header, *lines = (ROOT / f"constraints/py{version}.txt").read_text().splitlines()
    assert header == "# Chosen by `make constraints`; not edited by hand."
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []


@EACH_PYTHON
def test_constraints_pin_what_is_asked_for(version: str) -> None:
    """Every dependency, of users and of developers, is pinned to a release that satisfies it."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    asked = [each for group in groups.values() for each in group if isinstance(each, str)]
    for distribution in (CORE, *PLUGIN_DISTRIBUTIONS):
        asked += distribution.project["dependencies"]
        asked += [each for extra in distribution.project.get("optional-dependencies", {}).values() for each in extra]
    pinned = pins(version)
    own = {each.name for each in (CORE, *PLUGIN_DISTRIBUTIONS)}
    for requirement in map(Requirement, asked):
        name = canonicalize_name(requirement.name)
        if name in own or (requirement.marker and not requirement.marker.evaluate(environment(version))):
            continue
        assert name in pinned, f"{name} is not pinned: run `make constraints`"
        assert requirement.specifier.contains(pinned[name]), f"{name}: run `make constraints`"


@pytest.mark.parametrize("name", [".ci/run", "tools/venv.sh"])
def test_scripts_can_be_run(name: str) -> None:
    """A fresh clone has them executable."""
    assert (ROOT / name).stat().st_mode & 0o111 == 0o111


def test_ci_runs_what_people_run() -> None:
    """`.ci/run` is `make test` and nothing else of weight."""
    lines = (ROOT / ".ci/run").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == [
        "set -euo pipefail",
        'cd "$(dirname "${BASH_SOURCE[0]}")/.."',
        "exec make test",
    ]
