"""Cards: what is seen and learned of a dataset, folded into one value."""

import pytest
from msgspec import structs

from scratch_slurm.domain.actions import ActionKind, Evict, Mend, Mount, Retarget, Stage, StagedImage, Unmount
from scratch_slurm.domain.backing import FromSource
from scratch_slurm.domain.claims import Claim, Job, Standing
from scratch_slurm.domain.dataset import Card, Failure, Reads, Staging, fail, most_copy_bytes
from scratch_slurm.domain.model import Generation, Permissions, SkippedImage, SourceImage
from scratch_slurm.domain.sight import Learned, MountKey, Seen, SeenMount
from scratch_slurm.service.cards import fold, see
from scratch_slurm.service.events import (
    Answers,
    BadCopy,
    Begun,
    Claimed,
    CopyStarted,
    CutOff,
    Ended,
    Event,
    Failed,
    Gate,
    Hangs,
    HeldOff,
    Identified,
    Looked,
    Progress,
    Read,
    Succeeded,
)
from tests.kit.strategies import cached, generation, image

KEY: MountKey = (100, "loop3")
BELOW: MountKey = (99, "loop2")
COCO = image("coco")
NEWER = image("coco", version=2)
PRIVATE, OPEN, CLOSED = Permissions(0, 50, 0o640), Permissions(0, 50, 0o755), Permissions(0, 50, 0o750)


def on_source(key: MountKey | None = KEY) -> SeenMount:
    return SeenMount("coco", key)


MOUNTED = Seen(COCO, top=on_source())


def card_of(seen: Seen, *events: Event) -> Card:
    card = see(Card("coco"), seen)
    for event in events:
        card = fold(card, event)
    return card


def told(generation_id: str | None = COCO.generation.id, key: MountKey = KEY) -> Identified:
    return Identified("coco", key, generation_id)


def private(version: int = 1) -> SourceImage:
    plain = image("coco", version=version)
    return SourceImage("coco", plain.at, plain.generation, "squashfs", PRIVATE)


# Rounds.


def test_what_did_not_change_is_the_same_card() -> None:
    card = card_of(MOUNTED, told())
    assert see(card, Seen(image("coco"), top=on_source())) is card
    assert fold(card, Read("coco", Reads())) is card
    assert fold(card, Claimed("coco", (), 5.0)) is card


def test_a_mount_is_ours_and_of_no_known_version_before_its_device_has_told() -> None:
    card = card_of(MOUNTED)
    assert card.mounted is not None
    assert (card.mounted.device, card.mounted.generation_id, card.is_foreign) == ("loop3", None, False)
    known = fold(card, told())
    assert known.mounted is not None and known.mounted.generation_id == COCO.generation.id
    assert fold(card, told(None)).mounted is None and fold(card, told(None)).is_foreign


def test_a_mount_on_no_loop_device_is_not_ours() -> None:
    card = card_of(Seen(COCO, top=on_source(None)))
    assert card.mounted is None and card.is_foreign


def test_what_is_known_of_a_mount_holds_for_that_mount_alone() -> None:
    card = card_of(MOUNTED, told(), Looked("coco", KEY, "EIO"))
    assert card.fault == "EIO"
    anew = see(card, Seen(COCO, top=on_source((101, "loop3"))))
    assert anew.mounted is not None and (anew.mounted.generation_id, anew.fault) == (None, "")
    assert anew.learned.tags == {} and anew.learned.faults == {}


def test_what_lies_beneath_is_known_by_its_own_tag_and_only_beneath_ours() -> None:
    seen = Seen(NEWER, top=on_source(), beneath=on_source(BELOW))
    card = card_of(seen, told(), told(NEWER.generation.id, BELOW))
    assert card.covered is not None and card.covered.generation_id == NEWER.generation.id
    assert card_of(seen, told(None)).covered is None
    uncovered = see(card, Seen(NEWER, top=on_source(BELOW)))
    assert uncovered.mounted is not None and uncovered.mounted.generation_id == NEWER.generation.id


CHANGES = [
    pytest.param(Mount(COCO, FromSource(COCO), "new"), None, id="mount"),
    pytest.param(Unmount("coco", "gone"), None, id="unmount"),
    pytest.param(Retarget("coco", "loop3", FromSource(COCO), COCO, "x"), COCO.generation.id, id="retarget"),
]


