"""`make test`: runs the matrix of tox.ini on every interpreter of this machine, and says what it did not run.

tox skips an interpreter that it does not find and succeeds; here an interpreter that exists must have run.
The oldest and the newest run everything; those between run the core's tests and one start-write-restart
test, which finds what differs between Pythons at a third of the time.

    python -m tools.test_matrix [ENVIRONMENT...]

The last line is the sum over all environments: `N passed, N failed, N skipped`. A check without tests of
its own (lint, types, docs) counts as one, and so does an environment that could not even start.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

from tools.interpreters import SUPPORTED, Interpreter, dotted, find_interpreters
from tools.matrix_report import Result, print_summary, read_result, summary_faults

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".tox"
REPORTS = WORK / "reports"
CHECKS = ("lint", "types", "docs", "install")
EVERYTHING = ("core", "lmdb", "http")
BETWEEN = ("core", "mid")
ENVIRONMENT_TIMEOUT_S = 1200.0


def plan(interpreters: Sequence[Interpreter]) -> list[str]:
    """The tests' environments, as tox names them; `interpreters` come oldest first."""
    ends = {interpreters[0].version, interpreters[-1].version}
    return [
        f"py{major}{minor}-{what}"
        for major, minor in (interpreter.version for interpreter in interpreters)
        for what in (EVERYTHING if (major, minor) in ends else BETWEEN)
    ]


class Tox:
    """Runs tox so that it finds every interpreter, and ends it when this process is told to end."""

    def __init__(self, interpreters: Iterable[Interpreter], options: Sequence[str]) -> None:
        folders = [os.environ.get("PATH", ""), *(str(each.path.parent) for each in interpreters)]
        self.environ = {
            **os.environ,
            "PATH": os.pathsep.join(filter(None, folders)),
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_SYSTEM_CERTS": "1",
        }
        self.options = options
        self.running: set[subprocess.Popen[bytes]] = set()

    def create(self, environments: Sequence[str]) -> None:
        """Makes the environments one by one, as they build from the same tree. Faults show at `run`."""
        if environments:
            self._tox(["--notest", "--recreate", "-e", ",".join(environments)], None, {})

    def run(self, environment: str, log: Path | None = None) -> Result:
        """Runs one environment to its end; the output goes to the terminal, or to `log`."""
        report = REPORTS / f"{environment}.json"
        report.unlink(missing_ok=True)
        began = time.monotonic()
        code = self._tox(["-e", environment], log, {"TEST_REPORT": str(report)})
        return read_result(environment, report, code, time.monotonic() - began)

    def _tox(self, arguments: Sequence[str], log: Path | None, extra: Mapping[str, str]) -> int:
        command = [sys.executable, "-m", "tox", "run", "--quiet", "--skip-missing-interpreters", "false"]
        with (log or Path(os.devnull)).open("wb") as file:
            process = subprocess.Popen(  # noqa: S603 - our own command line
                [*command, *self.options, *arguments],
                cwd=ROOT,
                env={**self.environ, **extra},
                stdin=subprocess.DEVNULL,
                stdout=file if log else None,
                stderr=subprocess.STDOUT if log else None,
                start_new_session=True,
            )
            self.running.add(process)
            try:
                return process.wait(ENVIRONMENT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                print(f"error: {' '.join(arguments)}: no end after {ENVIRONMENT_TIMEOUT_S:.0f} s", flush=True)
                return 124
            finally:
                end(process)
                self.running.discard(process)

    def stop(self) -> None:
        for process in list(self.running):
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """As Ctrl-C ends it, so that the tests clean up; by force if they do not. The whole group, not tox alone."""
    for number, patience_s in ((signal.SIGINT, 15), (signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        if process.poll() is None:
            os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience_s)


def interrupt(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM and Ctrl-C end a run alike, also where a shell started it with SIGINT ignored."""
    raise KeyboardInterrupt


def installer_options() -> list[str]:
    """Nothing if uv works on this machine, else what makes tox use pip.

    uv makes an environment in a tenth of pip's time, but does not read pip's settings: where only those name an
    index that can be reached, it cannot install anything.
    """
    probe = subprocess.run(
        [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-cache", "-"],
        input=b"iniconfig",
        capture_output=True,
        check=False,
        env={**os.environ, "UV_HTTP_RETRIES": "1", "UV_HTTP_TIMEOUT": "20", "UV_SYSTEM_CERTS": "1"},
    )
    if probe.returncode == 0:
        return []
    print("uv reaches no package index with this machine's settings; installing with pip, which takes longer")
    return ["--runner", "virtualenv"]


def make_environments(tox: Tox, environments: Sequence[str]) -> None:
    """Makes what is missing, and anew what was made for projects that asked for something else.

    tox compares its own settings and the pins, but does not look into editable projects.
    """
    files = [ROOT / "pyproject.toml", *sorted(ROOT.glob("plugins/*/pyproject.toml"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    stamps = {name: WORK / name / "projects.sha256" for name in environments}
    stale = [name for name, stamp in stamps.items() if not stamp.exists() or stamp.read_text() != digest]
    tox.create(stale)
    for stamp in (stamps[name] for name in stale):
        if stamp.parent.exists():
            stamp.write_text(digest)


def run_checks(tox: Tox, environments: Sequence[str]) -> list[Result]:
    """The checks use one core each, so two run at a time; what they wrote is shown for those that failed."""

    def check(environment: str) -> Result:
        log = REPORTS / f"{environment}.log"
        result = tox.run(environment, log)
        print(f"    {environment}: {result.word} ({result.seconds:.0f} s)", flush=True)
        if not result.ok:
            print(log.read_text(errors="replace"), flush=True)
        return result

    with ThreadPoolExecutor(2) as pool:
        try:
            return list(pool.map(check, environments))
        except KeyboardInterrupt:
            tox.stop()
            raise


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the test matrix on every Python of this machine.")
    parser.add_argument("environment", nargs="*", help="only these environments, as py311-core or lint")
    chosen: list[str] = parser.parse_args().environment

    interpreters = find_interpreters(os.environ)
    present = {each.version: each for each in interpreters}
    for version in SUPPORTED:
        found = present[version].release if version in present else "missing on this machine"
        print(f"Python {dotted(version)}: {found}")
    environments = chosen or [*CHECKS, *plan(interpreters)]
    print(f"Environments: {' '.join(environments)}", flush=True)

    REPORTS.mkdir(parents=True, exist_ok=True)
    tox = Tox(interpreters, installer_options())
    print("==> making environments", flush=True)
    make_environments(tox, environments)

    results = []
    checks = [name for name in environments if name in CHECKS]
    if checks:
        print(f"==> {', '.join(checks)}", flush=True)
        results += run_checks(tox, checks)
    tests = [name for name in environments if name not in CHECKS]
    for number, name in enumerate(tests, 1):
        print(f"==> {name} ({number} of {len(tests)})", flush=True)
        results.append(tox.run(name))

    faults = [] if chosen else summary_faults(results, interpreters)
    return print_summary(results, faults, interpreters)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
