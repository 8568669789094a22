"""Idempotency keys and the clock: a retry is answered from memory, and nothing is forgotten early."""

from __future__ import annotations

import msgpack
import pytest

from raftkv_core.machine import commands
from raftkv_core.machine.commands import Outcome, Status
from raftkv_core.machine.records import encode_record
from tests.machine.checks import Pending
from tests.machine.harness import Node, small_bounds


def one(node: Node, command: bytes, term: int = 1) -> Outcome:
    (outcome,) = node.do(command, term=term)
    return outcome


def test_a_retry_gets_the_first_answer(begun: Node) -> None:
    """The same bytes again change nothing and are answered as before, marked as replayed, after a restart too."""
    begun.do(commands.put(b"a", b"0"))
    sent = [
        commands.put(b"a", b"1", want_previous=True, idempotency_key=b"1"),
        commands.delete(b"", b"", want_previous=True, idempotency_key=b"2"),
        commands.txn([], [commands.op_put(b"b", b""), commands.op_get(b"b")], idempotency_key=b"3"),
        commands.delete(b"none", idempotency_key=b"4"),
    ]
    first = [one(begun, command) for command in sent]
    assert first[0].payload == encode_record(1, 1, 1, 0, 0, b"0", None)
    assert first[1].payload == [1, [[b"a", encode_record(1, 2, 2, 0, 0, b"1", None)]]]
    begun.do(commands.put(b"z", b""))
    digests = begun.machine.digest, begun.machine.digest_local
    for _ in range(2):
        assert [one(begun, command) for command in sent] == [outcome._replace(replayed=True) for outcome in first]
        assert (begun.machine.digest, begun.machine.digest_local) == digests
        begun.commit()
        begun.restart()


def test_a_key_with_another_request_is_a_mismatch(begun: Node) -> None:
    """Any other byte makes another request, and it is refused."""
    one(begun, commands.put(b"a", b"1", idempotency_key=b"i"))
    outcome = one(begun, commands.put(b"a", b"2", idempotency_key=b"i"))
    assert (outcome.status, outcome.revision) == (Status.IDEMPOTENCY_MISMATCH, 1)
    assert one(begun, commands.put(b"a", b"1", idempotency_key=b"i")).replayed


def test_a_large_answer_is_remembered_without_its_payload(begun: Node) -> None:
    """Up to `dedupe_outcome_bytes` the payload is kept; beyond it the retry learns that it is done."""
    begun.do(commands.settings({"dedupe_outcome_bytes": 100}), commands.put(b"a", b"x" * 500))
    command = commands.put(b"a", b"y", want_previous=True, idempotency_key=b"i")
    first = one(begun, command)
    assert len(first.payload) > 500
    assert one(begun, command) == first._replace(payload=None, replayed=True)


@pytest.mark.parametrize(("size", "kept"), [(-1, False), (0, True)])
def test_the_size_of_a_remembered_answer_is_exact(begun: Node, size: int, kept: bool) -> None:
    """An answer of exactly the limit is kept whole."""
    begun.do(commands.put(b"a", b"0"))
    row = encode_record(1, 1, 1, 0, 0, b"0", None)
    begun.do(commands.settings({"dedupe_outcome_bytes": len(msgpack.packb([2, row])) + size}))
    command = commands.put(b"a", b"y", want_previous=True, idempotency_key=b"i")
    one(begun, command)
    assert one(begun, command).payload == (row if kept else None)


def test_when_too_many_keys_are_remembered_new_ones_are_refused(begun: Node) -> None:
    """Retries are still answered, and when keys have expired new ones are taken again."""
    begun.do(commands.settings({"dedupe_keys": 2, "dedupe_ttl_ms": 1_000}))
    one(begun, commands.put(b"a", b"", idempotency_key=b"1"))
    one(begun, commands.put(b"a", b"", idempotency_key=b"2"))
    third = commands.put(b"a", b"", idempotency_key=b"3")
    assert one(begun, third).status == Status.DEDUPE_FULL
    assert one(begun, commands.put(b"a", b"", idempotency_key=b"2")).replayed
    assert begun.machine.dedupe_count == 2
    begun.do(commands.tick(1), commands.tick(1))
    assert begun.machine.dedupe_count == 0
    assert one(begun, third) == (Status.OK, 3, None, False)


