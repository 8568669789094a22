"""Values are read by their schema, and what is wrong with one is said in words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta, Struct

from raftkv_core.errors import ConfigError
from raftkv_core.schema import convert_table, convert_value, expected, fields, hint, is_secret, leaves, size_text


class Inner(Struct, forbid_unknown_fields=True, kw_only=True):
    bind: str = "127.0.0.1:1"


class Example(Struct, forbid_unknown_fields=True, kw_only=True):
    main: Inner = msgspec.field(default_factory=Inner)
    map_size: Annotated[int, Meta(description="how much", ge=1024, le=1 << 40)] = 1 << 30
    body_bytes_max: int = 1
    workers: Annotated[int, Meta(ge=1)] = 2
    delay_s: Annotated[float, Meta(gt=0)] = 0.5
    on: bool = True
    mode: Literal["fast", "safe"] = "safe"
    token_file: str = ""
    hosts: list[str] = msgspec.field(default_factory=list)
    peers: dict[str, int] = msgspec.field(default_factory=dict)
    name: str | None = None


FIELDS = fields(Example)


@pytest.mark.parametrize(
    ("written", "size"),
    [(4096, 4096), ("4096", 4096), ("64MiB", 64 << 20), ("64 MB", 64_000_000), ("1gib", 1 << 30), ("2KiB", 2048)],
)
def test_a_size_may_have_a_unit(written: object, size: int) -> None:
    """A person writes 64MiB, not 67108864."""
    assert convert_value(FIELDS["map_size"], written) == size
    assert convert_value(FIELDS["map_size"], written, text=isinstance(written, str)) == size


@pytest.mark.parametrize("written", ["64M", "MiB", "1.5GiB", "-1KiB", True, 1.5, "", "1B"])
def test_what_is_no_size_is_refused(written: object) -> None:
    """An ambiguous unit, a fraction or a value out of range is an error that shows a right one."""
    with pytest.raises(ValueError, match='a size like "64MiB" from 1KiB to 1TiB'):
        convert_value(FIELDS["map_size"], written)


def test_only_sizes_have_units() -> None:
    """A number of workers is no number of bytes."""
    with pytest.raises(ValueError, match="an integer at least 1"):
        convert_value(FIELDS["workers"], "2KiB")
    assert FIELDS["body_bytes_max"].is_size
    assert not FIELDS["workers"].is_size


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("workers", "3", 3),
        ("delay_s", "2", 2.0),
        ("on", "false", False),
        ("on", "TRUE", True),
        ("on", "1", True),
        ("mode", "fast", "fast"),
        ("hosts", "a, b,", ["a", "b"]),
        ("peers", "a=1,b=2", {"a": 1, "b": 2}),
        ("name", "x", "x"),
    ],
)
def test_text_becomes_the_type_of_its_key(key: str, text: str, value: object) -> None:
    """The environment holds strings only."""
    assert convert_value(FIELDS[key], text, text=True) == value


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("workers", "3", "an integer at least 1"),
        ("workers", 0, "an integer at least 1"),
        ("workers", True, "an integer at least 1"),
        ("delay_s", 0, "a number above 0"),
        ("on", 1, "true or false"),
        ("mode", "slow", "one of fast, safe"),
        ("hosts", "a", "a list, each text"),
        ("hosts", [1], r"a list, each text \(see \[0\]\)"),
        ("peers", {"a": "x"}, "a table, each value an integer"),
    ],
)
def test_a_file_is_taken_at_its_word(key: str, value: object, words: str) -> None:
    """TOML has types: "3" is no number there, and the error says what was expected."""
    with pytest.raises(ValueError, match=f"expected {words}"):
        convert_value(FIELDS[key], value)


def test_a_pair_without_a_value_is_refused() -> None:
    """`RAFTKV_…=a=1,b` is a mistake, not an empty value."""
    with pytest.raises(ValueError, match="a table, each value an integer"):
        convert_value(FIELDS["peers"], "a=1,b", text=True)


def test_paths_are_taken_from_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path means the same wherever the command is run; an absolute one stays."""
    field = FIELDS["token_file"]
    monkeypatch.setenv("HOME", "/home/someone")
    assert convert_value(field, "secrets/../token", base=tmp_path) == str(tmp_path / "token")
    assert convert_value(field, "/etc/token", base=tmp_path) == "/etc/token"
    assert convert_value(field, "~/token", base=tmp_path) == "/home/someone/token"
    assert convert_value(field, "", base=tmp_path) == ""


def test_an_unknown_key_of_a_table_names_the_nearest() -> None:
    """A misspelt key is no silent default."""
    with pytest.raises(ConfigError, match=r"storage\.x\.map_sise is not known; .* Did you mean 'map_size'\?"):
        convert_table(Example, {"map_sise": 1}, "storage.x")
    with pytest.raises(ConfigError, match=r"\[storage\.x\]: Expected `int`"):
        convert_table(Example, {"workers": "x"}, "storage.x")


def test_every_key_is_listed_with_its_path() -> None:
    """Tables in tables come after the keys of the table that they stand in."""
    paths = [".".join(path) for path, _field in leaves(Example, ("transport", "x"))]
    assert paths[0] == "transport.x.map_size"
    assert paths[-1] == "transport.x.main.bind"


def test_limits_are_told_in_words() -> None:
    """Documentation shows ranges and choices, and sizes with their unit."""
    assert hint(FIELDS["map_size"]) == "from 1KiB to 1TiB"
    assert hint(FIELDS["mode"]) == "one of fast, safe"
    assert hint(FIELDS["on"]) == ""
    assert expected(FIELDS["name"]) == "text"
    assert [size_text(size) for size in (0, 1, 1536, 2048, 3 << 30)] == ["0", "1", "1536", "2KiB", "3GiB"]


def test_secrets_are_known_by_their_name() -> None:
    """The name of the file that holds a secret is none."""
    assert [is_secret(key) for key in ("token", "cluster_secret", "api_key", "password")] == [True] * 4
    assert [is_secret(key) for key in ("token_file", "secretary", "key", "map_size")] == [False] * 4
