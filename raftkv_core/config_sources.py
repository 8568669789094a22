"""Where configuration comes from: the file, the environment, options; each value with its origin.

Each source is asked for the values of one tree of known keys (`Tree`); what it holds beyond that is an error
that names it. Conversion and checks come later (`config.py`, `config_checks.py`).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple, Union

import msgspec

from raftkv_core.errors import ConfigError
from raftkv_core.schema import Field, choices, expected, fields, is_secret
from raftkv_core.suggest import did_you_mean

__all__ = [
    "INTERNAL_VARIABLES",
    "SEED_VARIABLES",
    "Environment",
    "File",
    "Given",
    "KeyPath",
    "Tree",
    "option_values",
    "refuse",
    "tree_of",
    "variable",
]

INTERNAL_VARIABLES: Final = frozenset(
    {"RAFTKV_RESOLVED", "RAFTKV_READY_FD", "RAFTKV_LOCK_FD", "RAFTKV_PARENT_PID", "RAFTKV_DEBUG", "RAFTKV_URL"}
)
"""Variables that raftkv's processes use between them or that commands read; no configuration of a node."""

SEED_VARIABLES: Final[Mapping[str, str]] = {
    "NODE_ID": "node.id",
    "BOOTSTRAP": "node.bootstrap",
    "JOIN_ADDR": "node.join_addr",
}
"""Short names of three keys, kept from the project this one grew from. `RAFTKV_NODE__ID` wins over NODE_ID."""

_PREFIX: Final = "RAFTKV_"
_SERVICE_LINK = re.compile(r"RAFTKV_(SERVICE_(HOST|PORT)|PORT)(_|$)")
_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_DOTTED = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_LINE = re.compile(rf"\s*(?:\[\[?\s*(?P<table>{_DOTTED})\s*\]|(?P<key>{_DOTTED})\s*=)")

KeyPath = tuple[str, ...]
Tree = dict[str, Union[Field, "Tree", None]]
"""Keys, and tables of keys. None marks a table that is known but cannot be read: its plugin is unusable."""


class Given(NamedTuple):
    """One value that somebody gave, with where."""

    path: KeyPath
    field: Field
    value: Any
    origin: str
    """As errors and `config show --origin` name it."""
    text: bool
    base: Path
    """The folder that a relative path is taken from."""


def tree_of(schema: type[msgspec.Struct]) -> Tree:
    """The keys of a schema, nested tables as trees."""
    return {key: tree_of(field.table) if field.table else field for key, field in fields(schema).items()}


def variable(path: KeyPath) -> str:
    """The environment variable of a key: `RAFTKV_STORAGE__LMDB__MAP_SIZE`."""
    return _PREFIX + "__".join(part.upper().replace("-", "_") for part in path)


class File:
    """A TOML file."""

    def __init__(self, path: Path) -> None:
        # imported here because a command that reads no file need not pay for it
        toml: Any = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
        self.path = path
        self.base = path.absolute().parent
        self._lines: dict[KeyPath, int] | None = None
        try:
            self._text = path.read_text("utf-8")
            self.table: dict[str, Any] = toml.loads(self._text)
        except FileNotFoundError:
            raise ConfigError(f"{path} does not exist; `raftkv config new {path}` writes one") from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not UTF-8 text: byte {error.start} cannot be decoded") from None
        except toml.TOMLDecodeError as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from None

    def at(self, path: KeyPath) -> str:
        """`FILE:LINE` of a key or table, or of the table that it would stand in; `FILE` if there is none."""
        if self._lines is None:
            self._lines = _lines(self._text)
        for length in range(len(path), 0, -1):
            if line := self._lines.get(path[:length]):
                return f"{self.path}:{line}"
        return str(self.path)

    def values(self, section: str, tree: Tree) -> Iterator[Given]:
        """The file's values in one section."""
        if section in self.table:
            yield from self._walk((section,), self.table[section], tree)

    def _walk(self, path: KeyPath, table: Any, tree: Tree) -> Iterator[Given]:
        if not isinstance(table, dict):
            raise ConfigError(f"{self.at(path)}: {'.'.join(path)} is a table: write it as [{'.'.join(path)}]")
        for key, value in table.items():
            here = (*path, key)
            if key not in tree:
                raise ConfigError(f"{self.at(here)}: unknown key {'.'.join(here)}; {choices(key, tree)}")
            node = tree[key]
            if isinstance(node, dict):
                yield from self._walk(here, value, node)
            elif node is not None:
                yield Given(here, node, value, self.at(here), False, self.base)


