"""`python -m raftkv_transport_http_falcon`: how the supervisor starts this transport."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from raftkv_core.config import Config
from raftkv_core.errors import RaftkvError
from raftkv_core.node.children import follow_supervisor


def main() -> int:
    follow_supervisor()
    resolved = os.environ.get("RAFTKV_RESOLVED")
    try:
        if resolved is None:
            print(  # noqa: T201
                "RAFTKV_RESOLVED does not name a resolved configuration; start the node with raftkv serve",
                file=sys.stderr,
            )
            return 2
        try:
            import httptools  # noqa: F401, PLC0415
            import uvloop  # noqa: F401, PLC0415
        except ImportError as error:
            # uvicorn would fall back to slow replacements, and ours would not work at all
            print(f"{error}; reinstall raftkv-transport-http-falcon", file=sys.stderr)  # noqa: T201
            return 2
        from raftkv_core.worker import connect  # noqa: PLC0415
        from raftkv_transport_http_falcon.server import serve  # noqa: PLC0415

        return serve(Config.from_json(Path(resolved).read_bytes()), connect)
    except RaftkvError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
