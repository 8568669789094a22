"""Every error of the store as a status, a code and an outcome."""

from __future__ import annotations

from typing import Any

import pytest

from raftkv_core import errors
from raftkv_core.machine.commands import Outcome, Status

RAISED = [
    (errors.InvalidRequest("bad"), 400, "invalid_request", "not_applied", False),
    (errors.InvalidRequest("long", code="value_too_large"), 413, "value_too_large", "not_applied", False),
    (errors.NotApplied("no"), 503, "not_applied", "not_applied", True),
    (errors.Overloaded("full"), 429, "overloaded", "not_applied", True),
    (errors.NoSpace("disk"), 507, "no_space", "not_applied", True),
    (errors.Unavailable("no leader", code="no_leader"), 503, "no_leader", "not_applied", True),
    (errors.OutcomeUnknown("who knows"), 504, "outcome_unknown", "unknown", True),
    (errors.Refused("sealed", code="sealed"), 409, "sealed", "not_applied", False),
    (errors.Compacted("gone"), 410, "compacted", "not_applied", False),
]


@pytest.mark.parametrize(("error", "status", "code", "outcome", "retryable"), RAISED)
def test_what_the_store_raises(
    served: Any, error: Exception, status: int, code: str, outcome: str, retryable: bool
) -> None:
    """The same for reads and writes; 429 and 503 say when to try again."""
    served.store.error = error
    for method in ("GET", "PUT", "DELETE"):
        answer = served.request(method, "/v1/kv/a", b"x")
        problem = answer.assert_problem(status, code, outcome)
        assert (problem["detail"], problem["retryable"]) == (str(error), retryable)
        assert ("retry-after" in answer.headers) == (status in (429, 503))


def test_every_request_error_is_mapped() -> None:
    """None falls through to 500."""
    kinds = {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.RequestError) and kind is not errors.RequestError
    }
    assert kinds == {type(error) for error, *_ in RAISED}


REFUSED = {
    Status.INVALID: 400,
    Status.TOO_LARGE: 413,
    Status.UNSUPPORTED: 501,
    Status.COMPACTED: 410,
    Status.FUTURE_REVISION: 400,
    Status.IDEMPOTENCY_MISMATCH: 422,
    Status.DEDUPE_FULL: 429,
    Status.SEALED: 409,
    Status.NO_GENESIS: 503,
    Status.LEASE_NOT_FOUND: 404,
}


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.OK])
def test_what_the_state_machine_refuses(served: Any, status: Status) -> None:
    """Each status of an outcome, on every way to write."""
    served.store.outcome = Outcome(status, 7, "the reason")
    for method, path, headers in (
        ("PUT", "/v1/kv/a", {}),
        ("PUT", "/v1/kv/a", {"If-Match": '"1"'}),
        ("DELETE", "/v1/kv/a", {}),
        ("DELETE", "/v1/kv/a", {"If-Match": '"1"'}),
        ("DELETE", "/v1/kv?prefix=a", {}),
        ("POST", "/v1/txn", {"Content-Type": "application/json"}),
    ):
        problem = served.request(method, path, b"{}", headers).assert_problem(REFUSED[status], status.name.lower())
        assert problem["detail"] == "the reason"
        assert problem["retryable"] == (REFUSED[status] in (429, 503))


def test_an_unknown_refusal(served: Any) -> None:
    """A status of a newer release is a refusal all the same."""
    served.store.outcome = Outcome(99, 7, None)
    served.request("PUT", "/v1/kv/a", b"x").assert_problem(409, "refused")


def test_a_defect_is_500_without_details(served: Any, caplog: pytest.LogCaptureFixture) -> None:
    """No traceback for the client; the log has it. After a write, the outcome is unknown."""
    served.store.error = ZeroDivisionError("secret detail")
    problem = served.get("/v1/kv/a").assert_problem(500, "internal_error", "not_applied")
    assert "secret" not in str(problem)
    served.request("PUT", "/v1/kv/a", b"x").assert_problem(500, "internal_error", "unknown")
    assert "secret detail" in caplog.text


def test_storage_that_fails(served: Any) -> None:
    """Not the client's fault, and nothing was applied."""
    served.store.error = errors.StorageError("lmdb: read: Input/output error")
    served.get("/v1/kv/a").assert_problem(500, "storage_failed")


def test_unknown_paths_under_v1(served: Any) -> None:
    """A problem document; elsewhere it is the text that old clients know."""
    served.get("/v1/nowhere").assert_problem(404, "not_found")
    assert served.get("/nowhere").body == b"404 Not Found"
