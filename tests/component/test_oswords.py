"""What there is not enough of is named."""

import errno
import os

import pytest

from scratch_slurm.domain.errors import LedgerError
from scratch_slurm.node.ledger.ledger import Ledger
from scratch_slurm.node.oswords import word_full, word_os_error
from tests.kit.disks import small_disk

CASES = [
    pytest.param(errno.EDQUOT, "quota", id="quota"),
    pytest.param(errno.EROFS, "read-only", id="read-only"),
    pytest.param(errno.EAGAIN, "no processes", id="processes"),
    pytest.param(errno.ENOMEM, "no memory", id="memory"),
    pytest.param(errno.EMFILE, "no file descriptors", id="own-descriptors"),
    pytest.param(errno.ENFILE, "no file descriptors", id="the-nodes-descriptors"),
    pytest.param(errno.ENOSPC, "No space left on device", id="space-of-nothing-known"),
    pytest.param(errno.EIO, "Input/output error", id="the-systems-own-word"),
]


@pytest.mark.parametrize(("number", "word"), CASES)
def test_what_is_missing_is_named(number, word) -> None:
    assert word in word_os_error(OSError(number, os.strerror(number)))


def test_an_error_without_a_number_has_its_own_words() -> None:
    assert word_os_error(OSError("no such thing")) == "no such thing"


@pytest.fixture
def disk(folder):
    mount_point = folder / "disk"
    with small_disk(folder, mount_point, 1 << 20):
        yield mount_point


def fill_inodes(directory):
    with pytest.raises(OSError, match="No space") as caught:
        for number in range(1_000_000):
            (directory / str(number)).touch()
    return caught.value


def fill_space(directory):
    with pytest.raises(OSError, match="No space") as caught, (directory / "fill").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return caught.value


@pytest.mark.root
def test_a_disk_without_inodes_is_not_called_full_of_bytes(disk) -> None:
    assert word_full(disk) == ""
    error = fill_inodes(disk)
    assert word_os_error(error, disk / "not" / "there") == "no inodes left: too many files"


@pytest.mark.root
def test_a_disk_without_space_is(disk) -> None:
    assert word_os_error(fill_space(disk), disk) == "no space left"


@pytest.mark.root
@pytest.mark.parametrize(("fill", "word"), [(fill_inodes, "no inodes"), (fill_space, "no space")])
def test_a_ledger_says_what_its_disk_has_run_out_of(disk, fill, word) -> None:
    fill(disk)
    with pytest.raises(LedgerError, match=word):
        Ledger(disk / "ledger.sqlite", boot_id="boot", now=lambda: 1.0)
