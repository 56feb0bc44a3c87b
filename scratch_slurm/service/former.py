"""Directories that the configuration named before: what was mounted and cached there goes, and its room comes back.

Which they are is kept in state_dir/directories.json: another installation on this machine has a state_dir of its own.
"""

import asyncio
import logging
import stat
from collections.abc import Collection
from pathlib import Path

import msgspec

from scratch_slurm.domain.backing import find_cache_dir
from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import DeviceError, ScratchError
from scratch_slurm.domain.names import DATASET_NAME, parse_cached_file_name, parse_device_tag
from scratch_slurm.node.kernel.loopsysfs import read_backings
from scratch_slurm.node.kernel.mountinfo import read_stacks
from scratch_slurm.node.owner import others_may_write
from scratch_slurm.service import operations as op
from scratch_slurm.service.hands import LedgerAccess
from scratch_slurm.service.workers import Workers

log = logging.getLogger(__name__)

_MOST = 64
"""Directories of a kind that are remembered."""
_PART_SUFFIXES = (".part", ".journal", ".evicted")


class _Directories(msgspec.Struct):
    mount_dirs: list[str] = []
    cache_dirs: list[str] = []


class Former:
    """Knows the directories of before, and leaves them."""

    def __init__(self, config: Config, workers: Workers) -> None:
        self._config = config
        self._workers = workers
        self._path = config.state_dir / "directories.json"
        known = self._load()
        self._mount_dirs = [path for path in known.mount_dirs if path != str(config.mount_dir)]
        self._cache_dirs = [path for path in known.cache_dirs if path not in config.cache_dirs]
        self._old_pins: set[tuple[str, str]] | None = None
        """Those that may be of jobs which were told the former paths."""
        self._told: set[str] = set()
        self._save()

    @property
    def cache_dirs(self) -> tuple[str, ...]:
        """What a device reads there is a cached image, and no file of the source."""
        return tuple(self._cache_dirs)

    async def leave(self, pins: set[tuple[str, str]]) -> None:
        """Take down what is there and nobody needs any more; what is left is tried again at the next call.

        A mount that a job pinned before this daemon began stays until that job's pin goes.

        Args:
            pins: (holder, dataset) of those that there are now.
        """
        if not self._mount_dirs and not self._cache_dirs:
            return
        self._old_pins = pins if self._old_pins is None else pins & self._old_pins
        for directory in list(self._mount_dirs):
            if await self._leave_mounts(directory, {dataset for _, dataset in self._old_pins}):
                self._mount_dirs.remove(directory)
        for directory in list(self._cache_dirs):
            if await asyncio.to_thread(_leave_cache, Path(directory)):
                self._cache_dirs.remove(directory)
        self._save()

    async def run(self, ledger: LedgerAccess) -> None:
        """Leave them for ever; ends only when cancelled."""
        while True:
            try:
                await self.leave({(pin.holder, pin.dataset) for pin in await ledger.pins()})
            except ScratchError as exc:
                log.warning("cannot leave former directories problem=%r", str(exc))
            await asyncio.sleep(self._config.interval_s)

    async def _leave_mounts(self, directory: str, pinned: Collection[str]) -> bool:
        """Returns: whether nothing of ours is left."""
        done = True
        for name, stack in (await asyncio.to_thread(read_stacks, directory)).items():
            device = stack[-1].device
            if not DATASET_NAME.fullmatch(name) or device is None:
                continue
            path = f"{directory}/{name}"
            if name in pinned:
                if path not in self._told:
                    log.warning("stays mount_point=%s reason=%r", path, "mount_dir is another now, but a job pins it")
                self._told.add(path)
                done = False
                continue
            try:
                if await self._is_ours(device):
                    await self._workers.run(op.UnmountImage(path), silence_s=self._config.source_timeout_s)
                    log.info("unmounted mount_point=%s reason=%r", path, "mount_dir is another now")
            except ScratchError as exc:
                if path not in self._told:
                    log.warning("cannot leave mount_point=%s problem=%r", path, str(exc))
                self._told.add(path)
                done = False
        return done

    async def _is_ours(self, device: str) -> bool:
        tags: list[str] = []

        def on_line(line: op.Line) -> None:
            if isinstance(line, op.Tag):
                tags.append(line.text)

        await self._workers.run(op.ReadTag(device), silence_s=self._config.source_timeout_s, on_line=on_line)
        return any(parse_device_tag(tag) for tag in tags)

    def _load(self) -> _Directories:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=_Directories)
        except FileNotFoundError:
            return _Directories()
        except (OSError, msgspec.MsgspecError) as exc:
            log.warning("former directories are not known file=%s problem=%r", self._path, str(exc))
            return _Directories()

    def _save(self) -> None:
        mount_dirs = [*self._mount_dirs, str(self._config.mount_dir)][-_MOST:]
        cache_dirs = [*self._cache_dirs, *self._config.cache_dirs][-_MOST:]
        text = msgspec.json.encode(_Directories(mount_dirs, cache_dirs))
        new = self._path.with_name(self._path.name + ".new")
        try:
            if self._path.exists() and self._path.read_bytes() == text:
                return
            new.write_bytes(text)
            new.replace(self._path)
        except OSError as exc:
            log.warning("cannot remember the directories file=%s problem=%r", self._path, exc.strerror)


def _leave_cache(directory: Path) -> bool:
    """Delete the copies in a former cache directory once no device reads it.

    Returns: whether it can be forgotten.
    """
    try:
        dirs = (str(directory),)
        if any(find_cache_dir(each.path, dirs) and not each.deleted for each in read_backings().values()):
            return False
        status = directory.lstat()
        if not stat.S_ISDIR(status.st_mode) or others_may_write(status):
            log.warning("left alone directory=%s reason=%r", directory, "it is not root's alone any more")
            return True
        staging = directory / ".staging"
        names = [path for path in directory.iterdir() if parse_cached_file_name(path.name) and _is_file(path)]
        if staging.is_dir() and not staging.is_symlink():
            names += [path for path in staging.iterdir() if path.suffix in _PART_SUFFIXES and _is_file(path)]
        for path in names:
            path.unlink()
    except FileNotFoundError:
        return not directory.is_dir()
    except (OSError, DeviceError) as exc:
        log.warning("cannot clear directory=%s problem=%r", directory, str(exc))
        return False
    log.info("cleared directory=%s files=%d reason=%r", directory, len(names), "cache_dir is another now")
    return True


def _is_file(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)
