"""What tests may need of a machine: the one list of permitted skips, and what an environment must have.

A test that needs something a machine may rightly lack says so, and is skipped with the reason given here:

    @pytest.mark.needs("loop_devices", "root")

Any other skip fails the run, whoever makes it. Our own plugins are never a reason to skip: tests of them
carry the plugin's marker (`lmdb`, `http`), an environment selects by marker, and TEST_REQUIRE says what
must be there.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

__all__ = ["MACHINE", "PLUGINS", "Need", "PluginUnderTest", "environment_faults", "missing"]


class Need(NamedTuple):
    """`reason` is what a skip says; `present` asks the machine."""

    reason: str
    present: Callable[[], bool]


class PluginUnderTest(NamedTuple):
    """A plugin of this repository: `modules` are there exactly where it is installed."""

    directory: str
    modules: tuple[str, ...]


def _runs(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=30, check=False).returncode == 0  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return False


MACHINE: Mapping[str, Need] = {
    "root": Need("needs root", lambda: os.geteuid() == 0),
    "namespaces": Need("needs network namespaces", lambda: _runs("unshare", "--net", "true")),
    "loop_devices": Need("needs loop devices", lambda: _runs("losetup", "--find")),
    "mount": Need(
        "needs to mount file systems", lambda: _runs("unshare", "--mount", "mount", "-t", "tmpfs", "x", "/mnt")
    ),
    "strace": Need("needs strace", lambda: _runs("strace", "-e", "trace=none", "true")),
    "etcd": Need("needs etcd to compare with", lambda: shutil.which("etcd") is not None),
}

PLUGINS: Mapping[str, PluginUnderTest] = {
    "lmdb": PluginUnderTest("storage_lmdb", ("raftkv_storage_lmdb", "lmdb")),
    "http": PluginUnderTest(
        "transport_http_falcon", ("raftkv_transport_http_falcon", "falcon", "gunicorn", "uvicorn", "httptools")
    ),
}

NOT_IN_THE_CORE = ("grpc", "pysyncobj")
"""Libraries of plugins to come: where only the core is installed they are absent too."""


@functools.cache
def missing(name: str) -> str | None:
    """The reason to skip a test that needs `name`, or None if the machine has it."""
    need = MACHINE.get(name)
    if need is None:
        raise ValueError(f"tools/needs.py has no '{name}', only {', '.join(MACHINE)}")
    return None if need.present() else need.reason


def environment_faults(require: Iterable[str]) -> list[str]:
    """How this environment differs from one that has exactly the plugins of `require`, one sentence each."""
    wanted = set(require)
    faults = [
        f"TEST_REQUIRE names '{name}', which is no plugin here ({', '.join(PLUGINS)})"
        for name in sorted(wanted - set(PLUGINS))
    ]
    for name, plugin in PLUGINS.items():
        for module in plugin.modules:
            present = importlib.util.find_spec(module) is not None
            if name in wanted and not present:
                faults.append(f"'{name}' must be tested here, but {module} is not installed")
            elif name not in wanted and present:
                faults.append(f"'{name}' must be absent here, but {module} is installed")
    if not wanted:
        unwanted = filter(importlib.util.find_spec, NOT_IN_THE_CORE)
        faults += [f"{module} must be absent here, but is installed" for module in unwanted]
    return faults
