"""Configuration as TOML text: fresh files with every key explained, and the resolved configuration shown.

Both are written from the schemas, so that they cannot fall behind them.

    print(render(registry, {"cluster.id": "…", "storage.use": "lmdb", "node.data_dir": "data"}, title="…"))

`values` are written as set, by dotted key; every other key stands as a comment with its default.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from raftkv_core.config import PLUGIN_SECTIONS, SECTIONS, Config, Resolution
from raftkv_core.errors import ConfigError
from raftkv_core.registry import Registry
from raftkv_core.schema import MASK, Field, choices, fields, hint, is_secret, size_text

__all__ = ["as_tables", "default_of", "fresh_cluster_id", "render", "show", "toml_value"]

_WIDTH = 100
_ORDER = ("cluster", "node", "storage", "consensus", "transport", "log", "limits", "logging", "plugins")


def fresh_cluster_id() -> str:
    """A new cluster's id: 32 hex digits."""
    import uuid  # noqa: PLC0415  (only who makes a cluster needs it)

    return uuid.uuid4().hex


def render(registry: Registry, values: Mapping[str, Any], *, title: str = "") -> str:
    """A complete file. What is chosen follows `<kind>.use` in `values`, else what is installed.

    Raises ConfigError for a key that no table has, PluginError for a plugin that cannot be used.
    """
    writer = _Writer(values)
    lines = list(_comment(title)) if title else []
    for section in _ORDER:
        if section in SECTIONS:
            lines += writer.table((section,), SECTIONS[section])
            continue
        installed = registry.names(section)
        chosen: Any = {
            "storage": "lmdb" if "lmdb" in installed else "memory",
            "consensus": "solo",
            "transport": ["http"] if "http" in installed else [],
        }[section]
        chosen = writer.values.setdefault(f"{section}.use", chosen)
        lines += writer.table((section,), PLUGIN_SECTIONS[section])
        for name in [chosen] if isinstance(chosen, str) else chosen:
            lines += writer.table((section, name), registry.plugin(section, name).settings)
    for key in values:
        if key not in writer.known:
            raise ConfigError(f"{key} is not known; {choices(key, dict.fromkeys(writer.known))}")
    return "\n".join(lines).strip() + "\n"


def as_tables(config: Config) -> dict[str, Any]:
    """The resolved configuration in the shape of a file, with secrets masked."""
    tables = {section: msgspec.to_builtins(getattr(config, section)) for section in SECTIONS if section != "plugins"}
    tables["plugins"] = {"disabled": config.disabled}
    for kind, selected in (
        ("storage", [config.storage]),
        ("consensus", [config.consensus]),
        ("transport", config.transports),
    ):
        names = [plugin.name for plugin in selected]
        tables[kind] = {"use": names if kind == "transport" else names[0]}
        tables[kind].update((plugin.name, plugin.settings) for plugin in selected)
    return {section: _masked(tables[section]) for section in _ORDER}


def show(resolution: Resolution, *, origins: bool = False) -> str:
    """The resolved configuration as TOML, each key with where it comes from if `origins`."""
    lines: list[str] = []
    for section, table in as_tables(resolution.config).items():
        lines += _show_table((section,), table, resolution.origins, origins)
    return "\n".join(lines).strip() + "\n"


def toml_value(value: Any) -> str:
    """One value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(key)} = {toml_value(item)}" for key, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    return repr(value)


class _Writer:
    """Writes tables and remembers which keys there were."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = dict(values)
        self.known: list[str] = []

    def table(self, path: tuple[str, ...], schema: type[msgspec.Struct]) -> Iterator[str]:
        below = fields(schema)
        if not below and len(path) > 1:
            return
        yield ""
        about = (schema.__doc__ or "").strip().splitlines()
        # a plugin's docstring may only repeat the name of the table, or be what msgspec makes up
        if about and not about[0].startswith((schema.__name__, "`[")):
            yield from _comment(about[0])
        yield f"[{'.'.join(_key(part) for part in path)}]"
        nested = []
        for field in below.values():
            if field.table is None:
                yield from self._key(path, field)
            else:
                nested.append(field)
        for field in nested:
            assert field.table is not None
            yield from self.table((*path, field.key), field.table)

    def _key(self, path: tuple[str, ...], field: Field) -> Iterator[str]:
        name = ".".join((*path, field.key))
        self.known.append(name)
        limits = hint(field)
        yield from _comment(" ".join(filter(None, (_sentence(field.description), limits and f"({limits})"))))
        if name in self.values:
            yield f"{_key(field.key)} = {toml_value(self.values[name])}"
        elif field.default is msgspec.NODEFAULT:
            yield f"# {_key(field.key)} =   (required)"
        else:
            yield f"# {_key(field.key)} = {toml_value(default_of(field))}"


def default_of(field: Field) -> Any:
    """A default as a person would write it: sizes with their unit."""
    value = msgspec.to_builtins(field.default)
    if field.is_size and isinstance(value, int) and value >= 1024 and not isinstance(value, bool):
        return size_text(value)
    return "" if value is None else value


def _show_table(
    path: tuple[str, ...], table: Mapping[str, Any], origins: Mapping[str, str], with_origins: bool
) -> Iterator[str]:
    if not table:
        return
    nested = []
    yield ""
    yield f"[{'.'.join(_key(part) for part in path)}]"
    for key, value in table.items():
        name = ".".join((*path, key))
        if isinstance(value, dict) and name not in origins:  # a table of keys, not a key that holds a table
            nested.append(key)
        elif value is not None:
            yield f"{_key(key)} = {toml_value(value)}" + (f"  # {origins.get(name, '')}" if with_origins else "")
    for key in nested:
        yield from _show_table((*path, key), table[key], origins, with_origins)


def _masked(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {inner: _masked(item, inner) for inner, item in value.items()}
    return MASK if is_secret(key) and value else value


def _comment(text: str) -> Iterator[str]:
    for line in text.splitlines():
        yield from (f"# {part}".rstrip() for part in textwrap.wrap(line, _WIDTH) or [""])


def _sentence(text: str) -> str:
    """Descriptions may be phrases; in a file they stand as sentences."""
    text = text.strip()
    return text and text[0].upper() + text[1:] + ("" if text.endswith((".", ":")) else ".")


def _key(key: str) -> str:
    bare = key and all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in key)
    return key if bare else json.dumps(key, ensure_ascii=False)
