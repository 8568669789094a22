"""Loads one entry point at a time, so that a broken plugin is a row in `raftkv plugins` and nothing more.

pluggy's own loader stops at the first import error and skips a second plugin of the same name silently; here
each entry point is imported, registered, checked and called in a guarded step of its own.

    for entry in installed_entry_points():
        loaded = load_entry_point(entry)     # never raises for what a plugin did wrong
        loaded.fault or loaded.descriptors
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module, metadata
from types import MappingProxyType
from typing import Any, Final, get_args

import msgspec
import pluggy

from raftkv_core import hookspecs
from raftkv_core.errors import PluginError
from raftkv_core.hookspecs import (
    API_VERSION,
    CommandPlugin,
    ConsensusPlugin,
    Descriptor,
    StoragePlugin,
    TransportPlugin,
)
from raftkv_core.interfaces.consensus import ConsensusCapability
from raftkv_core.interfaces.storage import StorageCapability
from raftkv_core.suggest import did_you_mean

__all__ = [
    "CAPABILITIES",
    "Loaded",
    "PluginEntryPoint",
    "installed_entry_points",
    "load_entry_point",
    "load_object",
    "reason_of",
]

CAPABILITIES: Final = MappingProxyType(
    {"storage": frozenset(get_args(StorageCapability)), "consensus": frozenset(get_args(ConsensusCapability))}
)
"""The closed list of plugin API v1, by kind."""

_GROUP = re.compile(r"raftkv\.v(?P<version>.+)")
_NAME = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")
_LOAD = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_DESCRIPTORS: Final[dict[str, type[Any]]] = {
    "raftkv_register_storage": StoragePlugin,
    "raftkv_register_consensus": ConsensusPlugin,
    "raftkv_register_transport": TransportPlugin,
    "raftkv_register_commands": CommandPlugin,
}


@dataclass(frozen=True, slots=True)
class PluginEntryPoint:
    """One entry point, before anything of it is imported. Tests make them by hand."""

    name: str
    distribution: str
    version: str
    load: Callable[[], object]
    """Imports and returns what the entry point names."""
    api_version: str = str(API_VERSION)

    @property
    def label(self) -> str:
        return f"{self.distribution} {self.version}".strip()


@dataclass(slots=True)
class Loaded:
    """What became of an entry point: its descriptors, and why it is broken if it is."""

    entry: PluginEntryPoint
    descriptors: list[Descriptor] = field(default_factory=list)
    fault: str = ""


def installed_entry_points() -> list[PluginEntryPoint]:
    """Every entry point of a `raftkv.v*` group, of this API version or another. Imports nothing of them."""
    found = []
    entry_points = metadata.entry_points()
    for group in sorted(entry_points.groups):
        match = _GROUP.fullmatch(group)
        if not match:
            continue
        for point in entry_points.select(group=group):
            about = point.dist.metadata if point.dist is not None else {"Name": "unknown", "Version": ""}
            found.append(
                PluginEntryPoint(
                    name=point.name,
                    distribution=about["Name"],
                    version=about["Version"],
                    load=point.load,
                    api_version=match["version"],
                )
            )
    return found


def load_entry_point(entry: PluginEntryPoint) -> Loaded:
    """Import, check and call one entry point. Everything but KeyboardInterrupt and SystemExit is its fault."""
    loaded = Loaded(entry)
    try:
        plugin = entry.load()
        manager = pluggy.PluginManager("raftkv")
        manager.add_hookspecs(hookspecs)
        manager.register(plugin, name=entry.name)
        loaded.fault = _fault_of_hooks(manager, plugin)
        if not loaded.fault:
            _call_hooks(manager, plugin, loaded)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001  (a plugin may raise anything; it must not stop the others)
        loaded.fault = reason_of(error, entry.distribution)
    return loaded


def reason_of(error: BaseException, distribution: str) -> str:
    """One line that says what failed and what to do about it."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"module {error.name!r} is missing; `pip install {distribution}` installs what it needs"
    if isinstance(error, pluggy.PluginValidationError):
        text = " ".join(str(error).split())
        return f"{text}; hooks take the arguments that raftkv_core.hookspecs gives them"
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return f"{text}; update or reinstall {distribution}, or disable it"


