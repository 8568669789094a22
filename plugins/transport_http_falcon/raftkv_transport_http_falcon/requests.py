"""Reading requests: the body, header fields as bytes, keys and query parameters.

Keys are bytes and are taken from the raw path: the decoded path of ASGI replaces what is not UTF-8, so that
`%FF%FE` and `%FE%FF` would be one key. `%2F` and `/` are the same byte; nothing else is normalised.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import falcon.asgi

from raftkv_transport_http_falcon.exchange import BODY
from raftkv_transport_http_falcon.problems import Problem

__all__ = ["READ_PARAMETERS", "TIMEOUT_S_MAX", "Query", "Request", "decode_key", "read_options"]

_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_REVISION_MAX: Final = (1 << 63) - 1


class Request(falcon.asgi.Request):
    """Falcon's request, with what the handlers here ask for."""

    __slots__ = ()

    @property
    def fields(self) -> Mapping[bytes, bytes]:
        """Header fields, names in lower case."""
        return self._asgi_headers

    async def body(self) -> bytes:
        """The whole body, decoded by nobody. Raises Problem 415 if it is compressed."""
        encoding = self._asgi_headers.get(b"content-encoding")
        if encoding is not None and encoding.strip().lower() != b"identity":
            raise Problem(
                415,
                "content_encoding",
                f"a body is taken as it is; send it without Content-Encoding {encoding.decode('latin-1')!r}",
            )
        body: bytes | None = self.scope.get(BODY)
        return await self.stream.read() if body is None else body

    def text_field(self, name: bytes) -> str:
        """A header field as text, empty when absent."""
        return self._asgi_headers.get(name, b"").decode("latin-1")


def decode_key(raw: bytes) -> bytes:
    """Undo percent-encoding, once. Raises Problem 400 for a stray %."""
    if b"%" not in raw:
        return raw
    if _BAD_ESCAPE.search(raw):
        raise Problem(400, "bad_percent_encoding", "write % as %25; elsewhere two hexadecimal digits follow it")
    return unquote_to_bytes(raw)


class Query:
    """The parameters after `?`, as bytes. As in every form, + is a space and %2B a plus."""

    def __init__(self, query: bytes, known: frozenset[str] | None) -> None:
        """Raises Problem 400 for a name that is not in `known` (None: any), or that stands there twice."""
        self._values: dict[str, bytes] = {}
        for part in query.split(b"&"):
            if not part:
                continue
            raw_name, _, raw_value = part.partition(b"=")
            name = decode_key(raw_name.replace(b"+", b" ")).decode("latin-1")
            if known is not None and name not in known:
                expected = ", ".join(sorted(known)) or "none"
                raise Problem(400, "unknown_parameter", f"there is no parameter {name!r} here; known: {expected}")
            if name in self._values:
                raise Problem(400, "repeated_parameter", f"the parameter {name!r} is given twice")
            self._values[name] = decode_key(raw_value.replace(b"+", b" "))

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        return iter(self._values.items())

    def get(self, name: str) -> bytes | None:
        return self._values.get(name)

    def text(self, name: str) -> str:
        return self._values.get(name, b"").decode("latin-1")

    def flag(self, name: str) -> bool:
        """`?name`, `?name=true` or `=1` is true."""
        if name not in self._values:
            return False
        value = self._values[name].lower()
        if value in (b"", b"1", b"true"):
            return True
        if value in (b"0", b"false"):
            return False
        raise self._wrong(name, "true or false")

    def number(self, name: str, *, least: int = 0, most: int = _REVISION_MAX) -> int | None:
        value = self._values.get(name)
        if value is None:
            return None
        if not value.isdigit() or len(value) > 19 or not least <= int(value) <= most:
            raise self._wrong(name, f"an integer from {least} to {most}")
        return int(value)

    def seconds(self, name: str, *, most: float) -> float | None:
        value = self._values.get(name)
        if value is None:
            return None
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds <= most:
            raise self._wrong(name, f"seconds, above 0 and up to {most:g}")
        return seconds

    def choice(self, name: str, choices: tuple[str, ...]) -> str | None:
        if name not in self._values:
            return None
        value = self.text(name)
        if value not in choices:
            raise self._wrong(name, " or ".join(choices))
        return value

    def _wrong(self, name: str, expected: str) -> Problem:
        return Problem(400, "bad_parameter", f"{name} is {expected}, not {self.text(name)!r}")


def read_options(query: Query) -> dict[str, Any]:
    """Arguments of `Store.get` and `Store.range` that a client may set."""
    options: dict[str, Any] = {}
    if (level := query.choice("level", ("linearizable", "lease", "stale"))) is not None:
        options["level"] = level
    for name in ("revision", "min_revision"):
        if (number := query.number(name)) is not None:
            options[name] = number
    if (timeout_s := query.seconds("timeout_s", most=TIMEOUT_S_MAX)) is not None:
        options["timeout_s"] = timeout_s
    return options


READ_PARAMETERS: Final = frozenset({"level", "revision", "min_revision", "timeout_s"})
TIMEOUT_S_MAX: Final = 60.0
