"""The supervisor starts in order, replaces a dead node, gives up where it should, and stops in order."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from raftkv_core.node.launch import Launch
from raftkv_core.node.supervisor import Patience, State, Supervised

FAKE = """
import os, signal, sys, time
from raftkv_core.node.children import follow_supervisor, notify_ready

name, behaviour = sys.argv[1:]
follow_supervisor()

def note(event):
    with open(os.environ["NOTES"], "a") as file:
        file.write(f"{name} {event} {os.getpid()}\\n")

def on_term(*_):
    note("term")
    if behaviour != "deaf":
        sys.exit(7 if behaviour == "untidy" else 0)

signal.signal(signal.SIGTERM, on_term)
note("start")
if behaviour.startswith("exit"):
    sys.exit(int(behaviour[4:]))
if behaviour == "orphan":
    os.system('sh -c "echo \\$\\$ >> $NOTES.orphan" &')
if behaviour != "slow":
    notify_ready()
while True:
    time.sleep(1)
"""


class Fakes:
    """Fake node and transports, what they noted, and what the supervisor said."""

    def __init__(self, folder: Path, until: Callable[..., object]) -> None:
        self.script = folder / "fake.py"
        self.script.write_text(FAKE)
        self.notes_file = folder / "notes"
        self.notes_file.touch()
        self.until = until
        self.said: list[str] = []
        self.time = 0.0
        self.made: list[Supervised] = []

    def launch(self, node: str = "good", *transports: str) -> Launch:
        return Launch(
            node=self._command("node", node),
            transports=[(f"t{n}", self._command(f"t{n}", each)) for n, each in enumerate(transports)],
            environ={**os.environ, "NOTES": str(self.notes_file)},
        )

    def start(
        self, node: str = "good", *transports: str, restart: bool = True, patience: Patience | None = None
    ) -> Supervised:
        """A supervised node whose clock stands still unless `time` is moved."""
        supervised = Supervised(
            self.launch(node, *transports),
            self.say,
            restart=restart,
            patience=patience or Patience(),
            clock=lambda: self.time,
        )
        self.made.append(supervised)
        supervised.start()
        return supervised

    def say(self, level: str, event: str, **fields: object) -> None:
        self.said.append(f"{level} {event} " + " ".join(f"{name}={value}" for name, value in fields.items()))

    def behave(self, supervised: Supervised, node: str) -> None:
        """From its next start on, the node does this."""
        supervised.launch = self.launch(node)

    def notes(self, *events: str) -> list[str]:
        """`node start` and the like, in order, without pids."""
        lines = [line.rsplit(" ", 1)[0] for line in self.notes_file.read_text().splitlines()]
        return [line for line in lines if not events or line.split()[1] in events]

    def pids(self, name: str) -> list[int]:
        return [int(p) for p in re.findall(rf"^{name} start (\d+)$", self.notes_file.read_text(), re.MULTILINE)]

    def reach(self, supervised: Supervised, state: State) -> None:
        def there() -> bool:
            supervised.step()
            return supervised.state is state

        self.until(there)

    def lose_node(self, supervised: Supervised) -> None:
        """Return when the node was seen to end."""

        def gone() -> bool:
            supervised.step()
            return supervised.node_pid is None

        self.until(gone)

    def kill_node(self, supervised: Supervised) -> None:
        assert supervised.node_pid is not None
        os.kill(supervised.node_pid, signal.SIGKILL)

    def _command(self, name: str, behaviour: str) -> list[str]:
        return [sys.executable, str(self.script), name, behaviour]


@pytest.fixture
def fakes(tmp_path: Path, until: Callable[..., object]) -> Iterator[Fakes]:
    made = Fakes(tmp_path, until)
    yield made
    for supervised in made.made:
        supervised.force()
        made.reach(supervised, State.ENDED)


def test_transports_start_when_the_node_is_ready(fakes: Fakes) -> None:
    """Nothing listens before the node is ready."""
    supervised = fakes.start("slow", "good")
    fakes.until(lambda: fakes.notes() == ["node start"])
    supervised.step()
    assert supervised.state is State.STARTING
    assert len(supervised.pids) == 1

    ready = fakes.start("good", "good", "good")
    fakes.reach(ready, State.RUNNING)
    fakes.until(lambda: {"t0 start", "t1 start"} <= set(fakes.notes()))
    assert fakes.notes().index("node start") < fakes.notes().index("t0 start")
    assert f"info node ready pid={ready.node_pid}" in fakes.said


def test_a_node_that_takes_long_is_mentioned(fakes: Fakes) -> None:
    """Whoever waits for a long replay sees that it goes on."""
    supervised = fakes.start("slow")
    for _ in range(2):
        assert supervised.wake_at == fakes.time + 10.0
        fakes.time += 10.0
        supervised.step()
    assert [line for line in fakes.said if "still starting" in line] == [
        f"info node is still starting pid={supervised.node_pid}"
    ] * 2


def test_transports_stop_before_the_node(fakes: Fakes) -> None:
    """Requests under way end while the node still answers; then it stops, and all went well."""
    supervised = fakes.start("good", "good", "good")
    fakes.reach(supervised, State.RUNNING)
    fakes.until(lambda: len(fakes.notes("start")) == 3)
    supervised.stop()
    supervised.stop()
    fakes.reach(supervised, State.ENDED)
    assert sorted(fakes.notes("term")[:2]) == ["t0 term", "t1 term"]
    assert fakes.notes("term")[2:] == ["node term"]
    assert supervised.exit_code == 0
    assert supervised.wake_at is None
    assert supervised.pids == []


def test_what_does_not_stop_in_time_is_killed(fakes: Fakes) -> None:
    """A transport that hangs costs its time, not the node's clean stop; a node that hangs is told apart."""
    supervised = fakes.start("deaf", "deaf")
    fakes.reach(supervised, State.RUNNING)
    fakes.until(lambda: len(fakes.notes("start")) == 2)
    supervised.stop()
    fakes.until(lambda: fakes.notes("term") == ["t0 term"])
    supervised.step()
    assert supervised.state is State.DRAINING
    fakes.time += 30.0
    fakes.reach(supervised, State.STOPPING)
    fakes.until(lambda: fakes.notes("term") == ["t0 term", "node term"])
    fakes.time += 15.0
    fakes.reach(supervised, State.ENDED)
    assert supervised.exit_code == 1
    assert [line for line in fakes.said if line.startswith("warning")] == [
        "warning transport did not stop in time, killing it transport=t0",
        f"warning node did not stop in time, killing it pid={fakes.pids('node')[0]}",
    ]


