"""Plugins are found one by one: a broken one is a row with a reason, and an error only for who uses it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import pytest

from raftkv_core.builtin.memory import MemoryStorage
from raftkv_core.errors import ConfigError, PluginError
from raftkv_core.hookspecs import (
    CommandPlugin,
    ConsensusPlugin,
    StoragePlugin,
    TransportPlugin,
    hookimpl,
)
from raftkv_core.plugin_loading import PluginEntryPoint
from raftkv_core.registry import PluginRow, Registry
from raftkv_core.testing.registry import BUILTIN, entry_point, plugin_module, registry_of


class MapSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    map_size: int = 10


class PathSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    path: str


class LooseSettings(msgspec.Struct):
    map_size: int = 10


def storage(name: str = "lmdb", **changes: Any) -> StoragePlugin:
    known: dict[str, Any] = {
        "load": "raftkv_core.builtin.memory:MemoryStorage",
        "capabilities": lambda _settings: frozenset({"durable"}),
        **changes,
    }
    return StoragePlugin(name=name, **known)


def broken(error: BaseException, name: str = "lmdb") -> PluginEntryPoint:
    def load() -> object:
        raise error

    return PluginEntryPoint(name, "raftkv-fake", "1.0", load)


def only_row(entry: PluginEntryPoint) -> PluginRow:
    rows = Registry([entry]).rows
    assert len(rows) == 1
    return rows[0]


def module(**attributes: Any) -> PluginEntryPoint:
    return PluginEntryPoint("lmdb", "raftkv-fake", "1.0", lambda: SimpleNamespace(**attributes))


def test_what_the_core_brings_is_found_where_it_is_installed() -> None:
    """Memory and solo come through the same entry-point group as everybody's plugins."""
    rows = {(row.kind, row.name): row for row in Registry.discover().rows}
    assert rows["storage", "memory"].status == "ok"
    assert rows["storage", "memory"].distribution == "raftkv"
    assert rows["storage", "memory"].capabilities == ()
    assert rows["consensus", "solo"].capabilities == ("lease_reads", "linearizable_reads", "simulatable")


def test_a_plugin_is_found_by_kind_and_name() -> None:
    """The same name may stand for a storage and for a transport."""
    transport = TransportPlugin(name="lmdb", command=lambda _settings: ["true"])
    registry = registry_of(storage(), transport, CommandPlugin("look", "x.y:z", "Look."))
    assert registry.storage("lmdb").kind == "storage"
    assert registry.plugin("transport", "lmdb") is transport
    assert registry.plugin("consensus", "solo").name == "solo"
    assert registry.names("storage") == ["lmdb", "memory"]
    assert "look" in [command.name for command in registry.commands()]
    assert {row.status for row in registry.rows} == {"ok"}


def test_an_unknown_name_says_what_there_is() -> None:
    """A misspelt name offers the right one."""
    registry = registry_of(storage())
    with pytest.raises(PluginError) as caught:
        registry.storage("lmbd")
    assert str(caught.value) == "storage 'lmbd' is not installed; installed: lmdb, memory. Did you mean 'lmdb'?"
    with pytest.raises(PluginError, match=r"transport 'http' is not installed; installed: none\. Install the dist"):
        registry.transport("http")


def test_a_missing_module_is_a_row_with_the_remedy() -> None:
    """The library of one plugin is missing: the others work, and the reason says what to install."""
    registry = Registry([broken(ModuleNotFoundError("No module named 'lmdb'", name="lmdb")), BUILTIN])
    row = registry.find("storage", "lmdb")
    assert row is not None
    assert (row.kind, row.status, row.distribution) == ("plugin", "broken", "raftkv-fake")
    assert row.reason == "module 'lmdb' is missing; `pip install raftkv-fake` installs what it needs"
    assert registry.names("storage") == ["memory"]
    with pytest.raises(
        PluginError, match=r"storage 'lmdb' cannot be used: raftkv-fake 1\.0: module 'lmdb' is missing"
    ):
        registry.storage("lmdb")


