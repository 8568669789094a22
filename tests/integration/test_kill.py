"""kill -9 in the middle of writes: what was acknowledged is there, and the store agrees with itself."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from raftkv_core.testing.deployment import Deployment, wait_for
from raftkv_core.testing.verify import contradictions

pytestmark = [pytest.mark.lmdb, pytest.mark.http]

KILLS = 20
WRITERS = 8


class Writer(threading.Thread):
    """Writes increasing numbers to keys of its own, and remembers what was acknowledged."""

    def __init__(self, node: Deployment, name: str) -> None:
        super().__init__(name=name)
        self.node = node
        self.acknowledged: dict[str, int] = {}
        self.sent: dict[str, int] = {}
        self.count = 0
        self.failures: set[int] = set()
        self.stopping = threading.Event()

    def run(self) -> None:
        while not self.stopping.is_set():
            self.count += 1
            key = f"{self.name}-{self.count % 50}"
            self.sent[key] = self.count
            try:
                answer = self.node.request("PUT", f"/v1/kv/{key}", str(self.count).encode())
            except OSError:
                continue
            if answer.status < 300:
                self.acknowledged[key] = self.count
            else:
                self.failures.add(answer.status)


def read(node: Deployment, key: str) -> bytes:
    """The value, as soon as the worker that gets the request has found the node again."""
    answer = wait_for(
        lambda: (answer := node.request("GET", f"/v1/kv/{key}")).status != 503 and answer, f"an answer for {key}"
    )
    assert answer.status == 200, answer
    return bytes(answer.body)


@pytest.mark.timeout(240)
def test_acknowledged_writes_survive_kills_of_the_node(tmp_path: Path) -> None:
    """20 times: kill -9 of the node under load; each acknowledged write is there, the digest recomputed from
    the rows equals the stored one, and clients saw nothing but 503 and 504 meanwhile."""
    deployment = Deployment(tmp_path, storage="lmdb")
    with deployment.started() as node:
        writers = [Writer(node, f"w{n}") for n in range(WRITERS)]
        for writer in writers:
            writer.start()
        try:
            for _ in range(KILLS):
                before = sum(writer.count for writer in writers)
                progress = threading.Event()
                while sum(writer.count for writer in writers) < before + 40:
                    progress.wait(0.005)
                node.kill("node")
                node.wait_ready()
        finally:
            for writer in writers:
                writer.stopping.set()
            for writer in writers:
                writer.join()
        for writer in writers:
            assert writer.acknowledged, f"{writer.name} was never answered"
            assert writer.failures <= {503, 504}
            for key, value in writer.acknowledged.items():
                found = int(read(node, key))
                assert value <= found <= writer.sent[key], f"{key}: {value} was acknowledged, {found} is there"
        digest = node.status()["digest"]
        assert node.stop() == 0
    assert_sound(deployment, digest)


def assert_sound(deployment: Deployment, digest: str) -> None:
    """The data directory, opened by nobody, adds up and has this digest."""
    from raftkv_storage_lmdb.engine import LmdbStorage
    from raftkv_storage_lmdb.plugin import LmdbSettings

    from raftkv_core.machine.meta import read_meta

    storage = LmdbStorage(deployment.data / "storage", LmdbSettings())
    try:
        with storage.read() as txn:
            assert contradictions(txn) == []
            assert f"{read_meta(txn).digest:016x}" == digest
    finally:
        storage.close()
