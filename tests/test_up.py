"""`raftkv up`: lays out a cluster once, goes on with it later, checks before it starts, shows how nodes are."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import psutil
import pytest

from raftkv_core.cli import _up_ports
from raftkv_core.cli._up_layout import Node, Wanted, lay_out, wipe
from raftkv_core.cli._up_view import Plain, Row
from raftkv_core.config import load_config
from raftkv_core.errors import ConfigError, DataDirectoryError, DirectoryLocked, PluginError
from raftkv_core.hookspecs import ConsensusPlugin, Listener, TransportPlugin
from raftkv_core.node.datadir import DirectoryLock, Layout
from raftkv_core.registry import Registry
from raftkv_core.testing.deployment import free_ports, wait_for
from raftkv_core.testing.registry import registry_of


class FakeHttp(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Two listeners."""

    bind: Annotated[str, msgspec.Meta(description="clients")] = "127.0.0.1:8080"
    management_bind: Annotated[str, msgspec.Meta(description="members")] = "127.0.0.1:6000"
    rows: Annotated[int, msgspec.Meta(description="something else")] = 7


HTTP = TransportPlugin(
    name="http",
    settings=FakeHttp,
    command=lambda _settings: ["false"],
    listeners=lambda settings: [Listener("http", settings.bind), Listener("management", settings.management_bind)],
)
RAFT = ConsensusPlugin(name="raft", load="no.such:Engine", capabilities=lambda _settings: frozenset({"replicated"}))


@pytest.fixture
def alone() -> Registry:
    """HTTP and what the core brings: nothing that replicates."""
    return registry_of(HTTP)


@pytest.fixture
def replicated() -> Registry:
    return registry_of(HTTP, RAFT)


def laid_out(root: Path, registry: Registry, environ: Mapping[str, str] | None = None, **wanted: Any) -> list[Node]:
    return lay_out(root, Wanted(**wanted), registry, environ or {})


def ports(nodes: list[Node], registry: Registry) -> dict[str, list[int]]:
    """By listener, in order of the nodes."""
    found: dict[str, list[int]] = {}
    for node in nodes:
        for bound in _up_ports.addresses(node, registry):
            found.setdefault(bound.what, []).append(bound.address.port)
    return found


def begun(nodes: list[Node]) -> None:
    """Leave what a node that ran leaves."""
    for node in nodes:
        (Layout(node.config.node.data_dir).log).mkdir(parents=True)
        (Layout(node.config.node.data_dir).log / "000000000001.segment").touch()


def test_one_node_where_nothing_replicates(tmp_path: Path, alone: Registry) -> None:
    """Without an engine that replicates the default is one node on solo, with the usual ports."""
    nodes = laid_out(tmp_path, alone)
    assert [node.name for node in nodes] == ["node1"]
    assert nodes[0].config.consensus.name == "solo"
    assert nodes[0].config.node.bootstrap
    assert ports(nodes, alone) == {"http": [8080], "management": [6000]}


def test_three_nodes_where_something_replicates(tmp_path: Path, replicated: Registry) -> None:
    """With one, the default is three nodes that know each other, on the ports of the documentation."""
    nodes = laid_out(tmp_path, replicated)
    assert [node.name for node in nodes] == ["node1", "node2", "node3"]
    assert ports(nodes, replicated) == {
        "http": [8080, 8081, 8082],
        "management": [6000, 6001, 6002],
        "raft": [8088, 8089, 8090],
    }
    assert len({node.config.cluster.id for node in nodes}) == 1
    assert len(nodes[0].config.cluster.id) == 32
    for node in nodes:
        assert node.config.cluster.members == {n.name: n.config.node.raft_bind for n in nodes}
    assert [node.config.node.bootstrap for node in nodes] == [True, False, False]
    assert len({node.config.node.data_dir for node in nodes}) == 3


@pytest.mark.parametrize("consensus", [None, "solo"])
def test_several_nodes_need_an_engine_that_replicates(tmp_path: Path, alone: Registry, consensus: str | None) -> None:
    """Three nodes on solo would be three clusters: refused with what to do, and nothing is written."""
    with pytest.raises(ConfigError, match=r"--nodes 3: consensus 'solo' does not replicate.*use --nodes 1"):
        laid_out(tmp_path, alone, nodes=3, consensus=consensus)
    assert list(tmp_path.iterdir()) == []


def test_the_remedy_names_an_engine_that_is_installed(tmp_path: Path, replicated: Registry) -> None:
    """Whoever asked for solo learns which engine would do."""
    with pytest.raises(ConfigError, match="--consensus raft"):
        laid_out(tmp_path, replicated, nodes=3, consensus="solo")


