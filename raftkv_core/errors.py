"""What can go wrong, as a tree. Every error carries its remedy; every request error its outcome.

```
RaftkvError
├── ConfigError                 the configuration is wrong (exit code 2)
│   └── PluginError             a plugin is missing, broken, conflicting or of another API version
├── DataDirectoryError          this directory cannot be used, or not by this node (exit code 3)
│   ├── DirectoryLocked         another node runs on it
│   ├── IdentityMismatch        it belongs to another cluster, node, history or engine
│   └── LogDamaged              a log frame that was synced does not read back
├── MachineFault                the state machine cannot go on; the node stops (exit code 6)
├── StorageError                the storage engine failed
│   ├── StorageFull             no room left in the file, the map or the file system
│   └── StreamInvalid           a stream is damaged, cut short or of an unknown format
└── RequestError                one request failed; `outcome` says what that means for the data
    ├── InvalidRequest          refused before anything was proposed
    ├── NotApplied              certainly not applied: safe to retry
    │   ├── Overloaded          a queue or a limit is full: retry later
    │   ├── NoSpace             a member is low on space: free some, then retry
    │   └── Unavailable         no leader, no quorum, or the node process is away
    ├── OutcomeUnknown          may or may not have been applied: retry with an idempotency key, or read
    ├── Refused                 applied as a refusal: the state machine's own answer (see `Outcome.status`)
    └── Compacted               the revision that was asked for is no longer kept
```
"""

from __future__ import annotations

from typing import Literal

__all__ = [
    "Compacted",
    "ConfigError",
    "DataDirectoryError",
    "DirectoryLocked",
    "IdentityMismatch",
    "InvalidRequest",
    "LogDamaged",
    "MachineFault",
    "NoSpace",
    "NotApplied",
    "OutcomeUnknown",
    "Overloaded",
    "PluginError",
    "RaftkvError",
    "Refused",
    "RequestError",
    "RequestOutcome",
    "StorageError",
    "StorageFull",
    "StreamInvalid",
    "Unavailable",
]

RequestOutcome = Literal["not_applied", "unknown"]


class RaftkvError(Exception):
    """Base of all. The message is one line for a person and names the remedy."""

    exit_code = 1


class ConfigError(RaftkvError):
    """The configuration is wrong; the message names file, key and what was expected."""

    exit_code = 2


class PluginError(ConfigError):
    """A plugin that the configuration uses cannot be used."""


class DataDirectoryError(RaftkvError):
    """The data directory cannot be used, or not by this node."""

    exit_code = 3


class DirectoryLocked(DataDirectoryError):
    """Another node runs on the directory."""


class IdentityMismatch(DataDirectoryError):
    """The directory belongs to another cluster, node, history or engine."""


class LogDamaged(DataDirectoryError):
    """A frame of the log that had been synced does not read back; the message names file and offset."""


class MachineFault(RaftkvError):
    """An entry that must not be applied (damaged, of another history, out of order, of an unknown format),
    or a state that contradicts itself. Nothing of the entry was applied; the node stops."""

    exit_code = 6


class StorageError(RaftkvError):
    """The storage engine failed; the message names the engine and the operation."""


class StorageFull(StorageError):
    """No room is left in the storage's file or map, or in the file system."""


class StreamInvalid(StorageError):
    """A stream is damaged, cut short, or of a format this release does not know."""


class RequestError(RaftkvError):
    """One request failed.

    code: a stable, machine-readable word (`key_too_long`, `no_leader`, …).
    outcome: `not_applied` or `unknown`.
    retryable: whether the same request may succeed later without a change.
    """

    code = "error"
    outcome: RequestOutcome = "not_applied"
    retryable = False

    def __init__(self, message: str, *, code: str | None = None, retryable: bool | None = None) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        if retryable is not None:
            self.retryable = retryable


class InvalidRequest(RequestError):
    """The request is wrong as it stands; nothing was proposed."""

    code = "invalid_request"


class NotApplied(RequestError):
    """The command was certainly not applied; sending it again is safe."""

    code = "not_applied"
    retryable = True


class Overloaded(NotApplied):
    """A bounded queue, or the number of remembered idempotency keys, is full."""

    code = "overloaded"


class NoSpace(NotApplied):
    """A member is low on space, so nothing that grows the store is admitted."""

    code = "no_space"


class Unavailable(NotApplied):
    """There is no leader or quorum, or the node process is away or starting."""

    code = "unavailable"


class OutcomeUnknown(RequestError):
    """The command may or may not have been applied, now or later."""

    code = "outcome_unknown"
    outcome: RequestOutcome = "unknown"
    retryable = True


class Refused(RequestError):
    """The state machine refused the command; it changed nothing. `code` names the status in lower case."""

    code = "refused"


class Compacted(RequestError):
    """The revision that was asked for lies below the compacted revision."""

    code = "compacted"
