"""`POST /v1/txn`: if all compares hold, one list of operations, else the other; atomically.

    {"compare": [{"key": "a", "target": "mod_revision", "operator": "=", "value": 7}],
     "then":    [{"op": "put", "key": "a", "value": "x"}, {"op": "delete", "key": "b", "end": "c"}],
     "else":    [{"op": "get", "key": "a"}]}

In JSON every `key`, `end` and `value` may instead be given as `…_base64`; in msgpack they are binary or text.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgpack
import msgspec
from falcon.asgi import Response

from raftkv_core.machine import commands
from raftkv_core.machine.commands import Compare, Operation, Operator, Target
from raftkv_core.machine.records import decode_record
from raftkv_transport_http_falcon.answers import CONTENT_TYPE, JSON, MSGPACK, respond, row_of, wants_msgpack
from raftkv_transport_http_falcon.problems import Problem, from_refusal
from raftkv_transport_http_falcon.requests import TIMEOUT_S_MAX, Query, Request
from raftkv_transport_http_falcon.service import Service

__all__ = ["TransactionResource"]

_TARGETS: Final = {
    "create_revision": Target.CREATE,
    "mod_revision": Target.MOD,
    "version": Target.VERSION,
    "value": Target.VALUE,
    "lease": Target.LEASE,
}
_OPERATORS: Final = {
    "=": Operator.EQUAL,
    "!=": Operator.NOT_EQUAL,
    "<": Operator.LESS,
    ">": Operator.GREATER,
}
_PARAMETERS: Final = frozenset({"timeout_s"})


class TransactionResource:
    """POST only."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def on_post(self, req: Request, resp: Response) -> None:
        timeout_s = Query(req.scope["query_string"], _PARAMETERS).seconds("timeout_s", most=TIMEOUT_S_MAX)
        binary = wants_msgpack(req)
        document = _Table(_decode(req, await req.body()), "the transaction")
        compares = [_compare(entry) for entry in document.tables("compare")]
        then = [_operation(entry) for entry in document.tables("then")]
        otherwise = [_operation(entry) for entry in document.tables("else")]
        document.close()
        command = commands.txn(compares, then, otherwise, idempotency_key=req.fields.get(b"idempotency-key"))
        outcome = await self._service.store.propose(command, timeout_s=timeout_s)
        if outcome.status:
            raise from_refusal(outcome)
        answer: dict[str, Any] = {"revision": outcome.revision}
        if outcome.replayed:
            answer["replayed"] = True
        if outcome.payload is not None:  # a large one is not remembered for a replay
            succeeded, results = outcome.payload
            answer["succeeded"] = bool(succeeded)
            answer["results"] = [
                _result(operation, result, binary=binary)
                for operation, result in zip(then if succeeded else otherwise, results, strict=True)
            ]
        resp.set_header("raftkv-revision", str(outcome.revision))
        respond(req, resp, answer)


def _decode(req: Request, body: bytes) -> Any:
    media_type = req.text_field(b"content-type").partition(";")[0].strip().lower()
    try:
        if media_type == JSON:
            return msgspec.json.decode(body)
        if media_type in (MSGPACK, "application/x-msgpack"):
            return msgpack.unpackb(body, ext_hook=_no_extension)
    except (ValueError, msgspec.DecodeError, msgpack.UnpackException, RecursionError) as error:
        raise Problem(400, "malformed_body", f"the body is not valid {media_type}: {error}") from error
    raise Problem(415, "content_type", f"send a transaction as {JSON} or {MSGPACK}")


def _no_extension(code: int, _data: bytes) -> Any:
    raise ValueError(f"extension type {code} is not taken")


class _Table:
    """A map from the client, read field by field; `close` refuses what was not asked for."""

    def __init__(self, document: Any, what: str) -> None:
        if not isinstance(document, dict) or not all(isinstance(name, str) for name in document):
            raise Problem(400, "malformed_body", f"{what} is a map with text keys")
        self._left = dict(document)
        self._what = what

    def close(self) -> None:
        if self._left:
            raise Problem(400, "malformed_body", f"{self._what} has no field {next(iter(self._left))!r}")

    def word(self, name: str, choices: Mapping[str, Any]) -> Any:
        word = self._left.pop(name, None)
        if not isinstance(word, str) or word not in choices:
            raise self._wrong(name, f"one of {', '.join(choices)}")
        return choices[word]

    def number(self, name: str, default: int | None = None) -> int:
        number = self._left.pop(name, default)
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 1 << 63:
            raise self._wrong(name, "an integer from 0 to 2^63 - 1")
        return number

    def text(self, name: str) -> str | None:
        text = self._left.pop(name, None)
        if text is not None and not isinstance(text, str):
            raise self._wrong(name, "text")
        return text

    def octets(self, name: str) -> bytes:
        octets = self.optional_octets(name)
        if octets is None:
            raise self._wrong(name, f"text, or {name}_base64")
        return octets

    def optional_octets(self, name: str) -> bytes | None:
        plain = self._left.pop(name, None)
        encoded = self._left.pop(f"{name}_base64", None)
        if encoded is None:
            if plain is None or isinstance(plain, bytes):
                return plain
            if isinstance(plain, str):
                return plain.encode()
        elif plain is None and isinstance(encoded, str):
            try:
                return base64.b64decode(encoded, validate=True)
            except ValueError:
                raise self._wrong(f"{name}_base64", "base64") from None
        raise self._wrong(name, f"text, or {name}_base64, but not both")

    def tables(self, name: str) -> Sequence[_Table]:
        entries = self._left.pop(name, [])
        if not isinstance(entries, list):
            raise self._wrong(name, "a list")
        return [_Table(entry, f"{name}[{number}]") for number, entry in enumerate(entries)]

    def _wrong(self, name: str, expected: str) -> Problem:
        return Problem(400, "malformed_body", f"{self._what}: {name} is {expected}")


def _compare(table: _Table) -> Compare:
    target = table.word("target", _TARGETS)
    operator = table.word("operator", _OPERATORS)
    operand = table.octets("value") if target is Target.VALUE else table.number("value")
    compare = commands.compare(table.octets("key"), target, operator, operand)
    table.close()
    return compare


def _put(table: _Table) -> Operation:
    content_type = table.text("content_type")
    return commands.op_put(
        table.octets("key"),
        table.octets("value"),
        attributes={CONTENT_TYPE: content_type} if content_type else None,
    )


def _delete(table: _Table) -> Operation:
    return commands.op_delete(table.octets("key"), table.optional_octets("end"))


def _get(table: _Table) -> Operation:
    return commands.op_get(table.octets("key"), table.optional_octets("end"), limit=table.number("limit", 0))


_OPERATIONS: Final[Mapping[str, Callable[[_Table], Operation]]] = {"put": _put, "delete": _delete, "get": _get}


def _operation(table: _Table) -> Operation:
    operation = table.word("op", _OPERATIONS)(table)
    table.close()
    return operation  # type: ignore[no-any-return]  # a word stands for whatever its table says


def _result(operation: Operation, result: Any, *, binary: bool) -> dict[str, Any]:
    op = operation[0]
    if op == commands.Op.PUT:
        return {"op": "put"}
    if op == commands.Op.DELETE:
        return {"op": "delete", "deleted": result[0]}
    return {"op": "get", "rows": [row_of(key, decode_record(row), binary=binary) for key, row in result]}
