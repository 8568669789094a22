"""The command line: what it lists, how it ends, what it tells a person, and how little it imports."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from raftkv_core import __version__, errors
from raftkv_core.builtin.plugin import COMMANDS
from raftkv_core.cli import main
from raftkv_core.cli.errors import ExitCode, exit_code_of

RUN = "import sys; from raftkv_core.cli import main; sys.exit(main())"
NEVER_IMPORTED = ("lmdb", "falcon", "gunicorn", "uvicorn", "grpc", "pysyncobj", "structlog")

PLUGIN = """
from raftkv_core.hookspecs import CommandPlugin, StoragePlugin, hookimpl

@hookimpl
def raftkv_register_storage(register):
    register(StoragePlugin(name="outside", load="a.b:C", capabilities=lambda settings: {"durable"}))

@hookimpl
def raftkv_register_commands(register):
    register(CommandPlugin("greet", "outside_cli:greet", "Greet somebody."))
    register(CommandPlugin("group", "outside_cli:group", "Several commands."))
    register(CommandPlugin("gone", "outside_gone:command", "Cannot be imported."))
    register(CommandPlugin("foreign", "outside_cli:foreign", "Of another click."))
    register(CommandPlugin("fail", "outside_cli:fail", "Fails in many ways."))
"""

CLI = """
import typer
from raftkv_core.errors import *

def greet(name: str, loud: bool = False) -> None:
    "Greet somebody by name."
    print("HELLO" if loud else "hello", name)

group = typer.Typer()

@group.command()
def one() -> None:
    "The first."
    print("one")

@group.command()
def two() -> None:
    "The second."
    raise typer.Exit(7)

class Usage(Exception):
    exit_code = 2
    ctx = None

    def format_message(self) -> str:
        return "Invalid value."

class Exit(RuntimeError):
    exit_code = 9

class Context:
    def __init__(self, command, name, args, parent):
        self.command, self.name, self.args, self.parent = command, name, args, parent

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

class Foreign:
    def make_context(self, info_name, args, parent=None, **extra):
        return Context(self, info_name, args, parent)

    def invoke(self, ctx):
        print(ctx.name, ctx.args, ctx.parent)
        if ctx.args:
            raise {"usage": Usage, "exit": Exit}[ctx.args[0]]()

foreign = Foreign()

def fail(how: str) -> None:
    raise {
        "config": ConfigError("no such\\nkey"),
        "directory": DataDirectoryError("locked"),
        "not_applied": Unavailable("no leader"),
        "unknown": OutcomeUnknown("lost"),
        "invalid": InvalidRequest("empty key"),
        "interrupt": KeyboardInterrupt(),
        "bug": RuntimeError("boom"),
        "file": FileNotFoundError(2, "No such file", "x.bin"),
    }[how]
"""


class Outside:
    """A folder that Python sees as an installed distribution, and `raftkv` run with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.distribution("raftkv-outside", "outside = outside_plugin")
        self.module("outside_plugin", PLUGIN)
        self.module("outside_cli", CLI)

    def distribution(self, name: str, entry_point: str, group: str = "raftkv.v1") -> None:
        info = self.folder / f"{name.replace('-', '_')}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{entry_point}\n")

    def module(self, name: str, text: str) -> None:
        (self.folder / f"{name}.py").write_text(text)

    def run(self, *args: str, code: str = RUN, **environ: str) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAFTKV_", "_RAFTKV"))}
        return subprocess.run(
            [sys.executable, "-c", code, *args],
            env={**clean, "PYTHONPATH": str(self.folder), "NO_COLOR": "1", "COLUMNS": "120", **environ},
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
        )


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    return Outside(tmp_path)


def test_help_lists_every_command_without_importing_it(outside: Outside) -> None:
    """The core's and the plugins', with their help; a command that cannot be imported is listed too."""
    result = outside.run("--help")
    assert result.returncode == 0
    for plugin in COMMANDS:
        assert re.search(rf"\b{plugin.name}\b .*{re.escape(plugin.help[:20])}", result.stdout)
    assert "Commands of raftkv-outside" in result.stdout
    assert "Greet somebody." in result.stdout
    assert "Cannot be imported." in result.stdout
    assert "Exit codes: 0 done" in result.stdout
    assert outside.run().stdout == result.stdout


@pytest.mark.parametrize("args", [("--help",), ("plugins",), ("plugins", "--json"), ("version",), ("config", "show")])
def test_no_plugins_library_is_imported(args: tuple[str, ...], outside: Outside) -> None:
    """Start-up time counts, and a library that is missing or broken must not matter here."""
    code = f"{RUN.replace('sys.exit(main())', 'main()')}; print('IMPORTED', *sys.modules)"
    result = outside.run(*args, code=code)
    imported = result.stdout.partition("IMPORTED")[2].split()
    assert "raftkv_core.cli" in imported
    assert [name for name in imported if name in NEVER_IMPORTED] == []
    assert "outside_cli" not in imported
    others = {"raftkv_core.cli.plugins", "raftkv_core.cli.config", "raftkv_core.cli.version"}
    assert len(others & set(imported)) == (0 if args == ("--help",) else 1)


