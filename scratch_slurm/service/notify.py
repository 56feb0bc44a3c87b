"""Tell systemd how the daemon is, and ask it how the system is. Source: sd_notify(3), sd_watchdog_enabled(3)."""

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping

log = logging.getLogger(__name__)

_SYSTEMD_TIMEOUT_S = 5.0


def notify(state: str) -> None:
    """Send state lines (`READY=1`, `STOPPING=1`) to the service manager; nothing happens without one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK  # it must not hold the daemon up
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, kind) as end:
        end.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)


def notify_reloading() -> None:
    """Say that the daemon begins anew with another configuration; `READY=1` ends it."""
    notify(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def system_is_stopping() -> bool:
    """Tell whether systemd is shutting this system down or restarting it; without an answer it is not."""
    words = ["systemctl", "is-system-running"]
    try:
        said = subprocess.run(words, capture_output=True, text=True, timeout=_SYSTEMD_TIMEOUT_S, check=False)
    except (OSError, subprocess.SubprocessError):
        return False
    return said.stdout.strip() == "stopping"


def watchdog_s(environment: Mapping[str, str]) -> float | None:
    """Tell how often the service manager wants a sign of life, in seconds; None: it wants none from this process."""
    try:
        microseconds = int(environment.get("WATCHDOG_USEC", ""))
        pid = int(environment.get("WATCHDOG_PID", "") or os.getpid())
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 and pid == os.getpid() else None


async def keep_watchdog(
    every_s: float,
    stalled: Callable[[], str],
    *,
    say: Callable[[str], None] = notify,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Give signs of life for ever, twice as often as asked for, but none while something does not go on.

    Args:
        stalled: what does not go on; empty when all does.
    """
    told = ""
    while True:
        problem = stalled()
        if not problem:
            say("WATCHDOG=1")
        elif problem != told:
            log.error("no sign of life to the service manager problem=%r", problem)
        told = problem
        await sleep(every_s / 2)