def load_object(plugin: Descriptor, distribution: str) -> Any:
    """Import what a descriptor's `load` names. PluginError says what is missing and how to get it."""
    what = f"{plugin.kind} {plugin.name!r} ({distribution}) cannot be loaded"
    module_name, _, attribute = plugin.load.partition(":")
    try:
        module = import_module(module_name)
    except Exception as error:
        raise PluginError(f"{what}: {reason_of(error, distribution)}") from error
    try:
        return getattr(module, attribute)
    except AttributeError:
        hint = did_you_mean(attribute, dir(module)) or f" Update or reinstall {distribution}."
        raise PluginError(f"{what}: module {module_name!r} has no {attribute!r}.{hint}") from None


def _fault_of_hooks(manager: pluggy.PluginManager, plugin: object) -> str:
    callers = manager.get_hookcallers(plugin) or []
    for caller in callers:
        optional = all(implementation.optionalhook for implementation in caller.get_hookimpls())
        if not caller.has_spec() and not optional:
            return f"there is no hook {caller.name!r} in plugin API v{API_VERSION}." + (
                did_you_mean(caller.name, _DESCRIPTORS) or f" Hooks: {', '.join(_DESCRIPTORS)}"
            )
    if not callers:
        unmarked = [name for name in dir(plugin) if name.startswith("raftkv_register_")]
        if unmarked:
            return f"{unmarked[0]} is not marked with @hookimpl of raftkv_core.hookspecs"
        return "it implements no hook; mark one with @hookimpl of raftkv_core.hookspecs"
    return ""


def _call_hooks(manager: pluggy.PluginManager, plugin: object, loaded: Loaded) -> None:
    for caller in manager.get_hookcallers(plugin) or []:
        expected = _DESCRIPTORS.get(caller.name)
        if expected is None:
            continue

        def register(descriptor: Any, expected: type[Any] = expected, hook: str = caller.name) -> None:
            if not isinstance(descriptor, expected):
                kind = type(descriptor).__name__
                raise TypeError(f"{hook} registers {expected.__name__}, not {kind}")
            fault = _fault_of_descriptor(descriptor)
            if fault:
                raise ValueError(f"{expected.__name__} {descriptor.name!r}: {fault}")
            loaded.descriptors.append(descriptor)

        caller(register=register)
    if not loaded.descriptors:
        loaded.fault = "its hooks registered nothing"


def _fault_of_descriptor(descriptor: Any) -> str:  # noqa: PLR0911  (one return a rule)
    """Why a descriptor cannot be used, or ""."""
    name = descriptor.name
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name == "use":
        return "a name is small letters, digits, and single - or _ between them, and not 'use'"
    command = getattr(descriptor, "command", None)
    if isinstance(descriptor, TransportPlugin) and bool(command) == bool(descriptor.load):
        return "a transport has either `command` or `load`"
    if not command and not (isinstance(descriptor.load, str) and _LOAD.fullmatch(descriptor.load)):
        return f"load is 'package.module:attribute', not {descriptor.load!r}"
    if isinstance(descriptor, CommandPlugin):
        return ""
    settings = descriptor.settings
    if not (isinstance(settings, type) and issubclass(settings, msgspec.Struct)):
        return "settings is a msgspec.Struct class"
    if not settings.__struct_config__.forbid_unknown_fields:
        return f"{settings.__name__} needs forbid_unknown_fields=True, or a misspelt key would pass unseen"
    if isinstance(descriptor, TransportPlugin):
        return ""
    return _fault_of_capabilities(descriptor)


def _fault_of_capabilities(descriptor: StoragePlugin | ConsensusPlugin) -> str:
    try:
        settings = descriptor.settings()
    except TypeError:
        return ""  # it has required settings: judged when a configuration gives them
    known = CAPABILITIES[descriptor.kind]
    for capability in sorted(set(descriptor.capabilities(settings)) - known):
        return f"capability {capability!r} is not in plugin API v{API_VERSION}.{did_you_mean(capability, known)}"
    return ""
