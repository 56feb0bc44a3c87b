"""The configuration file: find it, read it, refuse one that others may write. Must not judge values.

Reading is apart from parsing, whose imports take 80 ms: a hook reads the file, and seldom needs to parse it.
"""

import os
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING

from scratch_slurm.domain.errors import ConfigError
from scratch_slurm.node.owner import others_may_write

if TYPE_CHECKING:
    from pathlib import Path

    import yaml

    from scratch_slurm.domain.config import Config

DEFAULT_PATH = "/etc/scratch-slurm/config.yaml"
PATH_VARIABLE = "SCRATCH_SLURM_CONFIG"

_MAX_BYTES = 1_000_000


def load_config(path: "str | Path | None" = None, options: Mapping[str, str] | None = None) -> "Config":
    """Read the configuration.

    Args:
        path: the file; None: what $SCRATCH_SLURM_CONFIG names, else /etc/scratch-slurm/config.yaml.
        options: top-level keys given on the command line, which go before the file's. With some, and no file named,
            /etc/scratch-slurm/config.yaml need not exist.
    Raises: ConfigError: missing, unreadable, no YAML, wrong values, or, for root, a file that others may write.
    """
    origin = config_path(path)
    named = path or os.environ.get(PATH_VARIABLE)
    if options and not named and not os.access(DEFAULT_PATH, os.F_OK):
        from scratch_slurm.domain.config import build_config

        return build_config(dict(options), origin="the command line", host_name=os.uname().nodename)
    return parse_config(read_config(origin), origin, options)


def config_path(path: "str | Path | None" = None) -> str:
    """Tell which file holds the configuration."""
    return str(path or os.environ.get(PATH_VARIABLE) or DEFAULT_PATH)


def parse_config(content: bytes, origin: str, options: Mapping[str, str] | None = None) -> "Config":
    """Parse and check what a configuration file says; `options` as in `load_config`.

    Raises: ConfigError: no YAML, or wrong values.
    """
    import yaml

    from scratch_slurm.domain.config import build_config

    # The parser in C where PyYAML was built with it.
    loader: type[yaml.SafeLoader] | type[yaml.CSafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        values = yaml.load(content, Loader=loader)  # noqa: S506 - a SafeLoader, the one in C
    except yaml.YAMLError as exc:
        raise _yaml_error(origin, exc) from exc
    if options and isinstance(values, Mapping):
        # The one that is named goes before all of the file's.
        kept = {key: value for key, value in values.items() if key != "cache_dirs" or "cache_dir" not in options}
        values = {**kept, **options}
    return build_config(values, origin=origin, host_name=os.uname().nodename)


def read_config(origin: str) -> bytes:
    """Read the configuration file.

    Raises: ConfigError: missing, unreadable, or, for root, a file that others may write.
    """
    try:
        # Without O_NONBLOCK the opening of a fifo waits for its writer.
        with open(os.open(origin, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{origin}: is not a file")
            if os.geteuid() == 0 and others_may_write(status):
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


def _yaml_error(origin: str, exc: "yaml.YAMLError") -> ConfigError:
    mark = getattr(exc, "problem_mark", None)
    problem = getattr(exc, "problem", None) or getattr(exc, "reason", None) or "is not YAML"
    where = f"{origin}:{mark.line + 1}" if mark else origin
    return ConfigError(f"{where}: {problem}", hint="write `key: value`, one a line, indented with spaces")
