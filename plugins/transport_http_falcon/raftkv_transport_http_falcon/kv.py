"""`/v1/kv/{key}`: one key, its value as the body."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from falcon import HTTP_204, HTTP_304
from falcon.asgi import Response

from raftkv_core.errors import OutcomeUnknown
from raftkv_core.machine import commands
from raftkv_core.machine.commands import Compare, Operator, Outcome, Target
from raftkv_transport_http_falcon.answers import (
    CONTENT_TYPE,
    CONTENT_TYPE_BYTES_MAX,
    OCTETS,
    content_type_of,
    is_header_text,
)
from raftkv_transport_http_falcon.problems import Problem, from_refusal
from raftkv_transport_http_falcon.requests import (
    READ_PARAMETERS,
    TIMEOUT_S_MAX,
    Query,
    Request,
    read_options,
)
from raftkv_transport_http_falcon.service import Service

__all__ = ["KeyResource"]

_WRITE_PARAMETERS: Final = frozenset({"timeout_s"})

_NOBODYS_TYPES: Final = frozenset({OCTETS, "application/x-www-form-urlencoded"})
"""What curl and urllib say when nobody said anything: not worth keeping."""

_ETAG: Final = re.compile(r'"([1-9][0-9]{0,18})"')

_NO_OPTIONS: Final[dict[str, Any]] = {}


class KeyResource:
    """GET, HEAD, PUT and DELETE of one key."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def on_get(self, req: Request, resp: Response, key: bytes) -> None:
        commands.check_key(key)
        query = req.scope["query_string"]
        options = read_options(Query(query, READ_PARAMETERS)) if query else _NO_OPTIONS
        record, info = await self._service.store.get(key, **options)
        revision = str(info.revision)
        if record is None:
            headers = {"raftkv-revision": revision, "raftkv-level": info.level}
            raise Problem(404, "key_not_found", "the key does not exist", headers=headers)
        etag = f'"{record.mod_revision}"'
        resp.set_headers((("etag", etag), ("raftkv-revision", revision), ("raftkv-level", info.level)))
        if b"if-none-match" in req.fields and _is_among(etag, req.text_field(b"if-none-match")):
            resp.status = HTTP_304
            return
        resp.content_type = content_type_of(record)
        resp.data = record.value

    on_head = on_get

    async def on_put(self, req: Request, resp: Response, key: bytes) -> None:
        fields = req.fields
        query = req.scope["query_string"]
        options = _write_options(query) if query else _NO_OPTIONS
        value = await req.body()
        attributes = _attributes(fields[b"content-type"]) if b"content-type" in fields else None
        idempotency_key = fields.get(b"idempotency-key")
        if b"if-match" in fields or b"if-none-match" in fields:
            operation = commands.op_put(key, value, attributes=attributes)
            command = commands.txn(_conditions(req, key), [operation], idempotency_key=idempotency_key)
            outcome, _ = _met(await self._service.store.propose(command, **options))
        else:
            command = commands.put(key, value, attributes=attributes, idempotency_key=idempotency_key)
            outcome = await self._service.store.propose(command, **options)
            if outcome.status:
                raise from_refusal(outcome)
        revision = str(outcome.revision)
        resp.status = HTTP_204
        resp.set_headers((("etag", f'"{revision}"'), ("raftkv-revision", revision)))
        if outcome.replayed:
            resp.set_header("raftkv-replayed", "true")

    async def on_delete(self, req: Request, resp: Response, key: bytes) -> None:
        query = req.scope["query_string"]
        options = _write_options(query) if query else _NO_OPTIONS
        idempotency_key = req.fields.get(b"idempotency-key")
        if b"if-match" in req.fields or b"if-none-match" in req.fields:
            operations = [commands.op_delete(key)]
            command = commands.txn(_conditions(req, key), operations, idempotency_key=idempotency_key)
            outcome, results = _met(await self._service.store.propose(command, **options))
            payload = results[0] if results else None
        else:
            command = commands.delete(key, idempotency_key=idempotency_key)
            outcome = await self._service.store.propose(command, **options)
            if outcome.status:
                raise from_refusal(outcome)
            payload = outcome.payload
        resp.status = HTTP_204
        resp.set_header("raftkv-revision", str(outcome.revision))
        if payload is not None:
            resp.set_header("raftkv-deleted", str(payload[0]))
        if outcome.replayed:
            resp.set_header("raftkv-replayed", "true")


def _write_options(query: bytes) -> dict[str, Any]:
    timeout_s = Query(query, _WRITE_PARAMETERS).seconds("timeout_s", most=TIMEOUT_S_MAX)
    return {} if timeout_s is None else {"timeout_s": timeout_s}


def _attributes(content_type: bytes) -> dict[str, str] | None:
    text = content_type.decode("latin-1")
    if text in _NOBODYS_TYPES:
        return None
    if not is_header_text(text):
        raise Problem(
            400, "bad_content_type", f"a content type is printable ASCII of at most {CONTENT_TYPE_BYTES_MAX} bytes"
        )
    return {CONTENT_TYPE: text}


def _etags(header: str) -> list[str]:
    return [tag.strip() for tag in header.split(",")]


def _is_among(etag: str, header: str) -> bool:
    """If-None-Match compares weakly: `W/"7"` is the same as `"7"`."""
    return any(tag.removeprefix("W/") in (etag, "*") for tag in _etags(header))


def _conditions(req: Request, key: bytes) -> Sequence[Compare]:
    """If-Match and If-None-Match as compares. Raises Problem 412 for a tag that no key can have."""
    compares = []
    if b"if-match" in req.fields:
        tag = _single(req.text_field(b"if-match"))
        if tag == "*":
            compares.append(commands.compare(key, Target.MOD, Operator.GREATER, 0))
        else:
            revision = _revision(tag)
            if not revision:  # 0 is what a compare sees of a key that does not exist
                raise _not_met()
            compares.append(commands.compare(key, Target.MOD, Operator.EQUAL, revision))
    if b"if-none-match" in req.fields:
        tag = _single(req.text_field(b"if-none-match"))
        if tag == "*":
            compares.append(commands.compare(key, Target.MOD, Operator.EQUAL, 0))
        elif revision := _revision(tag.removeprefix("W/")):
            compares.append(commands.compare(key, Target.MOD, Operator.NOT_EQUAL, revision))
    return compares


def _single(header: str) -> str:
    tags = _etags(header)
    if len(tags) > 1 or not tags[0]:
        raise Problem(400, "bad_precondition", 'a write is conditional on one ETag ("7") or *, not on a list')
    return tags[0]


def _revision(tag: str) -> int:
    """The revision that an ETag names, or 0 if it is none of ours."""
    matched = _ETAG.fullmatch(tag)
    revision = int(matched[1]) if matched else 0
    return revision if revision < 1 << 63 else 0


def _met(outcome: Outcome) -> tuple[Outcome, Sequence[Any]]:
    """The outcome of a conditional command, and the result of each of its operations."""
    if outcome.status:
        raise from_refusal(outcome)
    if outcome.payload is None:
        raise OutcomeUnknown(
            "the command was carried out before under this idempotency key, and whether its condition held is "
            "no longer remembered; read the key",
            code="outcome_forgotten",
            retryable=False,
        )
    succeeded, results = outcome.payload
    if not succeeded:
        raise _not_met()
    return outcome, results


def _not_met() -> Problem:
    return Problem(412, "precondition_failed", "the key is not at the revision that the request names; read it again")
