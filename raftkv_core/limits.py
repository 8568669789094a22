"""Limits of the format: equal on every node and engine, because one node's limit would be another's crash at replay.

Configuration and replicated settings may only lower what they admit (see `config.py` and `machine/settings.py`).
Sizes are bytes.
"""

from __future__ import annotations

from typing import Final

FORMAT: Final = 1
"""Version of everything this release writes: entries, rows, streams."""

FORMATS_READABLE: Final = (1,)

KEY_BYTES_MAX: Final = 480
"""Longest user key; the shortest is one byte."""

TABLE_KEY_BYTES_MAX: Final = 511
"""Longest key of a table row: a user key and the core's prefix, with room (LMDB's own limit)."""

IDEMPOTENCY_KEY_BYTES_MAX: Final = 128

VALUE_BYTES_MAX: Final = 1 << 20

ATTRIBUTES_BYTES_MAX: Final = 4 << 10
"""Encoded attributes of one record (content type and so on)."""

ROW_BYTES_MAX: Final = VALUE_BYTES_MAX + (64 << 10)
"""Largest value of a table row: a record, or a change that carries one as its pre-image."""

COMMAND_BYTES_MAX: Final = 2 << 20

ENTRY_BYTES_MAX: Final = 4 << 20

ENTRY_COMMANDS_MAX: Final = 256

TXN_OPERATIONS_MAX: Final = 1_024
"""Compares, then-operations and else-operations of a transaction, each."""

COMMAND_KEYS_MAX: Final = 1_024
"""Keys that one command may touch."""

COMMAND_REPLACED_BYTES_MAX: Final = 16 << 20
"""Bytes of records that one command may replace, remove or return."""

NODE_ID_BYTES_MAX: Final = 64
