"""Configuration: one TOML file, the environment, and options, resolved into one `Config`.

Precedence: option > environment > file > default. The supervisor resolves once and writes the result to
`run/resolved.json`; the node and its workers read that (`Config.from_json`), never the TOML.

msgspec is the one schema library: it validates and converts in C, imports in a few milliseconds (start-up
counts here), and a plugin's schema is a plain typed class.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

__all__ = ["ClusterSettings", "Config", "LimitSettings", "LogSettings", "LoggingSettings", "NodeSettings", "Selected"]

Port = Annotated[int, Meta(ge=0, le=65535)]


class ClusterSettings(Struct, forbid_unknown_fields=True, kw_only=True):
    """`[cluster]`: the same on every node."""

    name: Annotated[str, Meta(description="name of the cluster", min_length=1, max_length=64)] = "raftkv"
    id: Annotated[str, Meta(description="32 hex digits, born once; empty: drawn at bootstrap or adopted")] = ""
    members: Annotated[
        dict[str, str], Meta(description="node id to Raft address (host:port) of every first member")
    ] = msgspec.field(default_factory=dict)
    settings: Annotated[
        dict[str, int], Meta(description="first values of the replicated settings; later ones go through the log")
    ] = msgspec.field(default_factory=dict)


class NodeSettings(Struct, forbid_unknown_fields=True, kw_only=True):
    """`[node]`: this node."""

    id: Annotated[str, Meta(description="unique in the cluster", pattern=r"^[A-Za-z0-9._-]{1,64}$")] = "node1"
    data_dir: Annotated[str, Meta(description="everything the node keeps; relative to the file")] = "data"
    bootstrap: Annotated[bool, Meta(description="begin a new cluster, if the directory is empty")] = False
    join_addr: Annotated[str, Meta(description="management address (host:port) of a member to join")] = ""
    raft_bind: Annotated[str, Meta(description="where peers connect")] = "127.0.0.1:8088"
    raft_advertise: Annotated[str, Meta(description="what peers are told; empty: raft_bind")] = ""


class LogSettings(Struct, forbid_unknown_fields=True, kw_only=True):
    """`[log]`: the durable log."""

    sync: Annotated[bool, Meta(description="fsync before acknowledging; without it a power loss loses writes")] = True
    unsafe: Annotated[bool, Meta(description="allow sync = false in a cluster of several members")] = False
    segment_bytes: Annotated[int, Meta(description="size of one segment file", ge=16 << 20, le=1 << 30)] = 64 << 20
    keep_entries: Annotated[int, Meta(description="entries kept below durable, for slow followers", ge=0)] = 10_000
    stall_s: Annotated[float, Meta(description="a sync that takes longer stops the node", gt=0)] = 30.0


class LimitSettings(Struct, forbid_unknown_fields=True, kw_only=True):
    """`[limits]`: admission on this node; never above the format's limits."""

    value_bytes: Annotated[int, Meta(description="largest value", ge=1, le=1 << 20)] = 1 << 20
    queue_commands: Annotated[int, Meta(description="commands that may wait for an outcome", ge=1)] = 20_000
    queue_bytes: Annotated[int, Meta(description="bytes of commands that may wait", ge=1 << 20)] = 64 << 20
    request_timeout_s: Annotated[float, Meta(description="deadline of a request that names none", gt=0)] = 5.0
    commit_delay_ms: Annotated[int, Meta(description="longest wait before a storage commit", ge=0, le=10_000)] = 20
    buffer_bytes: Annotated[int, Meta(description="write buffer before apply waits", ge=8 << 20)] = 64 << 20
    space_low_bytes: Annotated[int, Meta(description="less free space than this refuses growth", ge=0)] = 256 << 20
    pin_max_s: Annotated[float, Meta(description="longest read transaction of a backup or stream", gt=0)] = 300.0


class LoggingSettings(Struct, forbid_unknown_fields=True, kw_only=True):
    """`[logging]`."""

    format: Annotated[str, Meta(description="console or json", pattern="^(console|json)$")] = "console"
    level: Annotated[str, Meta(description="debug, info, warning or error",
                               pattern="^(debug|info|warning|error)$")] = "info"


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
