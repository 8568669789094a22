"""A registry of plugins that are not installed, for tests of configurations and of plugins.

    registry = registry_of(StoragePlugin(name="fake", load="my_tests.fake:Fake", capabilities=...))

It has what the core brings, and the given descriptors as if one distribution had registered them.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

from raftkv_core.builtin import plugin as builtin
from raftkv_core.hookspecs import Descriptor, Register, hookimpl
from raftkv_core.plugin_loading import PluginEntryPoint
from raftkv_core.registry import Registry

__all__ = ["BUILTIN", "entry_point", "plugin_module", "registry_of"]

BUILTIN = PluginEntryPoint("builtin", "raftkv", "0", lambda: builtin)
"""The core's own plugins."""

_HOOKS = {
    "storage": "raftkv_register_storage",
    "consensus": "raftkv_register_consensus",
    "transport": "raftkv_register_transport",
    "command": "raftkv_register_commands",
}


def registry_of(*descriptors: Descriptor) -> Registry:
    """The core's plugins and these."""
    return Registry([BUILTIN, *([entry_point(*descriptors)] if descriptors else [])])


def entry_point(
    *descriptors: Descriptor,
    name: str = "fake",
    distribution: str = "raftkv-fake",
    version: str = "1.0",
    api_version: str = "1",
) -> PluginEntryPoint:
    """An entry point whose module registers the descriptors."""
    return PluginEntryPoint(name, distribution, version, lambda: plugin_module(*descriptors), api_version)


def plugin_module(*descriptors: Descriptor) -> SimpleNamespace:
    """What a plugin's module offers: a hook for each kind among the descriptors."""
    hooks: dict[str, Callable[[Register], None]] = {}
    for kind, hook in _HOOKS.items():
        own = [descriptor for descriptor in descriptors if descriptor.kind == kind]
        if own:
            hooks[hook] = _hook(own)
    return SimpleNamespace(**hooks)


def _hook(descriptors: list[Descriptor]) -> Callable[[Register], None]:
    def register_all(register: Register) -> None:
        for descriptor in descriptors:
            register(descriptor)

    return hookimpl(register_all)
