"""The other processes of the storage contract: a reader, a writer that gets killed, one that dies at every step.

    python -m raftkv_core.testing.storage_child ROLE SPEC

SPEC (JSON, `Spec`) says which engine, with which settings, where. Results go to standard output, one JSON
document a line. This file imports neither pytest nor Hypothesis.
"""

from __future__ import annotations

import base64
import itertools
import os
import shutil
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import msgspec

from raftkv_core.errors import StorageError
from raftkv_core.interfaces.storage import TABLES, ReadTransaction, Storage, StorageReader

__all__ = ["NEW", "OLD", "Spec", "numbered_rows"]

OLD: Final = {"kv": {b"old": b"1", b"both": b"old"}, "meta": {b"state": b"old"}}
NEW: Final = {"kv": {b"new": b"2", b"both": b"new"}, "changes": {b"c": b"new"}}

_CRASHED: Final = 99
_SAME_LINE_MAX: Final = 2
"""A line in a loop is a crash point that often; more would only repeat it."""

_KEPT: Final = 200
_STDLIB: Final = sysconfig.get_path("stdlib")

Rows = dict[str, dict[bytes, bytes]]


class Spec(msgspec.Struct):
    """`load` and `schema`: `module:name` of the engine and of its settings; `settings`: the table."""

    load: str
    schema: str
    settings: dict[str, Any]
    directory: str

    def storage(self, directory: Path | None = None) -> Storage:
        made: Storage = _named(self.load)(directory or Path(self.directory), self.checked())
        return made

    def reader(self, directory: Path | None = None) -> StorageReader:
        opened: StorageReader = _named(self.load).open_reader(directory or Path(self.directory), self.checked())
        return opened

    def checked(self) -> Any:
        return msgspec.convert(self.settings, _named(self.schema))


def numbered_rows(number: int) -> Rows:
    """What `committer` leaves after so many commits."""
    if not number:
        return {}
    first = max(1, number - _KEPT + 1)
    return {
        "meta": {b"number": b"%d" % number},
        "changes": {b"%08d" % each: _row(each) for each in range(first, number + 1)},
        "kv": {b"%d" % (each % 50): b"%d" % each for each in range(max(1, number - 49), number + 1)},
    }


# -------------------------------------------------------------------- roles


def reader(spec: Spec) -> None:
    """Does what standard input says, a word a line, until it ends.

    open, close: the reader. begin, pinned, end: a snapshot of it. newest: the rows that it sees now. another: the
    rows that a second reader sees, opened and closed beside it.
    """
    opened: StorageReader | None = None
    pinned: ReadTransaction | None = None
    for line in sys.stdin:
        word = line.strip()
        answer: Any = "done"
        try:
            if word == "open":
                opened = spec.reader()
            assert opened is not None
            if word == "begin":
                pinned = opened.read()
            elif word == "pinned":
                assert pinned is not None
                answer = _shown(pinned)
            elif word == "end":
                assert pinned is not None
                pinned.close()
            elif word == "newest":
                with opened.read() as txn:
                    answer = _shown(txn)
            elif word == "another":
                another = spec.reader()
                with another.read() as txn:
                    answer = _shown(txn)
                another.close()
            elif word == "close":
                opened.close()
        except (StorageError, NotImplementedError) as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        _say(answer)


def committer(spec: Spec) -> NoReturn:
    """Commits 1, 2, 3 … on from what is there, saying each when it is done; syncs every tenth. Until killed."""
    storage = spec.storage()
    with storage.read() as txn:
        first = int(txn.get("meta", b"number") or b"0") + 1
    for number in itertools.count(first):
        with storage.write() as writing:
            writing.put_many("changes", [(b"%08d" % number, _row(number))])
            writing.put("kv", b"%d" % (number % 50), b"%d" % number)
            writing.put("meta", b"number", b"%d" % number)
            writing.delete_many("changes", [b"%08d" % (number - _KEPT)])
            writing.commit()
        _say(["committed", number])
        if number % 10 == 0:
            storage.sync()
            _say(["synced", number])
    raise AssertionError


def crash_in_creation(spec: Spec) -> None:
    """Dies before each line of the engine's code that runs while a store is made, and looks at what is left."""

    engine, settings = _named(spec.load), spec.checked()

    def prepare(directory: Path) -> Callable[[], object]:
        return lambda: engine(directory, settings)

    _crash_at_each_step(spec, prepare)


def crash_in_activation(spec: Spec) -> None:
    """The same for `activate`, from a store with the rows OLD to one with NEW."""

    def prepare(directory: Path) -> Callable[[], object]:
        storage = spec.storage(directory)
        _fill(storage, OLD)
        storage.sync()
        restore = storage.begin_restore()
        _fill(restore, NEW)
        return restore.activate

    _crash_at_each_step(spec, prepare)


