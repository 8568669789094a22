"""File, environment and options become one configuration, and every mistake is named with its place."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta, Struct

from raftkv_core.config import Config, Resolution, load_config
from raftkv_core.config_sources import INTERNAL_VARIABLES, SEED_VARIABLES
from raftkv_core.config_text import render, show
from raftkv_core.errors import ConfigError, PluginError
from raftkv_core.hookspecs import ConsensusPlugin, Descriptor, Listener, StoragePlugin, TransportPlugin
from raftkv_core.plugin_loading import PluginEntryPoint
from raftkv_core.registry import Registry
from raftkv_core.testing.registry import BUILTIN, entry_point, registry_of


class MapSettings(Struct, forbid_unknown_fields=True, kw_only=True):
    map_size: Annotated[int, Meta(ge=1 << 20)] = 1 << 30
    reserve_dir: str = "reserve"
    sync: bool = True

    def __post_init__(self) -> None:
        if self.map_size > 1 << 50:
            raise ValueError("map_size is more than any disk has")


class TlsSettings(Struct, forbid_unknown_fields=True, kw_only=True):
    cert_file: str = ""


class WebSettings(Struct, forbid_unknown_fields=True, kw_only=True):
    tls: TlsSettings = msgspec.field(default_factory=TlsSettings)
    bind: str = "127.0.0.1:8080"
    token_file: str = ""
    password: str = ""
    routes: dict[str, str] = msgspec.field(default_factory=dict)


class NeedySettings(Struct, forbid_unknown_fields=True, kw_only=True):
    peers: int


LMDB = StoragePlugin("lmdb", "a:B", lambda _settings: frozenset({"durable", "shared_readers"}), MapSettings)
HTTP = TransportPlugin("http", WebSettings, command=lambda _settings: ["true"], listeners=lambda _settings: ())
MIXED_CASE = StoragePlugin("cold-store", "a:B", lambda _settings: frozenset(), MapSettings)
RAFT = ConsensusPlugin("raft", "a:B", lambda _settings: frozenset({"replicated"}), NeedySettings)
PLUGINS: tuple[Descriptor, ...] = (LMDB, HTTP, MIXED_CASE, RAFT)


class Place:
    """A folder with a configuration file, an environment and options."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "raftkv.toml"
        self.environ: dict[str, str] = {}
        self.options: dict[str, Any] = {}
        self.registry = registry_of(*PLUGINS)

    def load(self, text: str | None = "", **environ: str) -> Resolution:
        if text is not None:
            self.file.write_text(text)
        return load_config(
            None if text is None else self.file,
            environ={**self.environ, **environ},
            options=self.options,
            registry=self.registry,
        )

    def fault(self, text: str | None = "", **environ: str) -> str:
        with pytest.raises(ConfigError) as caught:
            self.load(text, **environ)
        return str(caught.value).replace(f"{self.file}", "FILE")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_nothing_given_is_a_configuration(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A node without file and environment runs on defaults, in the current folder."""
    monkeypatch.chdir(tmp_path)
    resolution = place.load(None)
    assert resolution.config.node.data_dir == str(tmp_path / "data")
    assert (resolution.config.storage.name, resolution.config.consensus.name) == ("lmdb", "solo")
    assert [transport.name for transport in resolution.config.transports] == ["http"]
    assert set(resolution.origins.values()) == {"default"}
    assert resolution.warnings == []


def test_the_core_alone_falls_back_to_what_it_brings(place: Place) -> None:
    """Without plugins: memory, solo, and nothing that serves clients."""
    place.registry = registry_of()
    config = place.load().config
    assert (config.storage.name, config.transports) == ("memory", [])


def test_a_broken_default_storage_is_not_silent(place: Place) -> None:
    """If lmdb is there and cannot be used, memory takes its place with a warning."""

    def load() -> object:
        raise ModuleNotFoundError("x", name="lmdb")

    place.registry = Registry([BUILTIN, PluginEntryPoint("lmdb", "raftkv-storage-lmdb", "1.0", load)])
    resolution = place.load()
    assert resolution.config.storage.name == "memory"
    assert "storage 'lmdb' cannot be used, memory is used instead: module 'lmdb' is missing" in resolution.warnings[0]


def test_option_wins_over_environment_over_file_over_default(place: Place) -> None:
    """The four sources in their order, each with its origin."""
    text = "[limits]\nqueue_commands = 1\ncommit_delay_ms = 1\npin_max_s = 1\n"
    place.options = {"limits.queue_commands": 3}
    resolution = place.load(text, RAFTKV_LIMITS__QUEUE_COMMANDS="2", RAFTKV_LIMITS__COMMIT_DELAY_MS="2")
    limits = resolution.config.limits
    assert (limits.queue_commands, limits.commit_delay_ms, limits.pin_max_s) == (3, 2, 1.0)
    assert limits.request_timeout_s == 5.0
    origins = resolution.origins
    assert origins["limits.queue_commands"] == "option"
    assert origins["limits.commit_delay_ms"] == "environment RAFTKV_LIMITS__COMMIT_DELAY_MS"
    assert origins["limits.pin_max_s"] == f"{place.file}:4"
    assert origins["limits.request_timeout_s"] == "default"


def test_the_seeds_variables_name_the_node(place: Place) -> None:
    """NODE_ID, BOOTSTRAP and JOIN_ADDR work as before; the long name wins over the short one."""
    assert place.load(None, NODE_ID="node7", BOOTSTRAP="true", JOIN_ADDR="").config.node.bootstrap is True
    config = place.load(None, NODE_ID="node7", RAFTKV_NODE__ID="node8").config
    assert config.node.id == "node8"
    place.environ = {"RAFTKV_CONSENSUS__USE": "raft", "RAFTKV_CONSENSUS__RAFT__PEERS": "3"}
    assert place.load(None, JOIN_ADDR="10.0.0.1:6000").config.node.join_addr == "10.0.0.1:6000"


def test_a_plugins_own_table_is_its_own(place: Place) -> None:
    """It is read by the plugin's schema, from file and environment, with defaults filled in."""
    config = place.load('[storage.lmdb]\nmap_size = "2GiB"\n', RAFTKV_STORAGE__LMDB__SYNC="false").config
    assert config.storage.settings == {
        "map_size": 2 << 30,
        "sync": False,
        "reserve_dir": str(place.file.parent / "reserve"),
    }
    assert place.registry.settings(place.registry.storage("lmdb"), config.storage.settings).map_size == 2 << 30


def test_a_name_with_a_dash_is_reached_from_the_environment(place: Place) -> None:
    """Variables cannot have dashes."""
    config = place.load(None, RAFTKV_STORAGE__USE="cold-store", RAFTKV_STORAGE__COLD_STORE__MAP_SIZE="2MiB").config
    assert config.storage.settings["map_size"] == 2 << 20


def test_tables_inside_a_plugins_table_work(place: Place) -> None:
    """Nested keys have names in file and environment, and paths in them resolve like others."""
    text = '[transport.http.tls]\ncert_file = "x.pem"\n[transport.http.routes]\na = "b"\n'
    resolution = place.load(text, RAFTKV_TRANSPORT__HTTP__TLS__CERT_FILE="/y.pem")
    assert resolution.config.transports[0].settings["tls"] == {"cert_file": "/y.pem"}
    assert resolution.config.transports[0].settings["routes"] == {"a": "b"}
    settings = place.load(text).config.transports[0].settings
    assert settings["tls"] == {"cert_file": str(place.file.parent / "x.pem")}


def test_paths_in_the_environment_are_taken_from_the_current_folder(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who sets a variable stands in a folder, and the file may lie in another."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    place.options = {"node.data_dir": "here"}
    assert place.load('[node]\ndata_dir = "there"').config.node.data_dir == str(tmp_path / "elsewhere" / "here")


def test_what_is_resolved_can_be_written_and_read(place: Place) -> None:
    """Children and workers read exactly what the supervisor resolved."""
    config = place.load('[cluster.members]\nnode1 = "127.0.0.1:8088"\n').config
    assert Config.from_json(config.to_json()) == config


FAULTS: Mapping[str, tuple[str, str]] = {
    "unknown table": (
        "[stroage]\nuse = 'lmdb'",
        "FILE:1: unknown table stroage; expected one of: cluster, node, log, limits, logging, plugins, storage, "
        "consensus, transport. Did you mean 'storage'?",
    ),
    "unknown key": (
        "[log]\n\nsynk = true",
        "FILE:3: unknown key log.synk; expected one of: sync, unsafe, segment_bytes, keep_entries, stall_s. "
        "Did you mean 'sync'?",
    ),
    "unknown key of a plugin": (
        "[storage.lmdb]\nmap_sise = 1",
        "FILE:2: unknown key storage.lmdb.map_sise; expected one of: map_size, reserve_dir, sync. "
        "Did you mean 'map_size'?",
    ),
    "key beside use": (
        "[storage]\nuses = 'lmdb'",
        "FILE:2: unknown key storage.uses; expected one of: use, cold-store, lmdb, memory. Did you mean 'use'?",
    ),
    "unknown plugin": (
        "[storage]\nuse = 'lmbd'",
        "FILE:2: storage 'lmbd' is not installed; installed: cold-store, lmdb, memory. Did you mean 'lmdb'?",
    ),
    "table of an unknown plugin": (
        "[storage]\nuse = 'lmdb'\n[storage.lmbd]\nmap_size = 1",
        "FILE:3: [storage.lmbd]: storage 'lmbd' is not installed; installed: cold-store, lmdb, memory. "
        "Did you mean 'lmdb'?",
    ),
    "wrong type": ("[log]\nsync = 'yes'", "FILE:2: log.sync = 'yes': expected true or false"),
    "out of range": ("[storage]\nlmdb.map_size = 5", "FILE:2: storage.lmdb.map_size = 5: expected a size like"),
    "above the format": ("limits.value_bytes = '2MiB'", "FILE:1: limits.value_bytes = '2MiB': expected a size like"),
    "table as a value": ("log = 3", "FILE:1: log is a table: write it as [log]"),
    "plugin's table as a value": (
        "[storage]\nlmdb = 3",
        "FILE:2: storage.lmdb is a table: write it as [storage.lmdb]",
    ),
    "plugin's own rule": (
        "[storage.lmdb]\nmap_size = 1125899906842625",
        "FILE:1: [storage.lmdb]: map_size is more than any disk has",
    ),
    "required key": ("[consensus]\nuse = 'raft'", "FILE:1: [consensus.raft]: Object missing required field `peers`"),
    "twice": ("[transport]\nuse = ['http', 'http']", "FILE:2: transport.use names 'http' twice; once is enough"),
    "no TOML": ("[log", "FILE is not valid TOML: "),
    "bad id": ("[cluster]\nid = 'abc'", "FILE:2: cluster.id = 'abc': expected text that matches"),
    "unselected plugin": (
        "[storage]\nuse = 'memory'\n[storage.lmdb]\nmap_size = 1",
        "FILE:4: storage.lmdb.map_size = 1: expected a size like",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_mistake_in_the_file_is_named_with_its_line(case: str, place: Place) -> None:
    """File, line, key, what was expected, and the nearest name."""
    text, message = FAULTS[case]
    assert place.fault(text).startswith(message)


ENVIRONMENT_FAULTS: Mapping[str, tuple[Mapping[str, str], str]] = {
    "unknown key": (
        {"RAFTKV_LOG__SYNK": "1"},
        "environment variable RAFTKV_LOG__SYNK is not known. Did you mean 'RAFTKV_LOG__SYNC'?",
    ),
    "unknown section": (
        {"RAFTKV_STROAGE__USE": "lmdb"},
        "environment variable RAFTKV_STROAGE__USE is not known. Did you mean 'RAFTKV_STORAGE__…'?",
    ),
    "one underscore": (
        {"RAFTKV_DATA_DIR": "x"},
        "environment variable RAFTKV_DATA_DIR is not known; an option is RAFTKV_<",
    ),
    "section alone": ({"RAFTKV_LOG": "x"}, "environment variable RAFTKV_LOG is not known; an option is RAFTKV_<"),
    "far away": (
        {"RAFTKV_LOGGING__ZZZZZZZZZZZZZZZZZZZZZZZZ": "x"},
        "environment variable RAFTKV_LOGGING__ZZZZZZZZZZZZZZZZZZZZZZZZ is not known; expected one of: "
        "RAFTKV_LOGGING__FORMAT, RAFTKV_LOGGING__LEVEL.",
    ),
    "kubernetes": (
        {"RAFTKV_SERVICE_HOST": "10.0.0.1"},
        "environment variable RAFTKV_SERVICE_HOST is no option of raftkv. Kub",
    ),
    "unknown plugin": (
        {"RAFTKV_STORAGE__LMBD__MAP_SIZE": "1"},
        "environment RAFTKV_STORAGE__LMBD__MAP_SIZE: storage 'lmbd' is not installed; installed: cold-store, lmdb, "
        "memory. Did you mean 'lmdb'?",
    ),
    "unknown plugin chosen": (
        {"RAFTKV_STORAGE__USE": "lmbd"},
        "environment RAFTKV_STORAGE__USE: storage 'lmbd' is not",
    ),
    "bad value": (
        {"RAFTKV_LOG__SYNC": "maybe"},
        "environment RAFTKV_LOG__SYNC: log.sync = 'maybe': expected true or false",
    ),
    "bad value of the seed's": (
        {"BOOTSTRAP": "maybe"},
        "environment BOOTSTRAP: node.bootstrap = 'maybe': expected true or false",
    ),
}


@pytest.mark.parametrize("case", ENVIRONMENT_FAULTS)
def test_a_mistake_in_the_environment_is_named(case: str, place: Place) -> None:
    """A variable that nobody reads would be a setting that silently does not hold."""
    environ, message = ENVIRONMENT_FAULTS[case]
    assert place.fault(**environ).startswith(message)


def test_variables_of_raftkvs_own_processes_are_no_options(place: Place) -> None:
    """They are permitted, all listed in one place, and change nothing; others' variables are not looked at."""
    environ = dict.fromkeys(INTERNAL_VARIABLES, "x") | {"OTHER_LOG__SYNC": "x", "_RAFTKV_COMPLETE": "x"}
    assert set(place.load(**environ).origins.values()) == {"default"}
    assert set(SEED_VARIABLES.values()) <= set(place.load().origins)


def test_a_secrets_value_is_not_repeated(place: Place) -> None:
    """Neither in an error nor where the configuration is shown."""
    assert "hunter2" not in place.fault("[transport.http]\npassword = ['hunter2']")
    resolution = place.load("[transport.http]\npassword = 'hunter2'\ntoken_file = '/etc/token'\n")
    assert 'password = "********"' in show(resolution)
    assert 'token_file = "/etc/token"' in show(resolution)


@pytest.mark.parametrize(
    ("name", "text"),
    [("absent.toml", "does not exist; `raftkv config new"), (".", "cannot be read: Is a directory")],
)
def test_a_file_that_cannot_be_read_is_named(name: str, text: str, tmp_path: Path) -> None:
    """With what to do about it."""
    with pytest.raises(ConfigError, match=re.escape(text)):
        load_config(tmp_path / name, environ={}, options={}, registry=registry_of())


def test_a_file_that_is_no_text_is_named(place: Place) -> None:
    """TOML is UTF-8."""
    place.file.write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigError, match="is not UTF-8 text: byte 8"):
        load_config(place.file, environ={}, options={}, registry=registry_of())


def test_an_unknown_option_is_named(place: Place) -> None:
    """Options have the keys of the file."""
    place.options = {"log.synk": True}
    assert place.fault() == (
        "option log.synk is not known; expected one of: log.sync, log.unsafe, log.segment_bytes, log.keep_entries, "
        "log.stall_s. Did you mean 'log.sync'?"
    )
    place.options = {"lgo.sync": True}
    assert place.fault().startswith("option lgo.sync is not known")


def test_a_disabled_plugin_is_not_imported_and_cannot_be_used(place: Place) -> None:
    """`[plugins] disabled` acts before anything of the plugin is loaded."""
    entry = PluginEntryPoint("lmdb", "raftkv-storage-lmdb", "1.0", lambda: pytest.fail("imported"))
    place.registry = Registry([BUILTIN, entry])
    assert place.load("[plugins]\ndisabled = ['lmdb']").config.storage.name == "memory"
    place.registry = Registry([BUILTIN, entry])
    assert place.load(RAFTKV_PLUGINS__DISABLED="raftkv-storage-lmdb").config.disabled == ["raftkv-storage-lmdb"]
    place.registry = Registry([BUILTIN, entry])
    text = "[plugins]\ndisabled = ['lmdb']\n[storage]\nuse = 'lmdb'"
    assert place.fault(text).startswith("FILE:4: storage 'lmdb' is disabled: ")


def test_the_table_of_an_unusable_plugin_stays_unread(place: Place) -> None:
    """A broken plugin harms only a configuration that uses it; a person is told that its table is not read."""
    text = "[plugins]\ndisabled = ['lmdb']\n[storage.lmdb]\nwhatever = 1"
    resolution = place.load(text, RAFTKV_STORAGE__LMDB__WHATEVER="2")
    assert resolution.config.storage.name == "memory"
    assert resolution.warnings[0].startswith("[storage.lmdb] is not read: raftkv-fake: by [plugins] disabled")


def test_disabling_what_is_not_installed_is_a_warning(place: Place) -> None:
    """It may be a misspelling, or a plugin that was removed since."""
    warnings = place.load("[plugins]\ndisabled = ['lmbd']").warnings
    assert warnings == ["[plugins] disabled names 'lmbd', which is not installed"]


def test_a_conflict_is_fatal_only_for_who_uses_the_name(place: Place) -> None:
    """Two plugins are called lmdb: memory works all the same."""
    entries = [BUILTIN, entry_point(LMDB, distribution="one"), entry_point(LMDB, distribution="two", name="two")]
    place.registry = Registry(entries)
    assert place.load("storage.use = 'memory'").config.storage.name == "memory"
    assert "registered by one 1.0 and two 1.0" in place.fault("storage.use = 'lmdb'")


def test_lines_are_told_for_every_way_to_write_a_key(place: Place) -> None:
    """Tables, dotted keys, quoted keys; and a text of many lines does no harm."""
    text = (
        "# comment\nlog.sync = true\n[storage]\nuse = 'lmdb'\n[storage . \"lmdb\"]\n  map_size = 2097152\n"
        "[cluster]\nname = '''\nx'''\n[transport.http]\npassword = '''\nbind = 3\n'''\n"
    )
    origins = place.load(text).origins
    lines = {key: int(origin.rpartition(":")[2]) for key, origin in origins.items() if origin != "default"}
    assert lines["log.sync"] == 2
    assert lines["storage.use"] == 4
    assert lines["storage.lmdb.map_size"] == 6
    assert lines["cluster.name"] == 8


def test_what_show_prints_is_a_configuration(place: Place) -> None:
    """`config show` output, kept as a file, resolves to the same."""
    text = (
        '[cluster.members]\nnode1 = "127.0.0.1:8088"\n[transport.http.routes]\n"a b" = "\u00fc\\n"\n'
        "[storage.lmdb]\nsync = false\n"
    )
    resolution = place.load(text)
    again = place.load(show(resolution))
    assert again.config == resolution.config
    assert place.load(show(resolution, origins=True)).config == resolution.config
    assert f"sync = false  # {place.file}:6" in show(resolution, origins=True)


def test_a_fresh_file_sets_what_was_asked_and_explains_the_rest(place: Place) -> None:
    """Every key of every chosen plugin stands in it; what is commented out is the default."""
    values = {"node.id": "node9", "storage.use": "lmdb", "storage.lmdb.sync": False, "log.segment_bytes": "32MiB"}
    text = render(place.registry, values, title="Title")
    assert text.startswith("# Title\n")
    config = place.load(text).config
    assert (config.node.id, config.storage.settings["sync"], config.log.segment_bytes) == ("node9", False, 32 << 20)
    uncommented = re.sub(r"^# (?=[a-z_]+ = )", "", text, flags=re.MULTILINE)
    everything = place.load(uncommented)
    assert everything.config == config
    assert "default" not in everything.origins.values()
    with pytest.raises(ConfigError, match=r"log\.synk is not known; .* Did you mean 'log\.sync'"):
        render(place.registry, {"log.synk": True})
    with pytest.raises(PluginError, match="storage 'lmbd' is not installed"):
        render(place.registry, {"storage.use": "lmbd"})


def test_a_listener_that_does_not_parse_is_an_error(place: Place) -> None:
    """Not a traceback."""
    odd = TransportPlugin("odd", command=lambda _s: ["x"], listeners=lambda _s: [Listener("main", "nowhere")])
    place.registry = registry_of(odd)
    assert place.fault("transport.use = ['odd']").startswith("transport.odd listener 'main': expected host:port")


def test_the_process_environment_is_no_secret_source(place: Place) -> None:
    """Only what is handed over counts, so that a test or a tool can resolve for another machine."""
    os.environ["RAFTKV_LOG__SYNC"] = "false"
    try:
        assert place.load().config.log.sync is True
    finally:
        del os.environ["RAFTKV_LOG__SYNC"]
