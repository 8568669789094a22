"""The rare requests on the node socket: status, members, and reads for workers that cannot read themselves.

Each has a name and the type of its arguments; what it returns goes back as msgpack, and the caller knows its
type (`raftkv_core.worker`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from msgspec import Struct

from raftkv_core.errors import InvalidRequest
from raftkv_core.interfaces.consensus import Level, Member
from raftkv_core.interfaces.transport import Store

__all__ = ["Calls", "ChangesCall", "GetCall", "MemberCall", "NoArguments", "NodeCall", "RangeCall"]


class NoArguments(Struct, array_like=True, frozen=True):
    pass


class GetCall(Struct, array_like=True, frozen=True):
    key: bytes
    level: Level
    revision: int | None
    min_revision: int | None


class RangeCall(Struct, array_like=True, frozen=True):
    start: bytes
    end: bytes | None
    level: Level
    revision: int | None
    min_revision: int | None
    limit: int
    keys_only: bool
    count: bool
    reverse: bool


class ChangesCall(Struct, array_like=True, frozen=True):
    after: int
    start: bytes
    end: bytes | None
    limit: int


class MemberCall(Struct, array_like=True, frozen=True):
    node_id: str
    address: str


class NodeCall(Struct, array_like=True, frozen=True):
    node_id: str | None


class Calls:
    """Runs them on a store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._methods: Final[
            dict[str, tuple[msgspec.msgpack.Decoder[Any], Callable[[Any, float], Awaitable[Any]]]]
        ] = {
            "get": (msgspec.msgpack.Decoder(GetCall), self._get),
            "range": (msgspec.msgpack.Decoder(RangeCall), self._range),
            "changes": (msgspec.msgpack.Decoder(ChangesCall), self._changes),
            "status": (msgspec.msgpack.Decoder(NoArguments), self._status),
            "members": (msgspec.msgpack.Decoder(NoArguments), self._members),
            "add_member": (msgspec.msgpack.Decoder(MemberCall), self._add_member),
            "remove_member": (msgspec.msgpack.Decoder(NodeCall), self._remove_member),
            "transfer_leadership": (msgspec.msgpack.Decoder(NodeCall), self._transfer),
        }

    async def run(self, method: str, arguments: msgspec.Raw, timeout_s: float) -> Any:
        """Raises InvalidRequest for what is unknown or malformed, and whatever the method raises."""
        if method not in self._methods:
            raise InvalidRequest(f"the node has no method {method!r}", code="unknown_method")
        decoder, function = self._methods[method]
        try:
            decoded = decoder.decode(arguments)
        except msgspec.MsgspecError as error:
            raise InvalidRequest(f"{method}: {error}", code="malformed") from error
        return await function(decoded, timeout_s)

    async def _get(self, call: GetCall, timeout_s: float) -> Any:
        return await self._store.get(
            call.key, level=call.level, revision=call.revision, min_revision=call.min_revision, timeout_s=timeout_s
        )

    async def _range(self, call: RangeCall, timeout_s: float) -> Any:
        return await self._store.range(
            call.start,
            call.end,
            level=call.level,
            revision=call.revision,
            min_revision=call.min_revision,
            limit=call.limit,
            keys_only=call.keys_only,
            count=call.count,
            reverse=call.reverse,
            timeout_s=timeout_s,
        )

    async def _changes(self, call: ChangesCall, _timeout_s: float) -> Any:
        return await self._store.changes(call.after, start=call.start, end=call.end, limit=call.limit)

    async def _status(self, _call: NoArguments, _timeout_s: float) -> Any:
        return await self._store.status()

    async def _members(self, _call: NoArguments, _timeout_s: float) -> Any:
        return list(await self._store.members())

    async def _add_member(self, call: MemberCall, timeout_s: float) -> None:
        await self._store.add_member(Member(call.node_id, call.address), timeout_s=timeout_s)

    async def _remove_member(self, call: NodeCall, timeout_s: float) -> None:
        if call.node_id is None:
            raise InvalidRequest("name the node to remove", code="malformed")
        await self._store.remove_member(call.node_id, timeout_s=timeout_s)

    async def _transfer(self, call: NodeCall, timeout_s: float) -> None:
        await self._store.transfer_leadership(call.node_id, timeout_s=timeout_s)
