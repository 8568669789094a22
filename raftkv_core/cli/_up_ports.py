"""Every port of a cluster on this machine, checked before anything starts."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from itertools import combinations
from typing import NamedTuple

from raftkv_core.addresses import Address
from raftkv_core.cli._up_layout import HTTP_PORT, Node, consensus_engines
from raftkv_core.config_checks import listeners
from raftkv_core.errors import ConfigError
from raftkv_core.registry import Registry

__all__ = ["Bound", "addresses", "check"]


class Bound(NamedTuple):
    """One address that a node listens on."""

    node: str
    transport: str
    """Empty: it is the consensus engine's."""
    what: str
    """The listener's name, or `raft`."""
    address: Address


def addresses(node: Node, registry: Registry) -> list[Bound]:
    """What one node binds, in order."""
    found = [
        Bound(node.name, transport, listener.name, Address.parse(listener.bind))
        for transport, listener in listeners(node.config, registry)
    ]
    if node.config.consensus.name in consensus_engines(registry):
        found.append(Bound(node.name, "", "raft", Address.parse(node.config.node.raft_bind)))
    return found


def check(nodes: Iterable[Node], registry: Registry) -> None:
    """Raise ConfigError if two listeners would have one port, or a port is taken."""
    bound = [each for node in nodes for each in addresses(node, registry)]
    for one, other in combinations(bound, 2):
        if one.address.overlaps(other.address):
            raise ConfigError(
                f"{one.node} ({one.what}) and {other.node} ({other.what}) would both listen on port "
                f"{one.address.port}; use fewer --nodes, or give one another port in its raftkv.toml"
            )
    for each in bound:
        if each.address.port == -1:
            continue  # a UNIX socket: its file may be a dead process's
        if fault := _fault(each.address):
            free = _free_http_port(bound)
            raise ConfigError(
                f"{each.node} ({each.what}) cannot listen on {each.address.host}:{each.address.port}: {fault}; "
                f"stop what uses it, or move all ports: --http-port {free}"
            )


def _fault(address: Address, offset: int = 0) -> str:
    """Why the address cannot be bound, or an empty string."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port + offset if address.port else 0))
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            return "the port is in use" if taken else str(error.strerror)
        except OverflowError:
            return "there is no such port"
    return ""


def _free_http_port(bound: list[Bound]) -> int:
    """The first port, by hundreds, that would leave every listener alone."""
    first = next((each.address.port for each in bound if each.what == "http"), HTTP_PORT)
    for step in range(100, 10_000, 100):
        if not any(_fault(each.address, step) for each in bound):
            return first + step
    return first + 1_000
