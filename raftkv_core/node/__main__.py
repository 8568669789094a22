"""The node process: `python -m raftkv_core.node RUN/resolved.json`.

Started by the supervisor, which it does not outlive; by hand it works as well. SIGTERM and SIGINT stop it in
order. It ends with 0 then, with the exit code of the error that kept it from starting (`raftkv_core.errors`),
or with that of the fault that made it stop itself.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import msgspec
import uvloop

from raftkv_core.config import Config
from raftkv_core.errors import ConfigError, RaftkvError
from raftkv_core.node.children import follow_supervisor, notify_ready
from raftkv_core.node.datadir import DataDirectory
from raftkv_core.node.runtime import NodeRuntime
from raftkv_core.observability import configure_logging, get_logger
from raftkv_core.registry import Registry


def main(resolved: Path) -> int:
    follow_supervisor()
    try:
        config = Config.from_json(resolved.read_bytes())
    except (OSError, msgspec.DecodeError) as error:
        print(f"raftkv: {resolved}: {error}; start the node with `raftkv serve CONFIG`", file=sys.stderr)  # noqa: T201
        return ConfigError.exit_code
    configure_logging(config.logging, node=config.node.id)
    logger = get_logger("raftkv.node")
    try:
        with DataDirectory.open(config) as data:
            uvloop.run(_serve(NodeRuntime(config, Registry.discover(config.disabled), data)))
    except RaftkvError as error:
        logger.error(str(error))
        return error.exit_code
    except Exception:
        logger.exception("a fault in the program")
        return RaftkvError.exit_code
    return 0


async def _serve(runtime: NodeRuntime) -> None:
    """From the start to a stop that was asked for, or a fault."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    starting = loop.create_task(runtime.start())
    stopping = loop.create_task(stop.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():  # a long replay may be left at any point
        starting.cancel()
        await asyncio.wait((starting,))
        return
    stopping.cancel()
    starting.result()
    notify_ready()
    await runtime.serve_until_stopped(stop)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
