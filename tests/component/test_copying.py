"""The copy engine on real files: whole or not at all, whatever happens in between."""

import contextlib
import itertools
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from scratch_slurm.domain.errors import DigestError, DiskError, ImageError, NoSpaceError, ScratchError, SourceError
from scratch_slurm.domain.model import Generation
from scratch_slurm.domain.sizes import format_bytes
from scratch_slurm.node.origins.filesupplier import FileSupplier
from scratch_slurm.node.rawio import BLOCK_BYTES, ColdReader, resident_map
from scratch_slurm.node.staging import chunks
from scratch_slurm.node.staging.copying import CopyOptions, CopyResult, copy_image
from scratch_slurm.node.staging.progress import CopyPhase, CopyProgress
from scratch_slurm.node.staging.ranges import MEMORY_BYTES, MOST_PIECE_BYTES, PieceSize, Ranges, RateLimit
from tests.kit import sources
from tests.kit.generations import generation_of

KIB, MIB = 1 << 10, 1 << 20
RANGE, CHUNK = 4 * KIB, 16 * KIB
SMALL = CopyOptions(readers=4, range_bytes=RANGE, chunk_bytes=CHUNK)

needs_fuse = pytest.mark.skipif(sources.why_not() is not None, reason=str(sources.why_not()))
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")

Report = Callable[[CopyProgress], None]


def digest_of(data: bytes) -> str:
    return str(blake3(data).hexdigest())


def every_range() -> Callable[[], float]:
    """A clock that jumps, so that every range is reported."""
    ticks = itertools.count()
    return lambda: float(next(ticks))


def copy_file(
    source: Path,
    staging: Path,
    expected: Generation,
    options: CopyOptions,
    report: Report,
    now: Callable[[], float],
    *,
    digest: str | None = None,
    chunks: bytes = b"",
    direct: bool = True,
) -> CopyResult:
    """Copy a file; `digest` and `chunks` are what a manifest promises of it."""
    with contextlib.closing(FileSupplier.open(source, expected, direct=direct)) as supplier:
        promised = replace(expected, content_id=digest)
        return copy_image(
            supplier, staging, expected=promised, promised_chunks=chunks, options=options, report=report, now=now
        )


class Copy:
    """A source file, a staging directory, and the same call again and again."""

    def __init__(self, directory: Path, data: bytes) -> None:
        self.data = data
        self.source = directory / "coco.squashfs"
        self.source.write_bytes(data)
        self.directory = directory / "staging"
        self.directory.mkdir()
        self.staging = self.directory / "coco@0123456789abcdef.part"
        self.journal = chunks.journal_path(self.staging)
        self.mtime_ns = self.source.stat().st_mtime_ns
        self.expected = generation_of(self.source)
        self.progress: list[CopyProgress] = []

    def run(
        self,
        report: Report | None = None,
        *,
        digest: str | None = None,
        chunks: bytes = b"",
        options: CopyOptions = SMALL,
        direct: bool = True,
    ) -> CopyResult:
        self.progress = []

        def note(progress: CopyProgress) -> None:
            self.progress.append(progress)
            if report is not None:
                report(progress)

        return copy_file(
            self.source,
            self.staging,
            self.expected,
            options,
            note,
            every_range(),
            digest=digest,
            chunks=chunks,
            direct=direct,
        )

    def run_killed(self, reports: int) -> bool:
        """Run in a child that is killed at its n-th report; False when it ended before."""
        child = os.fork()
        if child == 0:
            left = itertools.count(reports - 1, -1)

            def report(_progress: CopyProgress) -> None:
                if next(left) == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

            try:
                self.run(report)
            except BaseException:
                os._exit(1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)

    def check_right(self, result: CopyResult) -> None:
        assert self.staging.read_bytes() == self.data
        assert result.digest == digest_of(self.data)
        assert result.bytes_copied + result.bytes_resumed == len(self.data)

    def check_nothing_left(self) -> None:
        assert list(self.directory.iterdir()) == []


def some_bytes(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path, some_bytes(5 * CHUNK + 123))


SIZES = [
    1, RANGE - 1, RANGE, RANGE + 1, CHUNK - 1, CHUNK, CHUNK + 1, CHUNK + RANGE, 3 * CHUNK - 1, 3 * CHUNK, 7 * CHUNK + 5,
]  # fmt: skip


