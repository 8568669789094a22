"""How many commands the node process takes through its socket, without HTTP: `python benchmarks/node.py --help`.

A client process speaks the worker's side of the node socket as an HTTP worker would: a number of clients, each
with one request under way, whose commands go out in one frame a tick of the loop. The node runs in a process
of its own, with a real log and real syncs. Printed: commands a second, latency, and how much of a core the node
and the client took.

    python benchmarks/node.py --storage lmdb --clients 64 --seconds 5
    python benchmarks/node.py --storage memory --reads linearizable
    python benchmarks/node.py --storage lmdb --profile /tmp/node.prof      # cProfile of the node
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import multiprocessing
import multiprocessing.synchronize
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from raftkv_core import worker
from raftkv_core.config import Config, LimitSettings, LogSettings, NodeSettings, Selected
from raftkv_core.machine import commands
from raftkv_core.node import assembly, proposer, runtime
from raftkv_core.node.datadir import DataDirectory, Layout, write_file
from raftkv_core.observability import configure_logging
from raftkv_core.registry import Registry


def make_config(arguments: argparse.Namespace, directory: Path) -> Config:
    return Config(
        node=NodeSettings(data_dir=str(directory), bootstrap=True),
        log=LogSettings(sync=not arguments.no_sync),
        limits=LimitSettings(commit_delay_ms=arguments.commit_delay_ms),
        storage=Selected(name=arguments.storage),
        consensus=Selected(name="solo"),
        transports=[],
    )


def run_node(config: Config, profile: str | None, stop: multiprocessing.synchronize.Event) -> None:
    config.logging.level = "warning"
    configure_logging(config.logging)

    async def serve() -> None:
        with DataDirectory.open(config, environ={}) as data:
            write_file(data.resolved_file, config.to_json())
            node = runtime.NodeRuntime(config, Registry.discover(), data)
            await node.start()
            stopping = asyncio.Event()
            loop = asyncio.get_running_loop()
            waiting = loop.run_in_executor(None, stop.wait)
            waiting.add_done_callback(lambda _done: stopping.set())
            await node.serve_until_stopped(stopping)

    if profile is None:
        uvloop.run(serve())
        return
    profiler = cProfile.Profile()
    profiler.enable()
    uvloop.run(serve())
    profiler.disable()
    profiler.dump_stats(profile)


def cpu_seconds(pid: int) -> tuple[float, float]:
    """Of the node's loop, and of its other threads (log, storage)."""
    loop = others = 0.0
    for task in Path(f"/proc/{pid}/task").iterdir():
        fields = (task / "schedstat").read_text().split()
        if task.name == str(pid):
            loop = int(fields[0]) / 1e9
        else:
            others += int(fields[0]) / 1e9
    return loop, others


