"""The configuration file: find it, read it, refuse one that others may write. Must not judge values."""

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import yaml

from scratch_slurm.domain.config import DEFAULT_PATH, PATH_VARIABLE, Config, build_config
from scratch_slurm.domain.errors import ConfigError

_MAX_BYTES = 1_000_000

# The parser in C where PyYAML was built with it: every hook waits for this.
_Loader: type[yaml.SafeLoader] | type[yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_config(path: str | Path | None = None, options: Mapping[str, str] | None = None) -> Config:
    """Read the configuration.

    Args:
        path: the file; None: what $SCRATCH_SLURM_CONFIG names, else /etc/scratch-slurm/config.yaml.
        options: top-level keys given on the command line, which go before the file's. With some, and no file named,
            /etc/scratch-slurm/config.yaml need not exist.
    Raises: ConfigError: missing, unreadable, no YAML, wrong values, or, for root, a file that others may write.
    """
    named = str(path or os.environ.get(PATH_VARIABLE) or "")
    origin = named or DEFAULT_PATH
    if options and not named and not Path(DEFAULT_PATH).exists():
        return build_config(dict(options), origin="the command line", host_name=os.uname().nodename)
    try:
        values = yaml.load(_read(origin), Loader=_Loader)  # noqa: S506 - a SafeLoader, the one in C
    except yaml.YAMLError as exc:
        raise _yaml_error(origin, exc) from exc
    if options and isinstance(values, Mapping):
        values = {**values, **options}
    return build_config(values, origin=origin, host_name=os.uname().nodename)


def _read(origin: str) -> bytes:
    try:
        # Without O_NONBLOCK the opening of a fifo waits for its writer.
        with open(os.open(origin, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{origin}: is not a file")
            if os.geteuid() == 0 and (status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)):
                raise ConfigError(
                    f"{origin}: belongs to uid {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}",
                    hint="others could tell root what to do: chown root and chmod go-w",
                )
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError as exc:
        raise ConfigError(f"{origin}: no such file", hint=f"make it, or name another with ${PATH_VARIABLE}") from exc
    except OSError as exc:
        raise ConfigError(f"{origin}: cannot read it: {exc.strerror}") from exc
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{origin}: is larger than {_MAX_BYTES} bytes")
    return content


def _yaml_error(origin: str, exc: yaml.YAMLError) -> ConfigError:
    mark = getattr(exc, "problem_mark", None)
    problem = getattr(exc, "problem", None) or getattr(exc, "reason", None) or "is not YAML"
    where = f"{origin}:{mark.line + 1}" if mark else origin
    return ConfigError(f"{where}: {problem}", hint="write `key: value`, one a line, indented with spaces")
