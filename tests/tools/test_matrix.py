"""`make test` runs what it should and is red when something did not run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.interpreters import Interpreter
from tools.matrix_report import Result, print_summary, read_result, summary_faults
from tools.test_matrix import plan

PYTHONS = [Interpreter((3, minor), f"3.{minor}.0", Path(f"/python3.{minor}")) for minor in (10, 11, 12)]


def test_ends_run_everything_and_those_between_the_core() -> None:
    """The oldest and the newest run every plugin's tests; the rest the core's and the smoke test."""
    assert plan(PYTHONS) == [
        *("py310-core", "py310-lmdb", "py310-http"),
        *("py311-core", "py311-mid"),
        *("py312-core", "py312-lmdb", "py312-http"),
    ]


def test_a_single_interpreter_runs_everything() -> None:
    """A fresh machine has one Python, and it is enough."""
    assert plan(PYTHONS[:1]) == ["py310-core", "py310-lmdb", "py310-http"]


def test_interpreter_that_ran_nothing_is_a_fault() -> None:
    """A Python that is here but passed no test makes the run red."""
    results = [Result("py310-core", True, 1, passed=3), Result("py311-core", True, 1, skipped=3)]
    assert summary_faults(results, PYTHONS[:2]) == ["Python 3.11 is here, but passed no test"]


def test_test_that_no_environment_ran_is_a_fault() -> None:
    """Markers that no environment selects do not hide a test."""
    results = [
        Result("py310-core", True, 1, passed=1, ran=["a"], deselected=["b", "c"]),
        Result("py310-lmdb", True, 1, passed=1, ran=["b"], deselected=["a", "c"]),
    ]
    assert summary_faults(results, PYTHONS[:1]) == ["no environment of the matrix runs c"]


def test_last_line_is_the_sum(capsys: pytest.CaptureFixture[str]) -> None:
    """The sum stands alone on the last line, the reasons of all skips above it."""
    results = [
        Result("lint", True, 1, passed=1),
        Result("py310-core", True, 1, passed=5, skipped=2, skips={"needs root": 2}),
        Result("py312-core", True, 1, passed=6, skipped=1, skips={"needs root": 1}),
    ]
    assert print_summary(results, [], PYTHONS) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "12 passed, 0 failed, 3 skipped"
    assert "  3 x needs root" in lines
    assert "Python ran: 3.10, 3.12" in lines
    assert "Python missing on this machine: 3.13, 3.14" in lines


@pytest.mark.parametrize("faults", [[], ["no environment of the matrix runs c"]])
def test_any_failure_or_fault_makes_it_red(faults: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A fault counts as a failure, in the status and in the last line."""
    results = [Result("py310-core", ok=bool(faults), seconds=1, passed=5, failed=0 if faults else 1)]
    assert print_summary(results, faults, PYTHONS) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "5 passed, 1 failed, 0 skipped"


def test_nothing_run_is_red(capsys: pytest.CaptureFixture[str]) -> None:
    """An empty matrix is no success."""
    assert print_summary([], [], PYTHONS) == 1


@pytest.mark.parametrize(("code", "failed"), [(0, 0), (1, 1)])
def test_environment_without_report_counts_as_one(tmp_path: Path, code: int, failed: int) -> None:
    """A check such as lint, or an environment that could not start, is one passed or one failed."""
    result = read_result("lint", tmp_path / "none.json", code, 1.0)
    assert (result.passed, result.failed, result.ok) == (1 - failed, failed, not failed)


def test_bad_status_is_a_failure_whatever_was_reported(tmp_path: Path) -> None:
    """A session that reported only passes and then crashed has not passed."""
    report = tmp_path / "report.json"
    values = {"passed": 4, "failed": 0, "skipped": 0, "skips": {}, "ran": [], "deselected": []}
    report.write_text(json.dumps(values))
    result = read_result("py310-core", report, 3, 1.0)
    assert (result.ok, result.passed, result.failed) == (False, 4, 1)
