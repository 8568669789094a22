"""Configuration: one TOML file, the environment, and options, resolved into one `Config`.

Precedence: option > environment > file > default. The supervisor resolves once and writes the result to
`run/resolved.json`; the node and its workers read that (`Config.from_json`), never the TOML.

    registry = Registry.discover()
    resolution = load_config(Path("raftkv.toml"), environ=os.environ, options={}, registry=registry)
    resolution.config.node.data_dir; resolution.origins["node.data_dir"]; resolution.warnings

msgspec is the one schema library: it validates and converts in C, imports in a few milliseconds (start-up
counts here), and a plugin's schema is a plain typed class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta, Struct

from raftkv_core.limits import VALUE_BYTES_MAX

if TYPE_CHECKING:
    from raftkv_core.registry import Registry

__all__ = [
    "PLUGIN_SECTIONS",
    "SECTIONS",
    "ClusterSettings",
    "Config",
    "ConsensusSection",
    "LimitSettings",
    "LogSettings",
    "LoggingSettings",
    "NodeSettings",
    "PluginsSection",
    "Resolution",
    "Selected",
    "StorageSection",
    "TransportSection",
    "load_config",
]


class ClusterSettings(Struct, forbid_unknown_fields=True, kw_only=True):
    """The cluster; the same on every node."""

    name: Annotated[
        str, Meta(description="Name of the cluster. Peers of another name are refused.", min_length=1, max_length=64)
    ] = "raftkv"
    id: Annotated[
        str,
        Meta(
            description="32 hex digits, born once (`raftkv config new` draws one). Empty: the bootstrapping node "
            "draws it, joining nodes adopt it.",
            pattern=r"^([0-9a-f]{32})?$",
        ),
    ] = ""
    members: Annotated[
        dict[str, str],
        Meta(description="The first members: node id to Raft address (host:port). Empty: this node alone."),
    ] = msgspec.field(default_factory=dict)
    settings: Annotated[
        dict[str, int],
        Meta(
            description="First values of the replicated settings, read at bootstrap only; later ones go through "
            "the log."
        ),
    ] = msgspec.field(default_factory=dict)


class NodeSettings(Struct, forbid_unknown_fields=True, kw_only=True):
    """This node."""

    id: Annotated[
        str,
        Meta(
            description="Unique in the cluster, and never given to another node. Letters, digits, . _ -",
            pattern=r"^[A-Za-z0-9._-]{1,64}$",
        ),
    ] = "node1"
    data_dir: Annotated[
        str, Meta(description="Folder of everything that the node keeps. One node at a time.", min_length=1)
    ] = "data"
    bootstrap: Annotated[
        bool, Meta(description="Begin a new cluster. Acts only while the data directory is empty.")
    ] = False
    join_addr: Annotated[
        str, Meta(description="Management address (host:port) of a member whose cluster to join. Empty: none.")
    ] = ""
    raft_bind: Annotated[str, Meta(description="Where peers connect (host:port); used by replicated engines.")] = (
        "127.0.0.1:8088"
    )
    raft_advertise: Annotated[
        str, Meta(description="The address that peers are told (host:port). Empty: raft_bind.")
    ] = ""


class LogSettings(Struct, forbid_unknown_fields=True, kw_only=True):
    """The durable log: what makes an acknowledged write survive."""

    sync: Annotated[
        bool,
        Meta(
            description="Sync to disk before a write is acknowledged. Costs one fdatasync per group of writes. "
            "false: a power loss takes the newest acknowledged writes; a crash of the process alone does not."
        ),
    ] = True
    unsafe: Annotated[
        bool,
        Meta(description="Allow sync = false in a cluster, where a power loss may then undo what others saw."),
    ] = False
    segment_bytes: Annotated[
        int,
        Meta(description="Size of one segment file; the log is trimmed by whole segments.", ge=16 << 20, le=1 << 30),
    ] = 64 << 20
    keep_entries: Annotated[
        int,
        Meta(description="Entries kept though storage has them, so that a slow follower needs no stream.", ge=0),
    ] = 10_000
    stall_s: Annotated[
        float, Meta(description="Seconds. A sync that takes longer stops the node: the disk has stalled.", gt=0)
    ] = 30.0


class LimitSettings(Struct, forbid_unknown_fields=True, kw_only=True):
    """What this node admits; never more than the format allows (`raftkv_core.limits`)."""

    value_bytes: Annotated[int, Meta(description="Largest value of a key.", ge=1, le=VALUE_BYTES_MAX)] = (
        VALUE_BYTES_MAX
    )
    queue_commands: Annotated[
        int, Meta(description="Commands that may wait for an outcome; more are refused at once.", ge=1)
    ] = 20_000
    queue_bytes: Annotated[
        int, Meta(description="Bytes of commands that may wait; more are refused at once.", ge=1 << 20)
    ] = 64 << 20
    request_timeout_s: Annotated[float, Meta(description="Seconds. Deadline of a request that names none.", gt=0)] = (
        5.0
    )
    commit_delay_ms: Annotated[
        int,
        Meta(
            description="Milliseconds. Longest wait before a storage commit. A crash loses nothing by it: the log "
            "is replayed.",
            ge=0,
            le=10_000,
        ),
    ] = 20
    buffer_bytes: Annotated[
        int, Meta(description="Applied writes that may wait for a storage commit; then apply waits.", ge=8 << 20)
    ] = 64 << 20
    space_low_bytes: Annotated[
        int, Meta(description="With less free space than this, what would grow the store is refused.", ge=0)
    ] = 256 << 20
    pin_max_s: Annotated[
        float, Meta(description="Seconds. Longest read transaction of a backup or a stream to a follower.", gt=0)
    ] = 300.0


class LoggingSettings(Struct, forbid_unknown_fields=True, kw_only=True):
    """Messages for people and machines, on standard error."""

    format: Annotated[
        str,
        Meta(
            description="For people (console), or for programs (json): one object a line.", pattern="^(console|json)$"
        ),
    ] = "console"
    level: Annotated[
        str, Meta(description="The least level that is written.", pattern="^(debug|info|warning|error)$")
    ] = "info"


class PluginsSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """Which plugins may not be used, though they are installed."""

    disabled: Annotated[
        list[str], Meta(description="Names of plugins, of entry points or of distributions; they are not imported.")
    ] = msgspec.field(default_factory=list)


class StorageSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """Where the state lies. Nodes of one cluster may use different engines."""

    use: Annotated[
        str, Meta(description="The storage engine. Default: lmdb if it is installed, else memory.", min_length=1)
    ] = "lmdb"


class ConsensusSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """What orders the writes and makes them durable on a majority; the same on every node."""

    use: Annotated[str, Meta(description="The consensus engine. solo: one node, no replication.", min_length=1)] = (
        "solo"
    )


class TransportSection(Struct, forbid_unknown_fields=True, kw_only=True):
    """What serves clients."""

    use: Annotated[
        list[str], Meta(description="The transports, any number. Default: http if it is installed, else none.")
    ] = msgspec.field(default_factory=lambda: ["http"])


SECTIONS: Final[Mapping[str, type[Struct]]] = MappingProxyType(
    {
        "cluster": ClusterSettings,
        "node": NodeSettings,
        "log": LogSettings,
        "limits": LimitSettings,
        "logging": LoggingSettings,
        "plugins": PluginsSection,
    }
)
"""The core's tables, by name."""

