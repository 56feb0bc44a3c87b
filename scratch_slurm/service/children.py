"""The daemon's child processes, as the event loop and the kernel see them."""

import asyncio
import contextlib
import os
import sys
from pathlib import Path

_LOOK_S = 30.0


def watch_children() -> None:
    """Let the event loop learn of the end of children without a thread for each.

    Python 3.11 starts one for every child, and to start a thread fails, or waits for ever, where memory or processes
    are short. Later releases choose what is chosen here by themselves. Before Linux 5.3 there is no other way.
    """
    if sys.version_info >= (3, 12):
        return
    with contextlib.suppress(OSError):
        os.close(os.pidfd_open(os.getpid()))
        watcher = asyncio.PidfdChildWatcher()
        watcher.attach_loop(asyncio.get_running_loop())
        asyncio.set_child_watcher(watcher)


def children_of_this_process() -> set[int]:
    """Find the children that an earlier program in this process left: workers that the kernel does not let go of."""
    found: set[int] = set()
    for file in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found |= {int(pid) for pid in file.read_text().split()}
    return found


async def reap(pids: set[int]) -> None:
    """Let children go when they have ended, as nobody else waits for them; ends only when cancelled."""
    while pids:
        for pid in list(pids):
            try:
                ended, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                ended = pid
            if ended:
                pids.discard(pid)
        await asyncio.sleep(_LOOK_S)
    await asyncio.Event().wait()