@pytest.mark.parametrize("direct", [True, False], ids=["direct", "plain"])
@pytest.mark.parametrize("size", SIZES)
def test_copy_is_the_source(tmp_path: Path, size: int, direct: bool) -> None:
    copy = Copy(tmp_path, some_bytes(size))
    options = CopyOptions(readers=3, range_bytes=RANGE, chunk_bytes=CHUNK)
    result = copy.run(digest=digest_of(copy.data), options=options, direct=direct)
    copy.check_right(result)
    assert result.bytes_resumed == 0
    assert copy.staging.stat().st_mode & 0o7777 == 0o600


def test_defaults_copy_larger_images(tmp_path: Path) -> None:
    copy = Copy(tmp_path, some_bytes(70 * MIB + 77))
    copy.check_right(copy.run(options=CopyOptions()))


def test_empty_image_is_refused(tmp_path: Path) -> None:
    copy = Copy(tmp_path, b"")
    with pytest.raises(ImageError, match="empty"):
        copy.run()
    copy.check_nothing_left()


def test_space_is_reserved_before_the_first_byte(copy: Copy) -> None:
    blocks: list[int] = []
    copy.run(lambda _: blocks.append(copy.staging.stat().st_blocks * 512))
    assert blocks[0] >= len(copy.data)


def test_progress_has_every_phase_from_start_to_end(copy: Copy) -> None:
    copy.run()
    phases = [phase for phase, _ in itertools.groupby(progress.phase for progress in copy.progress)]
    assert phases == [CopyPhase.COPYING, CopyPhase.VERIFYING]
    done = [progress.bytes_done for progress in copy.progress if progress.phase is CopyPhase.COPYING]
    assert done[0] == 0
    assert done[-1] == len(copy.data)
    assert done == sorted(done)
    copy.run()
    assert copy.progress[0].phase is CopyPhase.RESUMING


def test_progress_is_reported_every_quarter_second_at_most(copy: Copy) -> None:
    told: list[CopyProgress] = []
    digest = digest_of(copy.data)
    copy_file(copy.source, copy.staging, copy.expected, SMALL, told.append, lambda: 100.0, digest=digest)
    assert [progress.bytes_done for progress in told] == [0, len(copy.data)]


def test_progress_shows_what_comes_in_within_a_range(tmp_path: Path) -> None:
    """Else a source that takes long for a whole range would look as if it hung."""
    copy = Copy(tmp_path, some_bytes(MIB))
    copy.run(options=CopyOptions())
    done = [progress.bytes_done for progress in copy.progress if progress.phase is CopyPhase.COPYING]
    assert 0 < done[1] <= MIB // 8
    assert done[-1] == MIB


