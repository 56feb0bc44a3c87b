"""Tell systemd how the daemon is. Source: sd_notify(3)."""

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Send one state line (`READY=1`, `STOPPING=1`) to the service manager; nothing happens without one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end:
        end.sendto(state.encode(), "\0" + address[1:] if address[0] == "@" else address)
