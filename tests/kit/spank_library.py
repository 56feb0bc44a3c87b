"""The C files of the SPANK plugin that need no Slurm, built and called through ctypes."""

import ctypes
import os
import subprocess
from pathlib import Path

SPANK = Path(__file__).parents[2] / "spank"

LIST_SIZE = 64 * 65
WHY_SIZE = 256
VARIABLE_SIZE = 16 + 64 + 1
REPORT_SIZE_MAX = 64 * 1024
NAME_SIZE = 65
NEAREST_MAX = 3

SOURCES = ("parse.c", "report.c", "hook.c", "namespace.c", "arguments.c", "nearest.c", "source.c")


def build(directory: Path) -> ctypes.CDLL:
    """Compile them into a library of their own below `directory`."""
    library = directory / "plain.so"
    sources = [str(SPANK / name) for name in SOURCES]
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

    def comment_asks(self, comment: str) -> bool:
        return bool(self._library.parse_comment_asks(os.fsencode(comment)))

    def variable(self, name: str) -> str:
        out = ctypes.create_string_buffer(VARIABLE_SIZE)
        self._library.dataset_variable(os.fsencode(name), out)
        return os.fsdecode(out.value)

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


class _Nearest(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_int),
        ("distance", ctypes.c_int * NEAREST_MAX),
        ("names", ctypes.c_char * NAME_SIZE * NEAREST_MAX),
    )


class _Unknown(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char * NAME_SIZE), ("nearest", _Nearest))


class Source:
    """nearest.h and source.h."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def distance(self, a: str, b: str) -> int:
        return int(self._library.edit_distance(a.encode(), b.encode()))

    def nearest(self, wanted: str, names: list[str]) -> list[str]:
        nearest = _Nearest()
        for name in names:
            self._library.nearest_offer(ctypes.byref(nearest), wanted.encode(), name.encode())
        return [bytes(nearest.names[i].value).decode() for i in range(nearest.count)]

    def hint(self, wanted: str, names: list[str]) -> str:
        nearest, hint = _Nearest(), ctypes.create_string_buffer(WHY_SIZE)
        for name in names:
            self._library.nearest_offer(ctypes.byref(nearest), wanted.encode(), name.encode())
        self._library.nearest_hint(ctypes.byref(nearest), hint)
        return hint.value.decode()

    def unknown(self, directory: Path, datasets: str) -> tuple[str, list[str]] | None:
        """The first unknown dataset and the names most like it; None when there is none, or nobody can tell."""
        unknown = _Unknown()
        if not self._library.source_find_unknown(bytes(directory), datasets.encode(), ctypes.byref(unknown)):
            return None
        near = unknown.nearest
        return unknown.name.decode(), [bytes(near.names[i].value).decode() for i in range(near.count)]


class _Arguments(ctypes.Structure):
    _fields_ = (
        ("mount_dir", ctypes.c_char_p),
        ("run_dir", ctypes.c_char_p),
        ("source_dir", ctypes.c_char_p),
        ("unknown", ctypes.c_int),
        ("hooks", ctypes.c_char_p),
    )


class Arguments:
    """arguments.h."""

    _POLICIES = ("refuse", "warn", "ignore")

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    def read(self, *words: str) -> tuple[dict[str, str | None], int]:
        """The values, and how often something was logged."""
        logged: list[bytes] = []
        log = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(logged.append)
        texts = [word.encode() for word in words]
        vector = (ctypes.c_char_p * len(texts))(*texts)
        values = _Arguments()
        code = self._library.arguments_read(ctypes.byref(values), len(texts), vector, log)
        assert (code != 0) == bool(logged)
        paths = {name: getattr(values, name) for name in ("mount_dir", "run_dir", "source_dir", "hooks")}
        told = {name: path and path.decode() for name, path in paths.items()}
        return {**told, "unknown": self._POLICIES[values.unknown]}, len(logged)


def run_hook(library: ctypes.CDLL, program: str, limit_ms: int = 0) -> str:
    """hook.h; returns why the program could not be run to its end, or empty text."""
    why = ctypes.create_string_buffer(WHY_SIZE)
    failed = library.hook_run(os.fsencode(program), ctypes.c_long(limit_ms), why)
    return os.fsdecode(why.value) if failed else ""
