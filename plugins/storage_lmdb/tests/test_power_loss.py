"""What `commits_at_risk` and `sync` promise, on a file system whose power is cut.

An ext4 image is mounted in a mount namespace of its own; its shutdown call drops what was not written to the
"disk", as a power loss would. What the directory shows after mounting it again is what was durable.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs("root", "loop_devices", "mount")

PROGRAM = """
import fcntl, os, pathlib, random, struct, subprocess, sys
from raftkv_core.testing.storage_child import NEW, OLD, Rows, numbered_rows
from raftkv_core.testing.storage import contents, fill
from raftkv_storage_lmdb.engine import LmdbStorage
from raftkv_storage_lmdb.plugin import LmdbSettings

image, mount, mode, metasync = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3], sys.argv[4] == "True"
settings = LmdbSettings(metasync=metasync, reserve_bytes=0)
SHUTDOWN, NO_FLUSH = 0x8004587D, 2

def mounted():
    subprocess.run(["mount", "-o", "loop", image, mount], check=True)

def power_loss():
    descriptor = os.open(mount, os.O_RDONLY)
    fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("I", NO_FLUSH))
    os.close(descriptor)
    try:
        storage.close()
    except Exception:
        pass
    subprocess.run(["umount", "-l", mount], check=True)
    mounted()

def commit(number):
    with storage.write() as txn:
        txn.put("changes", b"%08d" % number, b"%d " % number * 40)
        txn.put("kv", b"%d" % (number % 50), b"%d" % number)
        txn.put("meta", b"number", b"%d" % number)
        txn.delete("changes", b"%08d" % (number - 200))
        txn.commit()

mounted()
storage = LmdbStorage(mount / "storage", settings)
number, lost = 0, []
if mode == "activate":
    fill(storage, OLD)
    restore = storage.begin_restore()
    fill(restore, NEW)
    restore.activate()
    power_loss()
    storage = LmdbStorage(mount / "storage", settings)
    assert contents(storage) == NEW, contents(storage)
    assert storage.generation == 2
elif mode == "create":
    power_loss()
    storage = LmdbStorage(mount / "storage", settings)
    assert contents(storage) == {}
else:
    for round_ in range(6):
        for _each in range(random.Random(round_).randrange(1, 40)):
            number += 1
            commit(number)
        if mode == "sync":
            storage.sync()
        power_loss()
        storage = LmdbStorage(mount / "storage", settings)
        rows = contents(storage)
        found = int(rows["meta"][b"number"])
        assert rows == numbered_rows(found), "not a whole commit"
        lost.append(number - found)
        at_risk = 0 if mode == "sync" else storage.commits_at_risk
        assert 0 <= number - found <= at_risk, f"{number - found} commits were lost, {at_risk} may be"
        number = found
storage.close()
print("lost", lost)
"""


@pytest.mark.parametrize("metasync", [False, True])
@pytest.mark.parametrize("mode", ["commit", "sync", "activate", "create"])
def test_a_power_loss(tmp_path: Path, mode: str, metasync: bool) -> None:
    """commit: no more than `commits_at_risk` are lost; sync, activate, create: nothing that they finished."""
    image, mount = tmp_path / "image", tmp_path / "mount"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    program = [sys.executable, "-c", PROGRAM, str(image), str(mount), mode, str(metasync)]
    done = subprocess.run(["unshare", "--mount", *program], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