@pytest.mark.parametrize(("action", "known"), CHANGES)
def test_after_a_change_of_mounts_the_devices_are_asked_again(
    action: Mount | Unmount | Retarget, known: str | None
) -> None:
    """The kernel gives mount ids and devices out again at once."""
    card = card_of(MOUNTED, told(), Begun("coco", action), Ended("coco", action))
    assert card.mounted is not None and card.mounted.generation_id == known


# What an image was called before.

AFTER = Generation("f" * 16, 10, "0" * 64, ("e" * 16, generation().id))


def test_what_was_made_before_an_image_had_its_manifest_is_of_it() -> None:
    renamed = SourceImage("coco", COCO.at, AFTER, "squashfs")
    card = card_of(MOUNTED, told(), Gate("coco", COCO.generation.id, CLOSED))
    card = see(card, Seen(renamed, top=on_source(), copies=(cached("coco"),)))
    assert card.mounted is not None and card.mounted.generation_id == AFTER.id
    assert [(copy.generation_id, copy.path) for copy in card.copies] == [(AFTER.id, cached("coco").path)]
    assert card.learned.gates[AFTER.id] == CLOSED


def test_a_copy_of_another_time_is_none_of_its() -> None:
    other = SourceImage("coco", COCO.at, Generation("f" * 16, 10, "0" * 64, ("e" * 16,)), "squashfs")
    card = card_of(Seen(other, copies=(cached("coco"),)))
    assert card.copies == (cached("coco"),)


# Who may read it.


def test_an_image_that_is_too_open_inside_is_skipped_and_its_mount_goes() -> None:
    seen = Seen(private(), top=on_source())
    card = card_of(seen, told(), Gate("coco", COCO.generation.id, OPEN))
    assert card.image is None and card.skipped is not None
    assert "lets in everybody: build it again with" in card.skipped.reason
    assert card.revoked.startswith("its image ")
    assert card.permissions == PRIVATE
    assert card_of(seen, told(), Gate("coco", COCO.generation.id, CLOSED)).revoked == ""


def test_an_older_version_that_is_too_open_goes_too_and_the_new_one_stays() -> None:
    gates = Gate("coco", COCO.generation.id, OPEN), Gate("coco", NEWER.generation.id, CLOSED)
    card = card_of(Seen(private(version=2), top=on_source()), told(), *gates)
    assert card.image == private(version=2)
    assert card.revoked


def test_an_image_that_everybody_may_read_is_not_looked_into() -> None:
    card = card_of(MOUNTED, told(), Gate("coco", COCO.generation.id, OPEN))
    assert (card.image, card.revoked) == (COCO, "")


def test_a_recalled_image_that_is_too_open_is_not_served() -> None:
    seen = Seen(recalled=private(), is_listed=False)
    assert card_of(seen).recalled is not None
    assert card_of(seen, Gate("coco", COCO.generation.id, OPEN)).recalled is None


SKIPPED = SkippedImage("coco.squashfs", "gives no answer")
READERS = [
    # What is known before, what is seen; who may read it.
    pytest.param(None, Seen(COCO, top=on_source()), Permissions(), id="its-image-tells"),
    pytest.param(None, Seen(top=on_source()), Permissions(0, 50, 0o440), id="its-mount-tells"),
    pytest.param(PRIVATE, Seen(top=on_source()), PRIVATE, id="what-was-known-of-a-mount"),
    pytest.param(PRIVATE, Seen(copies=(cached("coco"),)), PRIVATE, id="what-was-known-of-a-copy"),
    pytest.param(PRIVATE, Seen(has_unseen_copies=True), PRIVATE, id="what-was-known-of-a-copy-on-a-silent-disk"),
    pytest.param(PRIVATE, Seen(skipped=SKIPPED), PRIVATE, id="an-image-that-cannot-be-looked-at-now"),
    pytest.param(
        PRIVATE, Seen(skipped=SkippedImage("coco.squashfs", "is bad", OPEN)), OPEN, id="a-bad-image-tells"
    ),
    pytest.param(PRIVATE, Seen(), None, id="nothing-is-here-of-it"),
    pytest.param(None, Seen(copies=(cached("coco"),)), None, id="nothing-is-known"),
]  # fmt: skip


@pytest.mark.parametrize(("known", "seen", "readers"), READERS)
def test_who_may_read_it(known: Permissions | None, seen: Seen, readers: Permissions | None) -> None:
    generation_id = COCO.generation.id
    card = Card("coco", permissions=known, learned=Learned(tags={KEY: generation_id}, gates={generation_id: CLOSED}))
    assert see(card, structs.replace(seen, is_listed=False)).permissions == readers


