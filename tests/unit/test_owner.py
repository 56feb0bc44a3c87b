"""Whose a file is, by its status alone."""

import os

import pytest

from scratch_slurm.node.owner import others_may_write


def status(uid: int, mode: int) -> os.stat_result:
    return os.stat_result((mode, 1, 1, 1, uid, 0, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("uid", "mode", "expected"),
    [
        (7, 0o100600, False),
        (7, 0o100644, False),
        (7, 0o040755, False),
        (7, 0o100620, True),
        (7, 0o100602, True),
        (8, 0o100600, True),
        (0, 0o100600, True),
    ],
)
def test_a_file_is_its_owner_s_alone(uid: int, mode: int, expected: bool) -> None:
    assert others_may_write(status(uid, mode), 7) is expected


def test_unless_said_otherwise_the_owner_is_this_process_s_user() -> None:
    assert not others_may_write(status(os.geteuid(), 0o100600))
    assert others_may_write(status(os.geteuid() + 1, 0o100600))
