"""What one dataset needs next, by its card alone: tables whose ids are the specification."""

from typing import Any

import pytest
from msgspec import structs

from scratch_slurm.domain.actions import ActionKind, BackTo, Evict, Mount, Retarget
from scratch_slurm.domain.backing import FromCopy, FromSource
from scratch_slurm.domain.claims import Standing
from scratch_slurm.domain.dataset import Card, Reads, UnderWay
from scratch_slurm.domain.model import Backing
from scratch_slurm.domain.plan.moves import Move, current, decide_all, evict, find_outdated, next_move, obstacle, wanted
from tests.kit.cards import BUSY, SKIPPED, by_name, claims, failed, on_copy, on_source
from tests.kit.strategies import cached, image, mounted

NOW = 100.0
A, NEWER = image("a"), image("a", version=2)
COPY, NEWER_COPY = cached("a"), cached("a", version=2)
PINNED, WAITING, REFUSED = claims(7), claims(7, standing=Standing.WAITS), claims(7, standing=Standing.REFUSED)
MOUNT, REPLACE, UNMOUNT, UNCOVER = ActionKind.MOUNT, ActionKind.REPLACE, ActionKind.UNMOUNT, ActionKind.UNCOVER
RETARGET, EVICT = ActionKind.RETARGET, ActionKind.EVICT


def word(move: Move | None) -> str:
    """A move as `mend copy`; empty: none."""
    if move is None:
        return ""
    name = type(move).__name__.lower()
    if isinstance(move, Mount | Retarget):
        return f"{name} {'copy' if isinstance(move.backing, FromCopy) else 'source'}"
    return name


def newer(**facts: Any) -> Card:
    """A card whose mount is older than the source's image."""
    return on_source(image=NEWER, **facts)


def gone(**facts: Any) -> Card:
    """A card whose image the source has no more."""
    return on_source(image=None, **facts)


def lost(**facts: Any) -> Card:
    """A card whose mount reads a copy that is not in the cache."""
    return on_copy(copies=(), **facts)


def beneath(top: int | None, below: int | None, in_source: int | None, **facts: Any) -> Card:
    """A card with a mount of one version beneath the one that is seen."""
    source = image("a", version=in_source) if in_source else None
    return Card("a", image=source, mounted=mounted("a", version=top), covered=mounted("a", version=below), **facts)


