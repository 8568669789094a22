"""Where `raftkv up` keeps its nodes, and their configuration files.

    D/lock                 held while `raftkv up` runs here
    D/node1/raftkv.toml    the node's configuration: `raftkv serve` starts it by hand
    D/node1/data/          its data directory
    D/node1/node.log       what its processes print

A cluster is laid out once. Later runs go on with what is there: they change no choice, and write a file anew
only to move its ports, keeping whatever else somebody set in it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from raftkv_core.addresses import Address
from raftkv_core.config import Config, load_config
from raftkv_core.config_sources import File
from raftkv_core.config_text import fresh_cluster_id, render
from raftkv_core.errors import ConfigError, DataDirectoryError
from raftkv_core.node.datadir import DirectoryLock, Layout
from raftkv_core.registry import Registry
from raftkv_core.schema import leaves

__all__ = ["HTTP_PORT", "LOG", "RAFT_PORT", "Node", "Wanted", "consensus_engines", "lay_out", "wipe"]

HTTP_PORT: Final = 8080
RAFT_PORT: Final = 8088

_CONFIG: Final = "raftkv.toml"
_DATA: Final = "data"
LOG: Final = "node.log"
_OURS: Final = frozenset({_CONFIG, _DATA, LOG, f"{LOG}.1"})
_TITLE: Final = """\
raftkv: {node}, {of} on this machine, written by `raftkv up`.
`raftkv serve` with this file starts it by hand. Every key is here; those that are
commented out show their default. What you set stays; only `raftkv up --http-port` writes addresses anew."""


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for; None leaves it to what is there, or else to the default."""

    nodes: int | None = None
    storage: str | None = None
    consensus: str | None = None
    http_port: int | None = None


@dataclass(frozen=True)
class Node:
    """One node's place and resolved configuration."""

    directory: Path
    config: Config
    warnings: list[str]

    @property
    def name(self) -> str:
        return self.config.node.id

    @property
    def config_file(self) -> Path:
        return self.directory / _CONFIG

    @property
    def log_file(self) -> Path:
        return self.directory / LOG


def consensus_engines(registry: Registry) -> list[str]:
    """The engines that replicate, with default settings."""
    return [
        row.name
        for row in registry.rows
        if row.kind == "consensus" and row.status == "ok" and "replicated" in row.capabilities
    ]


def lay_out(root: Path, wanted: Wanted, registry: Registry, environ: Mapping[str, str]) -> list[Node]:
    """The nodes of the cluster in `root`: those that are there, or new ones. The caller holds `root`'s lock."""
    directories = _node_directories(root)
    conflict = _conflict(directories, wanted) if directories else ""
    if conflict and not any(Layout(directory / _DATA).holds_data() for directory in directories):
        wipe(root)  # it was laid out and never started, so nothing binds it to its choices
        directories = []
    elif conflict:
        raise ConfigError(conflict)
    if directories:
        _move_ports(directories, wanted, registry)
    else:
        directories = _begin(root, wanted, registry)
    return [_load(directory, registry, environ) for directory in directories]


def wipe(root: Path) -> None:
    """Remove the nodes in `root` and nothing else: only what is recognisably from `raftkv up`, and not in use."""
    found = sorted(path for path in root.glob("node*") if re.fullmatch(r"node\d+", path.name))
    for path in found:
        _check_ours(path)
    with ExitStack() as locks:
        for path in found:
            if (path / _DATA).exists():
                locks.callback(DirectoryLock.acquire(Layout(path / _DATA)).close)
        for path in found:
            shutil.rmtree(path)


