"""The durable log: segments of checksummed frames, one fsync a group, written off the event loop."""

from raftkv_core.log.log import DurableLog

__all__ = ["DurableLog"]
