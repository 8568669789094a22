"""The rules of conftest.py hold: each test runs a small session under them, in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.needs import MACHINE

ROOT = Path(__file__).resolve().parent.parent


class Session:
    """A folder with our conftest.py, in which pytest is run."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.report_path = pytester.path / "report.json"
        pytester.makeini(f"[pytest]\npythonpath = {ROOT}\naddopts = --import-mode=importlib\n")
        pytester.makeconftest((ROOT / "conftest.py").read_text())

    def run(self, source: str, *options: str) -> pytest.RunResult:
        self.pytester.makepyfile(test_it=source)
        return self.pytester.runpytest_subprocess("-p", "no:cacheprovider", *options)

    def report(self) -> dict[str, Any]:
        return dict(json.loads(self.report_path.read_text()))


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Session:
    """With no requirement on the environment, and a report."""
    made = Session(pytester)
    monkeypatch.delenv("TEST_REQUIRE", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setenv("TEST_REPORT", str(made.report_path))
    return made


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["alone", "xdist"])
@pytest.mark.parametrize(
    "source",
    [
        "import pytest\ndef test_a(): pytest.skip('not today')",
        "import pytest\nlmdb = pytest.importorskip('no_such_library')\ndef test_a(): pass",
        "import pytest\n@pytest.mark.xfail\ndef test_a(): assert False",
    ],
    ids=["skip", "importorskip", "xfail"],
)
def test_unlisted_skip_fails_the_run(session: Session, source: str, options: tuple[str, ...]) -> None:
    """A skip for a reason of one's own, a missing import or an expected failure makes the run red, by name."""
    result = session.run(source + "\ndef test_ok(): pass", *options)
    assert result.ret != 0
    assert "test_it.py" in result.stdout.str().partition("not permitted")[2]
    assert session.report()["failed"] >= 1


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_listed_skip_passes_and_is_reported(session: Session, options: tuple[str, ...]) -> None:
    """A machine may lack what the list names; the reason is in the report."""
    source = """
        import pytest, shutil, tools.needs
        tools.needs.shutil.which = lambda name: None

        @pytest.mark.needs("etcd")
        def test_a(): assert False

        def test_b(): pass
    """
    result = session.run(source, *options)
    assert result.ret == 0
    report = session.report()
    assert (report["passed"], report["failed"], report["skipped"]) == (1, 0, 1)
    assert report["skips"] == {MACHINE["etcd"].reason: 1}


def test_unknown_need_is_an_error(session: Session) -> None:
    """A misspelt need does not skip: it fails and lists the needs there are."""
    result = session.run("import pytest\n@pytest.mark.needs('etdc')\ndef test_a(): pass")
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*no 'etdc', only*etcd*"])


@pytest.mark.parametrize("options", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_forgotten_process_fails_the_run(session: Session, options: tuple[str, ...]) -> None:
    """A process that outlives the tests is named and ended, even one that left its parent."""
    source = """
        import subprocess, sys

        def test_a():
            orphan = "import time; time.sleep(321)"
            middle = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {orphan!r}])"
            subprocess.run([sys.executable, "-c", middle], check=True)
    """
    result = session.run(source, *options)
    assert result.ret != 0
    result.stdout.fnmatch_lines(["*left running by a test: process *time.sleep(321)*"])


def test_environment_must_have_what_it_names(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that should test a plugin does not quietly run without it."""
    monkeypatch.setenv("TEST_REQUIRE", "no_such_plugin")
    result = session.run("def test_a(): pass")
    assert result.ret != 0
    result.stderr.fnmatch_lines(["*TEST_REQUIRE names 'no_such_plugin', which is no plugin here*"])


def test_environment_must_lack_what_it_does_not_name(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """The core's environment proves nothing while a plugin's library is importable in it."""
    session.pytester.mkpydir("lmdb")
    monkeypatch.setenv("TEST_REQUIRE", "")
    monkeypatch.setenv("PYTHONPATH", str(session.pytester.path))
    result = session.run("def test_a(): pass")
    assert result.ret != 0
    result.stderr.fnmatch_lines(["*'lmdb' must be absent here, but lmdb is installed*"])


def test_deselected_tests_are_reported(session: Session) -> None:
    """`make test` can tell a test that no environment runs."""
    result = session.run("def test_a(): pass\ndef test_b(): pass", "-k", "test_a", "-n", "1")
    assert result.ret == 0
    assert session.report()["ran"] == ["test_it.py::test_a"]
    assert session.report()["deselected"] == ["test_it.py::test_b"]
