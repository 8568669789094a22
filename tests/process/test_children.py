"""Children end with their parent, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from raftkv_core.node.children import PARENT_PID, READY_FD, Child, follow_supervisor, notify_ready

FOLLOWER = "import sys, time; from raftkv_core.node.children import follow_supervisor; follow_supervisor()\n"


@pytest.fixture
def started() -> Iterator[list[Child]]:
    """Children that are killed and reaped when the test is over."""
    children: list[Child] = []
    yield children
    for child in children:
        child.kill()
        while child.poll() is None:
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_child_does_not_outlive_a_killed_parent(tmp_path: Path, until: Callable[..., object]) -> None:
    """kill -9 of the parent ends the child."""
    child = FOLLOWER + "print('following', flush=True); time.sleep(60)"
    parent = (
        "import sys, time; from raftkv_core.node.children import Child; import os\n"
        f"print(Child([sys.executable, '-c', {child!r}], environ=os.environ).pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert process.stdout.readline() == "following\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        until(lambda: gone(pid))


def test_a_child_whose_parent_is_gone_already_ends_at_once() -> None:
    """A parent that died before the child could ask the kernel is noticed all the same."""
    environ = {**os.environ, PARENT_PID: "1" if os.getpid() != 1 else "2"}
    command = [sys.executable, "-c", FOLLOWER + "print('still here')"]
    ended = subprocess.run(command, check=False, env=environ, stdout=subprocess.PIPE)
    assert ended.returncode == -signal.SIGKILL
    assert ended.stdout == b""


def test_a_process_run_by_hand_follows_nobody() -> None:
    """Without a supervisor in the environment nothing is asked of the kernel."""
    follow_supervisor({})


def test_what_a_child_leaves_behind_ends_with_it(
    started: list[Child], tmp_path: Path, until: Callable[..., object]
) -> None:
    """A dead master's workers go too, even those that did not ask for it."""
    grandchild = tmp_path / "grandchild"
    child = Child(["sh", "-c", f"sleep 60 & echo $! > {grandchild}.new; mv {grandchild}.new {grandchild}"],
                  environ=os.environ)  # fmt: skip
    started.append(child)
    assert until(lambda: child.poll() is not None)
    assert child.poll() == 0
    until(lambda: gone(int(grandchild.read_text())))


def test_the_end_of_a_child_is_told_as_it_was(started: list[Child], until: Callable[..., object]) -> None:
    """An exit status stays what it is, a signal is its negative number."""
    for command, code in (("exit 3", 3), ("kill -KILL $$", -signal.SIGKILL)):
        child = Child(["sh", "-c", command], environ=os.environ)
        started.append(child)
        until(lambda child=child: child.poll() is not None)
        assert child.poll() == code
        child.terminate()
        child.kill()


def test_readiness_is_one_line_then_the_end() -> None:
    """The supervisor reads `ready` and the end of the pipe; without one, or with one that is gone, no error."""
    read, write = os.pipe()
    notify_ready({READY_FD: str(write)})
    assert os.read(read, 64) == b"ready\n"
    assert os.read(read, 64) == b""
    os.close(read)
    notify_ready({})
    read, write = os.pipe()
    os.close(read)
    notify_ready({READY_FD: str(write)})
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(write)