# What is under way.

STAGE = Stage(image("coco", 1000), "pinned", True, "/ssd1")

COPIES = [
    pytest.param([], 10.0, 0.0, id="nothing-said-yet"),
    pytest.param([(0, "copying")], 10.0, 0.0, id="begun"),
    pytest.param([(0, "copying"), (500, "copying")], 10.0, 50.0, id="mean-since-the-start"),
    pytest.param([(300, "resuming"), (400, "copying"), (900, "copying")], 10.0, 50.0, id="what-was-there-is-no-speed"),
    pytest.param([(300, "resuming")], 10.0, 0.0, id="reading-what-was-there-is-no-speed"),
    pytest.param([(0, "copying"), (500, "copying")], 0.0, 0.0, id="no-time-passed"),
]


@pytest.mark.parametrize(("said", "after_s", "expected"), COPIES)
def test_the_speed_of_a_copy(said: list[tuple[int, str]], after_s: float, expected: float) -> None:
    events = [Progress("coco", done, phase) for done, phase in said]
    card = card_of(MOUNTED, Begun("coco", STAGE), CopyStarted("coco", 100.0), *events)
    assert card.staging is not None and card.staging.bytes_per_s(100.0 + after_s) == expected


def test_a_copy_that_waits_for_its_turn_is_no_faster_for_it() -> None:
    card = card_of(MOUNTED, Begun("coco", STAGE))
    assert card.staging == Staging(STAGE.image, "/ssd1")
    assert card.staging.bytes_per_s(100.0) == 0.0


def test_a_copy_that_is_verified_is_all_there() -> None:
    card = card_of(MOUNTED, Begun("coco", STAGE), Progress("coco", 7, "verifying"))
    assert card.staging is not None and card.staging.bytes_done == 1000


def test_a_copy_under_way_is_the_part_that_counts_and_what_is_left_over_comes_back_with_its_end() -> None:
    left = StagedImage("coco", COCO.generation.id, 5, False, disk="/ssd0")
    card = card_of(structs.replace(MOUNTED, leftovers=(left,)))
    assert card.parts == (left,)
    card = fold(fold(card, Begun("coco", STAGE)), Progress("coco", 300, "copying"))
    reserved_bytes = most_copy_bytes(1000)
    assert card.parts == (StagedImage("coco", STAGE.image.generation.id, reserved_bytes, True, 300, "/ssd1"),)
    assert fold(card, Ended("coco", STAGE)).parts == (left,)


def test_what_hangs_is_still_under_way() -> None:
    card = card_of(MOUNTED, Begun("coco", STAGE), Hangs("coco", 7.0))
    assert card.under_way is not None and (card.action, card.under_way.hanging_since) == (STAGE, 7.0)
    card = fold(card, Answers("coco"))
    assert card.under_way is not None and card.under_way.hanging_since is None
    assert fold(card, Ended("coco", STAGE)).under_way is None


@pytest.mark.parametrize("late", [Progress("coco", 5, "copying"), Hangs("coco", 1.0), Answers("coco")])
def test_what_is_told_after_the_end_changes_nothing(late: Event) -> None:
    card = card_of(MOUNTED, told())
    assert fold(card, late) == card


def test_a_dataset_that_is_looked_at_is_busy_with_no_action() -> None:
    card = card_of(MOUNTED, Begun("coco"))
    assert card.under_way is not None and card.action is None and not card.is_leaving


# Failures.


def test_each_failure_doubles_the_pause_up_to_ten_minutes() -> None:
    failure, pauses = None, []
    for _ in range(10):
        failure = fail(failure, "no", 1000.0)
        pauses.append(failure.retry_at - 1000.0)
    assert pauses == [5, 10, 20, 40, 80, 160, 320, 600, 600, 600]


def test_a_thousand_failures_are_still_ten_minutes_apart() -> None:
    failure = None
    for _ in range(2000):
        failure = fail(failure, "no", 0.0)
    assert failure is not None and (failure.retry_at, failure.attempts) == (600.0, 2000)


def failed(kind: ActionKind = ActionKind.STAGE, failure: Failure | None = None) -> Failed:
    return Failed("coco", kind, failure or fail(None, "no", 0.0))


