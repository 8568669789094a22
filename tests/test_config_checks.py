"""Configurations that would lie are refused, each with the way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from raftkv_core.addresses import Address
from raftkv_core.config import Resolution, load_config
from raftkv_core.config_checks import capabilities, insecure_listeners, listeners
from raftkv_core.errors import ConfigError
from raftkv_core.hookspecs import ConsensusPlugin, Listener, StoragePlugin, TransportPlugin
from raftkv_core.registry import Registry
from raftkv_core.testing.registry import registry_of

MEMBERS = "cluster.members = { node1 = '127.0.0.1:8088', node2 = '127.0.0.1:8089' }\n"
RAFT = "consensus.use = 'raft'\n"


def registry(*bound: Listener) -> Registry:
    """A replicated engine, a durable storage, and a transport that listens there."""
    return registry_of(
        ConsensusPlugin("raft", "a:B", lambda _settings: frozenset({"replicated", "membership"})),
        StoragePlugin("lmdb", "a:B", lambda _settings: frozenset({"durable", "shared_readers"})),
        TransportPlugin("http", command=lambda _settings: ["true"], listeners=lambda _settings: bound),
    )


def resolve(
    tmp_path: Path, text: str, bound: Sequence[Listener] = (), options: Mapping[str, Any] | None = None
) -> Resolution:
    file = tmp_path / "raftkv.toml"
    file.write_text(text)
    return load_config(file, environ={}, options=options or {}, registry=registry(*bound))


def refusal(tmp_path: Path, text: str, bound: Sequence[Listener] = ()) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(tmp_path, text, bound)
    return str(caught.value).replace(str(tmp_path / "raftkv.toml"), "FILE")


def test_several_members_need_an_engine_that_replicates(tmp_path: Path) -> None:
    """Three nodes on solo would be three stores that do not know of each other."""
    assert refusal(tmp_path, MEMBERS) == (
        "cluster.members (FILE:1) names 2 members, but consensus 'solo' does not replicate; choose an engine that "
        "does (`raftkv plugins`), or name one member"
    )
    assert len(resolve(tmp_path, MEMBERS + RAFT).config.cluster.members) == 2
    assert resolve(tmp_path, "cluster.members = { node1 = '127.0.0.1:1' }").config.cluster.members


def test_solo_cannot_join(tmp_path: Path) -> None:
    """JOIN_ADDR would be ignored, and the node would be alone."""
    assert "consensus 'solo' does not replicate and cannot join" in refusal(tmp_path, "node.join_addr = 'a:6000'")


def test_a_node_begins_a_cluster_or_joins_one(tmp_path: Path) -> None:
    """Both at once is a mistake that would make two clusters."""
    text = RAFT + "node.bootstrap = true\nnode.join_addr = 'a:6000'"
    assert refusal(tmp_path, text) == (
        "node.bootstrap (FILE:2) begins a new cluster and node.join_addr (FILE:3) joins another; set only one of them"
    )


def test_a_member_is_among_the_members(tmp_path: Path) -> None:
    """A node that is not named would wait for ever."""
    text = MEMBERS + RAFT + "node.id = 'node3'"
    assert "node.id = 'node3' (FILE:3) is not among cluster.members (FILE:1): node1, node2." in refusal(
        tmp_path, text
    )
    assert resolve(tmp_path, text + "\nnode.join_addr = 'a:6000'")


def test_members_have_addresses_of_their_own(tmp_path: Path) -> None:
    """Two members at one address are one typing error."""
    text = RAFT + "cluster.members = { node1 = 'a:1', node2 = 'a:1' }"
    assert "node1 and node2 have one address, a:1" in refusal(tmp_path, text)


def test_a_cluster_syncs_its_log(tmp_path: Path) -> None:
    """Without the sync a majority may forget what it promised; who wants that says so."""
    text = MEMBERS + RAFT + "log.sync = false\n"
    assert "log.sync = false (FILE:3) in a cluster: a power loss could undo" in refusal(tmp_path, text)
    assert "log.sync = false" in refusal(tmp_path, RAFT + "node.join_addr = 'a:6000'\nlog.sync = false\n")
    assert resolve(tmp_path, text + "log.unsafe = true").warnings == [
        "log.sync = false: a power loss takes the newest acknowledged writes"
    ]
    assert resolve(tmp_path, "log.sync = false").config.log.sync is False


@pytest.mark.parametrize("key", ["node.raft_bind", "node.raft_advertise", "node.join_addr"])
@pytest.mark.parametrize("value", ["localhost", "a:b", "a:70000", "::1:80", "unix:/x", "a b:1"])
def test_addresses_are_read_at_once(key: str, value: str, tmp_path: Path) -> None:
    """Not when something tries to connect."""
    assert refusal(tmp_path, f"{RAFT}{key} = '{value}'").startswith(f"{key} (FILE:2): expected host:port")


def test_addresses_of_members_are_read_too(tmp_path: Path) -> None:
    """Every member's, on every member."""
    text = RAFT + "cluster.members = { node1 = 'nowhere' }"
    assert refusal(tmp_path, text).startswith("cluster.members.node1 (FILE:2): expected host:port")