def test_a_name_that_a_broken_plugin_may_have_had_mentions_it() -> None:
    """Whoever asks for what a broken plugin brings learns why it is not there."""
    registry = Registry([broken(RuntimeError("no disk\nno fun"), name="other"), BUILTIN])
    with pytest.raises(PluginError, match="Not usable: raftkv-fake: RuntimeError: no disk; update or reinstall"):
        registry.storage("lmdb")


@pytest.mark.parametrize("error", [ValueError(), SyntaxError("bad"), GeneratorExit(), BaseException("odd")])
def test_whatever_a_plugin_raises_stays_its_own_fault(error: BaseException) -> None:
    """Nothing that a plugin does while it is loaded takes the others down."""
    row = only_row(broken(error))
    assert row.status == "broken"
    assert type(error).__name__ in row.reason
    assert "\n" not in row.reason


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)])
def test_an_interrupt_is_nobodys_fault(error: BaseException) -> None:
    """Ctrl-C during discovery ends the command."""
    with pytest.raises(type(error)):
        _ = Registry([broken(error)]).rows


def test_a_misspelt_hook_is_named() -> None:
    """A hook that nobody calls would be a plugin that silently is not there."""

    @hookimpl
    def raftkv_register_storag(register: Any) -> None: ...

    row = only_row(module(raftkv_register_storag=raftkv_register_storag))
    assert row.status == "broken"
    assert row.reason == (
        "there is no hook 'raftkv_register_storag' in plugin API v1. Did you mean 'raftkv_register_storage'?"
    )


def test_a_hook_with_wrong_arguments_is_named() -> None:
    """pluggy's own check counts, on one line."""

    @hookimpl
    def raftkv_register_storage(registrar: Any) -> None: ...

    row = only_row(module(raftkv_register_storage=raftkv_register_storage))
    assert row.status == "broken"
    assert "registrar" in row.reason
    assert "\n" not in row.reason


def test_a_hook_for_a_later_release_may_be_optional() -> None:
    """`hookimpl(optionalhook=True)` is how a plugin uses a hook that an older core does not have."""

    @hookimpl(optionalhook=True)
    def raftkv_register_indexes(register: Any) -> None: ...

    own = plugin_module(storage())
    own.raftkv_register_indexes = raftkv_register_indexes
    assert only_row(module(**vars(own))).status == "ok"


def test_a_hook_without_its_mark_is_named() -> None:
    """A forgotten @hookimpl is the commonest mistake of a first plugin."""

    def raftkv_register_storage(register: Any) -> None: ...

    assert (
        "raftkv_register_storage is not marked"
        in only_row(module(raftkv_register_storage=raftkv_register_storage)).reason
    )
    assert "it implements no hook" in only_row(module()).reason


def test_a_hook_that_registers_nothing_is_said() -> None:
    """An entry point that brings nothing is no use, and a person wonders why."""

    @hookimpl
    def raftkv_register_storage(register: Any) -> None: ...

    assert only_row(module(raftkv_register_storage=raftkv_register_storage)).reason == "its hooks registered nothing"


def test_a_wrong_descriptor_is_named() -> None:
    """Each hook takes its own kind of descriptor."""

    @hookimpl
    def raftkv_register_storage(register: Any) -> None:
        register(ConsensusPlugin(name="lmdb", load="a:B", capabilities=lambda _settings: frozenset()))

    row = only_row(module(raftkv_register_storage=raftkv_register_storage))
    assert row.status == "broken"
    assert "raftkv_register_storage registers StoragePlugin, not ConsensusPlugin" in row.reason


def test_what_was_registered_before_a_fault_is_broken_too() -> None:
    """Half a plugin is not used, and its names tell why."""

    @hookimpl
    def raftkv_register_storage(register: Any) -> None:
        register(storage("first"))
        raise RuntimeError("then it broke")

    registry = Registry([module(raftkv_register_storage=raftkv_register_storage)])
    with pytest.raises(PluginError, match=r"storage 'first' cannot be used: .*then it broke"):
        registry.storage("first")


def fails(_settings: Any) -> Any:
    raise KeyError("secret reason")