def test_an_unknown_engine_is_refused(tmp_path: Path, alone: Registry) -> None:
    """A name that nothing is called is an error with what is installed."""
    with pytest.raises(PluginError, match="memory"):
        laid_out(tmp_path, alone, storage="memroy")
    with pytest.raises(PluginError, match="solo"):
        laid_out(tmp_path, alone, consensus="sole")


def test_the_file_is_what_serve_reads(tmp_path: Path, alone: Registry) -> None:
    """`raftkv serve` with the file resolves to the very configuration that `up` runs; the file explains itself."""
    [node] = laid_out(tmp_path, alone, storage="memory", http_port=9080)
    alike = load_config(node.config_file, environ={}, options={}, registry=alone).config
    assert alike == node.config
    assert Path(alike.node.data_dir) == tmp_path / "node1" / "data"
    text = node.config_file.read_text()
    assert "`raftkv serve` with this file starts it by hand" in text
    assert "# Where peers connect" in text


def test_a_port_moves_every_port_of_every_node(tmp_path: Path, replicated: Registry) -> None:
    """Two clusters fit on one machine: all defaults move by the same distance."""
    nodes = laid_out(tmp_path, replicated, http_port=9080)
    assert ports(nodes, replicated) == {
        "http": [9080, 9081, 9082],
        "management": [7000, 7001, 7002],
        "raft": [9088, 9089, 9090],
    }
    assert set(nodes[0].config.cluster.members.values()) == {f"127.0.0.1:{port}" for port in (9088, 9089, 9090)}


@pytest.mark.parametrize("port", [80, 65_535])
def test_a_port_that_moves_others_out_of_range_is_refused(tmp_path: Path, alone: Registry, port: int) -> None:
    """A port that leaves no room for the others is refused with the range that does."""
    with pytest.raises(ConfigError, match=r"--http-port.*choose one from 2081 to 65000"):
        laid_out(tmp_path, alone, http_port=port)


def test_a_later_run_goes_on_with_what_is_there(tmp_path: Path, replicated: Registry) -> None:
    """Without options a second run has the nodes, engines, ports and id of the first, and leaves files alone."""
    first = laid_out(tmp_path, replicated, nodes=2, storage="memory", http_port=9080)
    begun(first)
    texts = [node.config_file.read_bytes() for node in first]
    assert laid_out(tmp_path, replicated) == first
    assert [node.config_file.read_bytes() for node in first] == texts


def test_moving_the_ports_keeps_the_rest(tmp_path: Path, replicated: Registry) -> None:
    """Another --http-port rewrites addresses; identity and what somebody set by hand stay."""
    first = laid_out(tmp_path, replicated)
    begun(first)
    file = first[1].config_file
    file.write_text(file.read_text().replace("# rows = 7", "rows = 9").replace("# value_bytes = ", "value_bytes = "))
    moved = laid_out(tmp_path, replicated, http_port=9080)
    assert ports(moved, replicated)["http"] == [9080, 9081, 9082]
    assert ports(moved, replicated)["raft"] == [9088, 9089, 9090]
    assert "127.0.0.1:9089" in moved[0].config.cluster.members.values()
    assert moved[1].config.cluster.id == first[1].config.cluster.id
    assert moved[1].config.transports[0].settings["rows"] == 9
    assert moved[1].config.limits == first[1].config.limits
    assert laid_out(tmp_path, replicated) == moved


@pytest.mark.parametrize("asked", [{"nodes": 2}, {"storage": "lmdb"}, {"consensus": "solo", "nodes": 3}])
def test_a_running_cluster_does_not_become_another(
    tmp_path: Path, replicated: Registry, asked: dict[str, Any]
) -> None:
    """Options that contradict a cluster with data are refused; --fresh is named as the way to begin anew."""
    begun(laid_out(tmp_path, replicated, storage="memory"))
    with pytest.raises(ConfigError, match="--fresh"):
        laid_out(tmp_path, replicated, **asked)


