"""The API reference says what the code does, and all of it."""

from __future__ import annotations

import re
from pathlib import Path

from raftkv_transport_http_falcon import kv, listing, operations, requests, watch
from raftkv_transport_http_falcon.routes import ROUTES

REFERENCE = (Path(__file__).resolve().parents[3] / "docs" / "http-api.md").read_text()
SOURCES = sorted(Path(kv.__file__).parent.glob("*.py"))


def section(title: str) -> str:
    return REFERENCE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_table_of_routes() -> None:
    """Every listener, method and path, both ways."""
    rows = re.findall(r"^\| (http|management) \| ([A-Z, ]+) \| `([^`]+)` \|", section("Routes"), re.MULTILINE)
    documented = [(listener, path, method) for listener, methods, path in rows for method in methods.split(", ")]
    assert len(documented) == len(set(documented))
    assert set(documented) == {(route.listener, route.path, method) for route in ROUTES for method in route.methods}


def test_every_parameter_is_described() -> None:
    """And none that does not exist."""
    for known, title in (
        (requests.READ_PARAMETERS, "One key"),
        (listing._LIST_PARAMETERS, "Ranges"),
        (listing._DELETE_PARAMETERS, "Ranges"),
        (watch._WATCH_PARAMETERS | watch._CHANGES_PARAMETERS, "Changes"),
    ):
        text = section(title)
        for name in known:
            assert re.search(rf"[`?&]{name}[`=]", text), f"{name} in {title!r}"
    table = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section("Ranges"), re.MULTILINE)
    named = {name for cell in table for name in re.findall(r"\w+", cell)}
    assert named == set(listing._LIST_PARAMETERS)


def test_every_header_is_described() -> None:
    """Those of our own."""
    code = "".join(source.read_text() for source in SOURCES)
    found = set(re.findall(r"[\"f](raftkv-(?:revision|level|node|deleted|replayed))\b", code))
    documented = {name.lower() for name in re.findall(r"`(Raftkv-\w+)`", section("One key"))}
    assert found == documented


def test_every_status_is_described() -> None:
    """Each status that a problem can have stands in the table of errors."""
    code = "".join(source.read_text() for source in SOURCES)
    used = {int(number) for number in re.findall(r"(?:Problem|_refuse)\(\s*(\d{3}),", code)}
    mapped = re.findall(r"^    (?:\"\w+\":|\(errors\.\w+,) (\d{3})", code, re.MULTILINE)
    assert len(mapped) > 10
    used |= {int(number) for number in mapped}
    cells = re.findall(r"^\| ([\d, ]+) \|", section("Errors"), re.MULTILINE)
    documented = {int(number) for cell in cells for number in cell.split(", ")}
    assert used <= documented, used - documented


def test_codes_that_are_named_exist() -> None:
    """No code stands in the reference that nothing raises."""
    root = Path(operations.raftkv_core.__file__).parent
    everything = "".join(path.read_text() for path in [*SOURCES, *root.rglob("*.py")])
    single = "overloaded|sealed|compacted|unavailable|unauthorized"
    names = set(re.findall(rf"`([a-z]+(?:_[a-z]+)+|{single})`", section("Errors")))
    for name in names - {"not_applied", "token_file"}:
        assert f'"{name}"' in everything or name.upper() in everything, name
