"""The real clock and network that consensus engines are handed; a simulation hands them others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from raftkv_core.addresses import Address
from raftkv_core.errors import ConfigError

__all__ = ["SystemClock", "SystemNetwork"]

_STREAM_BYTES = 1 << 20


class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def boottime(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class SystemNetwork:
    """TCP, or a UNIX socket for addresses that begin with `unix:`."""

    async def listen(
        self, address: str, accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
    ) -> asyncio.AbstractServer:
        where = _parse(address)
        if where.port == -1:
            return await asyncio.start_unix_server(accept, where.host.removeprefix("unix:"), limit=_STREAM_BYTES)
        host = None if where.is_wildcard else where.host
        return await asyncio.start_server(accept, host, where.port, limit=_STREAM_BYTES)

    async def connect(self, address: str, timeout_s: float) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        where = _parse(address)
        if where.port == -1:
            opening = asyncio.open_unix_connection(where.host.removeprefix("unix:"), limit=_STREAM_BYTES)
            return await asyncio.wait_for(opening, timeout_s)
        return await asyncio.wait_for(asyncio.open_connection(where.host, where.port, limit=_STREAM_BYTES), timeout_s)


def _parse(address: str) -> Address:
    try:
        return Address.parse(address)
    except ValueError as error:
        raise ConfigError(str(error)) from error