def _check_ours(path: Path) -> None:
    """Only what `raftkv up` made: nothing that a person may have put there is removed."""
    remedy = f"so --fresh leaves everything in {path.parent} alone; move it away or choose another --data-dir"
    if path.is_symlink() or not path.is_dir():
        raise DataDirectoryError(f"{path} is not a folder of raftkv up, {remedy}")
    names = _names(path)
    if foreign := sorted(names - _OURS):
        raise DataDirectoryError(f"{path} holds {foreign[0]!r}, which is not from raftkv up, {remedy}")
    if names and _CONFIG not in names:
        raise DataDirectoryError(f"{path} holds no {_CONFIG}, {remedy}")
    data = Layout(path / _DATA)
    known = {each.name for each in vars(data).values() if each.parent == data.path}
    if data.path.exists() and (foreign := sorted(_names(data.path) - known)):
        raise DataDirectoryError(f"{data.path} holds {foreign[0]!r}, which is not from raftkv, {remedy}")


def _names(folder: Path) -> set[str]:
    """What is in it; a file that was being replaced when a crash came counts as the file."""
    return {each.name.removesuffix(".new") for each in folder.iterdir()}


def _node_directories(root: Path) -> list[Path]:
    """In order; empty for a new cluster. What is neither whole nor absent is refused."""
    directories: list[Path] = []
    while (path := root / f"node{len(directories) + 1}").joinpath(_CONFIG).exists():
        directories.append(path)
    if not directories and path.exists() and any(path.iterdir()):
        raise DataDirectoryError(
            f"{path} is not empty and holds no {_CONFIG}; move it away, or choose another --data-dir"
        )
    return directories


# a new cluster


