"""The one tree of errors; each class carries the exit code that the commands end with.

0 is success and 1 a bug (an error outside this tree); the man page repeats the table.
"""

from enum import StrEnum
from typing import ClassVar


class ScratchError(Exception):
    """Something a person can act on.

    Args:
        message: `object: what is wrong`, numbers with units, user input with `!r`.
        hint: the way out, one sentence; shown on a line of its own.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  hint: {self.hint}"


class UsageError(ScratchError):
    """The caller's words are off: a name, a size, an option."""

    exit_code = 2


class ConfigError(ScratchError):
    """The configuration is wrong, or the node does not fit it."""

    exit_code = 3


class NotFoundError(ScratchError):
    """No such dataset, or no such job."""

    exit_code = 4


class DaemonError(ScratchError):
    """The node daemon does not run, does not answer, or runs already."""

    exit_code = 5


class PinnedError(ScratchError):
    """The dataset is pinned: it is neither evicted nor replaced."""

    exit_code = 6


class NoSpaceError(ScratchError):
    """The capacity, the reserve or the file system does not allow it."""

    exit_code = 7


class ImageError(ScratchError):
    """An image, its manifest, or a copy of it is not what it should be."""

    exit_code = 8


class DigestError(ImageError):
    """An image is not the one that its manifest tells of: no other try can mend that."""


class SourceError(ScratchError):
    """The slow storage fails or hangs."""

    exit_code = 9


class DeviceError(ScratchError):
    """The kernel refused a loop device, a switch or a mount."""

    exit_code = 10


class RetargetError(DeviceError):
    """A loop device keeps its old backing."""


class DeniedError(ScratchError):
    """The caller may not do this."""

    exit_code = 11


class LedgerError(ScratchError):
    """The record of pins and events cannot be read or written."""

    exit_code = 12


class SlurmError(ScratchError):
    """Slurm does not answer, or refuses."""

    exit_code = 13


class DiskError(ScratchError):
    """A disk with cached images fails, or a copy on it is not what was written; a full one is a NoSpaceError."""

    exit_code = 14


class SealFault(StrEnum):
    """Why a sealed message is not opened, or a payload not sealed."""

    OTHER_UID = "other-uid"
    """Sealed by a user that is not trusted, or for another one."""
    REPLAYED = "replayed"
    EXPIRED = "expired"
    """Too old, or of the future: the clocks are apart."""
    ALTERED = "altered"
    """Not what was sealed, sealed with another key, or no sealed message at all."""
    TOO_LARGE = "too-large"
    UNAVAILABLE = "unavailable"
    """What seals does not answer."""


class SealError(ScratchError):
    """A message between a node and the station cannot be sealed, or is not trusted.

    Args:
        fault: for what decides on it; the message says it to people.
    """

    exit_code = 15

    def __init__(self, message: str, *, hint: str | None = None, fault: SealFault = SealFault.UNAVAILABLE) -> None:
        super().__init__(message, hint=hint)
        self.fault = fault


class StationError(ScratchError):
    """No station answers."""

    exit_code = 16


def error_by_name(name: str, message: str, hint: str | None) -> ScratchError:
    """Make the error that another process of ours told by its class name; `ScratchError` for a name unknown here."""
    kind = globals().get(name)
    if isinstance(kind, type) and issubclass(kind, ScratchError):
        return kind(message, hint=hint)
    return ScratchError(message, hint=hint)
