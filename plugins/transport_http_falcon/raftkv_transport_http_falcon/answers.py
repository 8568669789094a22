"""How results look: rows and changes as JSON or msgpack, and the headers that go with them.

In JSON, bytes that are valid UTF-8 stand as text under `key` or `value`; others as base64 under `key_base64`
or `value_base64`, so that every byte string has one form and text needs no decoding. In msgpack they are
binary under `key` and `value`.
"""

from __future__ import annotations

import binascii
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from falcon.asgi import Response

from raftkv_core.interfaces.transport import Change, ReadInfo, Record
from raftkv_transport_http_falcon.problems import Problem
from raftkv_transport_http_falcon.requests import Request

__all__ = [
    "JSON",
    "MSGPACK",
    "OCTETS",
    "change_row",
    "content_type_of",
    "key_row",
    "put_bytes",
    "respond",
    "row_of",
    "wants_msgpack",
]

JSON: Final = "application/json"
MSGPACK: Final = "application/msgpack"
OCTETS: Final = "application/octet-stream"
TEXT: Final = "text/plain; charset=utf-8"

CONTENT_TYPE: Final = "content_type"
"""Name of the record attribute that holds it."""

_ALLOWED: Final = ("*/*", "application/*", JSON, "application/problem+json")


def wants_msgpack(req: Request) -> bool:
    """Which of the two forms Accept asks for; JSON when it names neither. Raises Problem 406."""
    accept = req.text_field(b"accept").lower()
    if not accept:
        return False
    types = [entry.partition(";")[0].strip() for entry in accept.split(",")]
    for media_type in types:
        if media_type in (MSGPACK, "application/x-msgpack"):
            return True
        if media_type in _ALLOWED:
            return False
    if any(media_type.startswith(("text/", "*")) for media_type in types):
        return False  # a browser, or somebody who did not think of it
    raise Problem(406, "not_acceptable", f"this is to be had as {JSON} or {MSGPACK}")


def respond(req: Request, resp: Response, document: Mapping[str, Any]) -> None:
    """`document` in the form that the client asked for."""
    if wants_msgpack(req):
        resp.data = msgspec.msgpack.encode(document)
        resp.content_type = MSGPACK
    else:
        resp.data = msgspec.json.encode(document) + b"\n"
        resp.content_type = JSON


def put_bytes(row: dict[str, Any], name: str, data: bytes, *, binary: bool) -> None:
    """`data` as `row[name]`, or as base64 under `name_base64`."""
    if binary:
        row[name] = data
        return
    try:
        row[name] = data.decode()
    except UnicodeDecodeError:
        row[f"{name}_base64"] = binascii.b2a_base64(data, newline=False).decode()


def key_row(key: bytes, *, binary: bool) -> dict[str, Any]:
    row: dict[str, Any] = {}
    put_bytes(row, "key", key, binary=binary)
    return row


def row_of(key: bytes, record: Record, *, binary: bool, with_value: bool = True) -> dict[str, Any]:
    """One key with all that is known of it."""
    row = key_row(key, binary=binary)
    if with_value:
        put_bytes(row, "value", record.value, binary=binary)
    row["create_revision"] = record.create_revision
    row["mod_revision"] = record.mod_revision
    row["version"] = record.version
    if record.lease:
        row["lease"] = record.lease
    if record.attributes and CONTENT_TYPE in record.attributes:
        row["content_type"] = record.attributes[CONTENT_TYPE]
    return row


def change_row(change: Change, *, binary: bool, with_previous: bool = False) -> dict[str, Any]:
    """One event of a watch."""
    row: dict[str, Any] = {"type": "delete" if change.record is None else "put", "revision": change.revision}
    if change.record is None:
        row.update(key_row(change.key, binary=binary))
    else:
        row.update(row_of(change.key, change.record, binary=binary))
    if with_previous and change.previous is not None:
        row["previous"] = row_of(change.key, change.previous, binary=binary)
    return row


def read_headers(info: ReadInfo) -> dict[str, str]:
    return {"raftkv-revision": str(info.revision), "raftkv-level": info.level}


def content_type_of(record: Record) -> str:
    """What to send a raw value as. Other transports may have stored anything as its content type."""
    if not record.attributes:
        return OCTETS
    content_type = record.attributes.get(CONTENT_TYPE, OCTETS)
    return content_type if is_header_text(content_type) else OCTETS


def is_header_text(text: str) -> bool:
    return bool(text) and len(text) <= CONTENT_TYPE_BYTES_MAX and text.isascii() and text.isprintable()


CONTENT_TYPE_BYTES_MAX: Final = 256
