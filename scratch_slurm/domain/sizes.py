"""Sizes and durations as people write them, and back."""

import re

from scratch_slurm.domain.errors import UsageError

_UNITS = {
    "": 1, "b": 1, "bytes": 1,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "pb": 10**15,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40, "pib": 2**50,
}  # fmt: skip
_NUMBER = r"([0-9]{1,20}(?:\.[0-9]{1,20})?)"
_SIZE = re.compile(rf"\s*{_NUMBER}\s*([A-Za-z]*)\s*", re.ASCII)
_PERCENT = re.compile(rf"\s*{_NUMBER}\s*%\s*", re.ASCII)
_DECIMAL = [("PB", 10**15), ("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)]

_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(rf"\s*{_NUMBER}\s*(s|m|min|h|d)?\s*", re.ASCII)
_LONGEST_S = 1e9
_SLURM_TIME = re.compile(
    r"(?:(?P<days>\d{1,6})-(?P<dh>\d{1,2})(?::(?P<dm>\d{1,2})(?::(?P<ds>\d{1,2}))?)?"
    r"|(?:(?P<h>\d{1,6}):)?(?P<m>\d{1,6}):(?P<s>\d{1,2})"
    r"|(?P<minutes>\d{1,6}))",
    re.ASCII,
)

NO_LIMIT_S = float("inf")


def parse_size(text: str, *, whole_bytes: int | None = None) -> int:
    """Parse `500 GB`, `2 TiB`, `80%` or plain bytes.

    Args:
        text: a number and a unit (bytes, kB, MB, GB, TB, PB in powers of 1000, KiB ... PiB in powers of 1024).
        whole_bytes: what `%` is a part of; without it a percentage is refused.
    Returns: bytes, rounded down.
    Raises: UsageError: not a size, or a percentage above 100.
    """
    percent = _PERCENT.fullmatch(text)
    if percent:
        part = float(percent[1])
        if whole_bytes is None or part > 100:
            raise UsageError(f"size {text!r} is not valid here", hint="give bytes with a unit, like 500 GB")
        return int(whole_bytes * part / 100)
    match = _SIZE.fullmatch(text)
    factor = _UNITS.get(match[2].lower()) if match else None
    if match is None or factor is None:
        raise UsageError(f"size {text[:40]!r} is not valid", hint="write 500 GB, 2 TiB, 80% or a number of bytes")
    return int(float(match[1]) * factor) if "." in match[1] else int(match[1]) * factor


def format_bytes(n_bytes: float) -> str:
    """Write bytes for people, in powers of 1000: `1.5 GB`."""
    for unit, factor in _DECIMAL:
        if abs(n_bytes) >= factor:
            return f"{n_bytes / factor:.1f} {unit}"
    return f"{n_bytes:.0f} B"


def parse_duration(text: str) -> float:
    """Parse `90s`, `10 min`, `2h`, `1d`, or a plain number of seconds, as the configuration takes it.

    Returns: seconds.
    Raises: UsageError: not a duration.
    """
    match = _DURATION.fullmatch(text)
    seconds = float(match[1]) * _SECONDS[match[2] or "s"] if match else _LONGEST_S
    if seconds >= _LONGEST_S:
        raise UsageError(f"duration {text[:40]!r} is not valid", hint="write 90s, 10m, 2h, 1d or a number of seconds")
    return seconds


def parse_wait(text: str) -> float:
    """Parse the value of `--datasets-wait`.

    `0`, `all` (as long as the site allows), `90s` `10m` `2h` `1d`, or Slurm's own forms: minutes, MM:SS,
    HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS.

    Returns: seconds; infinity for `all`.
    Raises: UsageError: anything else.
    Source: the forms of sbatch(1), --time.
    """
    if text == "all":
        return NO_LIMIT_S
    suffixed = re.fullmatch(r"(\d{1,6})([smhd])", text, re.ASCII)
    if suffixed:
        return float(suffixed[1]) * _SECONDS[suffixed[2]]
    match = _SLURM_TIME.fullmatch(text)
    if match is None:
        raise UsageError(
            f"--datasets-wait={text[:40]!r} is not a time",
            hint="write 0, all, 90s, 10m, 2h, MM:SS or HH:MM:SS",
        )
    part = {key: int(value) if value else 0 for key, value in match.groupdict().items()}
    return float(
        part["days"] * 86400
        + (part["dh"] + part["h"]) * 3600
        + (part["dm"] + part["m"] + part["minutes"]) * 60
        + part["ds"]
        + part["s"]
    )


def format_duration(seconds: float) -> str:
    """Write seconds for people: `45 s`, `12 min`, `3.5 h`, `2.0 d`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 172800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} d"
