"""Seals by a key that nodes and station have in a file: HMAC-SHA256 over time, nonce and payload.

Authentic and fresh, not secret: the network can read the payload. Whoever has the key can speak, so root alone may
read it.
"""

import hmac
import os
import secrets
import stat
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

from scratch_slurm.domain.errors import ConfigError, SealError, SealFault
from scratch_slurm.node.oswords import word_os_error
from scratch_slurm.node.seal.bounds import check_payload, check_sealed
from scratch_slurm.node.seal.interface import TTL_S
from scratch_slurm.node.seal.once import Once

KEY_LEAST_BYTES, KEY_MOST_BYTES = 32, 4096

_MAGIC = b"scratch-slurm seal 1\n"
_MAC_BYTES = 32
_STAMP = struct.Struct("!Q16s")  # nanoseconds since the epoch, nonce
_NS = 10**9


class KeyFileSeal:
    """Seals by a key. Implements `interface.Seal`; neither call blocks.

    What was opened is remembered for as long as it might be opened again, in this process: after a restart a message
    that is not too old can be opened once more.

    Args:
        key: what `read_key` gave.
        ttl_s: how old a message may be, and how far in the future.
        now: seconds since the epoch.
    """

    def __init__(self, key: bytes, *, ttl_s: int = TTL_S, now: Callable[[], float] = time.time) -> None:
        self._key = key
        self._ttl_s = ttl_s
        self._now = now
        self._once = Once()
        self._lock = threading.Lock()

    def seal(self, payload: bytes) -> bytes:
        check_payload(payload)
        stamp = _STAMP.pack(int(self._now() * _NS), secrets.token_bytes(16))
        return _MAGIC + self._authenticate(stamp, payload) + stamp + payload

    def open(self, sealed: bytes) -> bytes:
        check_sealed(sealed)
        head_bytes = len(_MAGIC) + _MAC_BYTES
        mac, stamp = sealed[len(_MAGIC) : head_bytes], sealed[head_bytes : head_bytes + _STAMP.size]
        payload = sealed[head_bytes + _STAMP.size :]
        if not sealed.startswith(_MAGIC) or len(stamp) != _STAMP.size:
            raise SealError(f"{sealed[:20]!r}: is no message sealed by a key file", fault=SealFault.ALTERED)
        if not hmac.compare_digest(mac, self._authenticate(stamp, payload)):
            raise SealError(
                f"a message of {len(sealed)} bytes: is altered, or sealed with another key",
                hint="nodes and station must have the same key file",
                fault=SealFault.ALTERED,
            )
        self._admit(stamp)
        return payload

    def _authenticate(self, stamp: bytes, payload: bytes) -> bytes:
        mac = hmac.new(self._key, _MAGIC, "sha256")
        mac.update(stamp)
        mac.update(payload)
        return mac.digest()

    def _admit(self, stamp: bytes) -> None:
        """Refuse what is too old, of the future, or was opened before."""
        now_ns = int(self._now() * _NS)
        sealed_ns, nonce = _STAMP.unpack(stamp)
        age_s = (now_ns - sealed_ns) / _NS
        with self._lock:
            self._once.forget(before=now_ns - self._ttl_s * _NS)
            if age_s < -self._ttl_s or sealed_ns < self._once.floor:
                when = f"{age_s:.1f} s ago" if age_s >= 0 else f"{-age_s:.1f} s in the future"
                raise SealError(
                    f"a message sealed {when}: {self._ttl_s} s are allowed",
                    hint="set the clocks of both hosts",
                    fault=SealFault.EXPIRED,
                )
            if not self._once.take(sealed_ns, nonce):
                raise SealError(f"a message sealed {age_s:.1f} s ago: was opened before", fault=SealFault.REPLAYED)


def read_key(path: Path) -> bytes:
    """Read the key of nodes and station.

    Raises: ConfigError: it cannot be read, is no file of root's (or of this process's user) that nobody else may read
        or write, or has less than `KEY_LEAST_BYTES` or more than `KEY_MOST_BYTES` bytes.
    """
    make = f"make it as root: (umask 077; head -c {KEY_LEAST_BYTES} /dev/urandom > {path}), and copy it to every host"
    try:
        # Not through a link, and a pipe of somebody's is not waited for.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot read the key: {word_os_error(exc)}", hint=make) from exc
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path}: is no regular file", hint=make)
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o077:
            raise ConfigError(
                f"{path}: belongs to uid {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}, so others than"
                " root may know the key",
                hint=f"make a new key; then chown root {path}; chmod 0600 {path}",
            )
        key = os.read(fd, KEY_MOST_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot read the key: {word_os_error(exc)}") from exc
    finally:
        os.close(fd)
    if not KEY_LEAST_BYTES <= len(key) <= KEY_MOST_BYTES:
        more = "more than " if len(key) > KEY_MOST_BYTES else ""
        raise ConfigError(
            f"{path}: has {more}{min(len(key), KEY_MOST_BYTES)} bytes, a key has {KEY_LEAST_BYTES} to {KEY_MOST_BYTES}",
            hint=make,
        )
    return key
