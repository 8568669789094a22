"""What the handlers of one worker share."""

from __future__ import annotations

from dataclasses import dataclass, field

from raftkv_core.config import Config
from raftkv_core.interfaces.transport import Store
from raftkv_transport_http_falcon.gate import Gate
from raftkv_transport_http_falcon.metrics import Counters
from raftkv_transport_http_falcon.plugin import HttpSettings

__all__ = ["Service"]


@dataclass
class Service:
    """One for both listeners."""

    config: Config
    settings: HttpSettings
    counters: Counters
    store: Store = field(init=False)
    """There from the application's start-up on."""
    gate: Gate = field(init=False)
    """Of the clients' listener."""
