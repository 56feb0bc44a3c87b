"""What this node is called in Slurm: its host name need not be its NodeName.

The configuration's word counts. Else that of a hook, whose environment has it from slurmd itself; it is kept for the
next daemon on this host. Else Slurm is asked which node has this host. By a name that nobody confirmed no job is
judged, and no node's features are written.
"""

import contextlib
import json
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

from scratch_slurm.domain import backoff
from scratch_slurm.domain.config import Config
from scratch_slurm.slurm.interface import Slurm

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_MOST_NAMES = 16
"""Several slurmd on one host have a name each."""
_FIRST_SEARCH_S = 600.0
_LAST_SEARCH_S = 24 * 3600.0


class NodeName:
    """The names of this node. `hear` is the loop's, `confirm` may run in a thread."""

    def __init__(self, config: Config, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.given = config.node_name if config.node_name_given else ""
        """What the configuration says; empty: nothing."""
        self._host = config.host_name
        self._guess = config.node_name
        self._path = config.state_dir / "node.json"
        self._monotonic = monotonic
        self._heard = () if self.given else self._read()
        self._confirmed: tuple[str, ...] = ()
        self._searches = 0
        self._search_at = 0.0

    @property
    def name(self) -> str:
        """The best name there is, for people."""
        return next(iter((*self._confirmed, *self._heard, self._guess)))

    @property
    def problem(self) -> str:
        """Why jobs are not judged by this node's name; empty when they are, or nobody asked yet."""
        if self._confirmed or not self._searches:
            return ""
        return f"does not know this node as {self.name!r}: jobs are not judged by their nodes (slurm.node_name)"

    def hear(self, name: str) -> bool:
        """Take the word of a hook, root's; returns whether it was news."""
        if self.given or name in self._heard or not _NAME.fullmatch(name) or len(self._heard) >= _MOST_NAMES:
            return False
        self._heard, self._confirmed = (*self._heard, name), ()
        log.info("node-name name=%s reason=%r", name, "a prolog's slurmd has it")
        self._keep()
        return True

    def doubt(self) -> None:
        """Slurm does not know the name any more: it is to be confirmed again."""
        self._confirmed = ()

    def confirm(self, slurm: Slurm) -> tuple[str, ...]:
        """Ask Slurm until it knows this node's name; asks seldom, and nobody once it is known.

        Returns: the names of this node, the first the one to tell features by; none: they are not known.
        Raises: SlurmError: the controller does not answer.
        """
        if self._confirmed:
            return self._confirmed
        names = (self.given,) if self.given else self._heard
        if names:
            found = tuple(name for name in names if slurm.read_hosts(name))
        else:
            # Another machine may have this one's host name as its NodeName.
            found = tuple(name for name, host in slurm.read_hosts(self._guess).items() if self._is_here(host))
            found = found or self._search(slurm)
        self._searches += 1
        if found and self._confirmed != found:
            log.info("node-known names=%s host=%s", ",".join(found), self._host)
        self._confirmed = found
        return found

    def _search(self, slurm: Slurm) -> tuple[str, ...]:
        """Ask for all nodes, which costs a large cluster something: ever more seldom while it is in vain."""
        now = self._monotonic()
        if now < self._search_at:
            return ()
        self._search_at = now + backoff.pause_s(self._searches + 1, _FIRST_SEARCH_S, _LAST_SEARCH_S)
        here = sorted(name for name, host in slurm.read_hosts(None).items() if self._is_here(host))
        return tuple(here[:_MOST_NAMES])

    def _is_here(self, host: str) -> bool:
        """Whether a NodeHostName is this host's: slurm.conf has it in full, or up to the first dot."""
        return host == self._host or (bool(host) and host == self._host.partition(".")[0])

    def _read(self) -> tuple[str, ...]:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(self._path.read_bytes())
            # An image of a disk may have been copied to another machine.
            if kept["host"] == self._host:
                return tuple(str(name) for name in kept["names"] if _NAME.fullmatch(str(name)))[:_MOST_NAMES]
        return ()

    def _keep(self) -> None:
        new = Path(f"{self._path}.new")
        try:
            new.write_text(json.dumps({"host": self._host, "names": self._heard}))
            new.replace(self._path)
        except OSError as exc:
            log.warning("node name not kept path=%s problem=%r", self._path, exc.strerror)
