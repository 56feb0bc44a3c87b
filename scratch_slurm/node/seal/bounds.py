"""The sizes that every seal keeps to, checked before anything is done with a message."""

from scratch_slurm.domain.errors import SealError, SealFault
from scratch_slurm.node.seal.interface import PAYLOAD_LIMIT_BYTES, SEALED_LIMIT_BYTES


def check_payload(payload: bytes) -> None:
    """Raises: SealError: TOO_LARGE."""
    _check("a payload", len(payload), PAYLOAD_LIMIT_BYTES)


def check_sealed(sealed: bytes) -> None:
    """Raises: SealError: TOO_LARGE."""
    _check("a sealed message", len(sealed), SEALED_LIMIT_BYTES)


def _check(what: str, size_bytes: int, limit_bytes: int) -> None:
    if size_bytes > limit_bytes:
        raise SealError(f"{what} of {size_bytes} bytes: at most {limit_bytes} are taken", fault=SealFault.TOO_LARGE)