MOVES = [
    # Nothing is mounted.
    pytest.param(Card("a"), "", id="nothing-there-nothing-to-do"),
    pytest.param(Card("a", image=A), "mount source", id="what-is-new-is-mounted"),
    pytest.param(Card("a", image=A, is_listed=False), "mount source", id="before-the-listing-ends-too"),
    pytest.param(Card("a", image=A, copies=(COPY,)), "mount copy", id="on-its-copy-where-there-is-one"),
    pytest.param(Card("a", image=A, copies=(NEWER_COPY,)), "mount source", id="not-on-a-copy-of-another-generation"),
    pytest.param(Card("a", image=A, copies=(structs.replace(COPY, bad="EIO"),)), "mount source", id="nor-on-a-bad-one"),
    pytest.param(Card("a", recalled=A, copies=(COPY,)), "mount copy", id="what-a-listing-showed-once-on-its-copy"),
    pytest.param(Card("a", recalled=A), "", id="but-not-without-a-copy"),
    pytest.param(Card("a", recalled=A, copies=(NEWER_COPY,)), "", id="nor-on-another-generation-s"),
    pytest.param(Card("a", image=A, is_foreign=True), "", id="a-foreign-mount-is-left-alone"),
    pytest.param(Card("a", image=A, under_way=BUSY), "", id="one-thing-at-a-time"),
    pytest.param(Card("a", image=A, failures=failed(MOUNT)), "", id="a-failed-mount-waits"),
    pytest.param(Card("a", image=A, failures=failed(MOUNT, retry_at=NOW)), "mount source", id="until-it-is-due"),
    pytest.param(Card("a", image=A, failures=failed(REPLACE)), "mount source", id="for-no-other-failure"),
    # The source has a newer image.
    pytest.param(newer(), "replace source", id="newer-is-put-in-its-place"),
    pytest.param(newer(copies=(NEWER_COPY,)), "replace copy", id="newer-and-cached-on-its-copy"),
    pytest.param(newer(claims=PINNED), "", id="newer-but-pinned-is-kept"),
    pytest.param(newer(claims=WAITING), "", id="newer-but-perhaps-pinned-is-kept"),
    pytest.param(newer(are_claims_known=False), "", id="newer-while-the-ledger-cannot-be-read-is-kept"),
    pytest.param(newer(claims=REFUSED), "replace source", id="a-refused-pin-keeps-nothing"),
    pytest.param(newer(failures=failed(REPLACE)), "", id="a-failed-replacement-waits"),
    pytest.param(on_source(mounted=mounted("a", version=None)), "replace source", id="of-unknown-generation-goes"),
    # The source has none.
    pytest.param(gone(), "unmount", id="gone-is-unmounted"),
    pytest.param(gone(copies=(COPY,)), "unmount", id="gone-is-unmounted-though-cached"),
    pytest.param(gone(claims=PINNED), "", id="gone-but-pinned-stays"),
    pytest.param(gone(are_claims_known=False), "", id="gone-stays-while-the-ledger-cannot-be-read"),
    pytest.param(gone(claims=REFUSED), "unmount", id="gone-goes-under-a-refused-pin"),
    pytest.param(gone(is_listed=False), "", id="not-listed-yet-is-not-gone"),
    pytest.param(gone(skipped=SKIPPED), "", id="a-bad-image-is-not-gone"),
    pytest.param(gone(failures=failed(UNMOUNT)), "", id="a-failed-unmount-waits"),
    pytest.param(on_source(revoked="was open", claims=PINNED), "unmount", id="revoked-goes-though-pinned"),
    pytest.param(on_source(revoked="was open", failures=failed(UNMOUNT)), "", id="revoked-waits-for-its-retry"),
    # It cannot be read.
    pytest.param(on_source(fault="EIO", claims=PINNED), "mend source", id="sick-is-mounted-anew-though-pinned"),
    pytest.param(on_copy(fault="EIO"), "mend copy", id="sick-is-mounted-anew-on-its-copy"),
    pytest.param(on_source(fault="EIO", failures=failed(REPLACE)), "", id="sick-waits-for-its-retry"),
    pytest.param(newer(fault="EIO", claims=PINNED), "", id="sick-older-and-pinned-has-nothing-to-be-mounted-from"),
    pytest.param(newer(fault="EIO"), "replace source", id="sick-and-older-is-replaced"),
    # Which file it reads.
    pytest.param(on_source(), "", id="what-is-not-cached-reads-the-source"),
    pytest.param(on_copy(), "", id="what-reads-its-copy-stays-there"),
    pytest.param(on_source(copies=(COPY,)), "retarget copy", id="what-is-cached-is-read-from-there"),
    pytest.param(on_source(copies=(COPY,), claims=PINNED), "retarget copy", id="pinned-or-not"),
    pytest.param(on_source(copies=(NEWER_COPY,)), "", id="not-from-a-copy-of-another-generation"),
    pytest.param(on_source(copies=(structs.replace(COPY, bad="EIO"),)), "", id="not-from-a-bad-one"),
    pytest.param(on_source(copies=(COPY,), failures=failed(RETARGET)), "", id="a-refused-switch-waits"),
    pytest.param(newer(copies=(COPY,), claims=PINNED), "retarget copy", id="an-older-one-is-switched-to-its-own-copy"),
    pytest.param(lost(), "retarget source", id="a-deleted-copy-is-left-for-the-source"),
    pytest.param(lost(claims=PINNED), "retarget source", id="though-pinned"),
    pytest.param(lost(is_copy_unseen=True), "", id="but-not-while-its-disk-gives-no-answer"),
    pytest.param(lost(image=NEWER, claims=PINNED), "", id="nor-without-its-image-in-the-source"),
    # A change that was cut short.
    pytest.param(beneath(1, 2, 2), "uncover", id="the-newer-one-beneath-is-shown"),
    pytest.param(beneath(1, 2, 2, claims=PINNED), "", id="pinned-keeps-the-older-one-on-top"),
    pytest.param(beneath(1, 1, 1, claims=PINNED), "uncover", id="a-mend-is-finished-though-pinned"),
    pytest.param(beneath(2, 1, 2), "unmount", id="an-older-one-beneath-goes-with-all"),
    pytest.param(beneath(2, 1, 2, claims=PINNED), "", id="an-older-one-beneath-stays-while-pinned"),
    pytest.param(beneath(1, None, 1), "unmount", id="an-unknown-one-beneath-goes-with-all"),
    pytest.param(beneath(None, None, 1, claims=PINNED), "", id="two-unknown-ones-are-not-the-same"),
    pytest.param(beneath(1, 2, 2, failures=failed(UNCOVER)), "unmount", id="what-is-sick-beneath-goes-with-all"),
    pytest.param(beneath(1, 1, 1, failures=failed(UNCOVER), claims=PINNED), "", id="sick-beneath-and-pinned-stays"),
    pytest.param(beneath(1, 2, 2, failures=failed(UNCOVER, UNMOUNT)), "", id="no-third-mount-is-put-there"),
    pytest.param(beneath(1, 2, None), "unmount", id="removed-from-the-source-goes-with-all"),
    pytest.param(beneath(1, 2, None, is_listed=False), "", id="a-listing-that-failed-takes-nothing"),
    pytest.param(beneath(1, 2, 2, under_way=BUSY), "", id="cut-short-one-thing-at-a-time"),
]


