"""Seals by munge: the host's munged seals and opens, libmunge asks it. Must not hold a key.

A credential of munge names the uid of the process that had it made, is encrypted (AES-128), authenticated
(HMAC-SHA256), and opened once by each munged. Root of every host with the same munge key can make it: these hosts trust
each other.

Source: munge(3), munge_ctx(3), munge_enum(3); munge.h of 0.5.15 for the numbers, which are part of its ABI.
"""

import ctypes
import re
from collections.abc import Collection
from pathlib import Path

from scratch_slurm.domain.errors import ConfigError, SealError, SealFault
from scratch_slurm.node.seal.bounds import check_payload, check_sealed
from scratch_slurm.node.seal.interface import TTL_S

_LIBRARY = "libmunge.so.2"
_FORM = re.compile(rb"MUNGE:[A-Za-z0-9+/]+={0,2}:")

_CIPHER, _AES128 = 0, 4
_MAC, _SHA256 = 1, 5
_ZIP, _NO_ZIP = 2, 0
_TTL = 4
_ENCODE_TIME, _DECODE_TIME = 6, 7
_SOCKET = 8
_UID_RESTRICTION = 9

_FAULTS = {
    3: SealFault.TOO_LARGE,  # EMUNGE_BAD_LENGTH
    **dict.fromkeys(range(8, 15), SealFault.ALTERED),  # EMUNGE_BAD_CRED to EMUNGE_CRED_INVALID: format, key, MAC
    15: SealFault.EXPIRED,
    16: SealFault.EXPIRED,  # EMUNGE_CRED_REWOUND: of the future
    17: SealFault.REPLAYED,
    18: SealFault.OTHER_UID,  # EMUNGE_CRED_UNAUTHORIZED: for another uid
}
_HINTS = {
    SealFault.EXPIRED: "set the clocks of both hosts",
    SealFault.ALTERED: "both hosts must have the same munge key, and munged be restarted when it changes",
    SealFault.UNAVAILABLE: "start munged: systemctl start munge",
}


class MungeSeal:
    """Seals by the host's munged. Implements `interface.Seal`.

    A call blocks while munged does not answer; the interpreter is free meanwhile. libmunge gives up by itself, with
    limits that cannot be set: after 10 s where munged hangs (5 tries of 2 s), 2 s where a socket is left and nobody
    listens, at once where there is none or its queue is full.

    Args:
        senders: the uids whose messages are opened.
        reader_uid: the uid that may open what is sealed here.
        socket_path: where munged listens; None: where it usually does.
        ttl_s: how old a message may be. One of another ttl is judged by the smaller one.
    Raises: ConfigError: libmunge is not installed.
    """

    def __init__(
        self, senders: Collection[int], reader_uid: int, *, socket_path: Path | None = None, ttl_s: int = TTL_S
    ) -> None:
        self._munge = _load()
        self._senders = frozenset(senders)
        self._reader_uid = reader_uid
        self._socket_path = socket_path
        self._ttl_s = ttl_s

    def seal(self, payload: bytes) -> bytes:
        check_payload(payload)
        with _Context(self._munge, self._socket_path) as context:
            for option, number in ((_CIPHER, _AES128), (_MAC, _SHA256), (_ZIP, _NO_ZIP), (_TTL, self._ttl_s)):
                context.set(option, ctypes.c_int(number))
            context.set(_UID_RESTRICTION, ctypes.c_uint32(self._reader_uid))
            return context.encode(payload)

    def open(self, sealed: bytes) -> bytes:
        check_sealed(sealed)
        # libmunge reads up to the first NUL, and leaves what stands around a credential.
        if not _FORM.fullmatch(sealed):
            raise SealError(f"{sealed[:20]!r}: is no credential of munge", fault=SealFault.ALTERED)
        with _Context(self._munge, self._socket_path) as context:
            payload, uid, age_s = context.decode(sealed)
        if uid not in self._senders:
            raise SealError(
                f"a message sealed by uid {uid}: only those of uid {_list(self._senders)} are opened",
                fault=SealFault.OTHER_UID,
            )
        if age_s > self._ttl_s:
            raise SealError(
                f"a message sealed {age_s} s ago: {self._ttl_s} s are allowed",
                hint=_HINTS[SealFault.EXPIRED],
                fault=SealFault.EXPIRED,
            )
        return payload


class _Context:
    """One question to munged: what libmunge allocates for it, and frees."""

    def __init__(self, munge: ctypes.CDLL, socket_path: Path | None) -> None:
        self._munge = munge
        self._where = str(socket_path) if socket_path else "munged"
        self._context = ctypes.c_void_p(munge.munge_ctx_create())
        if not self._context:
            raise MemoryError("munge_ctx_create")
        try:
            if socket_path is not None:
                self.set(_SOCKET, ctypes.c_char_p(str(socket_path).encode()))
        except BaseException:
            munge.munge_ctx_destroy(self._context)
            raise

    def __enter__(self) -> "_Context":
        return self

    def __exit__(self, *_: object) -> None:
        self._munge.munge_ctx_destroy(self._context)

    def set(self, option: int, value: "ctypes.c_int | ctypes.c_uint32 | ctypes.c_char_p") -> None:
        code = self._munge.munge_ctx_set(self._context, ctypes.c_int(option), value)
        if code:
            raise self._error(code)

    def encode(self, payload: bytes) -> bytes:
        credential = ctypes.c_void_p()
        try:
            code = self._munge.munge_encode(ctypes.byref(credential), self._context, payload, len(payload))
            if code or not credential.value:
                raise self._error(code)
            return ctypes.string_at(credential.value)
        finally:
            _libc.free(credential)

    def decode(self, sealed: bytes) -> tuple[bytes, int, int]:
        """Returns: the payload, the uid that had it sealed, and how many seconds ago by munged's clock."""
        content, length, uid, gid = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_uint32(), ctypes.c_uint32()
        arguments = [ctypes.byref(each) for each in (content, length, uid, gid)]
        try:
            code = self._munge.munge_decode(sealed, self._context, *arguments)
            if code:
                raise self._error(code)
            payload = ctypes.string_at(content.value, length.value) if content.value else b""
        finally:
            _libc.free(content)
        return payload, uid.value, self._time(_DECODE_TIME) - self._time(_ENCODE_TIME)

    def _time(self, option: int) -> int:
        seconds = ctypes.c_long()  # time_t
        code = self._munge.munge_ctx_get(self._context, ctypes.c_int(option), ctypes.byref(seconds))
        if code:
            raise self._error(code)
        return seconds.value

    def _error(self, code: int) -> SealError:
        fault = _FAULTS.get(code, SealFault.UNAVAILABLE)
        words = (self._munge.munge_ctx_strerror(self._context) or self._munge.munge_strerror(code)).decode()
        return SealError(f"{self._where}: {words} (munge's error {code})", hint=_HINTS.get(fault), fault=fault)


def _load() -> ctypes.CDLL:
    try:
        munge = ctypes.CDLL(_LIBRARY)
    except OSError as exc:
        raise ConfigError(
            f"{_LIBRARY}: cannot be loaded: {exc}", hint="install munge (Debian: libmunge2, munge), or use a key file"
        ) from exc
    munge.munge_ctx_create.restype = ctypes.c_void_p
    munge.munge_ctx_strerror.restype = ctypes.c_char_p
    munge.munge_strerror.restype = ctypes.c_char_p
    munge.munge_ctx_destroy.restype = None
    return munge


_libc = ctypes.CDLL(None)
_libc.free.restype = None


def _list(uids: Collection[int]) -> str:
    return ", ".join(map(str, sorted(uids)))
