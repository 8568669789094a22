"""What users get: wheels that hold everything, and work installed offline into an empty environment."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools.distributions import Distribution, distributions
from tools.start_write_restart import start_write_restart

ROOT = Path(__file__).resolve().parent.parent
pytestmark = [pytest.mark.install, pytest.mark.timeout(600)]


def run(*command: str | Path, cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel of each distribution by name, built from copies: a build leaves files in the tree it builds."""
    folder = tmp_path_factory.mktemp("wheels")
    found = {}
    for distribution in distributions(ROOT):
        copy = tmp_path_factory.mktemp("source") / "tree"
        copy.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            if (distribution.directory / name).exists():
                shutil.copy(distribution.directory / name, copy)
        package = distribution.directory / distribution.import_package
        shutil.copytree(package, copy / package.name, ignore=shutil.ignore_patterns("__pycache__"))
        before = set(folder.iterdir())
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, copy, cwd=copy)
        (found[distribution.name],) = set(folder.iterdir()) - before
    return found


@pytest.mark.parametrize("distribution", distributions(ROOT), ids=lambda each: each.name)
def test_wheel_holds_every_file_of_the_package(distribution: Distribution, wheels: dict[str, Path]) -> None:
    """Modules, py.typed and data files, all of them, and nothing outside the package."""
    package = distribution.directory / distribution.import_package
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    expected = {path.relative_to(distribution.directory).as_posix() for path in files}
    held = {name for name in zipfile.ZipFile(wheels[distribution.name]).namelist() if ".dist-info/" not in name}
    assert held == expected
    assert f"{distribution.import_package}/py.typed" in held


@pytest.fixture(scope="module")
def installed(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment in which nothing but the wheels was installed, without an index."""
    environment = tmp_path_factory.mktemp("installed")
    folder = next(iter(wheels.values())).parent
    pins = ROOT / "constraints" / f"py{sys.version_info[0]}.{sys.version_info[1]}.txt"
    pip = (sys.executable, "-m", "pip")
    run(
        *(*pip, "download", "--quiet", "--only-binary", ":all:", "--constraint", pins, "--dest", folder),
        *("--find-links", folder, *wheels.values()),
        cwd=environment,
    )
    run(sys.executable, "-m", "venv", "--without-pip", environment / "venv", cwd=environment)
    run(
        *(*pip, "--isolated", "--python", environment / "venv/bin/python", "install", "--quiet"),
        *("--no-index", "--find-links", folder, *wheels),
        cwd=environment,
    )
    return environment / "venv/bin"


def test_plugins_are_found(installed: Path, tmp_path: Path) -> None:
    """`raftkv plugins` lists what the wheels brought."""
    listed = run(installed / "raftkv", "plugins", cwd=tmp_path)
    for name in ("memory", "solo", "lmdb", "http"):
        assert name in listed


def test_node_serves_from_the_wheels(installed: Path, tmp_path: Path) -> None:
    """A node started outside the repository keeps what was written across a restart."""
    start_write_restart(installed / "raftkv", tmp_path)