def test_force_ends_everything_now(fakes: Fakes) -> None:
    """A second signal does not wait for anybody."""
    supervised = fakes.start("deaf", "deaf")
    fakes.reach(supervised, State.RUNNING)
    fakes.until(lambda: len(fakes.notes("start")) == 2)
    supervised.force()
    fakes.reach(supervised, State.ENDED)
    assert supervised.exit_code == 1


def test_a_dead_node_is_replaced_while_transports_go_on(fakes: Fakes) -> None:
    """kill -9 of the node leads to a new one; the transport never notices but for its absence."""
    supervised = fakes.start("good", "good")
    fakes.reach(supervised, State.RUNNING)
    fakes.until(lambda: len(fakes.pids("t0")) == 1)
    first = supervised.node_pid
    fakes.kill_node(supervised)
    fakes.reach(supervised, State.RESTARTING)
    assert "error node ended, starting it again ended=SIGKILL delay_s=0.1" in fakes.said
    supervised.step()
    assert supervised.pids == fakes.pids("t0"), "it waits"
    fakes.time += 0.1
    fakes.reach(supervised, State.RUNNING)
    assert supervised.node_pid not in (None, first)
    assert len(fakes.pids("t0")) == 1
    assert fakes.notes("term") == []


def test_restarts_come_later_each_time_until_the_node_is_ready(fakes: Fakes) -> None:
    """A node that never gets ready is started ever less often; one that did is started at once again."""
    supervised = fakes.start("good", patience=Patience(restart_first=1.0, restart_most=4.0))
    fakes.reach(supervised, State.RUNNING)
    fakes.kill_node(supervised)
    delays = []
    for behaviour in ("exit1", "exit1", "exit6", "good"):
        fakes.lose_node(supervised)
        assert supervised.wake_at is not None
        delays.append(supervised.wake_at - fakes.time)
        fakes.time = supervised.wake_at
        fakes.behave(supervised, behaviour)
        supervised.step()
    assert delays == pytest.approx([1.0, 2.0, 4.0, 4.0])
    fakes.reach(supervised, State.RUNNING)
    fakes.kill_node(supervised)
    fakes.reach(supervised, State.RESTARTING)
    assert supervised.wake_at == pytest.approx(fakes.time + 1.0)


