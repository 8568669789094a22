"""What the environments of the matrix reported, added up and judged."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools.interpreters import SUPPORTED, Interpreter, dotted

__all__ = ["Result", "print_summary", "read_result", "summary_faults"]


@dataclass(frozen=True)
class Result:
    """One environment's. `skips` counts by reason; `ran` and `deselected` are test names."""

    environment: str
    ok: bool
    seconds: float
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    skips: dict[str, int] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    deselected: list[str] = field(default_factory=list)

    @property
    def word(self) -> str:
        return "ok" if self.ok else "FAILED"


def read_result(environment: str, report: Path, code: int, seconds: float) -> Result:
    """From what conftest.py wrote; without a report the environment counts as one check."""
    if not report.exists():
        return Result(environment, code == 0, seconds, passed=int(code == 0), failed=int(code != 0))
    values = json.loads(report.read_text())
    if code != 0 and values["failed"] == 0:
        values["failed"] = 1
    return Result(environment, code == 0 and values["failed"] == 0, seconds, **values)


def summary_faults(results: Sequence[Result], interpreters: Sequence[Interpreter]) -> list[str]:
    """What a green run of the whole matrix would hide: an interpreter or a test that no environment ran."""
    faults = []
    for interpreter in interpreters:
        if not _passed_on(interpreter.version, results):
            faults.append(f"Python {dotted(interpreter.version)} is here, but passed no test")
    ran = {name for each in results for name in each.ran}
    never = sorted({name for each in results for name in each.deselected} - ran)
    faults += [f"no environment of the matrix runs {name}" for name in never]
    return faults


def print_summary(results: Sequence[Result], faults: Sequence[str], interpreters: Sequence[Interpreter]) -> int:
    """Prints the table, the skips and the sum; returns the exit status of the whole run."""
    print(f"\n{'environment':<14}{'result':<8}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}")
    for each in results:
        counts = f"{each.passed:>8}{each.failed:>8}{each.skipped:>9}"
        print(f"{each.environment:<14}{each.word:<8}{counts}{each.seconds:>9.0f}")
    ran = [version for version in SUPPORTED if _passed_on(version, results)]
    present = [interpreter.version for interpreter in interpreters]
    print(f"\nPython ran: {_list(ran)}")
    print(f"Python missing on this machine: {_list(v for v in SUPPORTED if v not in present)}")

    skips: Counter[str] = Counter()
    for each in results:
        skips.update(each.skips)
    print(f"Skipped: {skips.total()}")
    for reason, count in skips.most_common():
        print(f"  {count} x {reason}")
    for fault in faults:
        print(f"FAULT: {fault}")
    passed = sum(each.passed for each in results)
    failed = sum(each.failed for each in results) + len(faults)
    skipped = sum(each.skipped for each in results)
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped", flush=True)
    return 0 if results and not faults and all(each.ok for each in results) else 1


def _passed_on(version: tuple[int, int], results: Iterable[Result]) -> bool:
    prefix = "py{}{}-".format(*version)
    return any(each.environment.startswith(prefix) and each.passed for each in results)


def _list(versions: Iterable[tuple[int, int]]) -> str:
    return ", ".join(map(dotted, versions)) or "none"