def test_a_cluster_that_never_started_may_become_another(tmp_path: Path, replicated: Registry) -> None:
    """A first attempt that failed (a port was in use, say) binds nobody to its choices."""
    laid_out(tmp_path, replicated)
    nodes = laid_out(tmp_path, replicated, nodes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["node1"]
    assert [node.config.consensus.name for node in nodes] == ["solo"]


def test_a_cluster_with_a_node_missing_is_refused(tmp_path: Path, replicated: Registry) -> None:
    """A node's folder that is gone is not quietly made anew: its data is gone too."""
    nodes = laid_out(tmp_path, replicated)
    begun(nodes[:1])
    nodes[2].config_file.unlink()
    with pytest.raises(ConfigError, match="2 of the 3 nodes node1, node2, node3"):
        laid_out(tmp_path, replicated)


def test_the_environment_does_not_make_two_nodes_one(tmp_path: Path, replicated: Registry) -> None:
    """Variables configure all nodes alike, but for what tells them apart."""
    environ = {
        "NODE_ID": "other",
        "RAFTKV_NODE__DATA_DIR": "/elsewhere",
        "RAFTKV_TRANSPORT__HTTP__BIND": "127.0.0.1:1",
        "RAFTKV_LIMITS__REQUEST_TIMEOUT_S": "2.5",
    }
    nodes = laid_out(tmp_path, replicated, environ)
    assert [node.name for node in nodes] == ["node1", "node2", "node3"]
    assert nodes[1].config.node.data_dir == str(tmp_path / "node2" / "data")
    assert ports(nodes, replicated)["http"] == [8080, 8081, 8082]
    assert {node.config.limits.request_timeout_s for node in nodes} == {2.5}


def test_a_folder_that_is_not_ours_is_not_used(tmp_path: Path, alone: Registry) -> None:
    """Somebody's folder called node1 is left alone."""
    (tmp_path / "node1").mkdir()
    (tmp_path / "node1" / "thesis.txt").write_text("years of work")
    with pytest.raises(DataDirectoryError, match=r"node1 is not empty and holds no raftkv\.toml"):
        laid_out(tmp_path, alone)


# --fresh


def test_fresh_removes_the_nodes_and_nothing_else(tmp_path: Path, replicated: Registry) -> None:
    """Nodes go, whatever else lies in the folder stays, and the new cluster is another one."""
    first = laid_out(tmp_path, replicated)
    begun(first)
    (tmp_path / "notes.txt").write_text("mine")
    wipe(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert laid_out(tmp_path, replicated)[0].config.cluster.id != first[0].config.cluster.id


@pytest.mark.parametrize("where", ["node1/thesis.txt", "node1/data/thesis.txt", "node4/thesis.txt"])
def test_fresh_refuses_what_it_did_not_make(tmp_path: Path, replicated: Registry, where: str) -> None:
    """One file that is not from raftkv, and nothing at all is removed."""
    begun(laid_out(tmp_path, replicated))
    (tmp_path / where).parent.mkdir(exist_ok=True)
    (tmp_path / where).write_text("years of work")
    with pytest.raises(DataDirectoryError, match=r"'thesis\.txt'.*--fresh leaves everything"):
        wipe(tmp_path)
    assert (tmp_path / "node2" / "data" / "log").exists()


def test_fresh_does_not_follow_a_link(tmp_path: Path) -> None:
    """A link called node1 leads somewhere that is not ours to empty."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "raftkv.toml").touch()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "node1").symlink_to(tmp_path / "real")
    with pytest.raises(DataDirectoryError, match="node1 is not a folder of raftkv up"):
        wipe(tmp_path / "root")


def test_fresh_refuses_a_node_that_runs(tmp_path: Path, replicated: Registry) -> None:
    """A node started by hand keeps its data."""
    nodes = laid_out(tmp_path, replicated)
    begun(nodes)
    lock = DirectoryLock.acquire(Layout(nodes[2].config.node.data_dir))
    with pytest.raises(DirectoryLocked, match=str(os.getpid())):
        wipe(tmp_path)
    lock.close()
    assert (tmp_path / "node1" / "data" / "log").exists()


# ports


def test_a_port_in_use_is_found_before_anything_starts(tmp_path: Path, alone: Registry) -> None:
    """The message names node, listener and address, and a port with which all would be free."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        nodes = laid_out(tmp_path, alone)
        nodes[0].config.transports[0].settings["bind"] = f"127.0.0.1:{port}"
        with pytest.raises(
            ConfigError, match=rf"node1 \(http\) cannot listen on 127.0.0.1:{port}: the port is in use"
        ):
            _up_ports.check(nodes, alone)
    nodes[0].config.transports[0].settings |= {"bind": "127.0.0.1:0", "management_bind": "127.0.0.1:0"}
    _up_ports.check(nodes, alone)


def test_nodes_that_would_share_a_port_are_refused(tmp_path: Path, replicated: Registry) -> None:
    """Nine nodes reach from the client ports into the Raft ports."""
    with pytest.raises(ConfigError, match=r"node1 \(raft\) and node9 \(http\).*port 8088; use fewer --nodes"):
        _up_ports.check(laid_out(tmp_path, replicated, nodes=9), replicated)


# plain output


def test_plain_lines_come_once_for_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    """A line a change, with URLs when ready; a revision that moves is no change; hints come once."""
    view = Plain()
    urls = [("http", "http://127.0.0.1:8080")]
    view.show([Row("node1", "starting", pid=5, urls=urls)], [])
    for revision in (1, 2):
        view.show([Row("node1", "ready", pid=5, urls=urls, revision=revision)], ["Try it:"])
    view.show([Row("node1", "waiting", detail="no leader is known", pid=5, urls=urls)], ["Try it:"])
    view.show([Row("node1", "down", urls=urls)], ["Try it:"])
    assert capsys.readouterr().out.splitlines() == [
        "node1: starting  pid 5",
        "node1: ready  http http://127.0.0.1:8080  pid 5",
        "Try it:",
        "node1: waiting  (no leader is known)  pid 5",
        "node1: down",
    ]


# the real thing


class Up:
    """`raftkv up` as a process."""

    def __init__(self, root: Path, *options: str) -> None:
        self.root = root
        self.output = root.with_suffix(".out")
        command = [sys.executable, "-m", "raftkv_core.cli", "up", "--data-dir", str(root), *options]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output)

    def said(self, pattern: str) -> re.Match[str]:
        """Wait until a line is there."""

        def there() -> re.Match[str] | None:
            over = self.process.poll() is not None
            found = re.search(pattern, self.text, re.MULTILINE)
            assert found or not over, f"it ended without {pattern!r}:\n{self.text}"
            return found

        found = wait_for(there, pattern)
        assert isinstance(found, re.Match)
        return found

    @property
    def text(self) -> str:
        return self.output.read_text()

    def kill_node(self, name: str = "node1") -> int:
        pid = int((self.root / name / "data" / "run" / "node.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        return pid

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=30)


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    started: list[Up] = []

    def start(*options: str) -> Up:
        started.append(Up(tmp_path / "up", *options))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.end()
    for file in (tmp_path / "up.out", tmp_path / "up" / "node1" / "node.log"):
        print(file.read_text() if file.exists() else f"no {file}")  # shown when the test failed
    for recorded in (tmp_path / "up").glob("node*/data/run/socket"):  # a killed node's
        shutil.rmtree(Path(recorded.read_text().strip()).parent)


@pytest.fixture
def without_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no transport were installed, where one is."""
    if "http" in Registry.discover().names("transport"):
        monkeypatch.setenv("RAFTKV_PLUGINS__DISABLED", "http")


@pytest.mark.usefixtures("without_http")
def test_up_works_with_the_node_socket_alone(up: Callable[..., Up]) -> None:
    """Without a transport the node runs, says so, and stops cleanly at Ctrl-C; the next run finds its data."""
    first = up("--storage", "memory")
    first.said(r"^No transport is installed")
    first.said(r"^One node, because")
    first.said(r"^node1: ready")
    assert first.end(signal.SIGINT) == 0
    assert first.text.splitlines()[-1] == "node1: stopped"
    log = (first.root / "node1" / "node.log").read_text()
    assert "node ready" in log
    second = up()
    second.said(r"(?s)node1: stopped.*node1: ready")
    assert second.end() == 0


@pytest.mark.usefixtures("without_http")
def test_a_dead_node_is_shown_as_down(up: Callable[..., Up]) -> None:
    """Without --restart a killed node stays down; with none left the run ends, with the log's end shown."""
    running = up("--storage", "memory")
    running.said(r"^node1: ready")
    running.kill_node()
    running.said(r"^node1: down$")
    running.said(r"^node1 is down; the end of .*node1/node.log:\n(  .*\n)*.*SIGKILL")
    assert running.process.wait(timeout=30) == 1


@pytest.mark.usefixtures("without_http")
def test_restart_brings_a_dead_node_back(up: Callable[..., Up]) -> None:
    """With --restart a killed node is ready again, as another process."""
    running = up("--storage", "memory", "--restart")
    running.said(r"^node1: ready")
    killed = running.kill_node()
    ready = running.said(r"(?s)node1: restarting.*node1: ready .*pid (\d+)$")
    assert int(ready[1]) != killed
    assert running.end() == 0


@pytest.mark.usefixtures("without_http")
def test_a_second_up_is_refused_and_a_kill_leaves_nobody(up: Callable[..., Up]) -> None:
    """One run a folder; after kill -9 of it its node is gone, and the next run goes on."""
    running = up("--storage", "memory")
    running.said(r"^node1: ready")
    command = [sys.executable, "-m", "raftkv_core.cli", "up", "--data-dir", str(running.root)]
    second = subprocess.run(command, check=False, capture_output=True, text=True)
    assert second.returncode == 3
    assert f"in use by process {running.process.pid};" in second.stderr
    [node] = psutil.Process(running.process.pid).children()
    running.process.kill()
    running.process.wait()
    assert psutil.wait_procs([node], timeout=20)[1] == []
    again = up()
    again.said(r"(?s)node1: ready.*node1: ready")


@pytest.mark.usefixtures("without_http")
def test_serve_starts_a_node_of_up_by_hand(up: Callable[..., Up]) -> None:
    """The file that `up` wrote is a node's whole configuration: `raftkv serve` runs it, and stops with 0."""
    first = up("--storage", "memory")
    first.said(r"^node1: ready")
    assert first.end() == 0
    file = first.root / "node1" / "raftkv.toml"
    command = [sys.executable, "-m", "raftkv_core.cli", "serve", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as serve:
        try:
            assert serve.stderr is not None
            for line in serve.stderr:
                if "node ready" in line:
                    break
            busy = subprocess.run(command, check=False, capture_output=True, text=True)
            assert busy.returncode == 3
            assert f"in use by process {serve.pid};" in busy.stderr
        finally:
            serve.terminate()
            serve.communicate(timeout=30)
    assert serve.returncode == 0


# an engine that says it replicates, and whose nodes really lead themselves: enough to have several of them
ENGINE = """
from raftkv_core.builtin.solo import SoloConsensus
from raftkv_core.hookspecs import ConsensusPlugin, hookimpl
from raftkv_core.interfaces.consensus import Member, Position

class Engine(SoloConsensus):
    async def bootstrap(self, members, base):
        await super().bootstrap([m for m in members if m.node_id == self._node_id], base)

    async def start(self, machine):
        await self.bootstrap([], Position(0, 0))
        await super().start(machine)

@hookimpl
def raftkv_register_consensus(register):
    able = frozenset({"replicated"})
    register(ConsensusPlugin(name="fake", load="raftkv_fake:Engine", capabilities=lambda _: able))
"""


def free_block() -> int:
    """A client port with room for three nodes' Raft ports, away from those that connections are given."""

    def free(port: int) -> bool:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return False
        return True

    return next(base for base in random.sample(range(12_000, 30_000), 100) if all(map(free, range(base, base + 11))))


@pytest.fixture
def fake_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed for processes that the test starts."""
    site = tmp_path / "site"
    about = site / "raftkv_fake-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: raftkv-fake\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[raftkv.v1]\nfake = raftkv_fake\n")
    (site / "raftkv_fake.py").write_text(ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(site))


@pytest.mark.usefixtures("without_http", "fake_engine")
def test_the_others_go_on_when_one_is_killed(up: Callable[..., Up]) -> None:
    """Three nodes by default where an engine replicates; a killed one is down, the rest stays and stops cleanly."""
    running = up("--storage", "memory", "--http-port", str(free_block()))
    assert "3 nodes, storage memory, consensus fake" in running.said(r"^raftkv .*$")[0]
    for name in ("node1", "node2", "node3"):
        running.said(rf"^{name}: ready")
    running.kill_node("node2")
    running.said(r"^node2: down$")
    assert running.end() == 0
    ends = [line for line in running.text.splitlines() if line.endswith(("down", "stopped"))]
    assert ends[0] == "node2: down"
    assert sorted(ends[1:]) == ["node1: stopped", "node3: stopped"]


@pytest.mark.http
def test_http_is_there_when_up_says_so(up: Callable[..., Up]) -> None:
    """The URLs in the `ready` line answer at once, and the example to paste is for them."""
    [port] = free_ports(1)
    running = up("--storage", "memory", "--http-port", str(port))
    url = running.said(r"^node1: ready  http (http://\S+)")[1]
    assert url == f"http://127.0.0.1:{port}"
    assert running.said(rf"curl -X PUT -d world {url}/v1/kv/hello")
    with urllib.request.urlopen(urllib.request.Request(f"{url}/v1/kv/a", b"1", method="PUT"), timeout=10) as answer:
        assert answer.status == 204
    assert running.end() == 0
