"""What the core sees of this plugin before it is chosen: name, settings, capabilities. Imports no LMDB.

    [storage]
    use = "lmdb"

    [storage.lmdb]
    metasync = true
    size_max = 10_737_418_240

`engine` is imported when the configuration says `use = "lmdb"`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from raftkv_core.hookspecs import Register, StoragePlugin, hookimpl
from raftkv_core.interfaces.storage import StorageCapability

__all__ = ["LmdbSettings"]


class LmdbSettings(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """`[storage.lmdb]`. Sizes are bytes.

    No setting can damage the store, whatever crashes: LMDB runs with sync on and never with a writable map.
    """

    map_size: Annotated[
        int,
        Meta(
            description="address space set aside for the data file, not disk or memory; doubled when it fills up",
            ge=1 << 20,
            le=1 << 46,
        ),
    ] = 1 << 40
    size_max: Annotated[
        int, Meta(description="largest data file; 0: as large as the file system allows", ge=0, le=1 << 46)
    ] = 0
    reserve_bytes: Annotated[
        int,
        Meta(
            description="disk space (and room below size_max) held back, to finish what was acknowledged when full",
            ge=0,
            le=1 << 40,
        ),
    ] = 16 << 20
    metasync: Annotated[
        bool,
        Meta(
            description="sync the page that names the newest commit too; costs one disk write more a commit, "
            "and a power loss then takes no commit instead of the newest one (which the log replays)"
        ),
    ] = False
    max_readers: Annotated[
        int,
        Meta(
            description="read transactions at one time, in all processes; applies when all are stopped",
            ge=8,
            le=65_535,
        ),
    ] = 512
    engine: Annotated[
        Literal["0.9", "1.0"],
        Meta(description="LMDB version whose file format a new store gets; fixed from then on"),
    ] = "0.9"

    def __post_init__(self) -> None:
        if 0 < self.size_max < (1 << 20) + 2 * self.reserve_bytes:
            raise ValueError("size_max must be 0 or at least 1 MiB and twice reserve_bytes")


def _capabilities(settings: LmdbSettings) -> frozenset[StorageCapability]:
    """The same for all: `metasync` moves the moment of durability, never whether `sync` delivers it."""
    del settings
    return frozenset({"durable", "shared_readers"})


@hookimpl
def raftkv_register_storage(register: Register) -> None:
    register(
        StoragePlugin(
            name="lmdb",
            load="raftkv_storage_lmdb.engine:LmdbStorage",
            capabilities=_capabilities,
            settings=LmdbSettings,
            summary="a memory-mapped B+tree on disk; other processes read it directly",
        )
    )
