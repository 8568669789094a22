"""`raftkv status`, `get`, `put`, `delete` and `ls`: the store from a shell.

Keys and values are bytes: arguments are taken as the shell passes them, `-` is standard input, and what goes
to a pipe or a file is exactly what is stored. How a command ends is told by `raftkv_core.cli.errors`; a key
that does not exist is exit code 1.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote_from_bytes

import typer

from raftkv_transport_http_falcon.client import Client, Target, key_path

__all__ = ["delete", "get", "ls", "put", "status"]

URL: Final = "RAFTKV_URL"
_PAGE_ROWS: Final = 1_000

Url = Annotated[str, typer.Option("--url", envvar=URL, help="A node's HTTP address.")]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", help="File with the bearer token.", show_default=False)
]
CaFile = Annotated[
    Path | None,
    typer.Option("--ca-file", help="Certificates (PEM) to trust for https.", show_default=False),
]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds to wait for an answer.", min=0.001)]
Key = Annotated[str, typer.Argument(help="The key.", show_default=False)]
IfMatch = Annotated[
    int | None,
    typer.Option("--if-revision", help="Only if the key was last changed at this revision.", show_default=False),
]
IdempotencyKey = Annotated[
    str,
    typer.Option(
        "--idempotency-key",
        help="Makes trying again safe: applied once, however often it is sent.",
        show_default=False,
    ),
]

_URL: Final = "http://127.0.0.1:8080"
_TIMEOUT_S: Final = 10.0


def status(
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    url: Url = _URL,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: Timeout = _TIMEOUT_S,
) -> None:
    """Show a node's status."""
    with Client(Target(url, token_file, ca_file, timeout)) as client:
        document = client.document("/v1/status")
    if as_json:
        typer.echo(json.dumps(document, indent=2))
        return
    from rich.console import Console  # noqa: PLC0415 - the other commands start quicker without
    from rich.table import Table  # noqa: PLC0415

    table = Table(show_header=False, box=None, pad_edge=False)
    for name, text in _facts(document):
        table.add_row(f"[bold]{name}[/]", text, style=None)
    Console(highlight=False, soft_wrap=True).print(table)


def _facts(document: dict[str, Any]) -> list[tuple[str, str]]:
    """What a person looks for first."""
    from rich.markup import escape  # noqa: PLC0415

    reasons = "; ".join(document.get("reasons", ()))
    state = "ready" if document.get("ready") else f"not ready: {reasons or 'no reason given'}"
    members = ", ".join(f"{member['node_id']} ({member['address']})" for member in document.get("members", ()))
    facts = [
        ("node", f"{document.get('node_id')}, {document.get('role')}, {state}"),
        ("leader", f"{document.get('leader') or 'none'} in term {document.get('term')}"),
        ("members", members),
        ("revision", f"{document.get('revision')} (history from {document.get('compacted_revision')})"),
        ("applied index", str(document.get("applied_index"))),
        ("digest", str(document.get("digest"))),
        ("storage", str(document.get("storage"))),
        ("consensus", str(document.get("consensus"))),
        ("cluster", f"{document.get('cluster_name')} {document.get('cluster_id')}"),
        ("version", str(document.get("version"))),
    ]
    if insecure := document.get("insecure_listeners"):
        facts.append(("open to the network", ", ".join(insecure)))
    return [(name, escape(text)) for name, text in facts]


def get(
    key: Key,
    *,
    level: Annotated[str, typer.Option("--level", help="linearizable, lease or stale.")] = "linearizable",
    revision: Annotated[
        int | None, typer.Option("--revision", help="As of an older revision.", show_default=False)
    ] = None,
    url: Url = _URL,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: Timeout = _TIMEOUT_S,
) -> None:
    """Print the value of a key.

    Exit code 1 if it does not exist.
    """
    query = f"?level={level}" + ("" if revision is None else f"&revision={revision}")
    with Client(Target(url, token_file, ca_file, timeout)) as client:
        value = client.request("GET", key_path(os.fsencode(key)) + query).body
    if sys.stdout.isatty():
        typer.echo(_shown(value, f"({len(value)} bytes that are no text; redirect them to a file)"))
    else:
        _write(value)


