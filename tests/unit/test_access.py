"""Who may read what, as tables."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratch_slurm.domain import access
from scratch_slurm.domain.access import Person
from scratch_slurm.domain.model import Permissions, SourceImage
from tests.kit.strategies import image

ALICE, BOB, ROOT = 1000, 1001, 0
STAFF, GUESTS = 50, 60


def file(mode: int, uid=ROOT, gid=STAFF) -> Permissions:
    return Permissions(uid, gid, mode)


def person(uid, *gids):
    return Person(uid, frozenset(gids))


UNASKED = Person(BOB, None)

READS = [
    pytest.param(person(BOB), file(0o644), True, id="everybody-may"),
    pytest.param(person(BOB), file(0o640), False, id="a-stranger-may-not"),
    pytest.param(person(BOB, STAFF), file(0o640), True, id="its-group-may"),
    pytest.param(person(BOB, GUESTS, STAFF), file(0o640), True, id="a-supplementary-group-is-as-good"),
    pytest.param(person(BOB, GUESTS), file(0o640), False, id="another-group-is-not"),
    pytest.param(person(ALICE), file(0o600, uid=ALICE), True, id="its-owner-may"),
    pytest.param(person(ALICE, STAFF), file(0o044, uid=ALICE), False, id="the-owner-s-bits-go-before-all-others"),
    pytest.param(person(BOB, STAFF), file(0o604), False, id="the-group-s-bits-go-before-the-others"),
    pytest.param(person(BOB), file(0o604), True, id="who-is-not-in-the-group-is-another"),
    pytest.param(person(ROOT), file(0o000), True, id="root-may-always"),
    pytest.param(person(BOB, STAFF), file(0o600), False, id="root-alone"),
    pytest.param(person(BOB, STAFF), file(0o130), False, id="to-write-or-execute-is-not-to-read"),
    pytest.param(UNASKED, file(0o644), True, id="groups-need-not-be-known-for-what-is-public"),
    pytest.param(UNASKED, file(0o600), False, id="nor-for-what-is-its-owner-s-alone"),
    pytest.param(UNASKED, file(0o640), None, id="unknown-groups-are-no-answer"),
    pytest.param(UNASKED, file(0o604), None, id="nor-where-the-group-is-shut-out"),
    pytest.param(Person(ALICE, None), file(0o640, uid=ALICE), True, id="an-owner-is-known-without-groups"),
]


@pytest.mark.parametrize(("who", "permissions", "wanted"), READS)
def test_may_read(who: Person, permissions: Permissions, wanted: bool | None) -> None:
    assert access.may_read(who, permissions) is wanted


GATES = [
    pytest.param(file(0o755), file(0o644), None, id="public"),
    pytest.param(file(0o750), file(0o640), None, id="the-same-group"),
    pytest.param(file(0o755), file(0o640), "everybody", id="mksquashfs-s-default-for-a-private-image"),
    pytest.param(file(0o711), file(0o640), "everybody", id="to-pass-through-is-enough"),
    pytest.param(file(0o744), file(0o640), "everybody", id="so-is-to-list"),
    pytest.param(file(0o750, gid=GUESTS), file(0o640), "everybody in group 60", id="another-group"),
    pytest.param(file(0o700), file(0o640), None, id="less-open-is-fine"),
    pytest.param(file(0o750), file(0o600), "everybody in group 50", id="the-group-has-no-right"),
    pytest.param(file(0o700, uid=ALICE), file(0o600), "user 1000", id="another-owner"),
    pytest.param(file(0o700, uid=ALICE), file(0o600, uid=ALICE), None, id="the-owner-s-alone"),
    pytest.param(file(0o750, uid=ALICE), file(0o640), "user 1000", id="an-owner-who-is-not-in-the-group"),
    pytest.param(file(0o050, uid=ALICE), file(0o640), None, id="an-owner-without-a-right"),
    pytest.param(file(0o755), file(0o604), "everybody in group 50", id="a-group-that-is-shut-out"),
    pytest.param(file(0o705), file(0o604), None, id="and-shut-out-of-the-mount-as-well"),
    pytest.param(file(0o777), file(0o444), None, id="who-may-read-all-may-enter-all"),
]


@pytest.mark.parametrize(("root", "image_file", "wanted"), GATES)
def test_too_open(root: Permissions, image_file: Permissions, wanted: str | None) -> None:
    assert access.too_open(root, image_file) == wanted


_IDS = st.sampled_from([0, 1, 2])
_PERMISSIONS = st.builds(Permissions, _IDS, _IDS, st.integers(0, 0o7777))


@given(_PERMISSIONS, _PERMISSIONS)
def test_a_gate_is_too_open_exactly_when_somebody_gets_in_who_may_not_read(root, image_file) -> None:
    people = [
        Person(uid, frozenset(gids))
        for uid in range(5)
        for count in range(5)
        for gids in itertools.combinations(range(4), count)
    ]
    wrong = any(access.may_enter(each, root) and not access.may_read(each, image_file) for each in people)
    assert bool(access.too_open(root, image_file)) is wrong


@given(_PERMISSIONS)
def test_the_file_that_a_root_directory_tells_of_is_as_open_as_the_directory(root) -> None:
    assert access.too_open(root, access.as_file(root)) is None


@given(st.integers(0, 4), st.frozensets(st.integers(0, 3)), _PERMISSIONS)
def test_what_is_said_without_groups_holds_with_any(uid, gids, permissions) -> None:
    without = access.may_read(Person(uid, None), permissions)
    assert without is None or without is access.may_read(Person(uid, gids), permissions)


SOURCE = file(0o755, uid=ALICE)
TRUST = [
    pytest.param(file(0o644), SOURCE, (ALICE,), None, id="root-s"),
    pytest.param(file(0o644, uid=ALICE), SOURCE, (ALICE,), None, id="a-trusted-owner-s"),
    pytest.param(file(0o644, uid=BOB), SOURCE, (ALICE,), "belongs to user 1001", id="a-stranger-s"),
    pytest.param(file(0o646), SOURCE, (), "written by everybody", id="everybody-may-write-it"),
    pytest.param(file(0o664), SOURCE, (), "written by group 50", id="a-group-may-write-it"),
    pytest.param(file(0o664), file(0o2775), (), None, id="the-group-that-may-write-in-the-source"),
    pytest.param(file(0o664, gid=GUESTS), file(0o2775), (), "written by group 60", id="but-no-other-group"),
]


@pytest.mark.parametrize(("permissions", "directory", "owners", "wanted"), TRUST)
def test_distrust_file(
    permissions: Permissions, directory: Permissions, owners: tuple[int, ...], wanted: str | None
) -> None:
    reason = access.distrust_file(permissions, directory, owners)
    assert reason is None if wanted is None else wanted in (reason or "")


DIRECTORIES = [
    pytest.param(file(0o755), (), None, id="root-s"),
    pytest.param(file(0o755, uid=ALICE), (ALICE,), None, id="a-trusted-owner-s"),
    pytest.param(file(0o755, uid=BOB), (ALICE,), "belongs to user 1001", id="a-stranger-s"),
    pytest.param(file(0o777), (), "written by everybody", id="everybody-may-write"),
    pytest.param(file(0o1777), (), None, id="everybody-may-add-but-nobody-replace"),
    pytest.param(file(0o2775), (), None, id="a-group-of-curators"),
]


@pytest.mark.parametrize(("directory", "owners", "wanted"), DIRECTORIES)
def test_distrust_directory(directory: Permissions, owners: tuple[int, ...], wanted: str | None) -> None:
    reason = access.distrust_directory(directory, owners)
    assert reason is None if wanted is None else wanted in (reason or "")


def private_image(dataset: str = "a", version: int = 1, mode=0o640) -> SourceImage:
    plain = image(dataset, version=version)
    return type(plain)(**{**vars(plain), "permissions": file(mode)})


def test_an_image_is_refused_for_what_its_mount_shows_and_not_before_that_is_known() -> None:
    private = private_image("a")
    assert access.refuse(private, None) is None
    assert access.refuse(private, file(0o750)) is None
    assert "lets in everybody: build it again with" in (access.refuse(private, file(0o755)) or "")


def test_what_is_not_known_is_for_root_alone() -> None:
    assert access.may_read(Person(0, None), None) is True
    assert access.may_read(Person(ALICE, frozenset((STAFF,))), None) is None
