"""docs/configuration.md and the files under config/ say what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from msgspec import Struct

from raftkv_core.config import PLUGIN_SECTIONS, SECTIONS, load_config
from raftkv_core.config_sources import INTERNAL_VARIABLES, SEED_VARIABLES, File, variable
from raftkv_core.hookspecs import Descriptor, StoragePlugin, TransportPlugin
from raftkv_core.registry import Registry
from raftkv_core.schema import leaves
from raftkv_core.testing.deployment import Deployment
from raftkv_core.testing.registry import registry_of
from tools.configuration_reference import COMBINATIONS, DOCS, PLUGIN_TABLES, ROOT, outdated

TEXT = (ROOT / DOCS).read_text("utf-8")
PLUGINS = {"storage": StoragePlugin, "transport": TransportPlugin}


def as_if_installed(table: dict[str, object], kind: str, name: str) -> Descriptor:
    """A plugin with just the keys that a file sets, so that the core alone can check the rest of the file."""
    keys = [(key, type(value), msgspec.field(default=value)) for key, value in table.items()]
    settings: type[Struct] = msgspec.defstruct("Settings", keys, forbid_unknown_fields=True, kw_only=True)
    if kind == "transport":
        return TransportPlugin(name, settings, command=lambda _settings: ["true"])
    return StoragePlugin(name, "a:B", lambda _settings: frozenset(), settings)


def test_what_can_be_generated_here_is_current() -> None:
    """After a change of a schema, `python -m tools.configuration_reference` is to be run."""
    assert [str(path) for path, _text in outdated(Registry.discover())] == []


@pytest.mark.parametrize("section", [*SECTIONS, *PLUGIN_SECTIONS])
def test_every_key_is_documented_with_its_variable(section: str) -> None:
    """The core's tables are complete, whatever is installed."""
    for path, field in leaves({**SECTIONS, **PLUGIN_SECTIONS}[section], (section,)):
        assert re.search(rf"^\| `{field.key}` \| .* \| `{variable(path)}` \|$", TEXT, re.MULTILINE), path
        assert field.description, f"{'.'.join(path)} has no description"


def test_every_plugins_table_has_its_place() -> None:
    """Tables of our own plugins are filled, though they may not be installed here."""
    for name in PLUGIN_TABLES:
        match = re.search(rf"<!-- table: {re.escape(name)} -->\n(.*?)<!-- end -->", TEXT, re.DOTALL)
        assert match is not None
        assert match[1].startswith("| key | default | meaning | environment |"), name


def test_variables_with_a_meaning_of_their_own_are_documented() -> None:
    """The seed's and those between processes."""
    for name in [*SEED_VARIABLES, *INTERNAL_VARIABLES]:
        assert f"`{name}" in TEXT, name


@pytest.mark.parametrize("name", COMBINATIONS)
def test_each_file_is_right_for_the_core(name: str) -> None:
    """Whatever is installed: with plugins that take what the file gives them, it resolves and passes the checks."""
    file = ROOT / "config" / f"{name}.toml"
    table = File(file).table
    plugins = [
        as_if_installed(table[kind].get(plugin, {}), kind, plugin)
        for kind, plugin in sorted(COMBINATIONS[name].plugins)
        if plugin not in {"memory", "solo"}
    ]
    config = load_config(file, environ={}, options={}, registry=registry_of(*plugins)).config
    assert (config.storage.name, config.consensus.name) == tuple(name.split("-"))
    assert Path(config.node.data_dir) == ROOT / "data" / name


def test_each_combination_has_its_file_and_no_other() -> None:
    """A file that nobody generates is one that nobody keeps right."""
    assert {path.stem for path in (ROOT / "config").glob("*.toml")} == set(COMBINATIONS)


@pytest.mark.http
@pytest.mark.parametrize("name", COMBINATIONS)
def test_each_file_is_right_for_the_real_plugins(name: str) -> None:
    """Read by the plugins' own schemas, with every key that they have."""
    registry = Registry.discover()
    file = ROOT / "config" / f"{name}.toml"
    config = load_config(file, environ={}, options={}, registry=registry).config
    assert [transport.name for transport in config.transports] == ["http"]
    text = file.read_text("utf-8")
    for kind, plugin in COMBINATIONS[name].plugins:
        for path, _field in leaves(registry.plugin(kind, plugin).settings, (kind, plugin)):
            assert re.search(rf"^(# )?{path[-1]} = ", text, re.MULTILINE), path


@pytest.mark.http
@pytest.mark.parametrize("name", COMBINATIONS)
def test_each_file_starts_a_node(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands; the environment moves data and ports out of the way of whatever else runs here."""
    node = Deployment(tmp_path, storage=COMBINATIONS[name].values["storage.use"])
    node.config = ROOT / "config" / f"{name}.toml"
    monkeypatch.setenv("RAFTKV_NODE__DATA_DIR", str(node.data))
    monkeypatch.setenv("RAFTKV_TRANSPORT__HTTP__BIND", f"127.0.0.1:{node.port}")
    monkeypatch.setenv("RAFTKV_TRANSPORT__HTTP__MANAGEMENT_BIND", f"127.0.0.1:{node.management_port}")
    with node.started():
        assert node.request("PUT", "/v1/kv/a", b"1").status in {200, 201, 204}
        assert node.request("GET", "/v1/kv/a").body == b"1"
        status = node.status()
        assert (status["storage"], status["consensus"]) == tuple(name.split("-"))
        assert node.stop() == 0


@pytest.mark.http
def test_the_tables_of_the_real_plugins_are_described() -> None:
    """Each key has a description, or the reference would have a hole."""
    registry = Registry.discover()
    for name in PLUGIN_TABLES:
        kind, _, plugin = name.partition(".")
        for path, field in leaves(registry.plugin(kind, plugin).settings, (kind, plugin)):
            assert field.description, ".".join(path)
