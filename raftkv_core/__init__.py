"""RaftKV's core: the plugin kernel, the state machine, the durable log and the node around them.

The core runs without any of its plugins; it brings a memory storage and a one-node consensus itself.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
