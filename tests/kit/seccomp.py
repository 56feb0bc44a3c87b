"""Make the kernel refuse chosen system calls in this process for good: an older or stricter kernel, for real."""

import ctypes
import platform
import struct

IOCTL = {"x86_64": 16, "aarch64": 29}[platform.machine()]
SOCKET = {"x86_64": 41, "aarch64": 198}[platform.machine()]
MOVE_MOUNT = 429
FSOPEN = 430

_LOAD_WORD, _JUMP_IF_EQUAL, _JUMP_IF_BITS, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _FILTER_MODE = 22, 38, 2


def refuse(
    number: int, code: int, *, argument: int | None = None, equals: int | None = None, has_bits: int | None = None
) -> None:
    """Answer `code` to system call `number`, if `argument` (0 to 5) equals a value or has a bit, when given."""
    program: list[tuple[int, int, int, int | None]]
    refusal = (_RETURN, 0, 0, _ERRNO | code)
    program = [(_LOAD_WORD, 0, 0, 0)]
    if argument is None:
        program += [(_JUMP_IF_EQUAL, 0, 1, number), refusal]
    else:
        test = (_JUMP_IF_EQUAL, 0, 1, equals) if has_bits is None else (_JUMP_IF_BITS, 0, 1, has_bits)
        program += [(_JUMP_IF_EQUAL, 0, 3, number), (_LOAD_WORD, 0, 0, 16 + 8 * argument), test, refusal]
    program.append((_RETURN, 0, 0, _ALLOW))
    code_bytes = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    header = struct.pack("@HP", len(program), ctypes.addressof(code_bytes))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _FILTER_MODE, header, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")
