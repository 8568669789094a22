"""What the core learns of this plugin, without importing Falcon or gunicorn.

[transport]
use = ["http"]
[transport.http]
bind = "127.0.0.1:8080"
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from raftkv_core.addresses import Address
from raftkv_core.hookspecs import CommandPlugin, Listener, Register, TransportPlugin, hookimpl

__all__ = ["HttpSettings", "raftkv_register_commands", "raftkv_register_transport"]

Seconds = Annotated[float, Meta(gt=0, le=86_400)]


class HttpSettings(msgspec.Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """`[transport.http]`."""

    bind: Annotated[str, Meta(description="where clients connect, host:port")] = "127.0.0.1:8080"
    advertise: Annotated[str, Meta(description="host:port that clients are told; empty: bind")] = ""
    insecure: Annotated[bool, Meta(description="allow bind beyond loopback without token_file or TLS")] = False
    management_bind: Annotated[
        str, Meta(description="where members join and are looked at, host:port; empty: nowhere")
    ] = "127.0.0.1:6000"
    management_insecure: Annotated[
        bool, Meta(description="allow management_bind beyond loopback without a token or TLS")
    ] = False
    hosts: Annotated[
        list[str],
        Meta(description="further names that Host may have; checked on loopback listeners without a token"),
    ] = msgspec.field(default_factory=list)
    token_file: Annotated[
        str, Meta(description="bearer tokens, one a line, any of which is asked of clients; empty: none asked")
    ] = ""
    join_token_file: Annotated[str, Meta(description="the same for the management listener; empty: token_file")] = ""
    tls_cert_file: Annotated[str, Meta(description="certificate chain (PEM) of both listeners; empty: no TLS")] = ""
    tls_key_file: Annotated[str, Meta(description="its private key (PEM)")] = ""
    tls_client_ca_file: Annotated[
        str, Meta(description="only clients with a certificate of this CA (PEM) may connect; empty: all")
    ] = ""
    workers: Annotated[
        int,
        Meta(
            description="worker processes; 0: one for every two cores, because the node needs some too", ge=0, le=64
        ),
    ] = 0
    connections_max: Annotated[
        int, Meta(description="open connections of one worker; more are answered 503", ge=1, le=100_000)
    ] = 1_000
    header_bytes_max: Annotated[
        int, Meta(description="request line and headers together; more is 431", ge=4_096, le=1 << 20)
    ] = 16_384
    headers_max: Annotated[int, Meta(description="header lines; more is 431", ge=16, le=1_000)] = 100
    body_bytes_max: Annotated[int, Meta(description="one request body; more is 413", ge=2 << 20, le=64 << 20)] = (
        4 << 20
    )
    bodies_bytes_max: Annotated[
        int, Meta(description="request bodies held by one worker; more is 503", ge=4 << 20, le=1 << 40)
    ] = 64 << 20
    header_timeout_s: Annotated[
        Seconds, Meta(description="from a request's first byte (or the connection) to the end of its headers")
    ] = 10.0
    body_timeout_s: Annotated[Seconds, Meta(description="from there to the end of the body")] = 30.0
    write_timeout_s: Annotated[Seconds, Meta(description="how long a client may leave an answer unread")] = 30.0
    keepalive_s: Annotated[Seconds, Meta(description="how long an idle connection stays open")] = 15.0
    graceful_timeout_s: Annotated[
        Seconds, Meta(description="how long requests under way may take when the node stops")
    ] = 20.0
    page_rows_max: Annotated[int, Meta(description="rows of one page of a list", ge=1, le=10_000)] = 1_000
    page_bytes_max: Annotated[
        int, Meta(description="a page of a list ends after so many bytes of keys and values", ge=64 << 10)
    ] = 4 << 20
    heartbeat_s: Annotated[Seconds, Meta(description="silence on a watch before a sign of life is sent")] = 15.0

    def __post_init__(self) -> None:
        bind = self._address("bind")
        if self.management_bind and bind.overlaps(self._address("management_bind")):
            raise ValueError(f"management_bind and bind are both {self.bind}; give each its own port")
        if self.advertise:
            self._address("advertise")
        if bool(self.tls_cert_file) != bool(self.tls_key_file):
            raise ValueError("tls_cert_file and tls_key_file go together: set both or none")
        if self.tls_client_ca_file and not self.tls_cert_file:
            raise ValueError("tls_client_ca_file needs tls_cert_file and tls_key_file")
        if self.keepalive_s >= self.graceful_timeout_s:
            raise ValueError("keepalive_s must be below graceful_timeout_s, or stopping cuts requests off")
        if self.bodies_bytes_max < self.body_bytes_max:
            raise ValueError("bodies_bytes_max must not be below body_bytes_max")

    @property
    def worker_count(self) -> int:
        return self.workers or max(1, len(os.sched_getaffinity(0)) // 2)

    @property
    def management_token_file(self) -> str:
        return self.join_token_file or self.token_file

    def _address(self, field: str) -> Address:
        try:
            address = Address.parse(getattr(self, field))
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from None
        if address.port == -1:
            raise ValueError(f"{field}: expected host:port, not {address.host!r}")
        return address


def _command(_settings: HttpSettings) -> Sequence[str]:
    return [sys.executable, "-m", "raftkv_transport_http_falcon"]


def _listeners(settings: HttpSettings) -> Sequence[Listener]:
    tls = bool(settings.tls_cert_file)
    clients = Listener(
        "http",
        settings.bind,
        protected=tls or bool(settings.token_file),
        insecure=settings.insecure,
        advertise=settings.advertise,
    )
    if not settings.management_bind:
        return [clients]
    management = Listener(
        "management",
        settings.management_bind,
        protected=tls or bool(settings.management_token_file),
        insecure=settings.management_insecure,
    )
    return [clients, management]


@hookimpl
def raftkv_register_transport(register: Register) -> None:
    register(
        TransportPlugin(
            name="http",
            settings=HttpSettings,
            command=_command,
            listeners=_listeners,
            summary="HTTP API: Falcon under gunicorn, in processes of its own",
        )
    )


@hookimpl
def raftkv_register_commands(register: Register) -> None:
    for name, summary in (
        ("status", "Show a node's status."),
        ("get", "Print the value of a key."),
        ("put", "Set a key."),
        ("delete", "Remove a key."),
        ("ls", "List keys."),
    ):
        register(CommandPlugin(name=name, load=f"raftkv_transport_http_falcon.cli:{name}", help=summary))
