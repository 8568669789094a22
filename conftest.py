"""What holds for every test of the repository, of the core and of each plugin.

- An environment has exactly the plugins that TEST_REQUIRE names, or no test runs (tools/needs.py).
- A test of a plugin carries the plugin's marker; those under plugins/X get it here.
- A skip is for one of the permitted reasons, or the run fails. An expected failure fails it too: a test either
  holds or is repaired.
- The tests leave no process behind.
- With TEST_REPORT=FILE, what ran, what was skipped and why is written there for `make test`.
"""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tools.needs import MACHINE, PLUGINS, environment_faults, missing

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parent
SESSION_VARIABLE = "TEST_SESSION"
"""Marks every process that a test starts, however it is started, so that a forgotten one is found."""
LEAK_GRACE_S = 2.0


def pytest_configure(config: pytest.Config) -> None:
    for marker in (
        "needs(*names): what a machine may lack, see tools/needs.py; skipped where it is lacking",
        "smoke: runs on every interpreter, with all plugins",
        "install: works on built wheels, in an environment of its own",
        *(f"{name}: needs the plugin '{name}'; all tests in its folder have it" for name in PLUGINS),
    ):
        config.addinivalue_line("markers", marker)
    required = os.environ.get("TEST_REQUIRE")
    if required is not None and (faults := environment_faults(filter(None, required.split(",")))):
        raise pytest.UsageError("this is not the environment it says it is:\n  " + "\n  ".join(faults))
    config.pluginmanager.register(Policy(config), "raftkv-policy")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First, so that `-m` sees the markers that are given by folder."""
    folders = {ROOT / "plugins" / plugin.directory: name for name, plugin in PLUGINS.items()}
    for item in items:
        for folder, name in folders.items():
            if folder in item.path.parents:
                item.add_marker(name)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            if reason := missing(name):
                pytest.skip(reason)


class Policy:
    """Gathers the session's outcomes, judges them at its end, and reports them.

    Under xdist every worker has one too; it sends the controller what only a worker sees (`from_workers`).
    """

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.outcomes: Counter[str] = Counter()
        self.skips: Counter[str] = Counter()
        self.faults: list[str] = []
        self.ran: set[str] = set()
        self.deselected: set[str] = set()
        self.session_id = uuid.uuid4().hex
        if self.is_worker or not self.has_workers:
            os.environ[SESSION_VARIABLE] = self.session_id

    @property
    def is_worker(self) -> bool:
        return hasattr(self.config, "workerinput")

    @property
    def has_workers(self) -> bool:
        return bool(self.config.getoption("numprocesses", None)) and not self.is_worker

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self.deselected.update(item.nodeid for item in items)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.outcomes["failed"] += 1
        elif report.skipped:
            self._skipped(report.nodeid, report.longrepr)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if hasattr(report, "wasxfail"):
            self.faults.append(f"{report.nodeid}: an expected failure; repair it or remove the test")
        elif report.failed:
            self.outcomes["failed"] += 1
        elif report.skipped:
            self._skipped(report.nodeid, report.longrepr)
        elif report.when == "call":
            self.outcomes["passed"] += 1
        self.ran.add(report.nodeid)

    def _skipped(self, nodeid: str, longrepr: Any) -> None:
        reason = (longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)).removeprefix("Skipped: ")
        self.outcomes["skipped"] += 1
        self.skips[reason] += 1
        if reason not in {need.reason for need in MACHINE.values()}:
            self.faults.append(f"{nodeid}: skipped, but '{reason}' is no permitted reason (tools/needs.py)")

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        sent = getattr(node, "workeroutput", {})
        self.faults += sent.get("faults", [])
        self.deselected.update(sent.get("deselected", []))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.is_worker:
            self.config.workeroutput["faults"] = list(self._left_behind())  # type: ignore[attr-defined]
            self.config.workeroutput["deselected"] = sorted(self.deselected)  # type: ignore[attr-defined]
            return
        if not self.has_workers:
            self.faults += self._left_behind()
        self.outcomes["failed"] += len(self.faults)
        if self.faults and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if path := os.environ.get("TEST_REPORT"):
            report = {
                **{name: self.outcomes[name] for name in ("passed", "failed", "skipped")},
                "skips": dict(self.skips),
                "ran": sorted(self.ran),
                "deselected": sorted(self.deselected),
            }
            Path(path).write_text(json.dumps(report))

    def _left_behind(self) -> Iterator[str]:
        """Names and ends the processes that the tests of this process started and did not end."""
        found = [p for p in psutil.process_iter() if p.pid != os.getpid() and self._is_ours(p)]
        _gone, alive = psutil.wait_procs(found, timeout=LEAK_GRACE_S)
        for process in alive:
            try:
                command = " ".join(process.cmdline())
                process.kill()
            except psutil.NoSuchProcess:
                continue
            yield f"left running by a test: process {process.pid}, {command[:300]}"

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            ours = process.environ().get(SESSION_VARIABLE) == self.session_id
            return ours and "multiprocessing.resource_tracker" not in " ".join(process.cmdline())
        except psutil.Error:
            return False

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.faults:
            terminalreporter.section("not permitted", sep="=", red=True)
            for fault in self.faults:
                terminalreporter.write_line(fault, red=True)
