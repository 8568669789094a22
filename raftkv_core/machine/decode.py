"""From bytes to a command that can be carried out, or `BadCommand`.

Everything that could make apply fail is looked for here, so that a bad command is a result on every node and
never an exception on one. The checks do not depend on configuration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgpack

from raftkv_core import limits
from raftkv_core.errors import InvalidRequest
from raftkv_core.machine.commands import Op, Operator, Target
from raftkv_core.machine.settings import SETTINGS, check_settings

__all__ = ["BadCommand", "decode_command"]

_U63: Final = 1 << 63
_TARGETS: Final = frozenset(int(t) for t in Target)
_OPERATORS: Final = frozenset(int(o) for o in Operator)


class BadCommand(ValueError):
    """The command is malformed; the message is for people."""


def decode_command(data: bytes) -> list[Any]:
    """`[op, idempotency key | None, arguments …]`, with the right number and types of arguments."""
    try:
        command = msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException) as error:
        raise BadCommand("the command is not well-formed msgpack") from error
    if type(command) is not list or len(command) < 2:
        raise BadCommand("a command is an array of an operation, an idempotency key and arguments")
    if type(command[0]) is not int:
        raise BadCommand("an operation is an integer")
    check = _CHECKS.get(command[0])
    if check is None:
        raise BadCommand(f"there is no operation {command[0]!r}")
    key = command[1]
    if key is not None and not (type(key) is bytes and 1 <= len(key) <= limits.IDEMPOTENCY_KEY_BYTES_MAX):
        raise BadCommand(f"an idempotency key has 1 to {limits.IDEMPOTENCY_KEY_BYTES_MAX} bytes")
    check(command)
    return command


def _arguments(command: list[Any], count: int) -> None:
    if len(command) != 2 + count:
        raise BadCommand(f"operation {command[0]} takes {count} arguments, not {len(command) - 2}")


def _key(key: Any) -> None:
    if type(key) is not bytes or not 1 <= len(key) <= limits.KEY_BYTES_MAX:
        raise BadCommand(f"a key has 1 to {limits.KEY_BYTES_MAX} bytes")


def _number(number: Any) -> None:
    if type(number) is not int or not 0 <= number < _U63:
        raise BadCommand("a number lies between 0 and 2^63 - 1")


def _flag(flag: Any) -> None:
    if type(flag) is not bool:
        raise BadCommand("a flag is true or false")


def _range(key: Any, end: Any) -> None:
    if end is None:
        _key(key)
        return
    for bound in (key, end):
        if type(bound) is not bytes or len(bound) > limits.KEY_BYTES_MAX:
            raise BadCommand(f"a range bound has at most {limits.KEY_BYTES_MAX} bytes")
    if end and end <= key:
        raise BadCommand("the range ends at or before its start")


def _put_arguments(key: Any, value: Any, lease: Any, attributes: Any, want: Any) -> None:
    _key(key)
    if type(value) is not bytes or len(value) > limits.VALUE_BYTES_MAX:
        raise BadCommand(f"a value has at most {limits.VALUE_BYTES_MAX} bytes")
    _number(lease)
    _flag(want)
    if attributes is not None:
        if type(attributes) is not dict or not all(type(k) is str and type(v) is str for k, v in attributes.items()):
            raise BadCommand("attributes are a map of text to text")
        if len(msgpack.packb(attributes)) > limits.ATTRIBUTES_BYTES_MAX:
            raise BadCommand(f"attributes have at most {limits.ATTRIBUTES_BYTES_MAX} bytes")


def _put(command: list[Any]) -> None:
    _arguments(command, 5)
    _put_arguments(*command[2:])


def _delete(command: list[Any]) -> None:
    _arguments(command, 3)
    _range(command[2], command[3])
    _flag(command[4])


def _compare(compare: Any) -> None:
    if type(compare) is not list or len(compare) != 4:
        raise BadCommand("a compare is an array of key, target, operator and operand")
    key, target, operator, operand = compare
    _key(key)
    if type(target) is not int or target not in _TARGETS:
        raise BadCommand(f"there is no compare target {target!r}")
    if type(operator) is not int or operator not in _OPERATORS:
        raise BadCommand(f"there is no compare operator {operator!r}")
    if target == Target.VALUE:
        if type(operand) is not bytes:
            raise BadCommand("a value is compared with bytes")
    else:
        _number(operand)


def _operation(operation: Any) -> None:
    if type(operation) is not list or not operation:
        raise BadCommand("an operation of a transaction is an array")
    op = operation[0]
    if op == Op.PUT and len(operation) == 6:
        _put_arguments(*operation[1:])
    elif op == Op.DELETE and len(operation) == 4:
        _range(operation[1], operation[2])
        _flag(operation[3])
    elif op == Op.GET and len(operation) == 4:
        _range(operation[1], operation[2])
        _number(operation[3])
    else:
        raise BadCommand("a transaction takes put, delete and get operations with their arguments")


def _txn(command: list[Any]) -> None:
    _arguments(command, 3)
    for part, check in zip(command[2:], (_compare, _operation, _operation), strict=True):
        if type(part) is not list or len(part) > limits.TXN_OPERATIONS_MAX:
            raise BadCommand(f"a transaction has at most {limits.TXN_OPERATIONS_MAX} of each part")
        for item in part:
            check(item)


def _compact(command: list[Any]) -> None:
    _arguments(command, 1)
    _number(command[2])


def _settings_map(changes: Any) -> None:
    if type(changes) is not dict:
        raise BadCommand("settings are a map of name to integer")
    try:
        check_settings(changes)
    except InvalidRequest as error:
        raise BadCommand(str(error)) from error


def _settings(command: list[Any]) -> None:
    _arguments(command, 1)
    _settings_map(command[2])


def _genesis(command: list[Any]) -> None:
    _arguments(command, 6)
    cluster, history, form, settings, base_revision, base_digest = command[2:]
    if not (type(cluster) is bytes and len(cluster) == 16 and type(history) is bytes and len(history) == 16):
        raise BadCommand("cluster and history ids have 16 bytes")
    if form not in limits.FORMATS_READABLE:
        raise BadCommand(f"format {form!r} is unknown to this release")
    _settings_map(settings)
    if settings.keys() != SETTINGS.keys():
        raise BadCommand("genesis carries every setting's value")
    _number(base_revision)
    if type(base_digest) is not int or not 0 <= base_digest < 1 << 64:
        raise BadCommand("a digest is an unsigned 64-bit number")


def _report(command: list[Any]) -> None:
    _arguments(command, 4)
    node, formats, low, gone = command[2:]
    if type(node) is not str or not 1 <= len(node.encode(errors="replace")) <= limits.NODE_ID_BYTES_MAX:
        raise BadCommand(f"a node id has 1 to {limits.NODE_ID_BYTES_MAX} bytes")
    if type(formats) is not list or not 1 <= len(formats) <= 64:
        raise BadCommand("readable formats are an array of 1 to 64 numbers")
    for form in formats:
        _number(form)
    _flag(low)
    _flag(gone)


def _tick(command: list[Any]) -> None:
    _arguments(command, 1)
    _number(command[2])


def _reserved(_command: list[Any]) -> None:
    """Formats that later releases carry out; here their answer is UNSUPPORTED, whatever they hold."""


_CHECKS: Final[dict[int, Callable[[list[Any]], None]]] = {
    Op.PUT: _put,
    Op.DELETE: _delete,
    Op.TXN: _txn,
    Op.COMPACT: _compact,
    Op.SETTINGS: _settings,
    Op.GENESIS: _genesis,
    Op.REPORT: _report,
    Op.TICK: _tick,
    **dict.fromkeys((Op.SEAL, Op.CHECK, Op.LEASE_GRANT, Op.LEASE_KEEPALIVE, Op.LEASE_REVOKE, Op.EXPIRE), _reserved),
}
