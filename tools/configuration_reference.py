"""Writes the tables of docs/configuration.md and the files under config/ from the schemas.

    python -m tools.configuration_reference            # write
    python -m tools.configuration_reference --check    # say what is out of date, and fail if anything is

What belongs to a plugin that is not installed is left as it stands, so the core alone can check its part.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from raftkv_core.config import PLUGIN_SECTIONS, SECTIONS
from raftkv_core.config_sources import variable
from raftkv_core.config_text import default_of, render, toml_value
from raftkv_core.machine.settings import SETTINGS
from raftkv_core.registry import Registry
from raftkv_core.schema import hint, leaves

__all__ = ["COMBINATIONS", "Combination", "outdated"]

ROOT = Path(__file__).resolve().parent.parent
DOCS = "docs/configuration.md"
PLUGIN_TABLES = ("storage.lmdb", "transport.http")

_TABLE = re.compile(r"(<!-- table: (?P<name>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


class Combination(NamedTuple):
    """One supported combination: what a file under config/ sets, and why one would choose it."""

    title: str
    values: Mapping[str, Any]

    @property
    def plugins(self) -> set[tuple[str, str]]:
        """Kind and name of each plugin in it."""
        transports = {("transport", name) for name in self.values["transport.use"]}
        return transports | {(kind, self.values[f"{kind}.use"]) for kind in ("storage", "consensus")}


_HOW = """\

Every key is here; those that are commented out show their default. An environment variable
RAFTKV_<SECTION>__<KEY> wins over this file: RAFTKV_LOG__SYNC, RAFTKV_NODE__DATA_DIR.
Relative paths are taken from this file's folder.

    raftkv config check {file}
    raftkv serve {file}"""


def _solo(storage: str, why: str) -> Combination:
    name = f"{storage}-solo"
    return Combination(
        f"{why}\n{_HOW.format(file=f'config/{name}.toml')}",
        {
            "cluster.name": "raftkv",
            "node.id": "node1",
            "node.data_dir": f"../data/{name}",
            "node.bootstrap": True,
            "storage.use": storage,
            "consensus.use": "solo",
            "transport.use": ["http"],
            "transport.http.bind": "127.0.0.1:8080",
            "transport.http.management_bind": "127.0.0.1:6000",
        },
    )


COMBINATIONS: Mapping[str, Combination] = {
    "lmdb-solo": _solo(
        "lmdb",
        "One node that keeps its data in LMDB: durable, not replicated. More data than fits into memory, several "
        "processes that read, a start that takes no longer when there is more data.",
    ),
    "memory-solo": _solo(
        "memory",
        "One node that keeps its data in memory: durable by its log and by stream files, not replicated. For data "
        "that fits into memory; a start reads all of it.",
    ),
}


def outdated(registry: Registry, root: Path = ROOT) -> Iterator[tuple[Path, str]]:
    """Files that differ from what the schemas say, with what they should hold."""
    for name, combination in COMBINATIONS.items():
        if all(plugin in registry.names(kind) for kind, plugin in combination.plugins):
            text = render(registry, combination.values, title=combination.title)
            yield from _if_changed(root / "config" / f"{name}.toml", text)
    docs = root / DOCS
    yield from _if_changed(docs, _TABLE.sub(lambda match: _fill(match, registry), docs.read_text("utf-8")))


def _if_changed(path: Path, text: str) -> Iterator[tuple[Path, str]]:
    if not path.exists() or path.read_text("utf-8") != text:
        yield path, text


def _fill(match: re.Match[str], registry: Registry) -> str:
    name = match["name"]
    if name == "settings":
        lines = list(_settings_table())
    elif name in SECTIONS or name in PLUGIN_SECTIONS:
        lines = list(_table((name,), {**SECTIONS, **PLUGIN_SECTIONS}[name]))
    else:
        kind, _, plugin = name.partition(".")
        if plugin not in registry.names(kind):
            return match[0]
        lines = list(_table((kind, plugin), registry.plugin(kind, plugin).settings))
    return match[1] + "\n".join(lines) + "\n" + match[3]


def _table(path: tuple[str, ...], schema: type[msgspec.Struct]) -> Iterator[str]:
    yield "| key | default | meaning | environment |"
    yield "|---|---|---|---|"
    for full, field in leaves(schema, path):
        default = "required" if field.default is msgspec.NODEFAULT else f"`{toml_value(default_of(field))}`"
        meaning = f"{field.description} {f'({hint(field)})' if hint(field) else ''}".strip().replace("|", "\\|")
        yield f"| `{'.'.join(full[len(path) :])}` | {default} | {meaning} | `{variable(full)}` |"


def _settings_table() -> Iterator[str]:
    yield "| setting | default | least | most | meaning |"
    yield "|---|---|---|---|---|"
    for name, setting in SETTINGS.items():
        yield f"| `{name}` | {setting.default} | {setting.least} | {setting.most} | {setting.doc} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if anything is out of date")
    check = parser.parse_args().check
    registry = Registry.discover()
    for name in PLUGIN_TABLES:
        kind, _, plugin = name.partition(".")
        if plugin not in registry.names(kind):
            print(f"{kind} {plugin} is not installed: its part is left as it stands", file=sys.stderr)
    changed = list(outdated(registry))
    for path, text in changed:
        print(f"{path.relative_to(ROOT)}: {'out of date' if check else 'written'}")
        if not check:
            path.write_text(text, "utf-8")
    if changed and check:
        print("run: python -m tools.configuration_reference", file=sys.stderr)
    return int(bool(changed and check))


if __name__ == "__main__":
    sys.exit(main())
