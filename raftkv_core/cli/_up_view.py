"""What `raftkv up` shows: a live table on a terminal, plain lines everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

__all__ = ["Plain", "Row", "View", "open_view"]

_STYLES: Final = {"ready": "green", "down": "red", "not answering": "red", "stopped": "dim"}


@dataclass(frozen=True)
class Row:
    """One node, as it stands."""

    name: str
    state: str
    """`starting`, `ready`, `waiting` (for a leader), `not answering`, `restarting`, `stopping`, `stopped`, `down`."""
    detail: str = ""
    """Why, where that helps."""
    role: str = ""
    urls: Sequence[tuple[str, str]] = field(default=())
    """Listener and URL, the one for clients first."""
    pid: int | None = None
    """The node process's."""
    revision: int | None = None


class View(Protocol):
    """Where the state of the cluster is shown."""

    def say(self, text: str) -> None:
        """Something that happened, once."""

    def show(self, rows: Sequence[Row], hints: Sequence[str]) -> None:
        """How things stand. `hints`: lines to paste, once there is somebody to answer them."""

    def close(self) -> None: ...


def open_view() -> View:
    """The table if standard output is a terminal that can show one."""
    if sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415  (slow to import, and lines need none of it)

        console = Console(highlight=False)
        if not console.is_dumb_terminal:
            return _Table(console)
    return Plain()


class Plain:
    """A line for each change of a node's state, and one for each thing said."""

    def __init__(self) -> None:
        self._shown: dict[str, tuple[str, str]] = {}
        self._hinted = False

    def say(self, text: str) -> None:
        print(text, flush=True)  # noqa: T201

    def show(self, rows: Sequence[Row], hints: Sequence[str]) -> None:
        for row in rows:
            if self._shown.get(row.name) == (row.state, row.detail):
                continue
            self._shown[row.name] = (row.state, row.detail)
            parts = [f"{row.name}: {row.state}"]
            if row.detail:
                parts.append(f"({row.detail})")
            if row.state == "ready":
                parts += [f"{listener} {url}" for listener, url in row.urls]
            if row.pid is not None:
                parts.append(f"pid {row.pid}")
            self.say("  ".join(parts))
        if hints and not self._hinted:
            self._hinted = True
            for hint in hints:
                self.say(hint)

    def close(self) -> None:
        """Nothing to put back."""


class _Table:
    """Redrawn in place; what is said scrolls by above it."""

    def __init__(self, console: Any) -> None:
        from rich.live import Live  # noqa: PLC0415

        self._live = Live(console=console, auto_refresh=False)
        self._live.start()

    def say(self, text: str) -> None:
        from rich.text import Text  # noqa: PLC0415

        self._live.console.print(Text(text), soft_wrap=True)

    def show(self, rows: Sequence[Row], hints: Sequence[str]) -> None:
        from rich.console import Group  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        listeners = list(dict.fromkeys(listener for row in rows for listener, _url in row.urls))
        for title in ("node", "state", "role", *listeners):
            table.add_column(title, overflow="fold")
        table.add_column("pid", justify="right")
        table.add_column("revision", justify="right")
        for row in rows:
            urls = dict(row.urls)
            state = f"{row.state} ({row.detail})" if row.detail else row.state
            table.add_row(
                row.name,
                Text(state, style=_STYLES.get(row.state, "yellow")),
                row.role or "-",
                *(Text(urls.get(listener, "-")) for listener in listeners),
                "-" if row.pid is None else str(row.pid),
                "-" if row.revision is None else str(row.revision),
            )
        over = all(row.state in {"down", "stopped"} for row in rows)
        below = [] if over else ["", *hints, "Ctrl-C stops all nodes; their data stays."]
        self._live.update(Group(table, *map(Text, below)), refresh=True)

    def close(self) -> None:
        self._live.stop()