@pytest.mark.parametrize("code", [2, 3])
def test_a_node_that_refuses_is_not_started_again(fakes: Fakes, code: int) -> None:
    """Configuration and data directory do not mend themselves: everything ends with the node's own status."""
    supervised = fakes.start("good", "good")
    fakes.reach(supervised, State.RUNNING)
    fakes.until(lambda: len(fakes.notes("start")) == 2)
    fakes.behave(supervised, f"exit{code}")
    fakes.kill_node(supervised)
    fakes.reach(supervised, State.RESTARTING)
    fakes.time += 0.1
    fakes.reach(supervised, State.ENDED)
    assert supervised.exit_code == code
    assert fakes.notes("term") == ["t0 term"]


@pytest.mark.parametrize(("behaviour", "code"), [("exit2", 2), ("exit3", 3), ("exit6", 6), ("exit0", 1)])
def test_a_node_that_never_was_ready_ends_everything(fakes: Fakes, behaviour: str, code: int) -> None:
    """A first start that fails is told to whoever started it, instead of being tried for ever."""
    supervised = fakes.start(behaviour, "good")
    fakes.reach(supervised, State.ENDED)
    assert supervised.exit_code == code
    assert fakes.notes() == ["node start"]


def test_a_node_that_is_not_to_be_restarted_stays_down(fakes: Fakes) -> None:
    """`raftkv up` shows a dead node as down: its transports end too, with a status that says so."""
    supervised = fakes.start("good", "good", restart=False)
    fakes.reach(supervised, State.RUNNING)
    fakes.until(lambda: len(fakes.notes("start")) == 2)
    fakes.kill_node(supervised)
    fakes.reach(supervised, State.ENDED)
    assert supervised.exit_code == 1
    assert fakes.notes("term") == ["t0 term"]


def test_a_dead_transport_ends_everything(fakes: Fakes) -> None:
    """The other transport and the node stop in order, and the status is not zero."""
    supervised = fakes.start("good", "good", "good")
    fakes.reach(supervised, State.RUNNING)
    fakes.until(lambda: len(fakes.notes("start")) == 3)
    os.kill(fakes.pids("t0")[0], signal.SIGKILL)
    fakes.reach(supervised, State.ENDED)
    assert supervised.exit_code == 1
    assert fakes.notes("term") == ["t1 term", "node term"]
    assert "error transport ended, so everything ends transport=t0 ended=SIGKILL" in fakes.said


def test_a_transport_that_refuses_passes_its_status_on(fakes: Fakes) -> None:
    """A configuration that only the transport could judge ends with the status of a wrong configuration."""
    supervised = fakes.start("good", "exit2")
    fakes.reach(supervised, State.ENDED)
    assert supervised.exit_code == 2


def test_a_transport_that_cannot_be_started_ends_everything(fakes: Fakes) -> None:
    """A command that does not exist is named, and the node stops."""
    supervised = fakes.start("good")
    supervised.launch = Launch(supervised.launch.node, [("t0", ["/no/such/command"])], supervised.launch.environ)
    fakes.reach(supervised, State.ENDED)
    assert supervised.exit_code == 1
    assert any("transport=t0" in line and "/no/such/command" in line for line in fakes.said)
    assert fakes.notes("term") == ["node term"]


