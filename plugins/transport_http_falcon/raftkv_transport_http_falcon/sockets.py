"""The listening sockets, made by gunicorn's master before it forks.

Workers that share a socket do not share its connections: whoever wakes first accepts all that wait (64 to 0 was
seen). So for clients each worker has a socket of its own, and the kernel deals connections out (SO_REUSEPORT).
The master keeps them all open, so that connections wait, and are not reset, while a worker is replaced.
"""

from __future__ import annotations

import errno
import os
import socket
from contextlib import ExitStack
from typing import Final

from raftkv_core.addresses import Address
from raftkv_core.errors import ConfigError
from raftkv_transport_http_falcon.plugin import HttpSettings

__all__ = ["listen"]

BACKLOG: Final = 2_048


def listen(settings: HttpSettings) -> list[socket.socket]:
    """A socket for the clients of each worker, then one for the management listener, if there is one.

    Raises ConfigError for an address that is in use, or not this machine's.
    """
    with ExitStack() as undo:
        sockets = [undo.enter_context(_listen("bind", settings.bind, shared=settings.worker_count > 1))]
        for _ in range(1, settings.worker_count):
            sockets.append(undo.enter_context(_again(sockets[0])))
        if settings.management_bind:
            sockets.append(undo.enter_context(_listen("management_bind", settings.management_bind)))
        undo.pop_all()
    return sockets


def _listen(name: str, bind: str, *, shared: bool = False) -> socket.socket:
    address = Address.parse(bind)
    host = "0.0.0.0" if address.host in {"", "*"} else address.host  # noqa: S104 - as it was asked for
    try:
        family, _, _, _, at = socket.getaddrinfo(
            host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # Bound without sharing first, because a second node on the port would otherwise go unnoticed.
        alone = socket.create_server(at[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        hint = (
            "; another process listens there, give this one another port" if error.errno == errno.EADDRINUSE else ""
        )
        raise ConfigError(f"transport.http.{name} = {bind!r}: {os.strerror(error.errno or 0)}{hint}") from error
    if not shared:
        return alone
    at = alone.getsockname()
    alone.close()
    return _shared(family, at)


def _again(other: socket.socket) -> socket.socket:
    return _shared(other.family, other.getsockname())


def _shared(family: int, at: tuple[str, int]) -> socket.socket:
    return socket.create_server(at[:2], family=family, backlog=BACKLOG, reuse_port=True)
