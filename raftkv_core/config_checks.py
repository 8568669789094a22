"""Refuses configurations that would lie: that promise what their parts cannot keep, or bind what is taken.

Each check returns the error's text, or "". `where("log.sync")` tells where a key was set, for the message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

from raftkv_core.addresses import Address
from raftkv_core.config import Config
from raftkv_core.errors import ConfigError, InvalidRequest
from raftkv_core.hookspecs import Listener
from raftkv_core.machine.settings import check_settings
from raftkv_core.registry import Registry
from raftkv_core.suggest import did_you_mean

__all__ = ["capabilities", "check_config", "insecure_listeners", "listeners"]

Where = Callable[[str], str]


def capabilities(config: Config, registry: Registry) -> frozenset[str]:
    """What this configuration delivers: its storage's and its consensus engine's capabilities together.

    `durable` needs both a storage that claims it and `log.sync`: without the sync, what storage holds
    survives a power loss and the newest acknowledged writes do not.
    """
    storage = registry.storage(config.storage.name)
    found: set[str] = set(storage.capabilities(registry.settings(storage, config.storage.settings)))
    if not config.log.sync:
        found.discard("durable")
    return frozenset(found | _consensus_capabilities(config, registry))


def listeners(config: Config, registry: Registry) -> list[tuple[str, Listener]]:
    """Every address that the transports bind, with the transport's name."""
    found = []
    for selected in config.transports:
        plugin = registry.transport(selected.name)
        bound = plugin.listeners(registry.settings(plugin, selected.settings))
        found += [(selected.name, listener) for listener in bound]
    return found


def insecure_listeners(config: Config, registry: Registry) -> list[str]:
    """Listeners beyond loopback that ask for no credential, `http.main (0.0.0.0:8080)`; logged and shown."""
    return [
        f"{transport}.{listener.name} ({listener.bind})"
        for transport, listener in listeners(config, registry)
        if not listener.protected and not Address.parse(listener.bind).is_loopback
    ]


def check_config(config: Config, registry: Registry, where: Where) -> list[str]:
    """Raise ConfigError for the first contradiction; return warnings."""
    for fault in _faults(config, registry, where):
        if fault:
            raise ConfigError(fault)
    return list(_warnings(config, registry))


def _faults(config: Config, registry: Registry, where: Where) -> Iterator[str]:
    """One by one, because the later ones rely on what the earlier ones found right."""
    replicated = "replicated" in _consensus_capabilities(config, registry)
    yield _membership(config, replicated, where)
    yield _addresses(config, where)
    yield _members(config, where)
    yield _sync(config, where)
    yield _replicated_settings(config, where)
    yield _ports(config, registry, replicated)
    yield _exposure(config, registry)


def _consensus_capabilities(config: Config, registry: Registry) -> frozenset[str]:
    plugin = registry.consensus(config.consensus.name)
    return frozenset(plugin.capabilities(registry.settings(plugin, config.consensus.settings)))


def _membership(config: Config, replicated: bool, where: Where) -> str:
    engine = config.consensus.name
    if config.node.bootstrap and config.node.join_addr:
        return (
            f"node.bootstrap{where('node.bootstrap')} begins a new cluster and node.join_addr"
            f"{where('node.join_addr')} joins another; set only one of them"
        )
    if len(config.cluster.members) > 1 and not replicated:
        return (
            f"cluster.members{where('cluster.members')} names {len(config.cluster.members)} members, but consensus "
            f"{engine!r} does not replicate; choose an engine that does (`raftkv plugins`), or name one member"
        )
    if config.node.join_addr and not replicated:
        return (
            f"node.join_addr{where('node.join_addr')} is set, but consensus {engine!r} does not replicate and "
            "cannot join anything; choose an engine that does (`raftkv plugins`), or leave it empty"
        )
    return ""


def _members(config: Config, where: Where) -> str:
    members = config.cluster.members
    if members and config.node.id not in members and not config.node.join_addr:
        return (
            f"node.id = {config.node.id!r}{where('node.id')} is not among cluster.members"
            f"{where('cluster.members')}: {', '.join(sorted(members))}.{did_you_mean(config.node.id, members)}"
        )
    for first, second in combinations(sorted(members), 2):
        if members[first] == members[second]:
            here = f"cluster.members{where('cluster.members')}"
            return f"{here}: {first} and {second} have one address, {members[first]}"
    return ""


def _sync(config: Config, where: Where) -> str:
    if config.log.sync or config.log.unsafe or not (len(config.cluster.members) > 1 or config.node.join_addr):
        return ""
    return (
        f"log.sync = false{where('log.sync')} in a cluster: a power loss could undo acknowledged writes. "
        "Set it to true, or log.unsafe = true if this data may be lost"
    )


def _addresses(config: Config, where: Where) -> str:
    named = {
        "node.raft_bind": config.node.raft_bind,
        "node.raft_advertise": config.node.raft_advertise,
        "node.join_addr": config.node.join_addr,
    }
    for key, text in named.items():
        fault = _fault_of_address(text) if text or key == "node.raft_bind" else ""
        if fault:
            return f"{key}{where(key)}: {fault}"
    for member, text in config.cluster.members.items():
        fault = _fault_of_address(text)
        if fault:
            return f"cluster.members.{member}{where('cluster.members')}: {fault}"
    return ""


def _fault_of_address(text: str) -> str:
    try:
        address = Address.parse(text)
    except ValueError as error:
        return str(error)
    return f"expected host:port, not {text!r}" if address.port == -1 else ""


def _replicated_settings(config: Config, where: Where) -> str:
    try:
        check_settings(config.cluster.settings)
    except InvalidRequest as error:
        return f"cluster.settings{where('cluster.settings')}: {error}"
    return ""


def _ports(config: Config, registry: Registry, replicated: bool) -> str:
    bound = [("node.raft_bind", Address.parse(config.node.raft_bind))] if replicated else []
    for transport, listener in listeners(config, registry):
        name = f"transport.{transport} listener {listener.name!r}"
        for text in filter(None, (listener.bind, listener.advertise)):
            try:
                address = Address.parse(text)
            except ValueError as error:
                return f"{name}: {error}"
            if text == listener.bind:
                bound.append((name, address))
    for (first, one), (second, other) in combinations(bound, 2):
        if one.overlaps(other):
            return f"{first} and {second} both bind {_shown(one)} ({_shown(other)}); give one of them another port"
    return ""


def _exposure(config: Config, registry: Registry) -> str:
    for transport, listener in listeners(config, registry):
        if not (listener.protected or listener.insecure or Address.parse(listener.bind).is_loopback):
            return (
                f"transport.{transport} listener {listener.name!r} on {listener.bind} is reached from beyond this "
                "machine and asks for no credential. Give it a token file or TLS, bind it to 127.0.0.1, or set "
                "insecure = true for it if the network is trusted"
            )
    return ""


def _warnings(config: Config, registry: Registry) -> Iterator[str]:
    for listener in insecure_listeners(config, registry):
        yield f"listener {listener} is open to the network without a credential (insecure = true)"
    if not config.log.sync:
        yield "log.sync = false: a power loss takes the newest acknowledged writes"


def _shown(address: Address) -> str:
    return address.host if address.port == -1 else f"{address.host or '*'}:{address.port}"
