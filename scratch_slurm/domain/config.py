"""The configuration: what may be said, what it means, and what is wrong with it."""

import difflib
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from scratch_slurm.domain.errors import ConfigError, ScratchError
from scratch_slurm.domain.names import FEATURE_PREFIX
from scratch_slurm.domain.sizes import parse_duration, parse_size


class CopySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How images are copied."""

    datasets: int = 2
    """Datasets copied at once."""
    readers: int = 16
    """Ranges of one image read at once; a source bound by latency needs many."""
    bandwidth: str | int = 0
    """Bytes per second for each copy, as a size; 0 is no limit."""


class PreheatSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long the prolog waits."""

    wait: str | int | float = "10s"
    """How long a job's start waits for its datasets when it does not say --datasets-wait."""
    timeout: str | int | float = "10m"
    """The longest that any job may ask to wait; keep it below Slurm's PrologEpilogTimeout."""


class SlurmSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """This node under Slurm."""

    node_name: str = ""
    """Empty: the daemon learns it, from prologs and from Slurm."""
    features: bool = True
    """Tell Slurm what is cached, as features of this node."""
    feature_prefix: str = "ds:"
    """What those features begin with; every feature that does is ours."""
    private_features: bool = False
    """Tell Slurm, and so everybody on the cluster, of datasets too that not everybody may read."""
    reconcile_interval: str | int = "10m"
    """How often Slurm is asked whether features and pins are still right; thousands of nodes share it."""


class DiskSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of `cache_dirs`, where it needs more than its path."""

    dir: str
    mount: str = ""
    """As `cache_mount`, for this disk."""
    capacity: str | int = ""
    """Empty: as for all disks."""
    reserve: str | int = ""


class RawConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file's keys, as written."""

    source_dir: str
    cache_dir: str = ""
    """The only one; this or `cache_dirs` is there."""
    cache_dirs: list[str | DiskSettings] = []
    """One on each disk."""
    mount_dir: str = "/datasets"
    cache_mount: str = ""
    """The mount point on which the cache's disk must be mounted; empty: what fstab and systemd's mount units say."""
    cache_on_any_file_system: bool = False
    """Let the cache lie in memory, on the network or on an overlay as well."""
    state_dir: str = "/var/lib/scratch-slurm"
    run_dir: str = "/run/scratch-slurm"
    capacity: str | int = "80%"
    reserve: str | int = "5%"
    max_pinned: str | int = ""
    period: str | int | float = "10m"
    horizon: str | int | float = "30m"
    interval: str | int | float = "30s"
    source_timeout: str | int | float = "30s"
    source_abort: str | int | float = 0
    """After how long a source that answers no read of a job is made to fail; 0: never."""
    source_owners: list[str | int] = []
    log_level: str = "INFO"
    copy: CopySettings = CopySettings()
    preheat: PreheatSettings = PreheatSettings()
    slurm: SlurmSettings = SlurmSettings()


class CacheDisk(msgspec.Struct, frozen=True):
    """A disk with a cache directory, as the site wants it."""

    dir: Path
    mount: str
    """Where it must be mounted: an absolute path at or above `dir`; empty: none is named."""
    capacity: str
    """A size or a percentage of the disk's file system; `resolve_size` makes bytes of it."""
    reserve: str


