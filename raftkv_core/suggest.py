""" "Did you mean …?": every error that names an unknown word offers the nearest known one.

>>> did_you_mean("lmbd", ["lmdb", "memory"])
" Did you mean 'lmdb'?"
>>> did_you_mean("redis", ["lmdb", "memory"])
''
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["did_you_mean", "nearest"]


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word that is most like `word`, or "" if none is like it."""
    from difflib import get_close_matches  # noqa: PLC0415  (only failures pay for the import)

    by_folded = {name.casefold(): name for name in known}
    matches = get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else ""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence to append to an error, or ""."""
    name = nearest(word, known)
    return f" Did you mean {name!r}?" if name else ""
