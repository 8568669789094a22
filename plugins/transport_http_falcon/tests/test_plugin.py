"""What the core sees of the plugin before anything of it runs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import msgspec
import pytest
from raftkv_transport_http_falcon import plugin
from raftkv_transport_http_falcon.limits import Limits
from raftkv_transport_http_falcon.plugin import HttpSettings

from raftkv_core.hookspecs import CommandPlugin, TransportPlugin
from raftkv_core.registry import Registry
from raftkv_core.schema import convert_table, fields

LIBRARIES = ("falcon", "gunicorn", "uvicorn", "uvicorn_worker", "httptools", "uvloop", "msgpack", "prometheus_client")


def registered(hook: Any) -> list[Any]:
    found: list[Any] = []
    hook(found.append)
    return found


def test_it_is_found() -> None:
    """By its entry point: one transport, five commands."""
    registry = Registry.discover()
    assert registry.transport("http").settings is HttpSettings
    assert {"status", "get", "put", "delete", "ls"} <= {command.name for command in registry.commands()}
    row = registry.find("transport", "http")
    assert row is not None
    assert (row.distribution, row.status) == ("raftkv-transport-http-falcon", "ok")


def test_registering_imports_no_library() -> None:
    """So that `raftkv --help` is quick, and a broken library is only its user's trouble."""
    code = (
        "import sys, raftkv_transport_http_falcon.plugin as p; p.raftkv_register_transport(print);"
        f"found = set(sys.modules) & set({LIBRARIES}) - {{'msgpack'}}; assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_commands_import_no_server() -> None:
    """The commands speak HTTP with the standard library."""
    code = (
        "import sys, raftkv_transport_http_falcon.cli;"
        f"found = set(sys.modules) & set({LIBRARIES}) - {{'msgpack', 'uvloop'}}; assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_commands_can_be_loaded() -> None:
    """What each descriptor names is there."""
    registry = Registry.discover()
    for command in registered(plugin.raftkv_register_commands):
        assert isinstance(command, CommandPlugin)
        assert callable(registry.load(command))


def test_the_process_is_this_interpreters() -> None:
    """The command line comes from the settings alone."""
    transport = registered(plugin.raftkv_register_transport)[0]
    assert isinstance(transport, TransportPlugin)
    assert transport.command is not None
    assert list(transport.command(HttpSettings())) == [sys.executable, "-m", "raftkv_transport_http_falcon"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [("http", False), ("management", False)]),
        ({"token_file": "t"}, [("http", True), ("management", True)]),
        ({"join_token_file": "t"}, [("http", False), ("management", True)]),
        ({"tls_cert_file": "c", "tls_key_file": "k"}, [("http", True), ("management", True)]),
        ({"management_bind": ""}, [("http", False)]),
    ],
)
def test_listeners(settings: dict[str, Any], expected: list[tuple[str, bool]]) -> None:
    """Each with its address, and whether it asks for a credential."""
    listeners = registered(plugin.raftkv_register_transport)[0].listeners(HttpSettings(**settings))
    assert [(listener.name, listener.protected) for listener in listeners] == expected
    assert listeners[0].bind == "127.0.0.1:8080"


def test_insecure_is_per_listener() -> None:
    """Opening one does not open the other."""
    transport = registered(plugin.raftkv_register_transport)[0]
    settings = HttpSettings(bind="0.0.0.0:1", management_insecure=True, advertise="host:1")
    clients, management = transport.listeners(settings)
    assert (clients.insecure, clients.advertise, management.insecure) == (False, "host:1", True)


def test_every_setting_is_described() -> None:
    """In one line, for the reference and for fresh configuration files."""
    for name, field in fields(HttpSettings).items():
        assert field.description, name
        assert "\n" not in field.description


def test_every_limit_can_be_set() -> None:
    """And has one default, wherever it is read."""
    assert set(Limits._fields) <= set(fields(HttpSettings))
    assert Limits.of(HttpSettings()) == Limits()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"bind": "8080"}, "bind: expected host:port"),
        ({"bind": "unix:/tmp/x"}, "bind: expected host:port"),
        ({"management_bind": "127.0.0.1:8080"}, "give each its own port"),
        ({"bind": ":8080", "management_bind": "127.0.0.1:8080"}, "give each its own port"),
        ({"tls_cert_file": "cert.pem"}, "go together"),
        ({"tls_client_ca_file": "ca.pem"}, "needs tls_cert_file"),
        ({"keepalive_s": 30.0}, "below graceful_timeout_s"),
        ({"bodies_bytes_max": 4 << 20, "body_bytes_max": 8 << 20}, "must not be below body_bytes_max"),
        ({"body_bytes_max": 1 << 20}, "body_bytes_max"),
        ({"workers": -1}, "workers"),
        ({"wrokers": 2}, "workers"),
    ],
)
def test_settings_that_contradict_each_other(table: dict[str, Any], message: str) -> None:
    """Refused when the configuration is read, naming the key."""
    with pytest.raises(Exception, match=message):
        convert_table(HttpSettings, table, "transport.http")


def test_port_zero_is_no_conflict() -> None:
    """The system chooses two different ones."""
    assert msgspec.convert({"bind": "127.0.0.1:0", "management_bind": "127.0.0.1:0"}, HttpSettings)


def test_workers_leave_cores_to_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the cores that this process may use, at least one, unless a number is given."""
    for cores, workers in ((1, 1), (2, 1), (4, 2), (9, 4)):
        monkeypatch.setattr("os.sched_getaffinity", lambda _pid, cores=cores: set(range(cores)))
        assert HttpSettings().worker_count == workers
    assert HttpSettings(workers=3).worker_count == 3