def test_first_values_of_replicated_settings_are_checked(tmp_path: Path) -> None:
    """They would fail in the log of every node."""
    assert "there is no setting 'history'" in refusal(tmp_path, "cluster.settings.history = 1")
    assert "tick_ms is an integer from 100" in refusal(tmp_path, "cluster.settings.tick_ms = 1")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("0.0.0.0:80", "127.0.0.1:80"),
        (":80", "[::1]:80"),
        ("localhost:80", "127.0.0.1:80"),
        ("[::]:80", "10.0.0.1:80"),
        ("unix:/run/a", "unix:/run/a"),
        ("Host:80", "host:80"),
    ],
)
def test_two_listeners_cannot_share_a_port(one: str, other: str, tmp_path: Path) -> None:
    """The second one would fail, minutes after the first began to serve."""
    bound = [Listener("main", one, insecure=True), Listener("management", other, insecure=True)]
    assert "transport.http listener 'main' and transport.http listener 'management' both bind" in refusal(
        tmp_path, "", bound
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("127.0.0.1:80", "127.0.0.1:81"),
        ("127.0.0.1:80", "127.0.0.2:80"),
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("unix:/run/a", "unix:/run/b"),
        ("unix:/run/a", "127.0.0.1:80"),
    ],
)
def test_listeners_apart_are_fine(one: str, other: str, tmp_path: Path) -> None:
    """Other ports, other addresses, ports that the system chooses."""
    assert resolve(tmp_path, "", [Listener("main", one), Listener("management", other)]).warnings == []


def test_the_raft_port_counts_where_it_is_bound(tmp_path: Path) -> None:
    """A replicated engine listens there; solo does not."""
    bound = [Listener("main", "127.0.0.1:8088")]
    assert "node.raft_bind and transport.http listener 'main' both bind 127.0.0.1:8088" in refusal(
        tmp_path, RAFT, bound
    )
    assert resolve(tmp_path, "", bound)


@pytest.mark.parametrize("bind", ["0.0.0.0:80", ":80", "10.0.0.1:80", "[::]:80", "example.org:80"])
def test_nothing_listens_beyond_this_machine_unprotected(bind: str, tmp_path: Path) -> None:
    """Unless somebody says that the network is trusted, and then it is said at every start."""
    assert "is reached from beyond this machine and asks for no credential" in refusal(
        tmp_path, "", [Listener("main", bind)]
    )
    assert resolve(tmp_path, "", [Listener("main", bind, protected=True)]).warnings == []
    assert resolve(tmp_path, "", [Listener("main", bind, insecure=True)]).warnings == [
        f"listener http.main ({bind}) is open to the network without a credential (insecure = true)"
    ]


@pytest.mark.parametrize("bind", ["127.0.0.1:80", "localhost:80", "[::1]:80", "127.9.9.9:80", "unix:/run/x"])
def test_loopback_needs_no_credential(bind: str, tmp_path: Path) -> None:
    """What only this machine reaches is open by default."""
    resolution = resolve(tmp_path, "", [Listener("main", bind)])
    assert resolution.warnings == []
    assert insecure_listeners(resolution.config, registry(Listener("main", bind))) == []


def test_open_listeners_are_listed() -> None:
    """The status shows them."""
    bound = (Listener("main", "0.0.0.0:80", insecure=True), Listener("admin", "127.0.0.1:81"))
    config = load_config(None, environ={}, options={}, registry=registry(*bound)).config
    assert insecure_listeners(config, registry(*bound)) == ["http.main (0.0.0.0:80)"]
    assert [name for name, _listener in listeners(config, registry(*bound))] == ["http", "http"]


@pytest.mark.parametrize(
    ("options", "delivered"),
    [
        ({}, {"durable", "shared_readers", "linearizable_reads", "lease_reads", "simulatable"}),
        ({"log.sync": False}, {"shared_readers", "linearizable_reads", "lease_reads", "simulatable"}),
        ({"storage.use": "memory"}, {"linearizable_reads", "lease_reads", "simulatable"}),
        ({"consensus.use": "raft"}, {"durable", "shared_readers", "replicated", "membership"}),
    ],
)
def test_capabilities_are_what_the_whole_delivers(options: Mapping[str, Any], delivered: set[str]) -> None:
    """A storage that could be durable is not, under a log that does not sync."""
    known = registry()
    config = load_config(None, environ={}, options=options, registry=known).config
    assert capabilities(config, known) == delivered


def test_an_address_knows_its_parts() -> None:
    """IPv6 stands in brackets, in and out."""
    assert Address.parse("[::1]:80") == ("::1", 80)
    assert Address.parse("example.org:80") == ("example.org", 80)
    assert Address.parse("unix:/run/x").is_loopback
