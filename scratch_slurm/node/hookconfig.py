"""What the hooks need of the configuration, made ready by the daemon in <run_dir>/hook.json.

To parse and check YAML costs a hook 80 ms, nearly all of it imports. So the daemon writes the few values at its start,
together with the very text of the configuration file that they were made from. They count only while the
configuration file still says the same, byte for byte: neither clocks nor stamps can make an old value valid. Where
hook.json is missing, made by another release, or not root's alone to write, the hook parses the configuration itself.
"""

import contextlib
import json
import os
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from scratch_slurm import __version__
from scratch_slurm.domain.errors import ConfigError
from scratch_slurm.node.configfile import config_path, parse_config, read_config
from scratch_slurm.node.owner import others_may_write

if TYPE_CHECKING:
    from pathlib import Path

    from scratch_slurm.domain.config import Config

FILE_NAME = "hook.json"
# Slurm's rules for prologs; apart, as they are right whatever the configuration file says now.
RULES_NAME = "slurm.json"
# The stubs' word for run_dir, which is written in the very file that is not to be parsed.
RUN_DIR_VARIABLE = "SCRATCH_SLURM_RUN_DIR"
DEFAULT_RUN_DIR = "/run/scratch-slurm"

_MAX_BYTES = 8_000_000
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class HookConfig(NamedTuple):
    """As in Config (domain.config), but the paths are text: pathlib takes 8 ms to import."""

    mount_dir: str
    run_dir: str
    state_dir: str
    wait_s: float
    wait_limit_s: float
    source_dir: str = ""
    source_owners: tuple[str | int, ...] = ()
    source_timeout_s: float = 30.0
    prolog_timeout_s: float | None = None
    """Slurm's limit for a prolog; None: there is none, or it is not known."""
    prolog_timeout_key: str = ""
    """What it is called in slurm.conf."""
    prolog_serial: bool = False
    """Slurm runs one prolog at a time on a node."""
    stale: str = ""
    """What is wrong with the configuration file, where these are the last values that were right; else empty."""

    @property
    def socket_path(self) -> str:
        """Root's own socket, which strangers cannot fill; everybody's where the daemon has only that."""
        own = f"{self.run_dir}/root.sock"
        return own if os.path.lexists(own) else f"{self.run_dir}/daemon.sock"

    @property
    def ledger_path(self) -> str:
        return f"{self.state_dir}/ledger.sqlite"

    @property
    def lock_path(self) -> str:
        return f"{self.run_dir}/daemon.lock"

    @property
    def mounting_lock_path(self) -> str:
        return f"{self.state_dir}/mounting.lock"

    @property
    def jobs_dir(self) -> str:
        return f"{self.run_dir}/jobs"


def load_hook_config() -> HookConfig:
    """Read what $SCRATCH_SLURM_CONFIG, or else /etc/scratch-slurm/config.yaml, tells the hooks.

    Where that is wrong, or gone, the values that a daemon made ready from it when it was right serve (`stale`).

    Raises: ConfigError: as `load_config`, and there are no such values.
    """
    origin = config_path()
    run_dir = os.environ.get(RUN_DIR_VARIABLE) or DEFAULT_RUN_DIR
    try:
        content = read_config(origin)
        return _with_rules(_read_ready(run_dir, content) or _choose(parse_config(content, origin)))
    except ConfigError as exc:
        last = _read_ready(run_dir, None)
        if last is None:
            raise
        return _with_rules(last._replace(stale=exc.message))


def save_hook_config(path: "str | Path | None" = None, options: Mapping[str, str] | None = None) -> None:
    """Make the values ready for the hooks that read the configuration file `path`; arguments as for `load_config`.

    What is written follows from one reading of the file, whatever was read of it before.

    Raises: ConfigError: as `load_config`. OSError: it cannot be written; the hooks do without.
    """
    origin = config_path(path)
    content = read_config(origin)
    values = _choose(parse_config(content, origin, options))
    written = {
        "version": __version__,
        "made_from": content.decode("latin-1"),
        **values._asdict(),
    }
    from pathlib import Path  # not for the hooks

    _write(Path(values.run_dir) / FILE_NAME, written)


def save_prolog_rules(run_dir: "Path", timeout_s: float | None, timeout_key: str, *, serial: bool) -> None:
    """Write Slurm's rules for prologs for the hooks; they count until they are written again.

    Raises: OSError: it cannot be written; the hooks do without.
    """
    rules = {"prolog_timeout_s": timeout_s, "prolog_timeout_key": timeout_key, "prolog_serial": serial}
    _write(run_dir / RULES_NAME, rules)


def _write(target: "Path", values: Mapping[str, object]) -> None:
    new = target.with_name(f".{target.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, _NEW_FILE, 0o600), "w", encoding="ascii") as file:
        json.dump(values, file)
    new.rename(target)


def _choose(config: "Config") -> HookConfig:
    directories = (str(config.mount_dir), str(config.run_dir), str(config.state_dir))
    source = (str(config.source_dir), config.source_owners, config.source_timeout_s)
    return HookConfig(*directories, config.wait_s, config.wait_limit_s, *source)


def _read_ready(run_dir: str, content: bytes | None) -> HookConfig | None:
    """Read hook.json; None when it cannot be trusted, or was made from another text, or by another release.

    Args:
        content: what the configuration file says now; None: whatever it was made from.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        told = json.loads(_read_own(run_dir))
        made_from = told["made_from"] if content is None else content.decode("latin-1")
        if told["version"] == __version__ and told["made_from"] == made_from:
            return HookConfig(
                mount_dir=_absolute(told["mount_dir"]),
                run_dir=_absolute(told["run_dir"]),
                state_dir=_absolute(told["state_dir"]),
                wait_s=float(told["wait_s"]),
                wait_limit_s=float(told["wait_limit_s"]),
                source_dir=_absolute(told["source_dir"]),
                source_owners=tuple(_user(each) for each in told["source_owners"]),
                source_timeout_s=float(told["source_timeout_s"]),
            )
    return None


def _user(value: object) -> str | int:
    if not isinstance(value, str | int):
        raise TypeError(f"{value!r} is no user")
    return value


def _with_rules(config: HookConfig) -> HookConfig:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        told = json.loads(_read_own(config.run_dir, RULES_NAME))
        timeout_s = told["prolog_timeout_s"]
        return config._replace(
            prolog_timeout_s=None if timeout_s is None else float(timeout_s),
            prolog_timeout_key=str(told["prolog_timeout_key"]),
            prolog_serial=bool(told["prolog_serial"]),
        )
    return config


def _absolute(path: str) -> str:
    if not path.startswith("/"):
        raise ValueError(f"{path!r} is not absolute")
    return path


def _read_own(run_dir: str, name: str = FILE_NAME) -> bytes:
    """Read a file that nobody else can have put there, or changed. Raises: OSError: it is not so."""
    directory = os.open(run_dir, _DIRECTORY)
    try:
        _refuse_others(directory)
        with open(os.open(name, _OLD_FILE, dir_fd=directory), "rb") as file:
            _refuse_others(file.fileno())
            return file.read(_MAX_BYTES)
    finally:
        os.close(directory)


def _refuse_others(descriptor: int) -> None:
    status = os.fstat(descriptor)
    if others_may_write(status) or not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise PermissionError(f"uid {status.st_uid}, mode {status.st_mode:o}")