def test_plugins_shows_what_works_and_what_does_not(outside: Outside) -> None:
    """A row each, with the reason below the table; and the exit code is 0, since nothing failed here."""
    outside.distribution("raftkv-broken", "broken = outside_broken")
    outside.module("outside_broken", "import no_such_library")
    outside.distribution("raftkv-newer", "newer = whatever", group="raftkv.v2")
    outside.distribution("raftkv-rival", "rival = outside_plugin")
    result = outside.run("plugins")
    assert result.returncode == 0
    table, _, reasons = result.stdout.partition("\n\n")
    rows = {tuple(line.split()[:2]): line.split() for line in table.splitlines()}
    assert rows["storage", "memory"][2] == "raftkv"
    assert rows["consensus", "solo"][-3:] == ["lease_reads", "linearizable_reads", "simulatable"]
    assert rows["plugin", "broken"][2:5] == ["raftkv-broken", "1.5", "broken"]
    assert rows["plugin", "newer"][4] == "outdated"
    assert "module 'no_such_library' is missing; `pip install raftkv-broken` installs what it needs" in reasons
    assert "registered by raftkv-outside 1.5 and raftkv-rival 1.5" in reasons


def test_plugins_as_json(outside: Outside) -> None:
    """For programs: every field of every row."""
    rows = {(row["kind"], row["name"]): row for row in json.loads(outside.run("plugins", "--json").stdout)}
    assert rows["storage", "outside"] == {
        "kind": "storage",
        "name": "outside",
        "distribution": "raftkv-outside",
        "version": "1.5",
        "capabilities": ["durable"],
        "status": "ok",
        "reason": "",
        "summary": "",
    }
    assert rows["command", "greet"]["summary"] == "Greet somebody."


def test_plugins_may_be_looked_at_as_a_configuration_sees_them(outside: Outside, tmp_path: Path) -> None:
    """`--config` and the environment disable as they do for a node."""
    file = tmp_path / "raftkv.toml"
    file.write_text("[plugins]\ndisabled = ['outside']\n[storage]\nuse = 'nothing'\n")
    for result in (
        outside.run("plugins", "--json", "--config", str(file)),
        outside.run("plugins", "--json", RAFTKV_PLUGINS__DISABLED="raftkv-outside"),
    ):
        rows = {row["name"]: row["status"] for row in json.loads(result.stdout)}
        assert rows["outside"] == "disabled"


def test_a_plugins_command_runs(outside: Outside) -> None:
    """A function, a group of commands, and an exit code of their own."""
    assert outside.run("greet", "you", "--loud").stdout == "HELLO you\n"
    assert outside.run("group", "one").stdout == "one\n"
    assert outside.run("group", "two").returncode == 7
    help_text = outside.run("greet", "--help").stdout
    assert "Usage: raftkv greet" in help_text
    assert "--install-completion" not in help_text


def test_a_command_of_another_click_runs_too(outside: Outside) -> None:
    """typer may carry a click inside it, and a plugin use the one that is installed: they cannot share contexts."""
    assert outside.run("foreign").stdout == "raftkv foreign [] None\n"
    assert outside.run("foreign", "exit").returncode == 9
    result = outside.run("foreign", "usage")
    assert (result.returncode, result.stderr) == (2, "raftkv: Invalid value. Try 'raftkv --help'.\n")


def test_a_command_of_a_disabled_plugin_says_so(outside: Outside) -> None:
    """Rather than that there is no such command."""
    result = outside.run("greet", "you", RAFTKV_PLUGINS__DISABLED="greet")
    assert result.returncode == ExitCode.CONFIGURATION
    assert result.stderr.startswith("raftkv: command 'greet' of raftkv-outside cannot be used: by [plugins] disabled")


def test_an_unknown_command_offers_the_nearest(outside: Outside) -> None:
    """And names a plugin that could not be loaded: the command may be one of its."""
    outside.distribution("raftkv-broken", "broken = outside_broken")
    result = outside.run("plugns")
    assert result.returncode == ExitCode.CONFIGURATION
    assert "No such command 'plugns'. Did you mean 'plugins'?" in result.stderr
    assert "Not usable: raftkv-broken: module 'outside_broken' is missing" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_command_that_cannot_be_imported_says_what_is_missing(outside: Outside) -> None:
    """With distribution and remedy."""
    result = outside.run("gone")
    assert result.returncode == ExitCode.CONFIGURATION
    assert result.stderr == (
        "raftkv: command 'gone' (raftkv-outside) cannot be loaded: module 'outside_gone' is missing; "
        "`pip install raftkv-outside` installs what it needs\n"
    )


ENDINGS: Mapping[str, tuple[int, str]] = {
    "config": (2, "raftkv: no such key\n"),
    "directory": (3, "raftkv: locked\n"),
    "not_applied": (4, "raftkv: no leader\n"),
    "unknown": (5, "raftkv: lost\n"),
    "invalid": (2, "raftkv: empty key\n"),
    "interrupt": (130, ""),
    "bug": (1, "raftkv: unexpected RuntimeError: boom; `raftkv --debug …` shows where\n"),
    "file": (1, "raftkv: x.bin: No such file\n"),
}