@pytest.mark.parametrize(
    ("descriptor", "reason"),
    [
        (storage("LMDB"), "a name is small letters"),
        (storage("a__b"), "a name is small letters"),
        (storage("use"), "and not 'use'"),
        (storage(load="no colon"), "load is 'package.module:attribute', not 'no colon'"),
        (storage(settings=dict), "settings is a msgspec.Struct class"),
        (storage(settings=LooseSettings), "LooseSettings needs forbid_unknown_fields=True"),
        (
            storage(capabilities=lambda _settings: {"durabel"}),
            "capability 'durabel' is not in plugin API v1. Did you mean 'durable'?",
        ),
        (storage(capabilities=fails), "KeyError: 'secret reason'"),
        (TransportPlugin(name="x"), "a transport has either `command` or `load`"),
        (TransportPlugin(name="x", command=lambda _s: ["x"], load="a:b"), "a transport has either"),
        (CommandPlugin("x", ""), "load is 'package.module:attribute'"),
    ],
)
def test_a_descriptor_that_cannot_work_is_refused(descriptor: Any, reason: str) -> None:
    """What would fail later, in a place that is harder to understand, is said at once."""
    row = only_row(entry_point(descriptor))
    assert row.status == "broken"
    assert reason in row.reason


def test_another_api_version_is_known_before_anything_is_imported() -> None:
    """A plugin for v2 is a row that says so; nothing of it runs."""
    entry = PluginEntryPoint("lmdb", "raftkv-fake", "9.0", lambda: pytest.fail("imported"), api_version="2")
    row = only_row(entry)
    assert (row.status, row.version) == ("outdated", "9.0")
    assert row.reason.startswith("written for plugin API v2; this raftkv speaks v1")
    with pytest.raises(PluginError, match=r"storage 'lmdb' cannot be used: .* plugin API v2"):
        Registry([entry]).storage("lmdb")


def test_a_plugin_for_both_api_versions_is_no_problem() -> None:
    """A distribution may serve an old and a new core with one release."""
    rows = Registry([entry_point(storage()), entry_point(storage(), api_version="2")]).rows
    assert [row.status for row in rows] == ["ok"]


def test_two_plugins_of_one_name_are_both_named() -> None:
    """Neither is chosen by chance: who uses the name is asked to decide."""
    registry = Registry(
        [
            BUILTIN,
            entry_point(storage(), storage("fine"), distribution="raftkv-one", version="1.1"),
            entry_point(storage(), distribution="raftkv-two", version="2.2", name="two"),
        ]
    )
    rows = [row for row in registry.rows if row.name == "lmdb"]
    assert [(row.status, row.distribution) for row in rows] == [
        ("conflict", "raftkv-one"),
        ("conflict", "raftkv-two"),
    ]
    assert registry.storage("fine").name == "fine"
    with pytest.raises(PluginError, match=r"registered by raftkv-one 1\.1 and raftkv-two 2\.2; disable one"):
        registry.storage("lmdb")
    registry.disable(["raftkv-two"])
    assert registry.storage("lmdb").name == "lmdb"


def test_a_name_that_one_distribution_registers_twice_is_a_conflict() -> None:
    """Two entry points of one distribution are told apart by their names."""
    registry = Registry([entry_point(storage(), name="a"), entry_point(storage(), name="b")])
    assert {row.status for row in registry.rows} == {"conflict"}
    registry.disable(["b"])
    assert registry.storage("lmdb").name == "lmdb"


def test_a_command_of_the_core_cannot_be_replaced() -> None:
    """A plugin's `serve` is seen to conflict, and is not run."""
    registry = registry_of(CommandPlugin("serve", "x.y:z"))
    assert {row.status for row in registry.rows if row.name == "serve"} == {"conflict"}
    assert "serve" not in [command.name for command in registry.commands()]


@pytest.mark.parametrize("name", ["fake", "raftkv-fake", "Raftkv_Fake"])
def test_a_disabled_plugin_is_not_imported(name: str) -> None:
    """By entry point or distribution: what does harm when imported can be kept out."""
    entry = PluginEntryPoint("fake", "raftkv-fake", "1.0", lambda: pytest.fail("imported"))
    row = Registry([entry], disabled=[name]).rows[0]
    assert row.status == "disabled"


