"""`make up` on machines as they are: too old, incomplete, interrupted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
SH = shutil.which("sh") or "sh"


def executable(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{SH}\n{script}\n")
    path.chmod(0o755)


def set_up(tmp_path: Path, python: str) -> subprocess.CompletedProcess[str]:
    """tools/venv.sh where the given script is the only Python."""
    executable(tmp_path / "bin/python3", python)
    command = [SH, str(ROOT / "tools/venv.sh"), str(tmp_path / "venv"), "-r", "requirements.txt"]
    environ = {"PATH": str(tmp_path / "bin")}
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, cwd=ROOT)


def test_too_old_a_python_is_named(tmp_path: Path) -> None:
    """The message says what is needed, what was found and what to do."""
    done = set_up(tmp_path, "echo 3.9; exit 1")
    assert done.returncode != 0
    assert "RaftKV needs Python 3.10 or newer; found: python3 (3.9)" in done.stderr
    assert "make PYTHON=" in done.stderr


def test_missing_venv_module_is_named(tmp_path: Path) -> None:
    """Debian ships Python without ensurepip; the message names the package."""
    done = set_up(tmp_path, 'case "$2" in *ensurepip*) exit 1;; *) echo 3.11;; esac')
    assert done.returncode != 0
    assert "'python3 -m venv' does not work" in done.stderr
    assert "apt install python3-venv" in done.stderr


def start_make_up(tmp_path: Path, raftkv: str, arguments: str) -> subprocess.Popen[str]:
    """`make up` with a .venv that is complete and holds the given script as raftkv."""
    venv = tmp_path / "venv"
    executable(venv / "bin/python", "exit 0")
    executable(venv / "bin/raftkv", raftkv)
    (venv / ".installed").touch()
    return subprocess.Popen(
        ["make", "up", f"VENV={venv}", f"ARGS={arguments}"],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if not key.startswith("MAKE")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_make_up_passes_its_arguments(tmp_path: Path) -> None:
    """ARGS go to `raftkv up` as they are, and nothing is installed again."""
    make = start_make_up(tmp_path, 'echo "$@"', "--nodes 1 --storage memory")
    output, errors = make.communicate(timeout=30)
    assert (make.returncode, output, errors) == (0, "up --nodes 1 --storage memory\n", "")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_make_up_hands_on_the_signal_and_waits(tmp_path: Path, name: str) -> None:
    """Ctrl-C (to the whole group) and SIGTERM (to make) reach the store, which ends in its own time."""
    stopped = tmp_path / "stopped"
    script = f"""
        trap 'sleep 0.3; touch {stopped}; exit 0' {name.removeprefix("SIG")}
        echo ready
        while true; do sleep 0.05; done
    """
    make = start_make_up(tmp_path, script, "")
    assert make.stdout is not None
    assert make.stdout.readline() == "ready\n"
    if name == "SIGINT":
        os.killpg(make.pid, signal.SIGINT)
    else:
        make.terminate()
    _output, errors = make.communicate(timeout=30)
    assert stopped.exists()
    assert "Error" not in errors
