"""Child processes that never outlive their parent, and are never left behind by it.

The supervisor starts children by exec, each in a session (and so a process group) of its own: Ctrl-C in a
terminal reaches the supervisor alone, which then stops them in order. A child asks the kernel to be killed
when its parent dies:

    follow_supervisor()              # first thing in the child's main
    die_with_parent(master_pid)      # in a process that the child itself forked (gunicorn's post_fork)

The kernel's signal is lost when the parent died before it was asked for, so the parent is checked afterwards.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO, Final

__all__ = ["PARENT_PID", "READY_FD", "Child", "die_with_parent", "follow_supervisor", "notify_ready"]

PARENT_PID: Final = "RAFTKV_PARENT_PID"
"""Environment of a child: the process that it must not outlive."""

READY_FD: Final = "RAFTKV_READY_FD"
"""Environment of a child: where it says `ready`, once."""

_PR_SET_PDEATHSIG: Final = 1


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends, however that comes about.

    `parent_pid` is what the parent said its pid is; if it is no longer the parent, this process ends here.
    The kernel watches the parent's thread that started this process, so parents start children from their
    main thread. Processes that this one forks do not inherit the setting and call this again.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl(PR_SET_PDEATHSIG): {os.strerror(error)}")
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)


def follow_supervisor(environ: Mapping[str, str] = os.environ) -> None:
    """`die_with_parent` for a process that a supervisor may have started; nothing when run by hand."""
    if pid := environ.get(PARENT_PID):
        die_with_parent(int(pid))


def notify_ready(environ: Mapping[str, str] = os.environ) -> None:
    """Tell the supervisor, if there is one, that clients may come. A supervisor that is gone is no error."""
    if number := environ.get(READY_FD):
        fd = int(number)
        try:
            os.write(fd, b"ready\n")
        except BrokenPipeError:
            pass
        finally:
            os.close(fd)


class Child:
    """One child process: started by exec, reaped together with whatever it left in its process group."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        environ: Mapping[str, str],
        pass_fds: Sequence[int] = (),
        output: IO[bytes] | None = None,
    ) -> None:
        """`output` takes standard output and error; None passes this process's own on."""
        self._process = subprocess.Popen(  # noqa: S603 - commands come from the installed plugins
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**environ, PARENT_PID: str(os.getpid())},
            pass_fds=pass_fds,
            start_new_session=True,
        )
        self.pid: Final = self._process.pid

    def poll(self) -> int | None:
        """The exit status (negative: the signal that ended it), or None while it runs.

        What the child left behind in its group is killed before the pid can be given to anybody else.
        """
        if self._process.returncode is not None:
            return self._process.returncode
        if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        self.kill()
        return self._process.wait()

    def terminate(self) -> None:
        """Ask it, and it alone, to end."""
        if self._process.returncode is None:
            os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End it and its group at once. `poll` still has to be called."""
        if self._process.returncode is None:
            os.killpg(self.pid, signal.SIGKILL)
