"""The plugins of this environment: what is there, what is wrong with it, and how to get at one.

    registry = Registry.discover()
    registry.rows                               # what `raftkv plugins` shows
    plugin = registry.storage("lmdb")           # PluginError with the remedy if it cannot be used
    settings = registry.settings(plugin, {"map_size": 1 << 40})
    engine = registry.load(plugin)(directory, settings)

Entry points are found at once and imported when the registry is first asked something, so that a
configuration can disable one before it is imported. A broken, conflicting or outdated plugin is a row, and an
error only for who asks for it. For tests, `Registry([PluginEntryPoint(...), ...])` needs nothing installed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from raftkv_core.errors import PluginError
from raftkv_core.hookspecs import (
    API_VERSION,
    CommandPlugin,
    ConsensusPlugin,
    Descriptor,
    StoragePlugin,
    TransportPlugin,
)
from raftkv_core.plugin_loading import (
    PluginEntryPoint,
    installed_entry_points,
    load_entry_point,
    load_object,
)
from raftkv_core.schema import convert_table
from raftkv_core.suggest import did_you_mean

__all__ = ["PluginEntryPoint", "PluginRow", "Registry", "RowStatus"]

RowStatus = Literal["ok", "broken", "conflict", "outdated", "disabled"]
Plugin = TypeVar("Plugin", StoragePlugin, ConsensusPlugin, TransportPlugin, CommandPlugin)


@dataclass(frozen=True, slots=True)
class PluginRow:
    """One line of `raftkv plugins`."""

    kind: str
    """`storage`, `consensus`, `transport`, `command`; `plugin` for an entry point whose kind is not known."""
    name: str
    """The plugin's name; the entry point's where nothing was registered."""
    distribution: str
    version: str
    status: RowStatus = "ok"
    reason: str = ""
    capabilities: tuple[str, ...] = ()
    """With default settings; sorted."""
    summary: str = ""
    entry_point: str = ""
    descriptor: Descriptor | None = None


class Registry:
    """Plugins by kind and name. Made once per process and handed to who needs it."""

    def __init__(self, entry_points: Iterable[PluginEntryPoint], disabled: Collection[str] = ()) -> None:
        self._entry_points = list(entry_points)
        self._disabled = list(disabled)
        self._rows: list[PluginRow] | None = None

    @classmethod
    def discover(cls, disabled: Collection[str] = ()) -> Registry:
        """The plugins that are installed."""
        return cls(installed_entry_points(), disabled)

    def disable(self, names: Collection[str]) -> None:
        """Disable by name of a plugin, an entry point or a distribution (`[plugins] disabled`)."""
        self._disabled += [name for name in names if name not in self._disabled]
        self._rows = None

    @property
    def rows(self) -> list[PluginRow]:
        """Every plugin found, by kind and name."""
        if self._rows is None:
            self._rows = self._make_rows()
        return self._rows

    @property
    def disabled_in_vain(self) -> list[str]:
        """Names given to `disable` that match nothing here."""
        return [name for name in self._disabled if not any(_is_named(row, name) for row in self.rows)]

    def names(self, kind: str) -> list[str]:
        """Of the plugins of one kind that can be used."""
        return [row.name for row in self.rows if row.kind == kind and row.status == "ok"]

    def find(self, kind: str, name: str) -> PluginRow | None:
        """The row to show for a name, a usable one first; None if nothing is called so."""
        rows = [row for row in self.rows if row.name == name and row.kind in {kind, "plugin"}]
        return min(rows, key=lambda row: (row.status != "ok", row.kind != kind), default=None)

    def storage(self, name: str) -> StoragePlugin:
        return self._get(StoragePlugin, "storage", name)

    def consensus(self, name: str) -> ConsensusPlugin:
        return self._get(ConsensusPlugin, "consensus", name)

    def transport(self, name: str) -> TransportPlugin:
        return self._get(TransportPlugin, "transport", name)

    def plugin(self, kind: str, name: str) -> StoragePlugin | ConsensusPlugin | TransportPlugin:
        """The same, for who holds the kind as a word."""
        if kind == "storage":
            return self.storage(name)
        return self.consensus(name) if kind == "consensus" else self.transport(name)

    def commands(self) -> list[CommandPlugin]:
        """The commands that can be used, by name."""
        return [
            row.descriptor for row in self.rows if row.status == "ok" and isinstance(row.descriptor, CommandPlugin)
        ]

    def settings(self, plugin: StoragePlugin | ConsensusPlugin | TransportPlugin, table: Mapping[str, Any]) -> Any:
        """An instance of the plugin's schema; ConfigError names the key and what was expected."""
        return convert_table(plugin.settings, table, f"{plugin.kind}.{plugin.name}")

    def load(self, plugin: Descriptor) -> Any:
        """Import what `load` names. PluginError says what is missing and how to get it."""
        row = self.find(plugin.kind, plugin.name)
        return load_object(plugin, row.distribution if row else "its distribution")

    def unknown(self, kind: str, name: str) -> PluginError:
        """The error for a name that nothing is called."""
        known = self.names(kind)
        broken = [f"{row.distribution}: {row.reason}" for row in self.rows if row.kind == "plugin"]
        hint = did_you_mean(name, known) or "".join(f" Not usable: {text}." for text in broken)
        return PluginError(
            f"{kind} {name!r} is not installed; installed: {', '.join(known) or 'none'}."
            + (hint or f" Install the distribution that brings it, or choose another {kind}.")
        )

    def _get(self, cls: type[Plugin], kind: str, name: str) -> Plugin:
        row = self.find(kind, name)
        if row is None:
            raise self.unknown(kind, name)
        if row.status == "ok" and isinstance(row.descriptor, cls):
            return row.descriptor
        is_what = {"disabled": "is disabled", "conflict": "is ambiguous"}.get(row.status, "cannot be used")
        owner = f"{row.distribution} {row.version}"
        raise PluginError(f"{kind} {name!r} {is_what}: {owner}: {row.reason}")

    def _make_rows(self) -> list[PluginRow]:
        rows = []
        for entry in self._entry_points:
            base = PluginRow("plugin", entry.name, entry.distribution, entry.version, entry_point=entry.name)
            if any(_is_named(base, name) for name in self._disabled):
                rows.append(self._disable(base))
            elif entry.api_version != str(API_VERSION):
                if not self._has_current(entry):
                    rows.append(replace(base, status="outdated", reason=_outdated(entry)))
            else:
                rows += self._rows_of(entry, base)
        return sorted(_with_conflicts(rows), key=lambda row: (_KINDS.index(row.kind), row.name, row.distribution))

    def _rows_of(self, entry: PluginEntryPoint, base: PluginRow) -> list[PluginRow]:
        loaded = load_entry_point(entry)
        if loaded.fault:
            base = replace(base, status="broken", reason=loaded.fault)
        rows = [
            replace(
                base,
                kind=descriptor.kind,
                name=descriptor.name,
                capabilities=_default_capabilities(descriptor) if base.status == "ok" else (),
                summary=descriptor.help if isinstance(descriptor, CommandPlugin) else descriptor.summary,
                descriptor=descriptor,
            )
            for descriptor in loaded.descriptors
        ]
        return [self._disable(row) if row.name in self._disabled else row for row in rows] or [base]

    def _disable(self, row: PluginRow) -> PluginRow:
        return replace(row, status="disabled", reason="by [plugins] disabled; take its name out to use it")

    def _has_current(self, entry: PluginEntryPoint) -> bool:
        """Whether the distribution offers the same for this API version too."""
        return any(
            (other.name, other.distribution, other.api_version) == (entry.name, entry.distribution, str(API_VERSION))
            for other in self._entry_points
        )


