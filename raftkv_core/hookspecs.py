"""The hooks of plugin API v1, and the descriptors they register.

A plugin is an entry point in the group `raftkv.v1` that names an import-light module:

    [project.entry-points."raftkv.v1"]
    lmdb = "raftkv_storage_lmdb.plugin"

whose hook implementations register descriptors, each with the path of what to import when it is selected:

    @hookimpl
    def raftkv_register_storage(register):
        register(StoragePlugin(name="lmdb", settings=LmdbSettings, capabilities=lambda settings: {...},
                               load="raftkv_storage_lmdb.engine:LmdbStorage"))

Hooks are called once, at start; they never run on the data path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import msgspec
import pluggy

from raftkv_core.interfaces.consensus import ConsensusCapability
from raftkv_core.interfaces.storage import StorageCapability

__all__ = [
    "API_VERSION",
    "ENTRY_POINT_GROUP",
    "CommandPlugin",
    "ConsensusPlugin",
    "Register",
    "StoragePlugin",
    "TransportPlugin",
    "hookimpl",
    "hookspec",
]

API_VERSION = 1
ENTRY_POINT_GROUP = f"raftkv.v{API_VERSION}"

hookspec = pluggy.HookspecMarker("raftkv")
hookimpl = pluggy.HookimplMarker("raftkv")


class NoSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """For plugins that have nothing to configure."""


@dataclass(frozen=True, slots=True)
class StoragePlugin:
    """A storage engine. `load` names a subclass of `raftkv_core.interfaces.storage.Storage`."""

    name: str
    load: str
    """`package.module:attribute`, imported only when the configuration selects the plugin."""
    capabilities: Callable[[Any], frozenset[StorageCapability]]
    """What these settings deliver, not what the engine could."""
    settings: type[msgspec.Struct] = NoSettings
    """Schema of `[storage.<name>]`, with `forbid_unknown_fields=True` and a docstring a field
    (`msgspec.Meta(description=…)`)."""
    summary: str = ""
    kind: Literal["storage"] = "storage"


@dataclass(frozen=True, slots=True)
class ConsensusPlugin:
    """A consensus engine. `load` names a subclass of `raftkv_core.interfaces.consensus.Consensus`."""

    name: str
    load: str
    capabilities: Callable[[Any], frozenset[ConsensusCapability]]
    settings: type[msgspec.Struct] = NoSettings
    summary: str = ""
    kind: Literal["consensus"] = "consensus"


@dataclass(frozen=True, slots=True)
class TransportPlugin:
    """A way to serve clients: in processes of its own (`command`) or in the node's (`load`); exactly one."""

    name: str
    settings: type[msgspec.Struct] = NoSettings
    command: Callable[[Any], Sequence[str]] | None = None
    """The command line from the settings alone; it is run with RAFTKV_RESOLVED naming the resolved
    configuration, and its processes call `raftkv_core.worker.connect()`."""
    load: str = ""
    """An `InProcessTransport`."""
    listeners: Callable[[Any], Sequence[Listener]] = field(default=lambda _settings: ())
    """Where these settings listen, so that the core can check ports and credentials before anything starts."""
    summary: str = ""
    kind: Literal["transport"] = "transport"


@dataclass(frozen=True, slots=True)
class Listener:
    """One address that a transport binds. `protected`: it asks for a credential or uses TLS."""

    name: str
    bind: str
    protected: bool = False
    insecure: bool = False
    advertise: str = ""


@dataclass(frozen=True, slots=True)
class CommandPlugin:
    """A command of `raftkv`. `load` names a typer app or a click command, imported when it is invoked."""

    name: str
    load: str
    help: str = ""
    kind: Literal["command"] = "command"


Descriptor = StoragePlugin | ConsensusPlugin | TransportPlugin | CommandPlugin


class Register(Protocol):
    def __call__(self, plugin: Any) -> None: ...


@hookspec
def raftkv_register_storage(register: Register) -> None:
    """Call register(StoragePlugin(...)) once per storage engine."""


@hookspec
def raftkv_register_consensus(register: Register) -> None:
    """Call register(ConsensusPlugin(...)) once per consensus engine."""


@hookspec
def raftkv_register_transport(register: Register) -> None:
    """Call register(TransportPlugin(...)) once per transport."""


@hookspec
def raftkv_register_commands(register: Register) -> None:
    """Call register(CommandPlugin(...)) once per command of the command line."""