# Kills and resumption


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    size=st.one_of(st.sampled_from(SIZES), st.integers(1, 9 * CHUNK)),
    kills=st.lists(st.integers(1, 60), min_size=1, max_size=3),
)
@example(size=9 * CHUNK, kills=[25])
def test_killed_at_any_report_the_next_run_is_right(size: int, kills: list[int]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        copy = Copy(Path(directory), some_bytes(size))
        for reports in kills:
            copy.run_killed(reports)
        journaled = 0
        if copy.journal.exists():
            contents = chunks.read_journal(copy.journal, chunks.CopyHeader(copy.expected.id, size, CHUNK))
            journaled = sum(min(CHUNK, size - index * CHUNK) for index in contents.chunks) if contents else 0
        result = copy.run()
        copy.check_right(result)
        assert result.bytes_resumed == journaled


SYSTEM_CALLS = {
    "fallocate": 1,
    "pwrite64": 5,
    "sync_file_range": 9,
    "fdatasync": 2,
    "fsync": 1,
    "write": 3,
    "unlink": 1,
}


def run_traced(copy: Copy, *inject: str) -> subprocess.CompletedProcess[str]:
    call = [shutil.which("strace") or "strace", "-f", "-qq", "-o", "/dev/null"]
    for rule in inject:
        call += ["-e", f"inject={rule}"]
    call += [sys.executable, "-m", "tests.component.test_copying", str(copy.source), str(copy.staging)]
    return subprocess.run(call, capture_output=True, text=True, check=False, timeout=120)


def main(source: Path, staging: Path) -> NoReturn:
    """The copy as a program, to be traced; exits with the error's own code."""
    try:
        copy_file(source, staging, generation_of(source), SMALL, lambda _: None, time.monotonic)
    except ScratchError as exc:
        print(exc, file=sys.stderr)
        sys.exit(exc.exit_code)
    sys.exit(0)


@needs_strace
@pytest.mark.parametrize("call", SYSTEM_CALLS)
def test_killed_at_a_system_call_the_next_run_is_right(copy: Copy, call: str) -> None:
    if call == "unlink":
        copy.staging.write_bytes(b"of an earlier try")
    killed = run_traced(copy, f"{call}:signal=KILL:when={SYSTEM_CALLS[call]}")
    assert killed.returncode not in (0, 1), f"{call} was not called: {killed.stderr}"
    copy.check_right(copy.run())


@needs_strace
def test_chunk_is_recorded_only_after_all_of_it_is_written(copy: Copy) -> None:
    killed = run_traced(copy, "pwrite64:delay_enter=500ms:when=1", "fdatasync:signal=KILL:when=1")
    assert killed.returncode not in (0, 1)
    assert copy.staging.read_bytes()[:CHUNK] == copy.data[:CHUNK]


def test_resumed_chunks_are_not_read_from_the_source(copy: Copy) -> None:
    copy.run()
    result = copy.run()
    copy.check_right(result)
    assert result.bytes_copied == 0


def damage_staged(copy: Copy) -> None:
    with copy.staging.open("r+b") as file:
        file.seek(2 * CHUNK + 7)
        file.write(b"\0\1\2")


def damage_last_line(copy: Copy) -> None:
    copy.journal.write_bytes(copy.journal.read_bytes()[:-9])


def damage_third_line(copy: Copy) -> None:
    lines = copy.journal.read_bytes().splitlines(keepends=True)
    copy.journal.write_bytes(b"".join([*lines[:3], b'{"type":"chunk","end_bytes":7}\n', *lines[4:]]))


def keep_lines(copy: Copy, *numbers: int) -> None:
    lines = copy.journal.read_bytes().splitlines(keepends=True)
    copy.journal.write_bytes(b"".join(lines[number] for number in (0, *numbers)))


def repeat_lines(copy: Copy) -> None:
    keep_lines(copy, 1, 2, 2, 3, 1)


def some_lines_backwards(copy: Copy) -> None:
    keep_lines(copy, 6, 4, 2)


def line_of_no_chunk(copy: Copy) -> None:
    keep_lines(copy, 1, 2)
    with copy.journal.open("ab") as file:
        file.write(b'{"type":"chunk","index":6,"digest":"' + b"0" * 64 + b'"}\n')


def damage_and_record(copy: Copy) -> None:
    """As if a chunk that was wrong had been recorded: a later line for it counts, and only what is read is believed."""
    damage_staged(copy)
    bad = copy.staging.read_bytes()[2 * CHUNK : 3 * CHUNK]
    with copy.journal.open("ab") as file:
        file.write(f'{{"type":"chunk","index":2,"digest":"{digest_of(bytes(CHUNK))}"}}\n'.encode())
    assert digest_of(bad) != digest_of(bytes(CHUNK))


def write_version_1(copy: Copy, staged: bytes) -> None:
    """Leave what the release before left: each digest is of everything up to the chunk's end."""
    copy.staging.write_bytes(staged.ljust(len(copy.data), b"\0"))
    lines = [
        f'{{"type":"copy","inode":7,"size_bytes":{len(copy.data)},'
        f'"mtime_ns":{copy.mtime_ns},"chunk_bytes":{CHUNK},"version":1}}'
    ]
    for end in range(CHUNK, 4 * CHUNK + 1, CHUNK):
        lines.append(f'{{"type":"chunk","end_bytes":{end},"digest":"{digest_of(copy.data[:end])}"}}')
    copy.journal.write_text("".join(f"{line}\n" for line in lines))


def of_the_release_before(copy: Copy) -> None:
    write_version_1(copy, copy.data[: 4 * CHUNK])


def of_the_release_before_with_a_wrong_chunk(copy: Copy) -> None:
    write_version_1(copy, copy.data[:CHUNK] + bytes(CHUNK) + copy.data[2 * CHUNK : 4 * CHUNK])


def of_the_release_before_and_another_size(copy: Copy) -> None:
    of_the_release_before(copy)
    copy.journal.write_bytes(copy.journal.read_bytes().replace(b'"size_bytes":', b'"size_bytes":1'))


def of_the_release_to_come(copy: Copy) -> None:
    copy.journal.write_bytes(copy.journal.read_bytes().replace(b'"version":2', b'"version":3'))


def forge_later_chunks(copy: Copy) -> None:
    lines = copy.journal.read_bytes().splitlines(keepends=True)
    forged = [line.replace(line[-20:-3], b"0" * 17) for line in lines[2:]]
    copy.journal.write_bytes(b"".join([*lines[:2], *forged]))


def empty_journal(copy: Copy) -> None:
    copy.journal.write_bytes(b"")


def garbage_journal(copy: Copy) -> None:
    copy.journal.write_bytes(some_bytes(5000))


def other_generation(copy: Copy) -> None:
    copy.journal.write_bytes(copy.journal.read_bytes().replace(copy.expected.id.encode(), b"f" * 16))


def no_journal(copy: Copy) -> None:
    copy.journal.unlink()


def no_staged_file(copy: Copy) -> None:
    copy.staging.unlink()


def shorter_staged_file(copy: Copy) -> None:
    os.truncate(copy.staging, 3 * CHUNK)


def symlinked_staged_file(copy: Copy) -> None:
    real = copy.directory.parent / "elsewhere"
    copy.staging.rename(real)
    copy.staging.symlink_to(real)


LEFT_BEHIND = [
    pytest.param(damage_staged, 4 * CHUNK + 123, id="only-the-damaged-chunk-is-copied-again"),
    pytest.param(damage_last_line, 5 * CHUNK, id="torn-last-line-is-left-out"),
    pytest.param(damage_third_line, 2 * CHUNK, id="garbage-line-ends-the-journal"),
    pytest.param(repeat_lines, 3 * CHUNK, id="a-line-twice-is-one-chunk"),
    pytest.param(some_lines_backwards, 2 * CHUNK + 123, id="chunks-come-in-any-order"),
    pytest.param(line_of_no_chunk, 2 * CHUNK, id="a-chunk-beyond-the-end-is-none"),
    pytest.param(damage_and_record, 4 * CHUNK + 123, id="of-two-lines-the-later-one-counts"),
    pytest.param(of_the_release_before, 4 * CHUNK, id="journal-of-the-release-before"),
    pytest.param(
        of_the_release_before_with_a_wrong_chunk, 3 * CHUNK, id="journal-of-the-release-before-is-not-believed"
    ),
    pytest.param(of_the_release_before_and_another_size, 0, id="journal-of-the-release-before-and-of-another-image"),
    pytest.param(of_the_release_to_come, 0, id="journal-of-a-release-to-come"),
    pytest.param(forge_later_chunks, CHUNK, id="wrong-digest-is-not-believed"),
    pytest.param(empty_journal, 0, id="empty-journal"),
    pytest.param(garbage_journal, 0, id="garbage-journal"),
    pytest.param(other_generation, 0, id="journal-of-another-generation"),
    pytest.param(no_journal, 0, id="no-journal"),
    pytest.param(no_staged_file, 0, id="no-staged-file"),
    pytest.param(shorter_staged_file, 0, id="staged-file-of-another-size"),
    pytest.param(symlinked_staged_file, 0, id="symlink-is-not-followed"),
]


@pytest.mark.parametrize(("damage", "resumed_bytes"), LEFT_BEHIND)
def test_only_what_is_proven_is_resumed(copy: Copy, damage: Callable[[Copy], None], resumed_bytes: int) -> None:
    copy.run()
    damage(copy)
    result = copy.run()
    copy.check_right(result)
    assert result.bytes_resumed == resumed_bytes
    assert not copy.staging.is_symlink()
    # And what it wrote into the journal holds as well.
    assert copy.run().bytes_copied == 0


# Chunks that a manifest promises


def digests_of_chunks(data: bytes) -> bytes:
    return b"".join(blake3(data[at : at + CHUNK]).digest() for at in range(0, len(data), CHUNK))


def test_a_copy_whose_chunks_are_promised(copy: Copy) -> None:
    copy.check_right(copy.run(digest=digest_of(copy.data), chunks=digests_of_chunks(copy.data)))


def spoil_source(copy: Copy) -> None:
    with copy.source.open("r+b") as file:
        file.seek(2 * CHUNK + 5)
        file.write(b"not this")
    os.utime(copy.source, ns=(copy.mtime_ns, copy.mtime_ns))


def test_a_chunk_that_the_source_gave_wrong_once_is_read_again_and_only_it(copy: Copy) -> None:
    spoil_source(copy)
    counts = [0]

    def mend(progress: CopyProgress) -> None:
        if progress.bytes_done < counts[-1] and progress.phase is CopyPhase.COPYING:  # it begins again
            counts.append(progress.bytes_done)
            copy.source.write_bytes(copy.data)
            os.utime(copy.source, ns=(copy.mtime_ns, copy.mtime_ns))
        else:
            counts[-1] = progress.bytes_done

    copy.check_right(copy.run(mend, digest=digest_of(copy.data), chunks=digests_of_chunks(copy.data)))
    assert len(counts) == 2, "once"


def test_a_chunk_that_is_wrong_for_good_ends_the_copy_at_once(copy: Copy) -> None:
    spoil_source(copy)
    with pytest.raises(DigestError, match="16384 bytes from 32768") as caught:
        copy.run(digest=digest_of(copy.data), chunks=digests_of_chunks(copy.data))
    assert caught.value.hint is not None
    assert max(progress.bytes_done for progress in copy.progress) < len(copy.data), "not all of it was read"
    copy.check_nothing_left()


def test_a_staged_chunk_is_measured_by_the_manifest_and_not_by_the_journal(copy: Copy) -> None:
    good = copy.source.stat()
    spoil_source(copy)
    copy.run()
    copy.source.write_bytes(copy.data)
    os.utime(copy.source, ns=(copy.mtime_ns, copy.mtime_ns))
    assert copy.source.stat().st_ino == good.st_ino
    result = copy.run(digest=digest_of(copy.data), chunks=digests_of_chunks(copy.data))
    copy.check_right(result)
    assert result.bytes_copied == CHUNK
    assert copy.run().bytes_copied == 0, "and the journal has the right one now"


def test_digests_of_too_few_chunks_are_a_bug(copy: Copy) -> None:
    with pytest.raises(ValueError, match="160 bytes"):
        copy.run(chunks=digests_of_chunks(copy.data)[32:])


# Sources that lie, change, fail


def test_image_other_than_its_manifest_is_refused(copy: Copy) -> None:
    with pytest.raises(ImageError, match="manifest") as caught:
        copy.run(digest=digest_of(b"the image as it was published"))
    assert digest_of(copy.data)[:16] in caught.value.message
    copy.check_nothing_left()


def rewrite_source(copy: Copy) -> None:
    with copy.source.open("r+b") as file:
        file.write(b"changed")


def replace_source(copy: Copy) -> None:
    other = copy.source.with_suffix(".new")
    other.write_bytes(some_bytes(len(copy.data), seed=2))
    other.rename(copy.source)


def replace_source_by_one_as_old(copy: Copy) -> None:
    mtime_ns = copy.source.stat().st_mtime_ns
    replace_source(copy)
    os.utime(copy.source, ns=(mtime_ns, mtime_ns))


def move_source_to_another_inode(copy: Copy) -> None:
    status = copy.source.stat()
    other = copy.source.with_suffix(".new")
    other.write_bytes(copy.data)
    os.utime(other, ns=(status.st_mtime_ns, status.st_mtime_ns))
    other.rename(copy.source)
    assert copy.source.stat().st_ino != status.st_ino


def shrink_source(copy: Copy) -> None:
    os.truncate(copy.source, 2 * CHUNK + 100)


def grow_source(copy: Copy) -> None:
    with copy.source.open("ab") as file:
        file.write(b"more")


@pytest.mark.parametrize("change", [rewrite_source, replace_source, shrink_source, grow_source])
@pytest.mark.parametrize("at_byte", [0, 3 * CHUNK])
def test_source_that_changes_meanwhile_is_refused(copy: Copy, change: Callable[[Copy], None], at_byte: int) -> None:
    pending = [change]

    def report(progress: CopyProgress) -> None:
        if pending and progress.bytes_done >= at_byte:
            pending.pop()(copy)

    with pytest.raises(ImageError, match="changed while it was copied"):
        copy.run(report)
    copy.check_nothing_left()


@pytest.mark.parametrize("at_byte", [0, 3 * CHUNK])
def test_another_inode_alone_is_no_change(copy: Copy, at_byte: int) -> None:
    pending = [move_source_to_another_inode]

    def report(progress: CopyProgress) -> None:
        if pending and progress.bytes_done >= at_byte:
            pending.pop()(copy)

    copy.check_right(copy.run(report))


@pytest.mark.parametrize(
    "change", [rewrite_source, replace_source, replace_source_by_one_as_old, shrink_source, grow_source]
)
def test_source_of_another_generation_is_not_begun(copy: Copy, change: Callable[[Copy], None]) -> None:
    change(copy)
    with pytest.raises(ImageError, match="not the image that was listed"):
        copy.run()
    copy.check_nothing_left()


def test_missing_source(copy: Copy) -> None:
    copy.source.unlink()
    with pytest.raises(SourceError, match="cannot open: No such file"):
        copy.run()


def test_fifo_in_the_place_of_the_source_does_not_block(copy: Copy) -> None:
    copy.source.unlink()
    os.mkfifo(copy.source)
    with pytest.raises(ImageError):
        copy.run()


@pytest.fixture
def slow(copy: Copy, tmp_path: Path) -> Iterator[sources.SlowSource]:
    with sources.SlowSource(tmp_path, tmp_path.parent / f"{tmp_path.name}-mount") as source:
        copy.source = source.path / copy.source.name
        yield source


@needs_fuse
@pytest.mark.root
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "plain"])
def test_each_byte_is_asked_of_the_source_once(copy: Copy, slow: sources.SlowSource, direct: bool) -> None:
    options = CopyOptions(readers=8, range_bytes=RANGE, chunk_bytes=CHUNK)
    copy.check_right(copy.run(options=options, direct=direct))
    # The first block is read before: it tells the generation.
    assert slow.counters()[copy.source.name].bytes <= len(copy.data) + RANGE


