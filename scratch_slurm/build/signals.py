"""Ctrl-C and its like, which end a command at any line: where that must not be, they wait."""

import contextlib
import signal
from collections.abc import Iterator

_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keep signals waiting; what is started inside keeps them waiting for good."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