class Config(msgspec.Struct, frozen=True):
    """The checked configuration, in plain units."""

    source_dir: Path
    disks: tuple[CacheDisk, ...]
    """At least one."""
    mount_dir: Path
    cache_on_any_file_system: bool
    state_dir: Path
    run_dir: Path
    max_pinned: str
    """What the jobs of one user may pin together: a size, or a percentage of the capacity of all disks; empty: no
    limit."""
    period_s: float
    """The window over which read rates are taken."""
    horizon_s: float
    """How far ahead they are trusted."""
    interval_s: float
    source_timeout_s: float
    source_abort_s: float
    """A touch of the slow storage that says nothing for so long is given up (and its process killed)."""
    source_owners: tuple[str | int, ...]
    """Users, by name or number, whose images are trusted beside root's; empty: whoever owns the source."""
    log_level: str
    copies: int
    readers: int
    bandwidth_bytes_per_s: int | None
    wait_s: float
    wait_limit_s: float
    host_name: str
    node_name: str
    """As the configuration has it, or the host name up to its first dot."""
    node_name_given: bool
    features: bool
    feature_prefix: str
    private_features: bool
    reconcile_interval_s: float
    notes: tuple[str, ...] = ()
    """What the file says in the words of an earlier release."""

    @property
    def socket_path(self) -> Path:
        return self.run_dir / "daemon.sock"

    @property
    def root_socket_path(self) -> Path:
        """For root alone: strangers can neither connect to it nor fill it."""
        return self.run_dir / "root.sock"

    @property
    def lock_path(self) -> Path:
        return self.run_dir / "daemon.lock"

    @property
    def mounting_lock_path(self) -> Path:
        """Whoever mounts without the daemon holds it."""
        return self.state_dir / "mounting.lock"

    @property
    def ledger_path(self) -> Path:
        return self.state_dir / "ledger.sqlite"

    @property
    def catalog_path(self) -> Path:
        return self.state_dir / "catalog.json"

    @property
    def reads_path(self) -> Path:
        return self.state_dir / "reads.json"

    @property
    def jobs_dir(self) -> Path:
        """Where the prolog writes what each job finds; the SPANK plugin reads it."""
        return self.run_dir / "jobs"

    @property
    def cache_dir(self) -> Path:
        """The first one."""
        return self.disks[0].dir

    @property
    def cache_dirs(self) -> tuple[str, ...]:
        """The cache directories, in the order of the file."""
        return tuple(str(disk.dir) for disk in self.disks)


def resolve_size(text: str, *, whole_bytes: int) -> int:
    """Turn `capacity` or `reserve` into bytes of a file system of `whole_bytes`."""
    return parse_size(text, whole_bytes=whole_bytes)


