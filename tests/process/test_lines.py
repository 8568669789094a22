"""The supervisor's log lines look like everybody else's."""

from __future__ import annotations

import errno
import io
import json
import re
from pathlib import Path

from raftkv_core.config import LoggingSettings
from raftkv_core.node.lines import Lines


def test_console_lines_are_for_people() -> None:
    """Time, level, event, then fields; a value that would be misread is quoted; debug is left out."""
    to = io.StringIO()
    say = Lines(LoggingSettings(), to, node="node1")
    say("debug", "not shown")
    say("warning", "node ended", ended="exit status 1", delay_s=0.1)
    when = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    line = rf"{when} \[warning\] node ended node=node1 ended='exit status 1' delay_s=0.1\n"
    assert re.fullmatch(line, to.getvalue())


def test_json_lines_are_for_programs() -> None:
    """One object a line, whatever the values are."""
    to = io.StringIO()
    Lines(LoggingSettings(format="json"), to, node="node1")("info", "ready", pid=7, path=Path("/x"))
    line = json.loads(to.getvalue())
    del line["timestamp"]
    assert line == {"level": "info", "event": "ready", "node": "node1", "pid": 7, "path": "/x"}


def test_a_log_that_cannot_be_written_is_no_fault() -> None:
    """A full disk or a closed terminal does not stop the supervisor."""

    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    Lines(LoggingSettings(), Full())("error", "node ended")
