"""Addresses as they stand in the configuration: `host:port`, `[ipv6]:port`, `unix:/path`."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

__all__ = ["Address"]


class Address(NamedTuple):
    """Where something listens or is reached. A UNIX socket has its path as host and port -1."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """ValueError says what was expected. `:8080` listens on every interface."""
        if text.startswith("unix:"):
            return cls(text, -1)
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        if not colon or not port.isascii() or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"expected host:port with a port from 0 to 65535, not {text!r}")
        if (":" in host and not bracketed) or any(letter.isspace() for letter in host):
            raise ValueError(f"expected host:port, an IPv6 address in brackets ([::1]:8080), not {text!r}")
        return cls(host.strip("[]"), int(port))

    @property
    def is_wildcard(self) -> bool:
        """Listens on every interface."""
        return self.host in {"", "*"} or self._has("is_unspecified")

    @property
    def is_loopback(self) -> bool:
        """Reached from this machine only."""
        return self.port == -1 or self.host.lower() == "localhost" or self._has("is_loopback")

    def overlaps(self, other: Address) -> bool:
        """Whether two listeners cannot both be bound. Port 0 is chosen by the system and never overlaps."""
        if self.port != other.port or self.port == 0:
            return False
        if self.port == -1:
            return self.host == other.host
        if self.is_wildcard or other.is_wildcard or self.host.lower() == other.host.lower():
            return True
        return "localhost" in {self.host.lower(), other.host.lower()} and self.is_loopback and other.is_loopback

    def _has(self, attribute: str) -> bool:
        try:
            return bool(getattr(ipaddress.ip_address(self.host), attribute))
        except ValueError:
            return False
