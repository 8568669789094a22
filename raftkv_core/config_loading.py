"""Resolves file, environment and options into one `Config` (see `config.load_config`).

The order matters: the core's tables come first, because `[plugins] disabled` decides which plugins are
imported at all; then each plugin's table is read by that plugin's own schema; then the whole is checked.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from raftkv_core.config import PLUGIN_SECTIONS, SECTIONS, Config, Resolution, Selected
from raftkv_core.config_checks import check_config
from raftkv_core.config_sources import (
    Environment,
    File,
    Given,
    KeyPath,
    Tree,
    option_values,
    refuse,
    tree_of,
    variable,
)
from raftkv_core.errors import ConfigError, PluginError
from raftkv_core.registry import Registry
from raftkv_core.schema import choices, convert_value, leaves

__all__ = ["Loader", "disabled_plugins"]


def disabled_plugins(path: Path | None, environ: Mapping[str, str]) -> list[str]:
    """`[plugins] disabled` alone, for who looks at plugins before the rest of the configuration is right."""
    return Loader(path, environ, {}, Registry([])).disabled()


class Loader:
    """One resolution; used once."""

    def __init__(
        self, path: Path | None, environ: Mapping[str, str], options: Mapping[str, Any], registry: Registry
    ) -> None:
        sections = {**SECTIONS, **PLUGIN_SECTIONS}
        self._file = File(path) if path is not None else None
        self._environment = Environment(environ, sections)
        self._options = options
        self._registry = registry
        self._base = self._file.base if self._file else Path.cwd()
        self._given: dict[KeyPath, Given] = {}
        self._origins: dict[str, str] = {}
        self._warnings: list[str] = []
        for section in self._file.table if self._file else ():
            if section not in sections:
                raise ConfigError(f"{self._at((section,))}: unknown table {section}; {choices(section, sections)}")
        for option in options:
            if option.split(".")[0] not in sections:
                raise ConfigError(f"option {option} is not known; {choices(option, sections)}")

    def disabled(self) -> list[str]:
        self._collect("plugins", tree_of(SECTIONS["plugins"]))
        names: list[str] = self._table(("plugins",), SECTIONS["plugins"])["disabled"]
        return names

    def load(self) -> Resolution:
        tables: dict[str, Any] = {}
        for section, schema in SECTIONS.items():
            self._collect(section, tree_of(schema))
            tables[section] = self._table((section,), schema)
        disabled = tables.pop("plugins")["disabled"]
        self._registry.disable(disabled)
        self._warnings += [
            f"[plugins] disabled names {name!r}, which is not installed" for name in self._registry.disabled_in_vain
        ]
        config = msgspec.convert(
            {
                **tables,
                "disabled": disabled,
                "storage": self._select("storage", self._default_storage)[0],
                "consensus": self._select("consensus", lambda: ["solo"])[0],
                "transports": self._select("transport", lambda: ["http"] if self._has("transport", "http") else []),
            },
            Config,
        )
        self._warnings += check_config(config, self._registry, self._where)
        return Resolution(config, self._origins, self._warnings)

    def _collect(self, section: str, tree: Tree) -> None:
        if self._file:
            self._given.update((given.path, given) for given in self._file.values(section, tree))
        for source in (
            self._environment.values(section, tree),
            option_values(self._options, section, tree),
        ):
            self._given.update((given.path, given) for given in source)

    def _table(self, prefix: KeyPath, schema: type[msgspec.Struct]) -> dict[str, Any]:
        """One table as plain values, defaults filled in, with the origin of each."""
        values: dict[str, Any] = {}
        for path, _field in leaves(schema, prefix):
            given = self._given.get(path)
            if given is not None:
                _put(values, path[len(prefix) :], _convert(given))
        try:
            plain: dict[str, Any] = msgspec.to_builtins(msgspec.convert(values, schema))
        except msgspec.ValidationError as error:
            raise ConfigError(f"{self._at(prefix)}: [{'.'.join(prefix)}]: {error}") from None
        for path, field in leaves(schema, prefix):
            relative = path[len(prefix) :]
            given = self._given.get(path)
            self._origins[".".join(path)] = given.origin if given else "default"
            value = _get(plain, relative)
            if given is None and field.is_path and value:
                _put(plain, relative, os.path.normpath(self._base / value))
        return plain

    def _select(self, kind: str, default: Any) -> list[Selected]:
        tree = self._plugin_tree(kind)
        self._collect(kind, tree)
        given = self._given.get((kind, "use"))
        self._origins[f"{kind}.use"] = given.origin if given else "default"
        chosen = _convert(given) if given else default()
        names: list[str] = [chosen] if isinstance(chosen, str) else chosen
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{self._at((kind, 'use'))}: {kind}.use names {name!r} twice; once is enough")
        selected = []
        for name in names:
            try:
                plugin = self._registry.plugin(kind, name)
            except PluginError as error:
                raise PluginError(f"{given.origin}: {error}" if given else str(error)) from None
            selected.append(Selected(name=name, settings=self._table((kind, name), plugin.settings)))
        for name in self._registry.names(kind):
            if name not in names and any(path[:2] == (kind, name) for path in self._given):
                origins = dict(self._origins)
                self._table((kind, name), self._registry.plugin(kind, name).settings)
                self._origins = origins
        return selected

    def _plugin_tree(self, kind: str) -> Tree:
        tree = tree_of(PLUGIN_SECTIONS[kind])
        in_file = self._file.table.get(kind, {}) if self._file else {}
        in_environment = self._environment.tables(kind)
        for row in sorted(self._registry.rows, key=lambda row: (row.kind == "plugin", row.status != "ok")):
            if row.kind not in {kind, "plugin"} or row.name in tree:
                continue
            if row.status == "ok":
                tree[row.name] = tree_of(self._registry.plugin(kind, row.name).settings)
            else:
                tree[row.name] = None
                if row.name in in_file or row.name in in_environment:
                    self._warnings.append(f"[{kind}.{row.name}] is not read: {row.distribution}: {row.reason}")
        for name, value in in_file.items() if isinstance(in_file, dict) else ():
            if name not in tree and isinstance(value, dict):
                raise PluginError(f"{self._at((kind, name))}: [{kind}.{name}]: {self._registry.unknown(kind, name)}")
        for name, source in in_environment.items():
            if not any(variable((key,)) == variable((name,)) for key in tree):
                raise PluginError(f"environment {source}: {self._registry.unknown(kind, name)}")
        return tree

    def _default_storage(self) -> list[str]:
        if self._has("storage", "lmdb"):
            return ["lmdb"]
        row = self._registry.find("storage", "lmdb")
        if row is not None and row.status != "disabled":
            self._warnings.append(f"storage 'lmdb' cannot be used, memory is used instead: {row.reason}")
        return ["memory"]

    def _has(self, kind: str, name: str) -> bool:
        return name in self._registry.names(kind)

    def _at(self, path: KeyPath) -> str:
        given = self._given.get(path)
        if given is not None:
            return given.origin
        return self._file.at(path) if self._file else "configuration"

    def _where(self, key: str) -> str:
        """` (FILE:12)` for a key that somebody set, for errors of the checks."""
        origin = self._origins.get(key, "default")
        return "" if origin == "default" else f" ({origin})"


def _convert(given: Given) -> Any:
    try:
        return convert_value(given.field, given.value, text=given.text, base=given.base)
    except ValueError as error:
        raise refuse(given, error) from None


def _put(table: dict[str, Any], path: KeyPath, value: Any) -> None:
    for key in path[:-1]:
        table = table.setdefault(key, {})
    table[path[-1]] = value


def _get(table: Any, path: KeyPath) -> Any:
    for key in path:
        table = table.get(key) if isinstance(table, dict) else None
    return table
