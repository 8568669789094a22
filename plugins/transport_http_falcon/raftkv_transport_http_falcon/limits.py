"""What one connection and one worker may take, as the protocol wants it: plain numbers, read once."""

from __future__ import annotations

from typing import NamedTuple

from raftkv_transport_http_falcon.plugin import HttpSettings

__all__ = ["Limits"]


class Limits(NamedTuple):
    """See `HttpSettings` for what each means; times are seconds."""

    connections_max: int = 1_000
    header_bytes_max: int = 16_384
    headers_max: int = 100
    body_bytes_max: int = 4 << 20
    bodies_bytes_max: int = 64 << 20
    header_timeout_s: float = 10.0
    body_timeout_s: float = 30.0
    write_timeout_s: float = 30.0
    keepalive_s: float = 15.0

    @classmethod
    def of(cls, settings: HttpSettings) -> Limits:
        return cls(*(getattr(settings, name) for name in cls._fields))

    @property
    def sweep_s(self) -> float:
        """How often deadlines are looked at; they are met that much late at most."""
        shortest = min(self.header_timeout_s, self.body_timeout_s, self.write_timeout_s, self.keepalive_s)
        return min(1.0, max(0.05, shortest / 4))