@needs_fuse
@pytest.mark.root
def test_requests_are_large_and_the_source_s_read_ahead_stays(tmp_path: Path, slow: sources.SlowSource) -> None:
    (tmp_path / "large").write_bytes(some_bytes(4 * MIB))
    descriptor = os.open(slow.path / "large", os.O_RDONLY)
    device = os.fstat(descriptor).st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    before = setting.read_text()
    with mmap.mmap(-1, 4 * MIB) as memory, memoryview(memory) as view:
        assert ColdReader(descriptor).read(view, 0, 4 * MIB) == 4 * MIB
    os.close(descriptor)
    assert slow.counters()["large"].requests == 4
    assert setting.read_text() == before


@needs_fuse
@pytest.mark.root
def test_read_error_names_the_offset_and_the_next_run_resumes(copy: Copy, slow: sources.SlowSource) -> None:
    slow.set(fail=True, fail_from=3 * CHUNK + 1)
    with pytest.raises(SourceError, match="at 49152: Input/output error"):
        copy.run(options=CopyOptions(readers=1, range_bytes=RANGE, chunk_bytes=CHUNK))
    slow.set(fail=False)
    result = copy.run()
    copy.check_right(result)
    assert result.bytes_resumed > 0


@needs_fuse
@pytest.mark.root
def test_source_that_fails_at_once(copy: Copy, slow: sources.SlowSource) -> None:
    slow.set(fail=True)
    with pytest.raises(SourceError, match="at 0: Input/output error"):
        copy.run(options=CopyOptions(readers=1, range_bytes=RANGE, chunk_bytes=CHUNK))