class Environment:
    """Variables `RAFTKV_<SECTION>__<KEY>`, and the three of the seed. An empty one counts as not set."""

    def __init__(self, environ: Mapping[str, str], sections: Mapping[str, Any]) -> None:
        self._ours = {
            name: value
            for name, value in environ.items()
            if name.startswith(_PREFIX) and name not in INTERNAL_VARIABLES and value != ""
        }
        self._seed = {name: environ[name] for name in SEED_VARIABLES if environ.get(name)}
        for name in self._ours:
            if self._parts(name)[0] not in {variable((section,))[len(_PREFIX) :] for section in sections}:
                raise self._unknown(name, [variable((section,)) + "__…" for section in sections])

    def tables(self, section: str) -> dict[str, str]:
        """The tables that variables of a section name, in small letters, with one variable for each."""
        return {
            parts[1].lower(): name
            for name in self._ours
            if len(parts := self._parts(name)) > 2 and parts[0] == section.upper()
        }

    def values(self, section: str, tree: Tree) -> Iterator[Given]:
        """The environment's values in one section, the seed's names first."""
        known = {variable(path): (path, field) for path, field in _flat((section,), tree)}
        skipped = tuple(variable((section, key)) + "__" for key, node in tree.items() if node is None)
        for name, value in {**self._seed, **self._ours}.items():
            full = variable(tuple(SEED_VARIABLES[name].split("."))) if name in SEED_VARIABLES else name
            if self._parts(full)[0] != section.upper() or full.startswith(skipped):
                continue
            if full not in known:
                raise self._unknown(name, known)
            path, field = known[full]
            yield Given(path, field, value, f"environment {name}", True, Path.cwd())

    @staticmethod
    def _parts(name: str) -> list[str]:
        return name[len(_PREFIX) :].split("__")

    @staticmethod
    def _unknown(name: str, known: Mapping[str, Any] | list[str]) -> ConfigError:
        if _SERVICE_LINK.match(name):
            return ConfigError(
                f"environment variable {name} is no option of raftkv. Kubernetes sets it for a service called "
                "raftkv: set enableServiceLinks: false, or give the service another name"
            )
        section, _, rest = name.partition("__")
        wanted = "" if rest else "; an option is RAFTKV_<SECTION>__<KEY>, with two underscores"
        near = did_you_mean(name, known)
        listed = [other for other in known if other.startswith(section + "__")] or list(known)
        what = "" if near or wanted else f"; expected one of: {', '.join(listed)}"
        return ConfigError(f"environment variable {name} is not known{wanted or what}.{near}")


def _flat(path: KeyPath, tree: Tree) -> Iterator[tuple[KeyPath, Field]]:
    for key, node in tree.items():
        if isinstance(node, dict):
            yield from _flat((*path, key), node)
        elif node is not None:
            yield (*path, key), node


def option_values(options: Mapping[str, Any], section: str, tree: Tree) -> Iterator[Given]:
    """Options by dotted key (`storage.use`); strings are read as text."""
    known = {".".join(path): (path, field) for path, field in _flat((section,), tree)}
    for key, value in options.items():
        if key.split(".")[0] != section:
            continue
        if key not in known:
            raise ConfigError(f"option {key} is not known; {choices(key, known)}")
        path, field = known[key]
        yield Given(path, field, value, "option", isinstance(value, str), Path.cwd())


def refuse(given: Given, error: ValueError) -> ConfigError:
    """The error for a value that cannot be converted; a secret's value is not repeated."""
    shown = "" if is_secret(given.path[-1]) else f" = {given.value!r}"
    return ConfigError(f"{given.origin}: {'.'.join(given.path)}{shown}: {error or expected(given.field)}")


def _lines(text: str) -> dict[KeyPath, int]:
    """Line numbers of tables and keys. TOML parsers give none; this one reads only what errors need, and a
    line inside a multi-line string may deceive it into a wrong number, never into a wrong value."""
    found: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.match(line)
        if match is None:
            continue
        parts = tuple(part.strip("\"'") for part in re.findall(_KEY, match["table"] or match["key"]))
        if match["table"]:
            table = parts
        path = table if match["table"] else table + parts
        for length in range(1, len(path) + 1):
            found.setdefault(path[:length], number)
    return found