def test_no_key_is_forgotten_early(begun: Node) -> None:
    """Remembered right before a tick, a key lives its whole time and one interval more."""
    begun.do(commands.settings({"dedupe_ttl_ms": 3_000, "tick_ms": 1_000}))
    command = commands.put(b"a", b"", idempotency_key=b"i")
    one(begun, command)
    for _ in range(3):
        begun.do(commands.tick(1))
        assert one(begun, command).replayed
    begun.do(commands.tick(1))
    assert begun.machine.clock_ms == 4_000
    assert not one(begun, command).replayed


def test_a_tick_of_another_term_is_ignored(begun: Node) -> None:
    """A leader that lost its place moves nobody's clock."""
    begun.do(commands.put(b"a", b"", idempotency_key=b"i"), commands.settings({"tick_ms": 60_000}))
    before = begun.machine.digest_local
    for tick_term, entry_term in ((1, 2), (3, 2), (0, 2)):
        assert one(begun, commands.tick(tick_term), entry_term).status == Status.OK
    assert (begun.machine.clock_ms, begun.machine.digest_local) == (0, before)
    one(begun, commands.tick(2), 2)
    assert begun.machine.clock_ms == 60_000
    assert begun.machine.digest_local != before


def test_a_tick_forgets_a_bounded_number(begun: Node) -> None:
    """256 keys at most, the oldest first; the rest with the ticks after it."""
    begun.do(commands.settings({"dedupe_ttl_ms": 1_000}))
    batch = [commands.put(b"a", b"", idempotency_key=b"%04d" % number) for number in range(600)]
    for at in range(0, 600, 200):
        begun.do(*batch[at : at + 200])
    begun.commit()
    left = []
    for _ in range(5):
        begun.do(commands.tick(1))
        left.append(begun.machine.dedupe_count)
    assert left == [600, 344, 88, 0, 0]
    begun.commit()
    with begun.storage.read() as txn:
        assert not list(txn.scan("dedupe"))
        assert not list(txn.scan("dedupe_expiry"))


def test_an_expired_key_that_is_still_there_is_still_remembered(begun: Node) -> None:
    """Until a tick removes it, whatever its expiry says: answering from memory is never wrong."""
    begun.do(commands.settings({"dedupe_ttl_ms": 1_000}))
    with small_bounds(tick_removes=1):
        first, second = (commands.put(b"a", b"", idempotency_key=key) for key in (b"1", b"2"))
        begun.do(first, second)
        begun.do(commands.tick(1), commands.tick(1))
        assert one(begun, second).replayed
        assert not one(begun, first).replayed


def test_expiry_follows_the_settings_of_the_moment(begun: Node) -> None:
    """A key that was remembered for long stays for long when the setting shrinks, and the other way round."""
    long_lived, short_lived = (commands.put(b"a", b"", idempotency_key=key) for key in (b"1", b"2"))
    begun.do(commands.settings({"dedupe_ttl_ms": 5_000}), long_lived)
    begun.do(commands.settings({"dedupe_ttl_ms": 1_000}), short_lived)
    begun.do(commands.tick(1), commands.tick(1))
    assert not one(begun, short_lived).replayed
    assert one(begun, long_lived).replayed


def test_ticks_are_wanted_while_keys_are_remembered(begun: Node) -> None:
    """The count tells the leader's node whether to tick; it survives a restart."""
    assert (begun.machine.dedupe_count, begun.machine.lease_count) == (0, 0)
    one(begun, commands.put(b"a", b"", idempotency_key=b"i"))
    begun.commit()
    begun.restart()
    assert begun.machine.dedupe_count == 1
    assert dict(Pending(begun.machine).scan("dedupe"))
