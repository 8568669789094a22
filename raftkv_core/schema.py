"""Reads tables by their msgspec schema, with errors that name the key and what was expected.

msgspec validates and converts; this module adds what a person needs around it: did-you-mean for keys, values
as text (environment, options), sizes with a unit, paths that resolve against the file they stand in, and the
list of all keys with their descriptions, from which documentation and fresh files are written.

Conventions, for the core's tables and for plugins' alike:
- an int named `…_bytes` or `…_size`, `_max` or `_min` behind it or not, is a size: 67108864, "64MiB" or "64MB";
- a str whose name ends in `_file` or `_dir` is a path;
- a secret is never a value: the option ends in `_file` and names the file that holds it. Should a plugin have
  a `token` or `password` all the same, its value is masked wherever configuration is shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import inspect

from raftkv_core.errors import ConfigError
from raftkv_core.suggest import did_you_mean

__all__ = [
    "MASK",
    "Field",
    "convert_table",
    "convert_value",
    "expected",
    "fields",
    "hint",
    "is_secret",
    "leaves",
    "size_text",
]

MASK: Final = "********"

_SECRET = re.compile(r"(^|_)(token|secret|password|passphrase|credential|private_key|api_key)s?$")
_SIZE = re.compile(r"(?P<number>\d+)\s*((?P<unit>[KMGTP]i?)?B)?", re.IGNORECASE)
_SIZED = re.compile(r"(^|_)(bytes|size)(_max|_min)?$")
_POWER: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


class Field(NamedTuple):
    """One key of a schema, or one table in it (`table` is then its schema)."""

    key: str
    annotation: Any
    description: str = ""
    default: Any = msgspec.NODEFAULT
    table: type[msgspec.Struct] | None = None

    @property
    def type(self) -> inspect.Type:
        return _plain(inspect.type_info(self.annotation))

    @property
    def is_size(self) -> bool:
        return bool(_SIZED.search(self.key)) and _is(self.type, inspect.IntType)

    @property
    def is_path(self) -> bool:
        return self.key.endswith(("_file", "_dir")) and _is(self.type, inspect.StrType)


def fields(schema: type[msgspec.Struct]) -> dict[str, Field]:
    """Every key of the schema, as it is written in a file, in order."""
    result = {}
    for info in msgspec.structs.fields(schema):
        kind = inspect.type_info(info.type)
        described = (kind.extra_json_schema or {}) if isinstance(kind, inspect.Metadata) else {}
        plain = _plain(kind)
        default = info.default
        if info.default_factory is not msgspec.NODEFAULT:
            default = info.default_factory()
        result[info.encode_name] = Field(
            key=info.encode_name,
            annotation=info.type,
            description=described.get("description", ""),
            default=default,
            table=plain.cls if isinstance(plain, inspect.StructType) else None,
        )
    return result


def leaves(schema: type[msgspec.Struct], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Field]]:
    """Every key that holds a value, with its path; those of nested tables after those above them."""
    nested = []
    for field in fields(schema).values():
        if field.table is None:
            yield (*prefix, field.key), field
        else:
            nested.append(field)
    for field in nested:
        assert field.table is not None
        yield from leaves(field.table, (*prefix, field.key))


def convert_table(schema: type[msgspec.Struct], table: Mapping[str, Any], where: str) -> Any:
    """An instance of `schema` from plain values. `where` names the table in errors: `storage.lmdb`."""
    known = fields(schema)
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}.{key} is not known; {choices(key, known)}")
    try:
        return msgspec.convert(dict(table), schema)
    except msgspec.ValidationError as error:
        raise ConfigError(f"[{where}]: {error}") from None


def choices(key: str, known: Mapping[str, Any]) -> str:
    """What stands in an error after an unknown key."""
    return f"expected one of: {', '.join(known) or 'nothing'}.{did_you_mean(key, known)}"


def convert_value(field: Field, value: Any, *, text: bool = False, base: Path | None = None) -> Any:
    """One value as plain data (what TOML and JSON hold). Raises ValueError that says what was expected.

    text: the value comes from the environment or an option, where everything is a string.
    base: the folder that a relative path is taken from.
    """
    kind = field.type
    if field.is_size and isinstance(value, str):
        value = _size(field, value)
    elif text and isinstance(value, str):
        value = _split(kind, value)
    try:
        value = msgspec.to_builtins(msgspec.convert(value, field.annotation, strict=not text))
    except msgspec.ValidationError as error:
        place = re.search(r"`\$(.+)`$", str(error))
        raise ValueError(f"expected {expected(field)}" + (f" (see {place[1]})" if place else "")) from None
    if field.is_path and value and base is not None:
        value = os.path.normpath(base.absolute() / Path(value).expanduser())
    return value


def expected(field: Field) -> str:
    """What a value must be, in words: `an integer from 1 to 64`."""
    return _words(field.type, size=field.is_size)


def hint(field: Field) -> str:
    """`expected` where the type alone does not say it: ranges and choices; else ""."""
    kind = field.type
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        return _range(kind, field.is_size).strip()
    words = expected(field)
    return words if words.startswith("one of ") else ""


def size_text(size: int) -> str:
    """A number of bytes with the largest unit that needs no fraction: `64MiB`."""
    for unit, step in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size and size % step == 0:
            return f"{size // step}{unit}"
    return str(size)


def is_secret(key: str) -> bool:
    """Whether the key is named like something that must not be shown."""
    return bool(_SECRET.search(key))


def _size(field: Field, value: str) -> int:
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"expected {expected(field)}")
    unit: str = (match["unit"] or "").lower()
    step = 1024 if unit.endswith("i") else 1000
    return int(match["number"]) * int(step ** _POWER[unit[:1]])


def _split(kind: inspect.Type, value: str) -> Any:
    """Lists are separated by commas, and so are the `key=value` pairs of tables."""
    parts = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(kind, inspect.ListType | inspect.VarTupleType | inspect.SetType):
        return parts
    if isinstance(kind, inspect.DictType):
        return {key: inner if equals else None for key, equals, inner in (part.partition("=") for part in parts)}
    return value.strip() if not isinstance(kind, inspect.StrType) else value


def _plain(kind: inspect.Type) -> inspect.Type:
    """Without description, and without None."""
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        others = [_plain(option) for option in kind.types if not isinstance(option, inspect.NoneType)]
        if len(others) == 1:
            return others[0]
    return kind


def _is(kind: inspect.Type, cls: type[inspect.Type]) -> bool:
    options = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    return any(isinstance(_plain(option), cls) for option in options)


def _words(kind: inspect.Type, *, size: bool = False) -> str:  # noqa: PLR0911  (one line a type)
    kind = _plain(kind)
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        what = "a number" if isinstance(kind, inspect.FloatType) else 'a size like "64MiB"' if size else "an integer"
        return what + _range(kind, size)
    if isinstance(kind, inspect.BoolType):
        return "true or false"
    if isinstance(kind, inspect.StrType):
        return _string(kind)
    if isinstance(kind, inspect.LiteralType):
        return "one of " + ", ".join(str(value) for value in kind.values)
    if isinstance(kind, inspect.EnumType):
        return "one of " + ", ".join(str(value.value) for value in kind.cls)
    if isinstance(kind, inspect.ListType | inspect.VarTupleType | inspect.SetType):
        return f"a list, each {_words(kind.item_type)}"
    if isinstance(kind, inspect.DictType):
        return f"a table, each value {_words(kind.value_type)}"
    if isinstance(kind, inspect.UnionType):
        return " or ".join(_words(option) for option in kind.types)
    return "a table" if isinstance(kind, inspect.StructType) else "a value"


def _range(kind: inspect.IntType | inspect.FloatType, size: bool) -> str:
    def shown(limit: float) -> str:
        return size_text(limit) if size and isinstance(limit, int) else f"{limit:g}" if limit < 1e6 else str(limit)

    if kind.ge is not None and kind.le is not None:
        return f" from {shown(kind.ge)} to {shown(kind.le)}"
    limits = (("at least", kind.ge), ("above", kind.gt), ("at most", kind.le), ("below", kind.lt))
    words = " and ".join(f"{word} {shown(limit)}" for word, limit in limits if limit is not None)
    return f" {words}" if words else ""


def _string(kind: inspect.StrType) -> str:
    alternatives = re.fullmatch(r"\^\(([\w|]+)\)\$", kind.pattern or "")
    if alternatives:
        return "one of " + ", ".join(alternatives[1].split("|"))
    if kind.pattern:
        return f"text that matches {kind.pattern}"
    low, high = kind.min_length, kind.max_length
    if high is not None:
        return f"text of {low or 0} to {high} characters"
    return f"text of at least {low} characters" if low else "text"