def test_a_plugin_is_disabled_by_its_own_name_too() -> None:
    """Its siblings in the same distribution stay."""
    registry = registry_of(storage(), storage("other"))
    registry.disable(["lmdb"])
    assert registry.names("storage") == ["memory", "other"]
    with pytest.raises(PluginError, match=r"storage 'lmdb' is disabled: .*\[plugins\] disabled"):
        registry.storage("lmdb")


def test_disabling_what_is_not_there_is_noticed() -> None:
    """A misspelt name in `disabled` disables nothing, which a person would want to know."""
    registry = registry_of(storage())
    registry.disable(["lmdb", "solo", "lmbd"])
    assert registry.disabled_in_vain == ["lmbd"]


def test_required_settings_leave_the_capabilities_open() -> None:
    """What depends on settings that have no default is not known before they are given."""
    registry = registry_of(storage(settings=PathSettings, capabilities=lambda settings: {settings.path}))
    assert registry.rows[-1].status == "ok"
    row = registry.find("storage", "lmdb")
    assert row is not None
    assert row.capabilities == ()


def test_settings_are_the_plugins_own_schema() -> None:
    """A plugin gets an instance of its class, or the error names its key."""
    registry = registry_of(storage(settings=MapSettings))
    plugin = registry.storage("lmdb")
    assert registry.settings(plugin, {"map_size": 5}) == MapSettings(map_size=5)
    with pytest.raises(ConfigError, match=r"storage\.lmdb\.map_sise is not known"):
        registry.settings(plugin, {"map_sise": 5})


def test_load_imports_what_the_descriptor_names() -> None:
    """The engine is imported when it is asked for."""
    registry = registry_of(storage())
    assert registry.load(registry.storage("lmdb")) is MemoryStorage


@pytest.mark.parametrize(
    ("load", "text"),
    [
        ("raftkv_missing.engine:Engine", r"module 'raftkv_missing' is missing; `pip install raftkv-fake`"),
        ("raftkv_core.builtin.memory:MemoryStorge", r"has no 'MemoryStorge'\. Did you mean 'MemoryStorage'\?"),
        ("raftkv_fake_that_fails:Engine", "RuntimeError: no CPU; update or reinstall raftkv-fake"),
    ],
)
def test_an_engine_that_cannot_be_imported_says_what_is_missing(
    load: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names plugin, distribution, module and remedy."""
    (tmp_path / "raftkv_fake_that_fails.py").write_text("raise RuntimeError('no CPU')")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry = registry_of(storage(load=load))
    with pytest.raises(PluginError, match=rf"storage 'lmdb' \(raftkv-fake\) cannot be loaded: .*{text}"):
        registry.load(registry.storage("lmdb"))


DISTRIBUTION = {
    "METADATA": "Metadata-Version: 2.1\nName: raftkv-outside\nVersion: 3.2\n",
    "entry_points.txt": (
        "[raftkv.v1]\nredis = raftkv_outside.plugin\nlost = raftkv_outside.nowhere\n"
        "[raftkv.v2]\nnewer = x\n[other]\na = b\n"
    ),
}


def test_installed_distributions_are_discovered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points of real metadata, of this API version and of another, with distribution and version."""
    info = tmp_path / "raftkv_outside-3.2.dist-info"
    info.mkdir()
    for name, text in DISTRIBUTION.items():
        (info / name).write_text(text)
    package = ModuleType("raftkv_outside")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "raftkv_outside", package)
    plugin = ModuleType("raftkv_outside.plugin")
    vars(plugin).update(vars(plugin_module(storage("redis"))))
    monkeypatch.setitem(sys.modules, "raftkv_outside.plugin", plugin)
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = {row.name: row for row in Registry.discover().rows if row.distribution == "raftkv-outside"}
    assert (rows["redis"].kind, rows["redis"].status, rows["redis"].version) == ("storage", "ok", "3.2")
    assert (rows["lost"].kind, rows["lost"].status) == ("plugin", "broken")
    assert "module 'raftkv_outside.nowhere' is missing" in rows["lost"].reason
    assert rows["newer"].status == "outdated"
    assert len(rows) == 3