@pytest.mark.parametrize("how", ENDINGS)
def test_an_error_is_one_line_and_an_exit_code(how: str, outside: Outside) -> None:
    """Scripts read the code, people the line; nobody a traceback."""
    code, text = ENDINGS[how]
    result = outside.run("fail", how)
    assert (result.returncode, result.stderr) == (code, text)
    assert result.stdout == ""


def test_a_traceback_is_shown_on_request(outside: Outside) -> None:
    """By option, or by the environment."""
    for result in (outside.run("--debug", "fail", "bug"), outside.run("fail", "bug", RAFTKV_DEBUG="1")):
        assert "Traceback (most recent call last)" in result.stderr
        assert result.stderr.endswith("shows where\n")
        assert result.returncode == ExitCode.ERROR


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name != "RequestOutcome"])
def test_every_error_has_its_exit_code(name: str) -> None:
    """The codes that `cli/errors.py` documents cover the whole tree."""
    kind = getattr(errors, name)
    code = exit_code_of(kind("text"))
    assert code in list(ExitCode)
    assert issubclass(kind, errors.NotApplied) == (code == ExitCode.NOT_APPLIED)


def test_wrong_usage_is_one_line(outside: Outside) -> None:
    """It names the command, the mistake, and where help is."""
    result = outside.run("plugins", "--jsn")
    assert result.returncode == ExitCode.CONFIGURATION
    assert len(result.stderr.splitlines()) == 1
    assert re.match(r"raftkv plugins: No such option: --jsn.*--json.* Try 'raftkv plugins --help'\.", result.stderr)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(shell: str, outside: Outside) -> None:
    """The core's commands, the plugins', and the options of a command."""

    def complete(line: str) -> str:
        words = line.split(" ")
        environ = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1), "_TYPER_COMPLETE_ARGS": line}
        fish = {"_TYPER_COMPLETE_FISH_ACTION": "get-args"} if shell == "fish" else {}
        return outside.run(_RAFTKV_COMPLETE=f"complete_{shell}", **environ, **fish).stdout

    assert "greet" in complete("raftkv gr")
    if shell == "bash":  # the rest is the same for all
        assert "plugins" in complete("raftkv pl")
        assert "--json" in complete("raftkv plugins --j")
        assert "show" in complete("raftkv config sh")
    script = outside.run("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_RAFTKV_COMPLETE" in script.stdout


def test_the_version_is_told(outside: Outside) -> None:
    """As a command and as an option."""
    assert outside.run("--version").stdout == f"raftkv {__version__}\n"
    assert outside.run("version").stdout.startswith(f"raftkv {__version__} (plugin API v1, Python 3.")


def test_a_new_configuration_is_valid_and_has_its_own_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`config new` writes what `config check` accepts; it never overwrites unasked; each cluster has its id."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("RAFTKV_")]:
        monkeypatch.delenv(name)
    file = tmp_path / "raftkv.toml"
    assert main(["config", "new", "--node-id", "node5", "--storage", "memory"]) == 0
    assert main(["config", "check", "raftkv.toml"]) == 0
    assert "raftkv.toml: ok (storage memory, consensus solo, transport" in capsys.readouterr().out
    first = file.read_text()
    assert re.search(r'^id = "[0-9a-f]{32}"$', first, re.MULTILINE)
    assert main(["config", "new"]) == ExitCode.CONFIGURATION
    assert "raftkv.toml exists; --force overwrites it" in capsys.readouterr().err
    assert file.read_text() == first
    assert main(["config", "new", "--force", "--storage", "memory"]) == 0
    assert file.read_text() != first
    assert main(["config", "new", "-", "--storage", "lmbd"]) == ExitCode.CONFIGURATION
    assert main(["config", "new", "-", "--storage", "memory"]) == 0
    assert 'use = "memory"' in capsys.readouterr().out


def test_the_configuration_is_shown_with_its_origins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As TOML, or as JSON with what is in effect."""
    file = tmp_path / "raftkv.toml"
    file.write_text("[storage]\nuse = 'memory'\n[transport]\nuse = []\n[log]\nsync = false\n")
    monkeypatch.setenv("RAFTKV_NODE__ID", "node3")
    assert main(["config", "show", str(file), "--origin"]) == 0
    shown = capsys.readouterr()
    assert f"sync = false  # {file}:6" in shown.out
    assert 'id = "node3"  # environment RAFTKV_NODE__ID' in shown.out
    assert "warning: log.sync = false" in shown.err
    assert main(["config", "show", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["log"]["sync"] is False
    assert main(["config", "show", str(file), "--json", "--origin"]) == 0
    assert json.loads(capsys.readouterr().out)["origins"]["log.sync"] == f"{file}:6"


def test_a_wrong_configuration_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With file, line and remedy on one line."""
    file = tmp_path / "raftkv.toml"
    file.write_text("[log]\nsynk = false\n")
    assert main(["config", "check", str(file)]) == ExitCode.CONFIGURATION
    assert capsys.readouterr().err.startswith(f"raftkv: {file}:2: unknown key log.synk; expected one of: sync")