def build_config(values: object, *, origin: str, host_name: str) -> Config:
    """Check the values of a configuration file.

    Args:
        values: what YAML gave: a mapping, if the file is right.
        origin: the file's path, for messages.
        host_name: this node's host name.
    Raises: ConfigError: names the key, the value, and the nearest right key.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{origin}: expected keys and values, got {type(values).__name__}")
    values, notes = _rename_keys(values, origin)
    _check_keys(values, RawConfig, origin, "")
    for key in ("source_dir", "cache_dir"):
        if key not in values and not (key == "cache_dir" and values.get("cache_dirs")):
            raise ConfigError(f"{origin}: {key}: missing", hint=f"say {key}: /an/absolute/path")
    raw = msgspec.convert(values, RawConfig)
    if raw.log_level.upper() not in ("DEBUG", "INFO", "WARNING", "ERROR"):
        raise ConfigError(f"{origin}: log_level: {raw.log_level!r} is not DEBUG, INFO, WARNING or ERROR")
    for key, number in (("copy.datasets", raw.copy.datasets), ("copy.readers", raw.copy.readers)):
        if not 1 <= number <= 64:
            raise ConfigError(f"{origin}: {key}: {number} is not from 1 to 64")
    if not FEATURE_PREFIX.fullmatch(raw.slurm.feature_prefix):
        raise ConfigError(
            f"{origin}: slurm.feature_prefix: {raw.slurm.feature_prefix!r} is not valid",
            hint="1 to 32 letters, digits and _ - . : @ = / +",
        )
    for key in ("capacity", "reserve", *(["max_pinned"] if raw.max_pinned != "" else [])):
        _checked(origin, key, getattr(raw, key), lambda text: parse_size(text, whole_bytes=2**50))
    config = Config(
        source_dir=_directory(origin, "source_dir", raw.source_dir),
        disks=_disks(origin, raw),
        mount_dir=_directory(origin, "mount_dir", raw.mount_dir),
        cache_on_any_file_system=raw.cache_on_any_file_system,
        state_dir=_directory(origin, "state_dir", raw.state_dir),
        run_dir=_directory(origin, "run_dir", raw.run_dir),
        max_pinned=str(raw.max_pinned),
        period_s=_positive(origin, "period", raw.period),
        horizon_s=_positive(origin, "horizon", raw.horizon),
        interval_s=_positive(origin, "interval", raw.interval),
        source_timeout_s=_positive(origin, "source_timeout", raw.source_timeout),
        source_abort_s=_checked(origin, "source_abort", raw.source_abort, parse_duration),
        source_owners=tuple(raw.source_owners),
        log_level=raw.log_level.upper(),
        copies=raw.copy.datasets,
        readers=raw.copy.readers,
        bandwidth_bytes_per_s=int(_checked(origin, "copy.bandwidth", raw.copy.bandwidth, _parse_bandwidth)) or None,
        wait_s=_checked(origin, "preheat.wait", raw.preheat.wait, parse_duration),
        wait_limit_s=_checked(origin, "preheat.timeout", raw.preheat.timeout, parse_duration),
        host_name=host_name,
        node_name_given=bool(raw.slurm.node_name),
        node_name=raw.slurm.node_name or host_name.partition(".")[0],
        features=raw.slurm.features,
        feature_prefix=raw.slurm.feature_prefix,
        private_features=raw.slurm.private_features,
        reconcile_interval_s=_positive(origin, "slurm.reconcile_interval", raw.slurm.reconcile_interval),
        notes=notes,
    )
    _refuse_nested(origin, config)
    return config


_MOST_DISKS = 32
"""Each is looked at by a process in each round."""
_FORMER_KEYS = {"copy": {"workers": "datasets"}}
"""Section -> the key of an earlier release -> what it is called now."""


def _rename_keys(values: Mapping[Any, Any], origin: str) -> tuple[Mapping[Any, Any], tuple[str, ...]]:
    """Take the keys of earlier releases for those of this one; returns the new values, and a note for each such key."""
    notes = []
    for section, names in _FORMER_KEYS.items():
        part = values.get(section)
        if not isinstance(part, Mapping):
            continue
        for former in names.keys() & part.keys():
            now = names[former]
            if now in part:
                raise ConfigError(
                    f"{origin}: {section}.{former}: is {section}.{now}, which is given too", hint="leave it out"
                )
            part = {now if key == former else key: value for key, value in part.items()}
            values = {**values, section: part}
            notes.append(f"{origin}: {section}.{former} is called {section}.{now} now")
    return values, tuple(notes)


_TYPE_WORDS: dict[Any, str] = {
    int: "a whole number",
    str: "text",
    bool: "true or false",
    str | int: "text or a number",
    str | int | float: "text or a number",
    list[str | int]: "a list of names or numbers",
    list[str | DiskSettings]: "a list of paths, or of dir, mount, capacity and reserve",
}


def _check_keys(values: Mapping[Any, Any], shape: type[msgspec.Struct], origin: str, prefix: str) -> None:
    fields = {field.name: field for field in msgspec.structs.fields(shape)}
    for key, value in values.items():
        field = fields.get(key) if isinstance(key, str) else None
        if field is None:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known keys: {', '.join(fields)}"
            raise ConfigError(f"{origin}: {prefix}{key}: unknown key", hint=hint)
        nested = isinstance(field.type, type) and issubclass(field.type, msgspec.Struct)
        if nested and isinstance(value, Mapping):
            _check_keys(value, field.type, origin, f"{prefix}{key}.")
            continue
        if field.type == list[str | DiskSettings] and isinstance(value, list):
            for number, disk in enumerate(value, start=1):
                if isinstance(disk, Mapping):
                    _check_keys(disk, DiskSettings, origin, f"{prefix}{key} {number}: ")
        try:
            msgspec.convert(value, field.type)
        except msgspec.ValidationError as exc:
            wanted = "keys and values" if nested else _TYPE_WORDS.get(field.type, str(field.type))
            raise ConfigError(f"{origin}: {prefix}{key}: {value!r} is not {wanted}") from exc


def _checked(origin: str, key: str, value: str | float, parse: Any) -> float:
    try:
        result: float = parse(str(value))
    except ScratchError as exc:
        raise ConfigError(f"{origin}: {key}: {exc.message}", hint=exc.hint) from exc
    return result


def _parse_bandwidth(text: str) -> int:
    return parse_size(text.strip().removesuffix("/s"))


def _positive(origin: str, key: str, value: str | float) -> float:
    seconds = _checked(origin, key, value, parse_duration)
    if seconds <= 0:
        raise ConfigError(f"{origin}: {key}: {value!r} must be more than 0 seconds")
    return seconds


def _directory(origin: str, key: str, value: str) -> Path:
    path = Path(value)
    if not path.is_absolute() or ".." in path.parts or path == Path("/"):
        raise ConfigError(f"{origin}: {key}: {value!r} is not an absolute directory path below /")
    return path


def _disks(origin: str, raw: RawConfig) -> tuple[CacheDisk, ...]:
    """Make one list of `cache_dir` and `cache_dirs`, of which one is given."""
    if not raw.cache_dirs:
        return (_disk(origin, "cache_dir", "cache_mount", DiskSettings(raw.cache_dir, raw.cache_mount), raw),)
    if raw.cache_dir:
        raise ConfigError(f"{origin}: cache_dirs: goes without cache_dir", hint="list it there")
    if raw.cache_mount:
        raise ConfigError(
            f"{origin}: cache_mount: goes with cache_dir",
            hint="in cache_dirs write {dir: PATH, mount: PATH} for each disk",
        )
    if len(raw.cache_dirs) > _MOST_DISKS:
        raise ConfigError(f"{origin}: cache_dirs: {len(raw.cache_dirs)} are more than {_MOST_DISKS}")
    disks = []
    for number, given in enumerate(raw.cache_dirs, start=1):
        key = f"cache_dirs {number}"
        each = DiskSettings(given) if isinstance(given, str) else given
        disks.append(_disk(origin, f"{key}: dir", f"{key}: mount", each, raw))
        for name in ("capacity", "reserve"):
            if getattr(each, name) != "":
                _checked(
                    origin, f"{key}: {name}", getattr(each, name), lambda text: parse_size(text, whole_bytes=2**50)
                )
    return tuple(disks)


def _disk(origin: str, key: str, mount_key: str, given: DiskSettings, raw: RawConfig) -> CacheDisk:
    path = _directory(origin, key, given.dir)
    if given.mount and not path.is_relative_to(_directory(origin, mount_key, given.mount)):
        raise ConfigError(f"{origin}: {mount_key}: {given.mount!r} is not on the way to {key} {given.dir!r}")
    capacity, reserve = (
        str(own if own != "" else of_all)
        for own, of_all in ((given.capacity, raw.capacity), (given.reserve, raw.reserve))
    )
    return CacheDisk(path, given.mount, capacity, reserve)


def refuse_twins(disks: Iterable[CacheDisk]) -> None:
    """Refuse cache directories, with their links resolved, of which two are one, or nested. Raises: ConfigError."""
    for inner, outer in itertools.permutations(disks, 2):
        if inner.dir.is_relative_to(outer.dir):
            raise ConfigError(f"cache_dirs: {str(inner.dir)!r} lies in {str(outer.dir)!r}, with their links resolved")


def _refuse_nested(origin: str, config: Config) -> None:
    """Refuse directories inside one another: a mount or a cached image would hide or delete the other's files."""
    caches = [("cache_dir" if len(config.disks) == 1 else "cache_dirs", disk.dir) for disk in config.disks]
    places = [(key, getattr(config, key)) for key in ("source_dir", "mount_dir", "state_dir")]
    for (key, inner), (other, outer) in itertools.permutations([*places, *caches], 2):
        if inner.is_relative_to(outer):
            raise ConfigError(f"{origin}: {key}: {str(inner)!r} lies in {other} {str(outer)!r}")