async def drive(arguments: argparse.Namespace, resolved: Path, node_pid: int) -> dict[str, Any]:
    stores = [await worker.connect(resolved) for _ in range(1 if arguments.reads else arguments.connections)]
    store = stores[0]
    value = b"v" * arguments.value_bytes
    keys = [b"key-%06d" % number for number in range(arguments.keys)]
    latencies: list[float] = []
    stop_at = time.monotonic() + arguments.seconds
    if arguments.reads:
        for start in range(0, len(keys), 500):
            await asyncio.gather(*(store.propose(commands.put(key, value)) for key in keys[start : start + 500]))
        stop_at = time.monotonic() + arguments.seconds

    async def write(number: int) -> None:
        store = stores[number % len(stores)]
        turn = number * 7919
        while (now := time.monotonic()) < stop_at:
            turn += 1
            await store.propose(commands.put(keys[turn % len(keys)], value))
            latencies.append(time.monotonic() - now)

    async def read(number: int) -> None:
        turn = number * 7919
        while (now := time.monotonic()) < stop_at:
            turn += 1
            await store.get(keys[turn % len(keys)], level=arguments.reads)
            latencies.append(time.monotonic() - now)

    work = read if arguments.reads else write
    node_before, began = cpu_seconds(node_pid), time.monotonic()
    own_before = time.process_time()
    jobs = [work(number) for number in range(arguments.clients)]
    jobs += [write(number) for number in range(arguments.writers if arguments.reads else 0)]
    await asyncio.gather(*jobs)
    took, node_after = time.monotonic() - began, cpu_seconds(node_pid)
    result = {
        "rate": len(latencies) / took,
        "loop_cores": (node_after[0] - node_before[0]) / took,
        "thread_cores": (node_after[1] - node_before[1]) / took,
        "client_cores": (time.process_time() - own_before) / took,
        "latencies": sorted(latencies),
        "status": await store.status(),
    }
    for store in stores:
        await store.close()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage", default="lmdb")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--connections", type=int, default=1, help="to the node, as of so many workers; puts only")
    parser.add_argument("--window", type=int, help="entries in flight, instead of the node's own number")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--value-bytes", type=int, default=256)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--reads", choices=["linearizable", "lease", "stale"], help="read instead of writing")
    parser.add_argument("--writers", type=int, default=0, help="clients that write while others read")
    parser.add_argument("--commit-delay-ms", type=int, default=20)
    parser.add_argument("--no-sync", action="store_true", help="[log] sync = false")
    parser.add_argument("--switch-interval-ms", type=float, help="instead of the node's own")
    parser.add_argument("--profile", help="file for the node's cProfile figures; slows it down")
    parser.add_argument("--directory", help="where to keep the data; by default a temporary folder")
    arguments = parser.parse_args()
    if arguments.window is not None:
        vars(assembly)["Proposer"] = partial(proposer.Proposer, window=arguments.window)
    if arguments.switch_interval_ms is not None:
        runtime.SWITCH_INTERVAL_S = arguments.switch_interval_ms / 1_000  # type: ignore[misc]
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        config = make_config(arguments, Path(folder) / "data")
        context = multiprocessing.get_context("fork")
        stop = context.Event()
        node = context.Process(target=run_node, args=(config, arguments.profile, stop))
        node.start()
        layout = Layout(config.node.data_dir)
        while not layout.socket_file.exists() and node.is_alive():
            time.sleep(0.01)
        try:
            assert node.pid is not None
            result = uvloop.run(drive(arguments, layout.resolved_file, node.pid))
        finally:
            stop.set()
            node.join(20)
    report(arguments, result)
    sys.exit(node.exitcode)


def report(arguments: argparse.Namespace, result: dict[str, Any]) -> None:
    latencies, figures = result["latencies"], result["status"]["figures"]
    rate = result["rate"]
    proposed, storage, log = figures["proposer"], figures["storage"], figures["consensus"]
    print(
        f"{arguments.storage}, {arguments.clients} clients, {arguments.reads or 'put'}: {rate:,.0f}/s, "
        f"p50 {1_000 * latencies[len(latencies) // 2]:.2f} ms, "
        f"p99 {1_000 * latencies[len(latencies) * 99 // 100]:.2f} ms"
    )
    print(
        f"  node's loop {result['loop_cores']:.2f} cores ({1e6 * result['loop_cores'] / rate:.1f} µs each), "
        f"its threads {result['thread_cores']:.2f} ({1e6 * result['thread_cores'] / rate:.1f} µs), "
        f"client {result['client_cores']:.2f} cores ({1e6 * result['client_cores'] / rate:.1f} µs each)"
    )
    print(
        f"  {proposed['commands'] / max(1, proposed['entries']):.1f} commands an entry, "
        f"{proposed['commands'] / max(1, log['groups']):.1f} a log group, "
        f"{proposed['commands'] / max(1, storage['commits']):.0f} a storage commit "
        f"({1_000 * storage['commit_s_total'] / max(1, storage['commits']):.2f} ms each, "
        f"longest {1_000 * storage['commit_s_max']:.1f} ms), barriers {figures['reads']}"
    )


if __name__ == "__main__":
    main()