def test_kinds_of_actions_fail_by_themselves_and_a_success_begins_anew() -> None:
    card = card_of(MOUNTED, failed(), failed(ActionKind.MOUNT))
    assert set(card.failures) == {ActionKind.STAGE, ActionKind.MOUNT}
    assert set(fold(card, Succeeded("coco", STAGE)).failures) == {ActionKind.MOUNT}
    assert fold(card_of(MOUNTED), Succeeded("coco", STAGE)).failures == {}


@pytest.mark.parametrize(
    ("now_there", "left"), [(COCO, 2), (NEWER, 1), (None, 2)], ids=["the-same-image", "another-image", "no-image"]
)
def test_the_failures_of_an_image_go_with_it(now_there: SourceImage | None, left: int) -> None:
    about = fail(None, "bad", 0.0, COCO.generation.id, for_good=True)
    card = card_of(MOUNTED, failed(failure=about), failed(ActionKind.MOUNT))
    assert about.is_for_good and card.is_off(ActionKind.STAGE, 1e12)
    assert len(see(card, Seen(now_there, is_listed=False)).failures) == left


def test_what_the_administrator_evicted_is_not_staged_for_its_throughput_but_for_a_claim() -> None:
    card = card_of(MOUNTED, HeldOff("coco", 100.0))
    assert card.is_off(ActionKind.STAGE, 99.0)
    assert not card.is_off(ActionKind.STAGE, 100.0)
    claim = Claim(Job(7), 1000, 0, Standing.COUNTS)
    assert not fold(card, Claimed("coco", (claim,), 99.0)).is_off(ActionKind.STAGE, 99.0)


# Copies and mounts that are bad.


def test_a_bad_copy_stays_bad_until_it_is_evicted_as_the_next_one_has_its_name() -> None:
    copy = cached("coco")
    seen = structs.replace(MOUNTED, copies=(copy,))
    card = card_of(seen, BadCopy("coco", copy.path, "EIO"))
    assert [each.bad for each in card.copies] == ["EIO"]
    gone = see(card, MOUNTED)
    assert [each.bad for each in see(gone, seen).copies] == ["EIO"]
    evicted = fold(gone, Succeeded("coco", Evict(card.copies[0], None, "EIO")))
    assert [each.bad for each in see(evicted, seen).copies] == [""]


def test_a_mount_that_was_cut_off_does_not_get_well_for_what_is_in_memory_of_it() -> None:
    card = card_of(MOUNTED, told(), CutOff("coco", KEY, "its source is gone"), Looked("coco", KEY, ""))
    assert card.fault == "its source is gone"


def test_what_is_wrong_with_a_mount_outlasts_a_change_that_failed_and_no_other() -> None:
    action = Mend(COCO, FromSource(COCO), "EIO", despite=None)
    failing = card_of(MOUNTED, told(), Looked("coco", KEY, "EIO"), Begun("coco", action))
    assert fold(fold(failing, failed(ActionKind.REPLACE)), Ended("coco", action)).fault == "EIO"
    assert fold(fold(failing, Succeeded("coco", action)), Ended("coco", action)).fault == ""


def test_a_mount_that_answers_again_is_well() -> None:
    assert card_of(MOUNTED, told(), Looked("coco", KEY, "EIO"), Looked("coco", KEY, "")).fault == ""


def test_what_is_said_of_a_mount_that_nobody_sees_is_forgotten() -> None:
    card = fold(Card("coco"), CutOff("coco", KEY, "gone"))
    # The card knows of no such mount: nothing to keep, and the next look through it tells.
    assert see(card, MOUNTED).fault == ""


# Uses.


def test_a_claim_that_counts_is_a_use_of_what_is_here() -> None:
    counts, waits = (Claim(Job(7), 1000, 0, standing) for standing in (Standing.COUNTS, Standing.WAITS))
    assert card_of(MOUNTED, Claimed("coco", (counts,), 50.0)).reads.last_at == 50.0
    assert card_of(MOUNTED, Claimed("coco", (waits,), 50.0)).reads.last_at == 0.0
    assert card_of(Seen(), Claimed("coco", (counts,), 50.0)).reads.last_at == 0.0, "nothing is here of it"
    later = card_of(MOUNTED, Claimed("coco", (counts,), 50.0), Read("coco", Reads(1.0, last_at=40.0)))
    assert later.reads == Reads(1.0, last_at=50.0)
