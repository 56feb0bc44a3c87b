"""`scratch-slurmd --unmount`: take down all that a daemon mounted."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import LedgerError, ScratchError
from scratch_slurm.domain.names import parse_device_tag
from scratch_slurm.domain.pins import ADMINISTRATOR
from scratch_slurm.node.kernel.mountinfo import read_stacks
from scratch_slurm.node.ledger.ledger import read_holders
from scratch_slurm.service import operations as op
from scratch_slurm.service.workers import Workers


@dataclass
class Unmounted:
    """What became of the mounts."""

    lines: list[str] = field(default_factory=list)
    """One for each mount point, for people."""
    left: list[str] = field(default_factory=list)
    """Datasets that stay mounted for jobs, or may have to."""


async def unmount_all(config: Config, *, force: bool) -> Unmounted:
    """Unmount every dataset of ours; open files stay readable until they are closed.

    Args:
        force: also those that jobs pin, and, where the ledger cannot be read, those that they might pin.
    """
    workers = Workers()
    done = Unmounted()
    tops = [stack[-1] for _, stack in sorted(read_stacks(config.mount_dir).items())]
    for mount in tops:
        if mount.device is None:
            continue
        try:
            if await _is_ours(workers, mount.device, config.source_timeout_s):
                why = "" if force else _why_it_stays(config.ledger_path, Path(mount.mount_point).name)
                if why:
                    done.left.append(Path(mount.mount_point).name)
                    done.lines.append(f"{mount.mount_point}: {why}: left mounted")
                    continue
                await workers.run(op.UnmountImage(mount.mount_point), silence_s=config.source_timeout_s)
                done.lines.append(f"{mount.mount_point}: unmounted")
            else:
                done.lines.append(f"{mount.mount_point}: {mount.device} is not ours, left alone")
        except ScratchError as exc:
            done.lines.append(f"{mount.mount_point}: {exc.message}")
    await workers.close(patience_s=2.0)
    return done


def _why_it_stays(ledger: Path, dataset: str) -> str:
    """Tell why a dataset must not be taken down; empty if it may. The administrator's pins are no reason."""
    try:
        # Pins of this boot alone: an ended job's whose epilog was lost may be among them.
        holders = read_holders(ledger, dataset) if os.path.lexists(ledger) else ()
    except LedgerError as exc:
        return f"whether a job pins it cannot be read ({exc.message})"
    jobs = sorted(holder.removeprefix("job:") for holder in holders if holder != ADMINISTRATOR)
    return f"pinned by {'job' if len(jobs) == 1 else 'jobs'} {', '.join(jobs)}" if jobs else ""


async def _is_ours(workers: Workers, device: str, silence_s: float) -> bool:
    tags: list[str] = []

    def on_line(line: op.Line) -> None:
        if isinstance(line, op.Tag):
            tags.append(line.text)

    await workers.run(op.ReadTag(device), silence_s=silence_s, on_line=on_line)
    return any(parse_device_tag(tag) for tag in tags)
