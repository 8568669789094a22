"""RaftKV's HTTP interface. `plugin` registers it; `server` runs it; importing this package imports neither."""

__version__ = "0.1.0"

__all__ = ["__version__"]