def put(
    key: Key,
    value: Annotated[str, typer.Argument(help="The value; - reads standard input.", show_default=False)],
    *,
    if_revision: IfMatch = None,
    create: Annotated[bool, typer.Option("--create", help="Only if the key does not exist.")] = False,
    content_type: Annotated[
        str, typer.Option("--content-type", help="Given back with the value.", show_default=False)
    ] = "",
    idempotency_key: IdempotencyKey = "",
    url: Url = _URL,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: Timeout = _TIMEOUT_S,
) -> None:
    """Set a key."""
    headers = _write_headers(if_revision, idempotency_key)
    if create:
        headers["if-none-match"] = "*"
    if content_type:
        headers["content-type"] = content_type
    body = sys.stdin.buffer.read() if value == "-" else os.fsencode(value)
    with Client(Target(url, token_file, ca_file, timeout)) as client:
        reply = client.request("PUT", key_path(os.fsencode(key)), body, headers)
    typer.echo(f"revision {reply.headers.get('raftkv-revision', 'unknown')}")


def delete(
    key: Key,
    *,
    if_revision: IfMatch = None,
    idempotency_key: IdempotencyKey = "",
    url: Url = _URL,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: Timeout = _TIMEOUT_S,
) -> None:
    """Remove a key.

    A key that does not exist is no error.
    """
    headers = _write_headers(if_revision, idempotency_key)
    with Client(Target(url, token_file, ca_file, timeout)) as client:
        reply = client.request("DELETE", key_path(os.fsencode(key)), headers=headers)
    found = "nothing to remove" if reply.headers.get("raftkv-deleted") == "0" else "removed"
    typer.echo(f"{found}, revision {reply.headers.get('raftkv-revision', 'unknown')}")


def ls(
    prefix: Annotated[str, typer.Argument(help="Only keys that begin with this.")] = "",
    *,
    limit: Annotated[int, typer.Option("--limit", help="At most so many; 0: all.", min=0)] = 0,
    null: Annotated[bool, typer.Option("--null", "-0", help="End each key with NUL, not with a line feed.")] = False,
    url: Url = _URL,
    token_file: TokenFile = None,
    ca_file: CaFile = None,
    timeout: Timeout = _TIMEOUT_S,
) -> None:
    """List keys, in order, as of one revision."""
    end = b"\0" if null else b"\n"
    is_terminal = sys.stdout.isatty()
    left = limit or None
    query = f"prefix={quote_from_bytes(os.fsencode(prefix), safe='')}"
    with Client(Target(url, token_file, ca_file, timeout)) as client:
        while True:
            rows = _PAGE_ROWS if left is None else min(left, _PAGE_ROWS)
            page = client.document(f"/v1/kv?{query}&keys_only=true&limit={rows}", accept="application/msgpack")
            for row in page["rows"]:
                if is_terminal:
                    typer.echo(_shown(row["key"], repr(row["key"])))
                else:
                    _write(row["key"] + end)
            if left is not None:
                left -= len(page["rows"])
            if not page["more"] or left == 0:
                return
            after = quote_from_bytes(page["after"], safe="")
            query = f"prefix={quote_from_bytes(os.fsencode(prefix), safe='')}&after={after}"
            query += f"&revision={page['revision']}"


def _write_headers(if_revision: int | None, idempotency_key: str) -> dict[str, str]:
    headers = {}
    if if_revision is not None:
        headers["if-match"] = f'"{if_revision}"'
    if idempotency_key:
        headers["idempotency-key"] = idempotency_key
    return headers


def _shown(data: bytes, otherwise: str) -> str:
    """Bytes for a terminal: as they are if they are harmless text."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return otherwise
    return text if all(letter.isprintable() or letter in "\n\t" for letter in text) else otherwise


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