_KINDS = ("storage", "consensus", "transport", "command", "plugin")


def _is_named(row: PluginRow, name: str) -> bool:
    """Distribution names are compared as packaging does: `Raftkv_Storage.LMDB` is `raftkv-storage-lmdb`."""
    return name in {row.name, row.entry_point} or _normal(name) == _normal(row.distribution)


def _normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _outdated(entry: PluginEntryPoint) -> str:
    return (
        f"written for plugin API v{entry.api_version}; this raftkv speaks v{API_VERSION}. "
        f"Install a {entry.distribution} for v{API_VERSION}"
    )


def _default_capabilities(descriptor: Descriptor) -> tuple[str, ...]:
    if not isinstance(descriptor, StoragePlugin | ConsensusPlugin):
        return ()
    try:
        return tuple(sorted(descriptor.capabilities(descriptor.settings())))
    except TypeError:  # it has required settings, so nothing can be said before they are given
        return ()


def _with_conflicts(rows: list[PluginRow]) -> list[PluginRow]:
    """Two plugins of one kind and name are both unusable until one of them is disabled."""
    result = []
    for row in rows:
        rivals = [other for other in rows if (other.kind, other.name, other.status) == (row.kind, row.name, "ok")]
        if row.status == "ok" and len(rivals) > 1:
            owners = " and ".join(sorted(f"{rival.distribution} {rival.version}" for rival in rivals))
            words = {rival.distribution for rival in rivals}
            choice = sorted(words if len(words) > 1 else {rival.entry_point for rival in rivals})
            reason = f"registered by {owners}; disable one: [plugins] disabled = [{choice[-1]!r}]"
            result.append(replace(row, status="conflict", reason=reason))
        else:
            result.append(row)
    return result
