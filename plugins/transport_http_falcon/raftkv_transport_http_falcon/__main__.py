"""`python -m raftkv_transport_http_falcon`: how the supervisor starts this transport."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from raftkv_core.config import Config
from raftkv_core.errors import ConfigError, RaftkvError
from raftkv_core.interfaces.transport import Store
from raftkv_core.node.children import follow_supervisor
from raftkv_core.worker import connect as connect_to_node

__all__ = ["main"]


def main(connect: Callable[[], Awaitable[Store]] = connect_to_node) -> int:
    """Serve the configuration that RAFTKV_RESOLVED names; returns the exit status."""
    follow_supervisor()
    try:
        config = _config()
        try:
            import httptools  # noqa: F401, PLC0415 - uvicorn would fall back to something slow
            import uvloop  # noqa: F401, PLC0415
        except ImportError as error:
            raise ConfigError(f"{error}; reinstall raftkv-transport-http-falcon") from error
        from raftkv_transport_http_falcon.server import serve  # noqa: PLC0415 - it needs both

        return serve(config, connect)
    except RaftkvError as error:
        print(error, file=sys.stderr)  # noqa: T201 - logging may not be set up
        return error.exit_code


def _config() -> Config:
    resolved = os.environ.get("RAFTKV_RESOLVED")
    if resolved is None:
        raise ConfigError(
            "RAFTKV_RESOLVED does not name a resolved configuration; start the node with `raftkv serve`"
        )
    try:
        return Config.from_json(Path(resolved).read_bytes())
    except OSError as error:
        raise ConfigError(f"{resolved}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
