"""What is mounted, seen without the daemon: from /proc and /sys alone, as a mount or the source may hang."""

from collections.abc import Iterable
from pathlib import Path

from scratch_slurm.domain.errors import DeviceError
from scratch_slurm.domain.names import parse_cached_file_name
from scratch_slurm.domain.states import DatasetState
from scratch_slurm.hooks.answer import Seen
from scratch_slurm.node.kernel.loopsysfs import read_loop_device
from scratch_slurm.node.kernel.mountinfo import read_stacks


def look_at(datasets: Iterable[str], mount_dir: str) -> tuple[Seen, ...]:
    """Tell the datasets' states as far as the kernel shows them: cached, source or unmounted.

    Raises: DeviceError: /proc cannot be read.
    """
    devices = {name: stack[-1].device for name, stack in read_stacks(mount_dir).items()}
    return tuple(_look_at_one(dataset, devices.get(dataset)) for dataset in datasets)


def _look_at_one(dataset: str, name: str | None) -> Seen:
    try:
        device = read_loop_device(name) if name else None
    except DeviceError:
        device = None
    if device is None:
        return Seen(dataset, DatasetState.UNMOUNTED, problem="is not mounted on this node")
    cached = parse_cached_file_name(Path(device.backing_path).name)
    state = DatasetState.CACHED if cached and cached[0] == dataset else DatasetState.SOURCE
    return Seen(dataset, state)
