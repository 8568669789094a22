"""RaftKV beside etcd on this machine, in the same run: `make bench`, or `python benchmarks/versus_etcd.py --help`.

One node each, their default durability, 64 keep-alive connections, 256-byte values, 10,000 keys. The peers take
turns, so a machine that slows down slows both; each figure is the median of the rounds, and what counts is the
ratio. Needs `wrk` and `etcd` (Debian: `apt-get install wrk etcd-server`).
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
KEYS = 10_000
VALUE = b"v" * 256
VALUE_BASE64 = base64.b64encode(VALUE).decode()
CONNECTIONS_TO_PRELOAD = 16
UNITS_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


@dataclass(frozen=True)
class Row:
    """One line of the table: who, what, and wrk's script with its arguments."""

    peer: str
    name: str
    script: str
    arguments: tuple[str, ...]
    url: str


@dataclass(frozen=True)
class Result:
    rate: float
    p50_ms: float
    p99_ms: float
    errors: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_answered(url: str, process: subprocess.Popen[bytes], deadline_s: float = 30.0) -> None:
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if process.poll() is not None:
            sys.exit(f"{process.args!r} ended with status {process.returncode} before it answered on {url}")
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.02)
    sys.exit(f"nothing answered on {url} within {deadline_s:.0f} s")


@contextmanager
def running(argv: list[str], url: str, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    with output.open("wb") as log, subprocess.Popen(argv, stdout=log, stderr=log) as process:
        try:
            wait_until_answered(url, process)
            yield process
        finally:
            process.terminate()
            process.wait(timeout=30)


@contextmanager
def raftkv(folder: Path, storage: str) -> Iterator[str]:
    port = free_port()
    argv = [sys.executable, "-m", "raftkv_core.cli", "up", "--nodes", "1", "--storage", storage]
    argv += ["--data-dir", str(folder / storage), "--http-port", str(port)]
    with running(argv, f"http://127.0.0.1:{port}/readyz", folder / f"{storage}.log"):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def etcd(folder: Path) -> Iterator[str]:
    url, peer = f"http://127.0.0.1:{free_port()}", f"http://127.0.0.1:{free_port()}"
    argv = ["etcd", "--data-dir", str(folder / "etcd")]
    argv += ["--listen-client-urls", url, "--advertise-client-urls", url]
    argv += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
    argv += ["--initial-cluster", f"default={peer}"]
    with running(argv, f"{url}/health", folder / "etcd.log"):
        yield url


def preload(row: Row) -> None:
    """Put every key once, so that each read finds one; 16 connections."""
    address = urllib.parse.urlsplit(row.url).netloc

    def put_share(first: int) -> None:
        connection = http.client.HTTPConnection(address, timeout=30)
        for number in range(first, KEYS, CONNECTIONS_TO_PRELOAD):
            key = f"bench/{number:05d}"
            if row.script == "etcd.lua":
                body = json.dumps({"key": base64.b64encode(key.encode()).decode(), "value": VALUE_BASE64})
                connection.request("POST", "/v3/kv/put", body)
            else:
                connection.request("PUT", f"/v1/kv/{key}", VALUE)
            answer = connection.getresponse()
            answer.read()
            if answer.status >= 300:
                raise SystemExit(f"{row.peer} answered {answer.status} to a put")
        connection.close()

    with ThreadPoolExecutor(CONNECTIONS_TO_PRELOAD) as pool:
        list(pool.map(put_share, range(CONNECTIONS_TO_PRELOAD)))


def milliseconds(text: str) -> float:
    match = re.fullmatch(r"([0-9.]+)(us|ms|s)", text)
    assert match, text
    return float(match[1]) * UNITS_MS[match[2]]


def measure(row: Row, seconds: int, connections: int) -> Result:
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(HERE / "wrk" / row.script)]
    output = subprocess.run([*argv, row.url, "--", *row.arguments], check=True, capture_output=True, text=True).stdout
    found = {
        name: re.search(pattern, output)
        for name, pattern in (
            ("rate", r"Requests/sec:\s+([0-9.]+)"),
            ("p50", r"(?m)^\s+50%\s+(\S+)"),
            ("p99", r"(?m)^\s+99%\s+(\S+)"),
        )
    }
    if not all(found.values()):
        sys.exit(f"wrk printed something unexpected:\n{output}")
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    text = {name: match[1] for name, match in found.items() if match}
    return Result(
        float(text["rate"]),
        milliseconds(text["p50"]),
        milliseconds(text["p99"]),
        int(refused[1]) if refused else 0,
    )


def rows_for(urls: dict[str, str]) -> list[Row]:
    rows = [
        Row("etcd", "put", "etcd.lua", ("put",), urls["etcd"]),
        Row("etcd", "linearizable get", "etcd.lua", ("get",), urls["etcd"]),
    ]
    for peer in (p for p in urls if p != "etcd"):
        rows.append(Row(peer, "put", "raftkv.lua", ("put",), urls[peer]))
        rows += [
            Row(peer, f"{level} get", "raftkv.lua", ("get", level), urls[peer]) for level in ("linearizable", "stale")
        ]
    return rows


def median(rounds: list[Result]) -> Result:
    """Each figure's own median; failures are added up."""
    return Result(
        statistics.median(r.rate for r in rounds),
        statistics.median(r.p50_ms for r in rounds),
        statistics.median(r.p99_ms for r in rounds),
        sum(r.errors for r in rounds),
    )


def show(rows: list[Row], results: dict[Row, list[Result]]) -> int:
    """Print the table; the number of failed requests."""
    table = Table(title="median of the rounds")
    for name in ("peer", "operation", "a second", "x etcd", "p50 ms", "p99 ms", "failed"):
        table.add_column(name, justify="left" if name in ("peer", "operation") else "right")
    medians = {row: median(results[row]) for row in rows}
    etcd_rate = {row.name.split()[-1]: medians[row].rate for row in rows if row.peer == "etcd"}
    for row, result in medians.items():
        ratio = result.rate / etcd_rate[row.name.split()[-1]]
        table.add_row(
            row.peer,
            row.name,
            f"{result.rate:,.0f}",
            f"{ratio:.2f}",
            f"{result.p50_ms:.1f}",
            f"{result.p99_ms:.1f}",
            str(result.errors),
        )
    Console(width=100).print(table)
    return sum(result.errors for result in medians.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--storages", default="lmdb,memory")
    arguments = parser.parse_args()
    missing = [tool for tool in ("wrk", "etcd") if shutil.which(tool) is None]
    if missing:
        sys.exit(f"not found: {', '.join(missing)}; Debian: apt-get install wrk etcd-server")
    with tempfile.TemporaryDirectory(prefix="raftkv-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        urls = {"etcd": stack.enter_context(etcd(folder))}
        for storage in arguments.storages.split(","):
            urls[f"raftkv {storage}"] = stack.enter_context(raftkv(folder, storage))
        rows = rows_for(urls)
        for row in rows:
            if row.name == "put":
                print(f"{row.peer}: {KEYS:,} keys", flush=True)
                preload(row)
        results: dict[Row, list[Result]] = defaultdict(list)
        for round_number in range(arguments.rounds):
            for row in rows:
                print(f"round {round_number + 1}: {row.peer} {row.name}", flush=True)
                results[row].append(measure(row, arguments.seconds, arguments.connections))
        return 1 if show(rows, results) else 0


if __name__ == "__main__":
    sys.exit(main())
