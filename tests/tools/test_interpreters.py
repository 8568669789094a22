"""Interpreters are found wherever they are, and only those that work."""

from __future__ import annotations

from pathlib import Path

from tools.interpreters import find_interpreters


def fake_python(path: Path, answer: str) -> Path:
    """An executable that answers what a Python would."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{answer}\n")
    path.chmod(0o755)
    return path


def says(version: str, release: str, path: Path, implementation: str = "cpython") -> str:
    return f'echo "{implementation} {version} {release} {path}"'


def test_pyenv_interpreters_are_found_off_the_path(tmp_path: Path) -> None:
    """One that lies in pyenv's folder counts as present though PATH does not lead there."""
    path = tmp_path / "pyenv/versions/3.12.9/bin/python3.12"
    fake_python(path, says("3 12", "3.12.9", path))
    (found,) = find_interpreters({"PATH": "/nowhere", "HOME": "/nowhere", "PYENV_ROOT": str(tmp_path / "pyenv")})
    assert (found.version, found.release, found.path) == ((3, 12), "3.12.9", path)


def test_shim_that_fails_is_passed_over(tmp_path: Path) -> None:
    """A shim of an inactive version does not hide the real interpreter behind it."""
    fake_python(tmp_path / "shims/python3.12", "echo 'command not found' >&2; exit 127")
    path = tmp_path / "home/.pyenv/versions/3.12.9/bin/python3.12"
    fake_python(path, says("3 12", "3.12.9", path))
    (found,) = find_interpreters({"PATH": str(tmp_path / "shims"), "HOME": str(tmp_path / "home")})
    assert found.path == path


def test_oldest_first_and_one_of_each(tmp_path: Path) -> None:
    """Of two of a version the one on PATH is taken; other implementations are not."""
    for folder, version, release in (("a", "3.13", "3.13.1"), ("a", "3.10", "3.10.2"), ("b", "3.13", "3.13.0")):
        path = tmp_path / folder / f"python{version}"
        fake_python(path, says(version.replace(".", " "), release, path))
    fake_python(tmp_path / "a/python3.11", says("3 11", "3.11.1", tmp_path, implementation="pypy"))
    found = find_interpreters({"PATH": f"{tmp_path / 'a'}:{tmp_path / 'b'}", "HOME": "/nowhere"})
    assert [each.release for each in found] == ["3.10.2", "3.13.1"]
