"""What the core brings itself, registered like any plugin: memory storage, solo consensus, its commands."""

from __future__ import annotations

from typing import Final

from raftkv_core.hookspecs import CommandPlugin, ConsensusPlugin, Register, StoragePlugin, hookimpl

__all__ = ["COMMANDS"]

COMMANDS: Final = (
    CommandPlugin("up", "raftkv_core.cli.up:app", "Run a cluster on this machine, to try things out."),
    CommandPlugin("serve", "raftkv_core.cli.serve:app", "Run one node from its configuration file."),
    CommandPlugin("config", "raftkv_core.cli.config:app", "Write, check and show configuration files."),
    CommandPlugin(
        "plugins", "raftkv_core.cli.plugins:plugins", "Show the plugins found, and what is wrong with them."
    ),
    CommandPlugin("backup", "raftkv_core.cli.backup:backup", "Save a running node's data to a file."),
    CommandPlugin("restore", "raftkv_core.cli.backup:restore", "Make a data directory from a backup."),
    CommandPlugin("version", "raftkv_core.cli.version:version", "Show the version."),
)
"""The command line reads these directly, so that it works even where no plugin can be loaded; they are
registered as well, so that a plugin's command of the same name is seen to conflict."""


@hookimpl
def raftkv_register_storage(register: Register) -> None:
    register(
        StoragePlugin(
            name="memory",
            load="raftkv_core.builtin.memory:MemoryStorage",
            capabilities=lambda _settings: frozenset(),
            summary="a map in memory; made durable by the log and stream files",
        )
    )


@hookimpl
def raftkv_register_consensus(register: Register) -> None:
    register(
        ConsensusPlugin(
            name="solo",
            load="raftkv_core.builtin.solo:SoloConsensus",
            capabilities=lambda _settings: frozenset({"linearizable_reads", "lease_reads", "simulatable"}),
            summary="one node, fully durable, not replicated",
        )
    )


@hookimpl
def raftkv_register_commands(register: Register) -> None:
    for command in COMMANDS:
        register(command)
