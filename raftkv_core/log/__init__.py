"""The durable log: segments of checksummed frames, one fsync a group, written off the event loop."""

from raftkv_core.log.disk import Disk, DiskFile, RealDisk
from raftkv_core.log.executor import SyncExecutor, ThreadExecutor, Timer
from raftkv_core.log.log import DurableLog

__all__ = ["Disk", "DiskFile", "DurableLog", "RealDisk", "SyncExecutor", "ThreadExecutor", "Timer"]