@needs_fuse
@pytest.mark.root
def test_error_does_not_wait_for_the_rest_of_slow_ranges(tmp_path: Path, slow: sources.SlowSource) -> None:
    slow.set(bytes_per_s=1_000_000.0, fail=True, fail_from=3 * MIB)
    (tmp_path / "large").mkdir()
    copy = Copy(tmp_path / "large", some_bytes(4 * MIB))
    copy.source = slow.path / "large" / copy.source.name
    copy.expected = generation_of(copy.source)
    with pytest.raises(SourceError, match="at 3145728: Input/output error"):
        copy.run(options=CopyOptions(readers=4, range_bytes=MIB, chunk_bytes=MIB))
    assert slow.counters()[copy.source.name].bytes < 2 * MIB


@needs_fuse
@pytest.mark.root
def test_copy_from_a_source_that_hangs_dies_of_sigkill(copy: Copy, slow: sources.SlowSource) -> None:
    slow.set(bytes_per_s=200_000.0)
    child = subprocess.Popen(child_call(copy), cwd=Path(__file__).parents[2])
    try:
        wait_for(lambda: copy.journal.exists() and len(copy.journal.read_bytes().splitlines()) > 2)
        slow.set(hang=True)
        wait_for(lambda: slow.blocked() == SMALL.readers)
        child.kill()
        assert child.wait(30) == -signal.SIGKILL
    finally:
        child.kill()
        slow.set(hang=False, bytes_per_s=0.0)
        child.wait()
    result = copy.run()
    copy.check_right(result)
    assert result.bytes_resumed >= CHUNK