@pytest.mark.parametrize(("card", "expected"), MOVES)
def test_the_next_move(card: Card, expected: str) -> None:
    move = next_move(card, NOW)
    assert word(move) == expected
    assert move is None or (move.dataset == "a" and move.reason)


DESPITE = [
    pytest.param(newer(claims=REFUSED), frozenset({"job:7"}), id="a-newer-image"),
    pytest.param(gone(claims=REFUSED), frozenset({"job:7"}), id="a-removed-one"),
    pytest.param(beneath(1, 2, 2, claims=REFUSED), frozenset({"job:7"}), id="what-was-cut-short"),
    pytest.param(beneath(1, 1, 1, claims=REFUSED), None, id="one-of-the-same-generation-asks-nobody"),
    pytest.param(on_source(fault="EIO", claims=REFUSED), None, id="a-mend-asks-nobody"),
    pytest.param(on_source(revoked="was open", claims=REFUSED), None, id="what-is-revoked-asks-nobody"),
]


@pytest.mark.parametrize(("card", "expected"), DESPITE)
def test_a_move_is_told_whose_pins_do_not_keep_it(card: Card, expected: frozenset[str] | None) -> None:
    move = next_move(card, NOW)
    assert move is not None and not isinstance(move, Retarget)
    assert getattr(move, "despite", "no such field") == expected


def test_a_switch_takes_along_what_the_dataset_can_be_mounted_from_anew() -> None:
    assert next_move(on_source(copies=(COPY,)), NOW) == Retarget(
        "a", "loop-a", FromCopy(COPY), A, "its copy is whole and verified"
    )
    older = next_move(newer(copies=(COPY,), claims=PINNED), NOW)
    assert isinstance(older, Retarget) and older.image is None
    back = next_move(lost(), NOW)
    assert isinstance(back, Retarget) and back.backing == FromSource(A)


WAITS = "the source has a newer image; it is mounted when nobody pins the old one"
STAYS = "removed from the source; it stays while it is pinned"
OBSTACLES = [
    pytest.param(on_source(), "", False, id="all-is-well"),
    pytest.param(Card("a", image=A), "", False, id="not-mounted-yet"),
    pytest.param(newer(), "", False, id="a-newer-image-that-nobody-keeps-from-being-mounted"),
    pytest.param(newer(claims=PINNED), WAITS, False, id="a-newer-image-waits-for-the-last-pin"),
    pytest.param(newer(claims=WAITING), WAITS, False, id="or-for-what-may-be-one"),
    pytest.param(newer(are_claims_known=False), WAITS, False, id="or-for-the-ledger"),
    pytest.param(gone(claims=PINNED), STAYS, False, id="a-removed-image-stays-while-pinned"),
    pytest.param(gone(claims=PINNED, is_listed=False), "", False, id="what-may-be-there-is-not-removed"),
    pytest.param(gone(), "", False, id="a-removed-image-that-nobody-pins"),
    pytest.param(on_source(fault="EIO"), "cannot be read and is mounted anew: EIO", True, id="sick-is-mended-soon"),
    pytest.param(newer(claims=PINNED, is_foreign=True), "", False, id="a-foreign-mount-is-none-of-ours"),
    pytest.param(newer(claims=PINNED, under_way=BUSY), "", False, id="what-is-being-changed-is-told-of-later"),
    pytest.param(newer(claims=PINNED, revoked="was open"), "", False, id="what-is-revoked-goes"),
    pytest.param(beneath(1, 1, 2, claims=PINNED), "", False, id="what-is-finished-first"),
]


@pytest.mark.parametrize(("card", "text", "waiting_helps"), OBSTACLES)
def test_what_is_in_the_way(card: Card, text: str, *, waiting_helps: bool) -> None:
    problem = obstacle(card)
    assert (problem.text if problem else "") == text
    assert problem is None or problem.waiting_helps is waiting_helps


