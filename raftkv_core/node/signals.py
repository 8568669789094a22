"""Waiting, in one thread, for signals, children and file descriptors at once.

    with Signals() as signals:
        while running:
            signals.wait([pipe], until=clock() + 1.0)
            if signals.stops: ...

A signal only wakes `wait` up; what it means is decided in the loop, where nothing is half done.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterable
from types import FrameType
from typing import Final

__all__ = ["Signals"]

_READ_BYTES: Final = 4096


class Signals:
    """SIGTERM, SIGINT and SIGHUP are counted, SIGCHLD wakes. Main thread only; at exit old handlers return."""

    def __init__(self) -> None:
        self.stops = 0
        """How often this process was asked to stop."""
        self.last: int | None = None
        """The signal that asked last."""

    def __enter__(self) -> Signals:
        self._wake, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._old_wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, self._on_stop) for number in (signal.SIGTERM, signal.SIGINT)}
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup means it
            self._old[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._on_stop)
        self._old[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, _wake_only)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        os.close(self._wake)
        os.close(self._write)

    def wait(self, descriptors: Iterable[int] = (), *, until: float | None = None) -> None:
        """Return when a signal came, a child ended, a descriptor can be read or has ended, or at `until`
        (`time.monotonic()`); may return earlier."""
        poll = select.poll()
        for descriptor in (self._wake, *descriptors):
            poll.register(descriptor, select.POLLIN)
        timeout_ms = None if until is None else max(0.0, until - time.monotonic()) * 1_000
        poll.poll(timeout_ms)
        try:
            while os.read(self._wake, _READ_BYTES):
                pass
        except BlockingIOError:
            pass

    def _on_stop(self, number: int, _frame: FrameType | None) -> None:
        self.stops += 1
        self.last = number


def _wake_only(_number: int, _frame: FrameType | None) -> None:
    """Python writes to the wake-up descriptor only for signals that have a handler."""
