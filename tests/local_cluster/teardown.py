"""The end of a cluster: wait for it, and look for what it may have left."""

import os
import select
import time

from tests.local_cluster import kernel
from tests.local_cluster.layout import Layout


def await_process_end(pid: int, timeout_s: float) -> bool:
    """Wait for any process of this machine to end; False when it does not in time."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], timeout_s)[0])
    finally:
        os.close(fd)


def remove_remains(layout: Layout) -> None:
    """Remove the files of a cluster whose init was killed before it could; never below a mount."""
    if layout.keep or not layout.state_file.exists() or kernel.mounts_under(layout.directory):
        return
    kernel.remove_files(layout.directory)
    if layout.remove_directory:
        layout.directory.rmdir()


def find_leftovers(layout: Layout, namespaces: frozenset[str], timeout_s: float = 5.0) -> list[str]:
    """Say what a cluster that has ended left behind; empty is right.

    What just goes is waited for: the kernel and the parents of the last processes need a moment.
    """
    deadline = time.monotonic() + timeout_s
    while left := _look(layout, namespaces):
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return left


def _look(layout: Layout, namespaces: frozenset[str]) -> list[str]:
    left = [f"mount {point}" for point in kernel.mounts_under(layout.directory)]
    left += kernel.release_loops(kernel.loops_under(layout.directory))
    left += kernel.processes_in(namespaces)
    if not layout.keep:
        remains = layout.directory.exists() and (layout.remove_directory or any(layout.directory.iterdir()))
        left += [f"files in {layout.directory}"] if remains else []
    return left
