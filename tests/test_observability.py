"""Logs are one line an event, say where they come from, and never show a secret."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from raftkv_core.config import LoggingSettings
from raftkv_core.observability import configure_logging, get_logger


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Configuring is for a whole process; the tests beside this one are to notice nothing."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()


def configured(**settings: Any) -> io.StringIO:
    stream = io.StringIO()
    configure_logging(LoggingSettings(**settings), to=stream, node="node1")
    return stream


def test_a_program_reads_one_object_a_line() -> None:
    """JSON holds time, level, event and every field, whatever is in them."""
    stream = configured(format="json")
    get_logger("raftkv.node", part="log").info("two\nlines", port=8080, odd=b"\xff")
    line = json.loads(stream.getvalue())
    assert (line["level"], line["event"], line["port"]) == ("info", "two\nlines", 8080)
    assert (line["node"], line["part"], line["logger"]) == ("node1", "log", "raftkv.node")
    assert line["odd"] == "b'\\xff'"
    assert line["timestamp"].endswith("Z")
    assert list(line)[:3] == ["timestamp", "level", "event"]


def test_a_person_reads_one_line_an_event() -> None:
    """What came from outside can neither begin a line of its own nor send colours to the terminal."""
    stream = configured()
    get_logger("raftkv.node").warning("bad\nkey \x1b[31m", key="a b", path="x\ny")
    (line,) = stream.getvalue().splitlines()
    assert "[warning] bad\\nkey \\x1b[31m node=node1 key='a b' path='x\\ny' logger=raftkv.node" in line


def test_below_the_level_nothing_is_written() -> None:
    """For our own events and for libraries'."""
    stream = configured(level="warning")
    get_logger("raftkv").info("quiet")
    logging.getLogger("gunicorn").info("quiet")
    assert stream.getvalue() == ""
    get_logger("raftkv").error("loud")
    assert "loud" in stream.getvalue()


def test_libraries_log_the_same_way() -> None:
    """gunicorn and others use `logging`; their lines look like ours."""
    stream = configured(format="json")
    logging.getLogger("gunicorn.error").warning("worker %d died", 7)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["logger"], line["node"]) == ("worker 7 died", "gunicorn.error", "node1")


@pytest.mark.parametrize("kind", ["console", "json"])
def test_secrets_are_masked(kind: str) -> None:
    """By the name of their key, also inside of tables."""
    stream = configured(format=kind)
    get_logger("raftkv").info("request", token="hunter2", headers={"Authorization": "hunter2"}, peer_secret="hunter2")
    assert "hunter2" not in stream.getvalue()
    assert stream.getvalue().count("********") == 3


@pytest.mark.parametrize("kind", ["console", "json"])
def test_a_traceback_shows_no_local_variables(kind: str) -> None:
    """They hold values and secrets."""
    stream = configured(format=kind)
    held = "hunt" + "er2"
    try:
        raise RuntimeError("broken " + str(len(held)))
    except RuntimeError:
        get_logger("raftkv").exception("failed")
    assert "RuntimeError: broken 7" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


def test_the_module_is_cheap_until_it_is_used() -> None:
    """A command that logs nothing does not import structlog."""
    code = "import sys, raftkv_core.observability, raftkv_core.config; sys.exit('structlog' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