HERE, THERE = structs.replace(COPY, path="/ssd0/a", disk="/ssd0"), structs.replace(COPY, path="/ssd1/a", disk="/ssd1")
OUTDATED = [
    pytest.param(on_copy(), [], id="the-copy-that-is-read"),
    pytest.param(on_source(copies=(COPY,)), [], id="the-copy-that-will-be-read"),
    pytest.param(on_source(copies=(NEWER_COPY,)), [NEWER_COPY], id="a-copy-of-another-generation"),
    pytest.param(newer(copies=(COPY, NEWER_COPY)), [], id="both-of-what-is-mounted-and-of-what-comes"),
    pytest.param(Card("a", copies=(COPY,)), [COPY], id="a-copy-of-no-dataset"),
    pytest.param(Card("a", copies=(COPY,), is_listed=False), [], id="not-until-the-source-is-listed"),
    pytest.param(Card("a", copies=(COPY,), skipped=SKIPPED), [], id="not-while-its-image-is-bad"),
    pytest.param(on_copy(image=NEWER, claims=PINNED), [], id="not-what-a-job-reads"),
    pytest.param(on_copy(copies=(COPY, NEWER_COPY)), [NEWER_COPY], id="of-two-the-one-that-is-not-mounted"),
    pytest.param(
        on_source(copies=(structs.replace(COPY, bad="EIO"),), claims=PINNED), None, id="a-bad-one-though-pinned"
    ),
    pytest.param(
        on_copy(mounted=mounted("a", version=None), copies=(COPY,)), [], id="its-image-s-while-the-mount-is-unknown"
    ),
    pytest.param(on_copy(copies=(COPY, HERE, THERE)), [HERE, THERE], id="all-but-the-one-that-is-read"),
    pytest.param(on_source(copies=(HERE, THERE)), [THERE], id="all-but-the-first-where-none-is-read"),
    pytest.param(Card("a", copies=(COPY,), failures=failed(EVICT)), [], id="a-failed-deletion-waits"),
    pytest.param(Card("a", copies=(COPY,), under_way=BUSY), [], id="one-thing-at-a-time"),
    pytest.param(Card("a", copies=(COPY,), is_foreign=True), [], id="a-foreign-mount-may-read-it"),
]


@pytest.mark.parametrize(("card", "expected"), OUTDATED)
def test_copies_that_can_never_be_served_again(card: Card, expected: list[Any] | None) -> None:
    found = find_outdated(card, NOW)
    assert [each.image for each in found] == (list(card.copies) if expected is None else expected)
    assert all(each.back_to is None and each.despite is None and each.reason for each in found)


def test_what_is_read_is_kept_though_nobody_knows_its_generation() -> None:
    unknown = structs.replace(mounted("a", backing=Backing.CACHE), generation_id=None)
    assert find_outdated(on_copy(image=NEWER, mounted=unknown, claims=PINNED), NOW) == ()


WANTED = [
    pytest.param(Card("a", image=A), A, None, id="what-is-about-to-be-mounted"),
    pytest.param(on_copy(), A, COPY, id="what-is-mounted"),
    pytest.param(newer(copies=(COPY,)), None, COPY, id="not-what-only-comes-when-its-pins-go"),
    pytest.param(gone(copies=(COPY,)), None, COPY, id="not-what-is-gone"),
    pytest.param(on_copy(under_way=UnderWay(Evict(COPY, None, ""))), A, None, id="not-a-copy-on-its-way-out"),
    pytest.param(on_source(copies=(structs.replace(COPY, bad="EIO"),)), A, None, id="not-a-bad-copy"),
]


@pytest.mark.parametrize(("card", "image_wanted", "copy"), WANTED)
def test_what_to_have_and_what_there_is(card: Card, image_wanted: Any, copy: Any) -> None:
    assert (wanted(card), current(card)) == (image_wanted, copy)


def test_an_eviction_takes_its_reader_back_to_the_source_first() -> None:
    assert evict(on_copy(), COPY, "asked") == Evict(COPY, BackTo("loop-a", A), "asked")
    assert evict(on_source(copies=(COPY,)), COPY, "asked") == Evict(COPY, None, "asked")
    assert evict(on_copy(image=NEWER), COPY, "asked") is None


def test_an_eviction_names_the_holders_that_do_not_keep_it() -> None:
    found = evict(on_copy(claims=REFUSED), COPY, "asked", frozenset({"job:8"}))
    assert found is not None and found.despite == frozenset({"job:7", "job:8"})


def test_what_did_not_change_is_not_decided_again_until_something_is_due() -> None:
    card = Card("a", image=A, failures=failed(MOUNT, retry_at=NOW + 5))
    first = decide_all(by_name([card]), NOW, {})
    read = structs.replace(card, reads=Reads(bytes_per_s=1.0))
    assert decide_all(by_name([card]), NOW + 4, first)["a"] is first["a"]
    assert decide_all(by_name([read]), NOW + 4, first)["a"] is first["a"]
    assert word(decide_all(by_name([card]), NOW + 5, first)["a"].move) == "mount source"
    assert word(decide_all(by_name([structs.replace(card, failures={})]), NOW, first)["a"].move) == "mount source"


def test_a_dataset_with_copies_to_delete_is_not_switched_in_the_same_plan() -> None:
    decision = decide_all(by_name([on_source(copies=(COPY, NEWER_COPY))]), NOW, {})["a"]
    assert decision.move is None and [each.image for each in decision.outdated] == [NEWER_COPY]
    replaced = decide_all(by_name([newer(copies=(cached("a", version=3),))]), NOW, {})["a"]
    assert word(replaced.move) == "replace source" and not replaced.outdated
