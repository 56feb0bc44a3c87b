"""One line a state change, to syslog: slurmd throws away what its hooks print. Must not import `logging` (25 ms).

The event comes first, then key=value; `job=` is always there. By hand, and in tests, the lines are on stderr too.
"""

import re
import syslog

_PLAIN = re.compile(r"[A-Za-z0-9._:/@+,-]+", re.ASCII)
_MAX_VALUE = 1000

syslog.openlog("scratch-slurm-hook", syslog.LOG_PID | syslog.LOG_PERROR, syslog.LOG_DAEMON)


def info(event: str, *, job: int | str, **values: object) -> None:
    """Log a state change."""
    syslog.syslog(syslog.LOG_INFO, _line(event, {"job": job, **values}))


def warning(event: str, *, job: int | str, **values: object) -> None:
    """Log that the job does without something."""
    syslog.syslog(syslog.LOG_WARNING, _line(event, {"job": job, **values}))


def error(event: str, *, job: int | str, **values: object) -> None:
    """Log that somebody must act."""
    syslog.syslog(syslog.LOG_ERR, _line(event, {"job": job, **values}))


def _line(event: str, values: dict[str, object]) -> str:
    return " ".join((event, *(f"{key}={_quoted(str(value)[:_MAX_VALUE])}" for key, value in values.items())))


def _quoted(value: str) -> str:
    """Quote what is not plain, so that no user's text can pretend to be a line or a key of its own."""
    if _PLAIN.fullmatch(value):
        return value
    escaped = value.encode("ascii", "backslashreplace").decode("ascii").replace('"', "'")
    return '"' + "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in escaped) + '"'
