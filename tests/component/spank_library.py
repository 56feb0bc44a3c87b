"""The C files of the SPANK plugin that need no Slurm, built and called through ctypes."""

import ctypes
import os
import subprocess
from pathlib import Path

SPANK = Path(__file__).parents[2] / "spank"

LIST_SIZE = 64 * 65
WHY_SIZE = 256
REPORT_SIZE_MAX = 64 * 1024


def build(directory: Path) -> ctypes.CDLL:
    """Compile parse.c and report.c into a library of their own below `directory`."""
    library = directory / "plain.so"
    sources = [str(SPANK / name) for name in ("parse.c", "report.c")]
    flags = ["-D_GNU_SOURCE", "-std=gnu11", "-O2", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([os.environ.get("CC", "cc"), *flags, "-o", str(library), *sources], check=True, timeout=120)
    return ctypes.CDLL(str(library), use_errno=True)


class Parser:
    """parse.h, with what it writes as Python values; a refusal is a ValueError with its reason."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def datasets(self, text: str) -> list[str]:
        names = ctypes.create_string_buffer(LIST_SIZE)
        why = ctypes.create_string_buffer(WHY_SIZE)
        if self._library.parse_datasets(os.fsencode(text), names, why) != 0:
            assert names.value == b"", "a refused list leaves nothing"
            raise ValueError(os.fsdecode(why.value))
        return names.value.decode().split(",")

    def wait(self, text: str) -> int:
        seconds = ctypes.c_longlong()
        why = ctypes.create_string_buffer(WHY_SIZE)
        if self._library.parse_wait(os.fsencode(text), ctypes.byref(seconds), why) != 0:
            raise ValueError(os.fsdecode(why.value))
        return seconds.value

    def report(self, text: bytes) -> list[tuple[str, str]]:
        """All that parse_report_line() takes from a report, in order."""
        buffer = ctypes.create_string_buffer(text)
        cursor = ctypes.cast(buffer, ctypes.c_char_p)
        name, value = ctypes.c_char_p(), ctypes.c_char_p()
        lines = []
        while self._library.parse_report_line(ctypes.byref(cursor), ctypes.byref(name), ctypes.byref(value)):
            lines.append((os.fsdecode(name.value or b""), os.fsdecode(value.value or b"")))
        return lines


class Reports:
    """report.h: (text, whether this call is the one that shows the messages); OSError as errno says."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def read(self, run_dir: Path, job_id: int) -> tuple[bytes, bool]:
        text = ctypes.create_string_buffer(REPORT_SIZE_MAX + 1)
        first = ctypes.c_bool()
        if self._library.report_read(bytes(run_dir), ctypes.c_uint32(job_id), text, ctypes.byref(first)) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return text.value, first.value