def child_call(copy: Copy) -> list[str]:
    return [sys.executable, "-m", "tests.component.test_copying", str(copy.source), str(copy.staging)]


def wait_for(condition: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


# The cache's disk


@pytest.fixture
def small_disk(copy: Copy, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    mount_point = tmp_path / "small"
    mount_point.mkdir()
    if request.param == "tmpfs":
        call = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(mount_point)]
    else:
        image = tmp_path / "disk.ext4"
        image.write_bytes(bytes(2 * MIB))
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", str(image)], check=True)
        call = ["mount", "-o", "loop", str(image), str(mount_point)]
    subprocess.run(call, check=True)
    try:
        yield mount_point
    finally:
        subprocess.run(["umount", str(mount_point)], check=True)


@pytest.mark.root
@pytest.mark.parametrize("small_disk", ["tmpfs", "ext4"], indirect=True)
def test_full_disk_leaves_nothing_behind(tmp_path: Path, small_disk: Path) -> None:
    before = os.statvfs(small_disk)
    directory = tmp_path / "large"
    directory.mkdir()
    copy = Copy(directory, some_bytes(3 * MIB))
    copy.directory = small_disk
    copy.staging = small_disk / copy.staging.name
    with pytest.raises(NoSpaceError, match=r"cannot reserve 3\.1 MB .* are free") as caught:
        copy.run()
    assert f"{format_bytes(before.f_bavail * before.f_frsize)} are free" in caught.value.message
    assert [path.name for path in small_disk.iterdir() if path.name != "lost+found"] == []
    os.sync()
    assert os.statvfs(small_disk).f_bfree == before.f_bfree


@needs_strace
@pytest.mark.parametrize(
    ("rule", "error"),
    [
        ("fsync:error=EIO:when=1", DiskError),
        ("fdatasync:error=EIO:when=2", DiskError),
        ("sync_file_range:error=EIO:when=7", DiskError),
        ("pwrite64:error=EIO:when=4", DiskError),
        ("pwrite64:error=ENOSPC:when=4", NoSpaceError),
    ],
)
def test_failing_disk_is_never_a_success(copy: Copy, rule: str, error: type[ScratchError]) -> None:
    failed = run_traced(copy, rule)
    assert failed.returncode == error.exit_code, failed.stderr
    assert str(copy.staging) in failed.stderr
    copy.check_nothing_left()


@needs_strace
def test_interrupted_reservation_goes_on(copy: Copy) -> None:
    assert run_traced(copy, "fallocate:error=EINTR:when=1").returncode == 0


def test_copy_that_differs_on_the_disk_is_refused(copy: Copy) -> None:
    def report(progress: CopyProgress) -> None:
        if progress.phase is CopyPhase.VERIFYING and progress.bytes_done == 0:
            damage_staged(copy)

    with pytest.raises(DiskError, match="on the disk"):
        copy.run(report)
    copy.check_nothing_left()


# The page cache


def resident_share(path: Path) -> float:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        pages = resident_map(descriptor, 0, path.stat().st_size)
    finally:
        os.close(descriptor)
    return sum(pages) / len(pages)


def make_cold(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def is_memory(path: Path) -> bool:
    call = ["stat", "-f", "-c", "%T", str(path)]
    return subprocess.run(call, capture_output=True, text=True, check=True).stdout.strip() in ("tmpfs", "ramfs")


@pytest.mark.parametrize("with_manifest", [True, False], ids=["manifest", "no-manifest"])
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "plain"])
def test_copy_leaves_the_page_cache_as_it_was(tmp_path: Path, direct: bool, with_manifest: bool) -> None:
    if is_memory(tmp_path):
        pytest.skip("the temporary directory is in memory")
    copy = Copy(tmp_path, some_bytes(24 * MIB))
    make_cold(copy.source)
    half = 12 * MIB
    with copy.source.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        file.read(half)
    warm = resident_share(copy.source)
    assert 0.49 < warm < 0.6
    options = CopyOptions(readers=4, range_bytes=MIB, chunk_bytes=8 * MIB)
    digest = digest_of(copy.data) if with_manifest else None
    result = copy.run(digest=digest, options=options, direct=direct)
    assert resident_share(copy.staging) < 0.01
    assert abs(resident_share(copy.source) - warm) < 0.01
    copy.check_right(result)