# -------------------------------------------------------------------- crashing


def _crash_at_each_step(spec: Spec, prepare: Callable[[Path], Callable[[], object]]) -> None:
    _named(spec.load)  # imported once, not in each fork; the engine itself is only ever used in forks
    for step in itertools.count():
        directory = Path(spec.directory) / str(step)

        def run(directory: Path = directory, step: int = step) -> str:
            _crash_before(step, prepare(directory))
            return ""

        where = _in_fork(run)
        report = {
            "step": step,
            "where": where,
            "reader": _in_fork(lambda d=directory: _read(spec, d)),  # type: ignore[misc]
            "storage": _in_fork(lambda d=directory: _use(spec, d)),  # type: ignore[misc]
        }
        _say(report)
        shutil.rmtree(directory, ignore_errors=True)
        if not where:
            return


def _crash_before(step: int, run: Callable[[], object]) -> None:
    """Run, and die before line number `step` of code outside the standard library, saying which it was."""
    seen: Counter[tuple[str, int]] = Counter()
    steps = itertools.count()

    def in_frame(frame: FrameType, event: str, _argument: object) -> Any:
        line = (frame.f_code.co_filename, frame.f_lineno)
        if event == "line":
            seen[line] += 1
            if seen[line] <= _SAME_LINE_MAX and next(steps) == step:
                _say_to_parent(f"{Path(line[0]).name}:{line[1]}")
                os._exit(_CRASHED)
        return in_frame

    def on_call(frame: FrameType, _event: str, _argument: object) -> Any:
        name = frame.f_code.co_filename
        standard = name.startswith(("<", _STDLIB)) and "-packages" not in name
        return None if standard else in_frame

    sys.settrace(on_call)
    run()
    sys.settrace(None)


_to_parent = -1


def _say_to_parent(answer: Any) -> None:
    os.write(_to_parent, msgspec.json.encode(answer))


def _in_fork(run: Callable[[], Any]) -> Any:
    """What `run` returns, or said before it died, from a process of its own. It must fit into a pipe."""
    global _to_parent
    receive, _to_parent = os.pipe()
    child = os.fork()
    if not child:
        try:
            _say_to_parent(run())
            os._exit(0)
        except BaseException as error:  # noqa: BLE001
            _say_to_parent({"error": type(error).__name__, "message": str(error)})
            os._exit(1)
    os.close(_to_parent)
    os.waitpid(child, 0)
    with open(receive, "rb") as pipe:  # noqa: PTH123
        data = pipe.read()
    return msgspec.json.decode(data) if data else {"error": "died without a word"}


def _read(spec: Spec, directory: Path) -> dict[str, Any]:
    """What a reader finds that comes before the writer has put anything in order."""
    opened = spec.reader(directory)
    with opened.read() as txn:
        return {"rows": _shown(txn)}


def _use(spec: Spec, directory: Path) -> dict[str, Any]:
    """What the writer finds; and all that a store can do, done again."""
    storage = spec.storage(directory)
    with storage.read() as txn:
        found: dict[str, Any] = {"rows": _shown(txn), "generation": storage.generation}
    _fill(storage, OLD)
    restore = storage.begin_restore()
    _fill(restore, NEW)
    restore.activate()
    storage.sync()
    storage.close()
    storage = spec.storage(directory)
    with storage.read() as txn:
        found.update(rows_then=_shown(txn), generation_then=storage.generation)
    return found


# -------------------------------------------------------------------- small


def _fill(target: Any, rows: Rows) -> None:
    with target.write() as txn:
        for table, added in rows.items():
            txn.put_many(table, added.items())
        txn.commit()


def _row(number: int) -> bytes:
    return b"%d " % number * 40


def _shown(txn: ReadTransaction) -> list[list[str]]:
    return [[table, _text(key), _text(row)] for table in TABLES for key, row in txn.scan(table)]


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def shown_rows(shown: list[list[str]]) -> Rows:
    """What `_shown` showed."""
    rows: Rows = {}
    for table, key, row in shown:
        rows.setdefault(table, {})[base64.b64decode(key)] = base64.b64decode(row)
    return rows


def _named(path: str) -> Any:
    module, _, name = path.partition(":")
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _say(answer: Any) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


ROLES: Final[dict[str, Callable[[Spec], None]]] = {
    "reader": reader,
    "committer": committer,
    "crash_in_creation": crash_in_creation,
    "crash_in_activation": crash_in_activation,
}

if __name__ == "__main__":
    ROLES[sys.argv[1]](msgspec.json.decode(sys.argv[2], type=Spec))
