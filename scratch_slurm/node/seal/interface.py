"""The contract of a seal on a message between a node and the station."""

from typing import Protocol

PAYLOAD_LIMIT_BYTES = 512 * 2**10
"""The largest payload. munged takes 1 MiB a request, in base64; what is larger travels in parts."""
SEALED_LIMIT_BYTES = 704 * 2**10
"""The largest sealed message: a payload of the limit, in base64, with what munge adds."""
TTL_S = 60
"""How old a message may be when it is opened, and how far two clocks may be apart."""


class Seal(Protocol):
    """Shows of a message that one of those who may speak made it, lately, and that it is opened once.

    Either call may block, for some seconds where the sealer hangs (the implementation says how long): never call it
    on an event loop. Threads may share an object.

    Not shown: which message it answers, or which node sent it. That belongs into the payload.
    """

    def seal(self, payload: bytes) -> bytes:
        """Seal a payload; the same one gives another message each time.

        Args:
            payload: 0 to `PAYLOAD_LIMIT_BYTES` bytes.
        Returns: at most `SEALED_LIMIT_BYTES` bytes.
        Raises: SealError: TOO_LARGE, UNAVAILABLE.
        """
        ...

    def open(self, sealed: bytes) -> bytes:
        """Open a sealed message, from anybody.

        Returns: the payload, as it was sealed.
        Raises: SealError: its `fault` says which: OTHER_UID, REPLAYED, EXPIRED, ALTERED, TOO_LARGE, UNAVAILABLE. A
            message that is too large is refused before any of it is decoded.
        """
        ...
