"""One look at the cache directory, by a worker process, as a thread that hangs would keep the daemon from ending."""

from pathlib import Path

from scratch_slurm.domain.errors import ConfigError, DeviceError, DiskError
from scratch_slurm.domain.placement import judge_place
from scratch_slurm.node.oswords import word_os_error
from scratch_slurm.node.placement import read_place
from scratch_slurm.node.staging.cache import Cache, CacheContents
from scratch_slurm.service import operations as op

_INSTEAD = "everything is read from the source"


def look_at_cache(request: op.LookAtCache) -> op.CacheSeen:
    """Prepare the directory unless it is the one that was prepared, where it belongs, and read what it holds.

    What is prepared once may be gone: somebody's cleaner removes what is empty, an administrator makes the directory
    again, a disk is mounted later, or over another.
    """
    cache = Cache(Path(request.cache_dir))
    try:
        identity = _identity(cache)
        warning = ""
        if request.prepared != identity:
            place = read_place(cache.dir, request.cache_mount)
            problem, warning = judge_place(place, request.cache_dir, any_file_system=request.any_file_system)
            if problem:
                return op.CacheSeen(NO_CONTENTS, None, f"{problem}; {_INSTEAD}")
            cache.prepare()
            identity = _identity(cache)
        return op.CacheSeen(cache.read(), identity, warning=warning)
    except (ConfigError, DeviceError, DiskError) as exc:
        return op.CacheSeen(NO_CONTENTS, None, f"{exc.message}; {_INSTEAD}")
    except OSError as exc:
        return op.CacheSeen(NO_CONTENTS, None, f"{cache.dir}: cannot read it: {word_os_error(exc)}; {_INSTEAD}")


NO_CONTENTS = CacheContents((), (), used_bytes=0, free_bytes=0, whole_bytes=0)


def _identity(cache: Cache) -> op.Identity:
    """Tell which directories these are; missing ones are none."""
    return _name(cache.dir), _name(cache.staging)


def _name(path: Path) -> tuple[int, int]:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return (0, 0)
    return (status.st_dev, status.st_ino)
