"""A mount whose copy is bad or lost, and a change of it that was cut short while a third version came."""

import math

import pytest
from msgspec import structs

from scratch_slurm.domain.actions import ActionKind, Mend, Retarget, Uncover, Unmount
from scratch_slurm.domain.backing import FromSource
from scratch_slurm.domain.claims import Claim, Job, Standing
from scratch_slurm.domain.dataset import Card, Failure
from scratch_slurm.domain.model import CachedImage, MountedImage, Permissions
from scratch_slurm.domain.plan.moves import Move, next_move
from tests.kit.strategies import generation, image

COPY = CachedImage("a", generation().id, "/ssd/a.image", 10, "/ssd")
BAD = structs.replace(COPY, bad="I/O error")
ON_COPY = MountedImage("a", "loop1", generation().id, COPY.path, "/cache")
SICK = Card("a", image=image("a"), mounted=ON_COPY, copies=(BAD,), fault="cannot be read")
PINNED = (Claim(Job(1), 7, 0, Standing.COUNTS),)


def off(kind: ActionKind) -> dict[ActionKind, Failure]:
    return {kind: Failure("it failed", 1, math.inf)}


def moves(card: Card) -> Move | None:
    return next_move(card, 0.0)


LEAVES = [
    pytest.param(SICK, Retarget, id="its-device-leaves-the-bad-copy-before-it-is-mounted-anew"),
    pytest.param(structs.replace(SICK, claims=PINNED), Retarget, id="pinned-or-not"),
    pytest.param(structs.replace(SICK, fault=""), Retarget, id="though-the-mount-looks-well"),
    pytest.param(structs.replace(SICK, copies=()), Retarget, id="a-lost-copy-as-well"),
    pytest.param(structs.replace(SICK, failures=off(ActionKind.RETARGET)), Mend, id="which-the-kernel-may-refuse"),
    pytest.param(
        structs.replace(SICK, mounted=structs.replace(ON_COPY, copy_path="", disk="")),
        Mend, id="then-it-is-mounted-anew",
    ),
    pytest.param(structs.replace(SICK, copies=(COPY,)), Mend, id="a-copy-that-is-well-stays-below-the-new-mount"),
    pytest.param(structs.replace(SICK, copies=(), is_copy_unseen=True), Mend, id="nobody-knows-whether-it-is-lost"),
    pytest.param(structs.replace(SICK, image=None, is_listed=False), type(None), id="nothing-can-take-over"),
]  # fmt: skip


@pytest.mark.parametrize(("card", "expected"), LEAVES)
def test_a_mount_that_reads_a_bad_or_lost_copy(card: Card, expected: type) -> None:
    move = moves(card)
    assert type(move) is expected
    if isinstance(move, Retarget):
        assert isinstance(move.backing, FromSource)


def cut_short(top: int, beneath: int | None, newest: int, *, mode: int = 0o644) -> Card:
    """`a` with two mounts, and another image in the source."""

    def mount(version: int | None) -> MountedImage:
        generation_id = generation(version=version).id if version else None
        return MountedImage("a", f"loop{version}", generation_id)

    newer = image("a", version=newest)
    newer = type(newer)("a", newer.at, newer.generation, newer.fs_type, Permissions(mode=mode))
    return Card("a", image=newer, mounted=mount(top), covered=mount(beneath))


CUT_SHORT = [
    pytest.param(cut_short(1, 2, 3), Uncover, id="the-one-between-is-shown-until-the-newest-takes-its-place"),
    pytest.param(structs.replace(cut_short(1, 2, 3), claims=PINNED), type(None), id="not-under-a-pin"),
    pytest.param(cut_short(1, 2, 3, mode=0o640), Unmount, id="not-where-it-might-be-open-to-too-many"),
    pytest.param(cut_short(3, 2, 3), Unmount, id="not-over-the-newest"),
    pytest.param(cut_short(1, None, 3), Unmount, id="not-of-unknown-generation"),
    pytest.param(
        structs.replace(cut_short(1, 2, 3), failures=off(ActionKind.UNCOVER)), Unmount, id="not-if-it-cannot-be-read"
    ),
]


@pytest.mark.parametrize(("card", "expected"), CUT_SHORT)
def test_a_change_that_was_cut_short_while_a_third_version_came(card: Card, expected: type) -> None:
    assert type(moves(card)) is expected