PLUGIN_SECTIONS: Final[Mapping[str, type[Struct]]] = MappingProxyType(
    {"storage": StorageSection, "consensus": ConsensusSection, "transport": TransportSection}
)
"""Tables with a `use`, and in each the plugins' own tables."""


class Selected(Struct, forbid_unknown_fields=True, kw_only=True):
    """A chosen plugin and its validated settings, as plain values; `registry` turns them into its schema."""

    name: str
    settings: dict[str, Any] = msgspec.field(default_factory=dict)


class Config(Struct, forbid_unknown_fields=True, kw_only=True):
    """The resolved configuration of one node. Paths are absolute."""

    cluster: ClusterSettings = msgspec.field(default_factory=ClusterSettings)
    node: NodeSettings = msgspec.field(default_factory=NodeSettings)
    log: LogSettings = msgspec.field(default_factory=LogSettings)
    limits: LimitSettings = msgspec.field(default_factory=LimitSettings)
    logging: LoggingSettings = msgspec.field(default_factory=LoggingSettings)
    storage: Selected
    consensus: Selected
    transports: list[Selected]
    disabled: list[str] = msgspec.field(default_factory=list)
    """`[plugins] disabled`."""

    @classmethod
    def from_json(cls, data: bytes) -> Config:
        """What `to_json` wrote."""
        return msgspec.json.decode(data, type=cls)

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=2)


@dataclass(frozen=True, slots=True)
class Resolution:
    """What `load_config` found: the configuration, where each value comes from, and what to tell the operator."""

    config: Config
    origins: dict[str, str]
    """By dotted key (`storage.lmdb.map_size`): `FILE:LINE`, `environment NAME`, `option` or `default`."""
    warnings: list[str]


def load_config(
    path: Path | None,
    *,
    environ: Mapping[str, str],
    options: Mapping[str, Any],
    registry: Registry,
) -> Resolution:
    """Resolve and check the configuration of one node. Nothing is started, and no engine is imported.

    path: the TOML file, or None to do without.
    options: by dotted key (`{"node.data_dir": "/srv/raftkv"}`).
    registry: `[plugins] disabled` is applied to it, so that it can be used with the result.

    Raises ConfigError (PluginError for plugins) with file, line, key and remedy.
    """
    from raftkv_core.config_loading import Loader  # noqa: PLC0415  (who reads run/resolved.json needs none of it)

    return Loader(path, environ, options, registry).load()
