"""One node of a local cluster, and how this machine sees its files."""

from dataclasses import dataclass
from pathlib import Path

from tests.local_cluster.control import Control
from tests.local_cluster.layout import Layout


@dataclass(frozen=True)
class Node:
    """One node of the cluster; its paths as this machine sees them."""

    name: str
    layout: Layout

    @property
    def init_pid(self) -> int:
        """Process 1 of the node, as this machine counts."""
        return Control(self.layout.control_socket(self.name)).init_pid()

    def path(self, common: Path | str) -> Path:
        """Where the host finds the node's own file at the common path, say its `cache_dir`."""
        return self.layout.node_path(self.name, common)

    def seen(self, path: Path | str) -> Path:
        """The node's view of an absolute path, with the mounts that were made there."""
        return Path(f"/proc/{self.init_pid}/root") / Path(path).relative_to("/")