def test_a_node_that_stops_untidily_is_told(fakes: Fakes) -> None:
    """A stop that was asked for succeeds only if the node says so."""
    supervised = fakes.start("untidy")
    fakes.reach(supervised, State.RUNNING)
    supervised.stop()
    fakes.reach(supervised, State.ENDED)
    assert supervised.exit_code == 1
    assert "error node did not stop cleanly ended=exit status 7" in fakes.said


def test_a_stop_while_the_node_is_away_is_clean(fakes: Fakes) -> None:
    """Nothing is started again once the end was asked for."""
    supervised = fakes.start("good")
    fakes.reach(supervised, State.RUNNING)
    fakes.kill_node(supervised)
    fakes.reach(supervised, State.RESTARTING)
    supervised.stop()
    fakes.time += 60
    fakes.reach(supervised, State.ENDED)
    assert supervised.exit_code == 0
    assert len(fakes.pids("node")) == 1


# `run`: the same in a process of its own, with real signals

MAIN = """
import os, sys
from raftkv_core.config import LoggingSettings
from raftkv_core.node.launch import Launch
from raftkv_core.node.lines import Lines
from raftkv_core.node.supervisor import Supervised, run

script, node, *transports = sys.argv[1:]
launch = Launch(
    [sys.executable, script, "node", node],
    [(f"t{n}", [sys.executable, script, f"t{n}", each]) for n, each in enumerate(transports)],
    os.environ,
)
sys.exit(run(Supervised(launch, Lines(LoggingSettings()))))
"""


@pytest.fixture
def main(fakes: Fakes) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a supervisor's process; it is killed when the test is over."""
    processes: list[subprocess.Popen[str]] = []

    def start(*behaviours: str, first: str = "") -> subprocess.Popen[str]:
        environ = {**os.environ, "NOTES": str(fakes.notes_file)}
        command = [sys.executable, "-c", first + MAIN, str(fakes.script), *behaviours]
        processes.append(subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_in_order(
    fakes: Fakes, main: Callable[..., subprocess.Popen[str]], number: signal.Signals
) -> None:
    """SIGTERM, Ctrl-C and a closed terminal all end in a clean stop with status 0."""
    process = main("good", "good")
    fakes.until(lambda: len(fakes.notes("start")) == 2)
    process.send_signal(number)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 0, said
    assert fakes.notes("term") == ["t0 term", "node term"]


def test_a_second_signal_forces(fakes: Fakes, main: Callable[..., subprocess.Popen[str]]) -> None:
    """Who asks twice does not want to wait."""
    process = main("good", "deaf")
    fakes.until(lambda: len(fakes.notes("start")) == 2)
    process.send_signal(signal.SIGTERM)
    fakes.until(lambda: fakes.notes("term") == ["t0 term"])
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "stopping at once" in said


def test_a_killed_supervisor_leaves_nobody(fakes: Fakes, main: Callable[..., subprocess.Popen[str]]) -> None:
    """kill -9 of the supervisor ends node and transports, though they would not listen to SIGTERM."""
    process = main("deaf", "deaf")
    fakes.until(lambda: len(fakes.notes("start")) == 2)
    children = psutil.Process(process.pid).children()
    assert len(children) == 2
    process.kill()
    _gone, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_a_killed_node_is_replaced_for_real(fakes: Fakes, main: Callable[..., subprocess.Popen[str]]) -> None:
    """With its real clock the supervisor restarts a node within a moment, again and again."""
    process = main("good", "good")
    for times in range(1, 4):
        fakes.until(lambda times=times: len(fakes.pids("node")) == times)
        os.kill(fakes.pids("node")[-1], signal.SIGKILL)
    fakes.until(lambda: len(fakes.pids("node")) == 4)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 0


def test_orphans_of_a_container_are_buried(fakes: Fakes, main: Callable[..., subprocess.Popen[str]]) -> None:
    """As process 1 (here: a subreaper) the supervisor does not collect the zombies that others leave."""
    process = main("orphan", first="import ctypes; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n")
    orphan = Path(f"{fakes.notes_file}.orphan")
    fakes.until(lambda: orphan.exists() and orphan.read_text().endswith("\n"))
    fakes.until(lambda: not psutil.pid_exists(int(orphan.read_text())))
    assert process.poll() is None