def _begin(root: Path, wanted: Wanted, registry: Registry) -> list[Path]:
    count, consensus = _size(wanted, registry)
    names = [f"node{number}" for number in range(1, count + 1)]
    offset = (wanted.http_port or HTTP_PORT) - HTTP_PORT
    transports = ["http"] if "http" in registry.names("transport") else []
    shared: dict[str, Any] = {
        "cluster.name": "raftkv",
        "cluster.id": fresh_cluster_id(),
        "consensus.use": consensus,
        "transport.use": transports,
    }
    if wanted.storage:
        shared["storage.use"] = wanted.storage
    if count > 1:
        shared["cluster.members"] = {
            name: _shifted(f"127.0.0.1:{RAFT_PORT}", offset + number) for number, name in enumerate(names)
        }
    texts = []
    for number, name in enumerate(names):
        own = {"node.id": name, "node.data_dir": _DATA, "node.bootstrap": number == 0}
        values = {**shared, **own, **_addresses(registry, transports, offset + number)}
        texts.append(_text(root / name, len(names), values, registry))
    for name, text in reversed(list(zip(names, texts, strict=True))):  # node1 last: with it, all are there
        (root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        (root / name / _CONFIG).write_text(text, encoding="utf-8")
    return [root / name for name in names]


def _size(wanted: Wanted, registry: Registry) -> tuple[int, str]:
    """How many nodes, and their consensus engine."""
    replicated = consensus_engines(registry)
    if wanted.consensus is not None:
        registry.consensus(wanted.consensus)
        count = wanted.nodes or (3 if wanted.consensus in replicated else 1)
        consensus = wanted.consensus
    else:
        count = wanted.nodes or (3 if replicated else 1)
        consensus = replicated[0] if replicated and count > 1 else "solo"
    if count > 1 and consensus not in replicated:
        remedy = f"--consensus {replicated[0]}" if replicated else "an engine that does (none is installed)"
        raise ConfigError(
            f"--nodes {count}: consensus {consensus!r} does not replicate, so it runs one node; "
            f"use --nodes 1, or {remedy}"
        )
    return count, consensus


def _text(directory: Path, count: int, values: Mapping[str, Any], registry: Registry) -> str:
    of = f"one of {count} nodes" if count > 1 else "the only node"
    title = _TITLE.format(node=directory.name, of=of)
    return render(registry, values, title=title)


# an older one


def _conflict(directories: list[Path], wanted: Wanted) -> str:
    """What is asked for and is another cluster than the one that is there; the error's text, or ""."""
    first = _values(directories[0])
    root, members = directories[0].parent, _members(first)
    for asked, what, there in (
        (wanted.nodes, "--nodes", len(members)),
        (wanted.storage, "--storage", first.get("storage.use")),
        (wanted.consensus, "--consensus", first.get("consensus.use")),
    ):
        if asked is not None and there is not None and asked != there:
            return (
                f"{what} {asked}: {root} holds a cluster with {what} {there}; leave the option out to go on with "
                "it, choose another --data-dir, or begin anew with --fresh, which removes its data"
            )
    if len(directories) != len(members):
        return (
            f"{root} holds {len(directories)} of the {len(members)} nodes {', '.join(members)}; put back what is "
            "missing, or begin anew with --fresh, which removes the data of all"
        )
    return ""


def _members(values: Mapping[str, Any]) -> list[str]:
    return list(values.get("cluster.members", {})) or [values.get("node.id", "node1")]


def _move_ports(directories: list[Path], wanted: Wanted, registry: Registry) -> None:
    """Write the files anew if they name other ports than are asked for."""
    if wanted.http_port is None:
        return
    offset = wanted.http_port - HTTP_PORT
    for number, directory in enumerate(directories):
        values = _values(directory)
        moved = _addresses(registry, values.get("transport.use", []), offset + number)
        if "cluster.members" in values:
            moved["cluster.members"] = {
                name: _shifted(f"127.0.0.1:{RAFT_PORT}", offset + place)
                for place, name in enumerate(_members(values))
            }
        if any(values.get(key) != value for key, value in moved.items()):
            text = _text(directory, len(directories), {**values, **moved}, registry)
            temporary = directory / f"{_CONFIG}.new"
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(directory / _CONFIG)


def _values(directory: Path) -> dict[str, Any]:
    """What the node's file sets, by dotted key."""
    return dict(_flat(File(directory / _CONFIG).table, ()))


def _flat(table: Mapping[str, Any], path: tuple[str, ...]) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in table.items():
        here = (*path, key)
        if isinstance(value, dict) and here not in {("cluster", "members"), ("cluster", "settings")}:
            found += _flat(value, here)
        else:
            found.append((".".join(here), value))
    return found


def _load(directory: Path, registry: Registry, environ: Mapping[str, str]) -> Node:
    """The file as `raftkv serve` would read it, but what tells the nodes apart is never the environment's."""
    path = directory / _CONFIG
    own = {
        key: value
        for key, value in _values(directory).items()
        if key.startswith(("cluster.", "node.")) or _is_bind(key)
    }
    own["node.data_dir"] = os.path.normpath(directory.absolute() / own.get("node.data_dir", _DATA))
    own.setdefault("node.join_addr", "")
    resolution = load_config(path, environ=environ, options=own, registry=registry)
    return Node(directory, resolution.config, resolution.warnings)


# addresses


def _addresses(registry: Registry, transports: list[str], offset: int) -> dict[str, Any]:
    """Every address that a node binds, moved from its default."""
    found = {"node.raft_bind": _shifted(f"127.0.0.1:{RAFT_PORT}", offset)}
    for name in transports:
        for path, field in leaves(registry.transport(name).settings, ("transport", name)):
            if _is_bind(path[-1]) and isinstance(field.default, str) and field.default:
                found[".".join(path)] = _shifted(field.default, offset)
    return found


def _is_bind(key: str) -> bool:
    """Plugins call what they listen on `bind` or `…_bind`."""
    return key.rpartition(".")[2] == "bind" or key.endswith("_bind")


def _shifted(address: str, offset: int) -> str:
    host, port = Address.parse(address)
    if not 1 <= port + offset <= 65_535:
        raise ConfigError(
            f"--http-port moves all ports by the same distance, and {port} would become {port + offset}; "
            f"choose one from {HTTP_PORT - 6_000 + 1} to 65000"
        )
    return f"[{host}]:{port + offset}" if ":" in host else f"{host}:{port + offset}"
