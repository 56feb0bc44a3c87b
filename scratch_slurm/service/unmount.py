"""`scratch-slurmd --unmount`: take down all that a daemon mounted."""

from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import ScratchError
from scratch_slurm.domain.names import parse_device_tag
from scratch_slurm.node.mountinfo import read_stacks
from scratch_slurm.service import operations as op
from scratch_slurm.service.workers import Workers


async def unmount_all(config: Config) -> list[str]:
    """Unmount every dataset of ours; open files stay readable until they are closed.

    Returns: a line for each mount point: what became of it.
    """
    workers = Workers()
    lines = []
    tops = [stack[-1] for _, stack in sorted(read_stacks(config.mount_dir).items())]
    for mount in tops:
        if mount.device is None:
            continue
        try:
            if await _is_ours(workers, mount.device, config.source_timeout_s):
                await workers.run(op.UnmountImage(mount.mount_point), silence_s=config.source_timeout_s)
                lines.append(f"{mount.mount_point}: unmounted")
            else:
                lines.append(f"{mount.mount_point}: {mount.device} is not ours, left alone")
        except ScratchError as exc:
            lines.append(f"{mount.mount_point}: {exc.message}")
    await workers.close(patience_s=2.0)
    return lines


async def _is_ours(workers: Workers, device: str, silence_s: float) -> bool:
    tags: list[str] = []

    def on_line(line: op.Line) -> None:
        if isinstance(line, op.Tag):
            tags.append(line.text)

    await workers.run(op.ReadTag(device), silence_s=silence_s, on_line=on_line)
    return any(parse_device_tag(tag) for tag in tags)