# Ranges and rates


def test_ranges_come_in_order_and_memory_is_bounded() -> None:
    lock, out, most = threading.Lock(), [0], [0]
    count, range_bytes = 200, MIB

    def fill(view: memoryview, offset: int, length: int) -> None:
        with lock:
            out[0] += 1
            most[0] = max(most[0], out[0])
        time.sleep(random.random() / 500)
        view[:8] = offset.to_bytes(8, "big")

    with Ranges(fill, None, 0, count * range_bytes, range_bytes=range_bytes, readers=500) as ranges:
        for number, view in enumerate(ranges):
            assert int.from_bytes(view[:8], "big") == number * range_bytes
            with lock:
                out[0] -= 1
    assert number == count - 1
    assert 2 <= most[0] <= MEMORY_BYTES // range_bytes + 1


def test_first_error_of_a_worker_is_raised_and_ends_all() -> None:
    def fill(view: memoryview, offset: int, length: int) -> None:
        if offset == 5 * RANGE:
            raise SourceError("five")

    with (
        pytest.raises(SourceError, match="five"),
        Ranges(fill, None, 0, 1000 * RANGE, range_bytes=RANGE, readers=3) as ranges,
    ):
        for _ in ranges:
            pass


def test_rate_limit_holds_over_all_callers_and_saves_nothing_up() -> None:
    at = [50.0]

    def sleep(seconds: float) -> None:
        at[0] += seconds

    limit = RateLimit(1000, now=lambda: at[0], sleep=sleep)
    at[0] = 90.0  # idle
    for _ in range(11):
        limit.take(500, lambda: False)
    assert at[0] == pytest.approx(95.0)


