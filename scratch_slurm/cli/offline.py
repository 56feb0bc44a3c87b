"""What can be told of a node while its daemon is down.

Reads text from /proc and /sys, the cache directory and the ledger. Must not touch the mounts or the source: with the
storage behind them hanging, whoever looks at them hangs too.
"""

import os
from collections.abc import Sequence, Set
from pathlib import Path

from scratch_slurm.cli.pins import read_pins
from scratch_slurm.cli.views import OfflineStatus
from scratch_slurm.domain.backing import find_cache_dir
from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import ScratchError
from scratch_slurm.domain.messages import DatasetState, DatasetStatus
from scratch_slurm.domain.model import CachedImage, Pin
from scratch_slurm.domain.names import DATASET_NAME
from scratch_slurm.node.kernel.loopsysfs import LoopDevice, read_loop_device
from scratch_slurm.node.kernel.mountinfo import read_stacks
from scratch_slurm.node.staging.cache import Cache, CacheContents


def read_offline(config: Config) -> OfflineStatus:
    """Read what the node tells without its daemon; what cannot be read is listed with the reason."""
    untold: list[str] = []
    mounted: dict[str, LoopDevice | None] = {}
    try:
        for name, stack in read_stacks(config.mount_dir).items():
            if DATASET_NAME.fullmatch(name):
                mounted[name] = read_loop_device(stack[-1].device) if stack[-1].device else None
    except ScratchError as exc:
        untold.append(f"mounts: {exc.message}")
    caches = [cache for cache in (_read_cache(each, untold) for each in config.cache_dirs) if cache]
    try:
        pins: Sequence[Pin] = read_pins(config)
    except ScratchError as exc:
        pins = ()
        untold.append(f"pins: {exc.message}")
    dirs = [os.path.realpath(each) for each in config.cache_dirs]
    cached = {name for name, device in mounted.items() if device and find_cache_dir(device.backing_path, dirs)}
    return OfflineStatus(
        source_dir=str(config.source_dir),
        cache_dir=", ".join(config.cache_dirs),
        mount_dir=str(config.mount_dir),
        used_bytes=sum(cache.used_bytes for cache in caches) if caches else None,
        free_bytes=sum(cache.free_bytes for cache in caches) if caches else None,
        datasets=offline_datasets(config, mounted, cached, [image for cache in caches for image in cache.images], pins),
        untold=tuple(untold),
    )


def offline_datasets(
    config: Config,
    mounted: dict[str, LoopDevice | None],
    cached: Set[str],
    images: Sequence[CachedImage],
    pins: Sequence[Pin],
) -> tuple[DatasetStatus, ...]:
    """Put mounts, those of them that read the cache, cached images and pins together, by name. Pure."""
    copies: dict[str, int] = {}
    for image in images:
        copies[image.dataset] = copies.get(image.dataset, 0) + image.size_bytes
    holders: dict[str, list[str]] = {}
    for pin in pins:
        holders.setdefault(pin.dataset, []).append(pin.holder)
    datasets = []
    for name in sorted({*mounted, *copies, *holders}):
        device = mounted.get(name)
        state, problem = _state(name, mounted, cached, copies)
        datasets.append(
            DatasetStatus(
                name,
                state,
                size_bytes=device.size_bytes if device else 0,
                cached_bytes=copies.get(name, 0),
                use_count=len({holder for holder in holders.get(name, ()) if holder.startswith("job:")}),
                holders=tuple(dict.fromkeys(holders.get(name, ()))),
                path=str(config.mount_dir / name) if name in mounted else "",
                problem=problem,
            )
        )
    return tuple(datasets)


def _state(
    name: str, mounted: dict[str, LoopDevice | None], cached: Set[str], copies: dict[str, int]
) -> tuple[DatasetState, str]:
    if name in mounted:
        if mounted[name] is None:
            return DatasetState.UNMOUNTED, "something else than a dataset is mounted on its path"
        return (DatasetState.CACHED if name in cached else DatasetState.SOURCE), ""
    if name in copies:
        return DatasetState.UNMOUNTED, "not mounted; its cached image is served when the daemon runs"
    return DatasetState.UNKNOWN, "pinned, but neither mounted nor cached"


def _read_cache(directory: str, untold: list[str]) -> CacheContents | None:
    try:
        return Cache(Path(directory)).read()
    except FileNotFoundError:
        untold.append(f"cache: {directory} is not there yet")
    except OSError as exc:
        untold.append(f"cache: {directory}: {exc.strerror}")
    return None
