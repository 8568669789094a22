"""Commands that are listed and completed without being imported.

A command is a `CommandPlugin`: name, help, and `load`, the path of one of
- a `typer.Typer` with one command, or with several (a group, like `raftkv config`);
- a plain function with typer's annotations;
- a click command.

The module is imported when the command is invoked or its own help or completion is asked for. A command
returns None and ends with another status by `raise typer.Exit(code)` or by raising a `RaftkvError`
(`cli/errors.py` has the codes).
"""

from __future__ import annotations

import os
from typing import Any

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from raftkv_core.builtin.plugin import COMMANDS
from raftkv_core.errors import PluginError
from raftkv_core.hookspecs import CommandPlugin
from raftkv_core.plugin_loading import load_object
from raftkv_core.registry import Registry
from raftkv_core.suggest import did_you_mean

__all__ = ["LazyGroup", "installed_plugins"]

UsageError: type[Any] = typer.BadParameter.__mro__[1]
"""Newer typers carry click inside them and older ones depend on it; this is the class either way."""

_COMPLETION_OPTIONS = {"install_completion", "show_completion"}


def installed_plugins() -> Registry:
    """The plugins, without those that the environment disables; so one that does harm can be left out."""
    disabled = os.environ.get("RAFTKV_PLUGINS__DISABLED", "")
    return Registry.discover([name.strip() for name in disabled.split(",") if name.strip()])


class LazyCommand(TyperCommand):
    """Knows its name and help; becomes the real command when it gets a context."""

    def __init__(self, plugin: CommandPlugin, distribution: str) -> None:
        panel = None if plugin in COMMANDS else f"Commands of {distribution}"
        super().__init__(name=plugin.name, help=plugin.help, rich_help_panel=panel)
        self._plugin = plugin
        self._distribution = distribution

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        command = as_command(load_object(self._plugin, self._distribution))
        command.name = self.name
        if not isinstance(command, TyperCommand.__mro__[1] | TyperGroup):  # of a click that is not typer's own
            info_name, parent = f"{parent.command_path} {info_name}" if parent else info_name, None
        return command.make_context(info_name, args, parent=parent, **extra)


def as_command(loaded: Any) -> Any:
    """What typer can run, from what `load` may name."""
    if callable(getattr(loaded, "make_context", None)):
        return loaded
    app = loaded
    if not isinstance(app, typer.Typer):
        app = typer.Typer(add_completion=False)
        app.command()(loaded)
    command = typer.main.get_command(app)
    command.params = [param for param in command.params if param.name not in _COMPLETION_OPTIONS]
    return command


class LazyGroup(TyperGroup):
    """The root: the core's commands at once, the plugins' when somebody asks for more than those."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {plugin.name: LazyCommand(plugin, "raftkv") for plugin in COMMANDS}
        self._registry: Registry | None = None

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        self._discover()
        return list(self.commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in self.commands:
            row = self._discover().find("command", cmd_name)
            if row is not None and row.status != "ok" and not ctx.resilient_parsing:
                raise PluginError(f"command {cmd_name!r} of {row.distribution} cannot be used: {row.reason}")
        return self.commands.get(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except UsageError as error:
            broken = [row for row in self._discover().rows if row.kind == "plugin"]
            if "Did you mean" not in error.message and args:
                error.message += did_you_mean(args[0], self.commands)
            error.message += "".join(f" Not usable: {row.distribution}: {row.reason}." for row in broken)
            raise

    def _discover(self) -> Registry:
        if self._registry is None:
            self._registry = installed_plugins()
            for plugin in self._registry.commands():
                row = self._registry.find("command", plugin.name)
                if row is not None:
                    self.commands.setdefault(plugin.name, LazyCommand(plugin, row.distribution))
        return self._registry