def test_rate_limit_lets_go_of_a_copy_that_is_given_up() -> None:
    slept: list[float] = []
    limit = RateLimit(1, now=lambda: 0.0, sleep=slept.append)
    limit.take(1000, lambda: False)
    limit.take(1000, lambda: len(slept) > 2)
    assert len(slept) == 3


def read_pieces(pieces: PieceSize, clock: list[float], bytes_per_s: float, count: int) -> list[int]:
    sizes = []
    for _ in range(count):
        with pieces.next(1 << 40) as size:
            clock[0] += size / bytes_per_s
        sizes.append(size)
    return sizes


def test_pieces_are_large_only_while_the_source_is_fast() -> None:
    clock = [0.0]
    pieces = PieceSize(now=lambda: clock[0])
    assert read_pieces(pieces, clock, 1e9, 20)[-1] == MOST_PIECE_BYTES
    for bytes_per_s in (200_000, 20_000, 5_000, 20_000, 200_000):
        size = read_pieces(pieces, clock, bytes_per_s, 20)[-1]
        assert 1 <= size / bytes_per_s <= 4
        assert size % BLOCK_BYTES == 0
    assert read_pieces(pieces, clock, 1, 20)[-1] == BLOCK_BYTES
    assert read_pieces(pieces, clock, 1e9, 20)[-1] == MOST_PIECE_BYTES


def test_pieces_under_way_together_change_the_size_once() -> None:
    clock = [0.0]
    pieces = PieceSize(now=lambda: clock[0])
    first = pieces.bytes
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(pieces.next(1 << 40))
    assert pieces.bytes == 2 * first
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(pieces.next(1 << 40))
        clock[0] += 60
    assert pieces.bytes == first


def test_end_of_a_range_says_nothing_about_the_source() -> None:
    pieces = PieceSize(now=lambda: 0.0)
    first = pieces.bytes
    with pieces.next(100) as size:
        assert size == 100
    assert pieces.bytes == first


@pytest.mark.parametrize(
    "wrong",
    [{"readers": 0}, {"range_bytes": 1000}, {"chunk_bytes": 5 * MIB}, {"bandwidth_bytes_per_s": 0}],
    ids=str,
)
def test_options_that_make_no_sense(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="bytes"):
        CopyOptions(**wrong)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
