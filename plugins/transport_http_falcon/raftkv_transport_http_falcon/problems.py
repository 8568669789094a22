"""Errors as RFC 9457 problem documents, each with what it means for the data.

    {"type": "about:blank", "title": "Precondition Failed", "status": 412, "code": "precondition_failed",
     "detail": "the key was changed since", "outcome": "not_applied", "retryable": false}

`outcome` is `not_applied` (sending it again cannot apply it twice) or `unknown`. `retryable` says whether the
same request may succeed later without a change.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import msgspec

from raftkv_core import errors
from raftkv_core.errors import RequestError, RequestOutcome
from raftkv_core.machine.commands import Outcome, Status

__all__ = ["CONTENT_TYPE", "Problem", "from_error", "from_refusal", "title_of"]

CONTENT_TYPE: Final = "application/problem+json"

_RETRY_AFTER_S: Final = "1"

_TOO_LARGE: Final = frozenset({"value_too_large", "command_too_large", "attributes_too_large", "txn_too_large"})


class Problem(Exception):
    """One failed request, as the client is told."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        outcome: RequestOutcome = "not_applied",
        retryable: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.outcome = outcome
        self.retryable = retryable
        self.headers = dict(headers or {})
        if status in (429, 503):
            self.headers["retry-after"] = _RETRY_AFTER_S

    def body(self) -> bytes:
        return msgspec.json.encode(
            {
                "type": "about:blank",
                "title": title_of(self.status),
                "status": self.status,
                "code": self.code,
                "detail": self.detail,
                "outcome": self.outcome,
                "retryable": self.retryable,
            }
        )


def title_of(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


_STATUS_OF: Final[tuple[tuple[type[RequestError], int], ...]] = (
    (errors.Overloaded, 429),
    (errors.NoSpace, 507),
    (errors.NotApplied, 503),
    (errors.OutcomeUnknown, 504),
    (errors.Compacted, 410),
    (errors.InvalidRequest, 400),
)


def from_error(error: RequestError) -> Problem:
    """What the store raised."""
    if isinstance(error, errors.Refused):
        status = _refusal(error.code)
    elif error.code in _TOO_LARGE:
        status = 413
    else:
        status = next((number for kind, number in _STATUS_OF if isinstance(error, kind)), 500)
    return Problem(status, error.code, str(error), outcome=error.outcome, retryable=error.retryable)


_REFUSALS: Final[dict[str, int]] = {
    "invalid": 400,
    "too_large": 413,
    "unsupported": 501,
    "compacted": 410,
    "future_revision": 400,
    "idempotency_mismatch": 422,
    "dedupe_full": 429,
    "sealed": 409,
    "no_genesis": 503,
    "lease_not_found": 404,
}


def _refusal(code: str) -> int:
    return _REFUSALS.get(code, 409)


def from_refusal(outcome: Outcome) -> Problem:
    """What the state machine answered instead of carrying the command out."""
    try:
        code = Status(outcome.status).name.lower()
    except ValueError:
        code = "refused"
    status = _refusal(code)
    detail = outcome.payload if isinstance(outcome.payload, str) else f"the store refused the command: {code}"
    return Problem(status, code, detail, retryable=status in (429, 503))
