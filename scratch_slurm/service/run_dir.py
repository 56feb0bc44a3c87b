"""The directory with the sockets: somebody's cleaner may take it, and the daemon must not be deaf then."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import ConfigError
from scratch_slurm.node.owner import others_may_write

log = logging.getLogger(__name__)


def make_run_dir(config: Config) -> None:
    """Make the directories for sockets and for the words to jobs.

    Raises: OSError: they cannot be made. ConfigError: others than root may write in them.
    """
    config.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    config.jobs_dir.mkdir(mode=0o755, exist_ok=True)
    refuse_shared(config.run_dir)
    refuse_shared(config.jobs_dir)


def refuse_shared(directory: Path) -> None:
    """Raises: ConfigError: others than root may write in it. OSError: it cannot be looked at."""
    status = directory.stat()
    if others_may_write(status, 0):
        raise ConfigError(
            f"{directory}: others than root may write in it", hint=f"chown root {directory}; chmod go-w {directory}"
        )


async def keep_run_dir(
    config: Config,
    is_heard: Callable[[], bool],
    restore: Callable[[], None],
    *,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """See once an interval that the sockets at their paths are this daemon's, and make them again; for ever.

    Args:
        is_heard: whether they are.
        restore: makes what the daemon keeps in the directory, the sockets among it.
    """
    while True:
        await sleep(config.interval_s)
        if is_heard():
            continue
        try:
            make_run_dir(config)
            restore()
            log.warning(
                "run_dir made again run_dir=%s reason=%r", config.run_dir, "somebody removed it, or its sockets"
            )
        except (OSError, ConfigError) as exc:
            log.error("cannot be heard run_dir=%s problem=%r", config.run_dir, str(exc))
