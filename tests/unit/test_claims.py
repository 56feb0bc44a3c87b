"""Claims: what a pin is worth, and what a card says of it."""

import pytest

from scratch_slurm.domain.access import Person, may_read
from scratch_slurm.domain.actions import ActionKind
from scratch_slurm.domain.claims import Administrator, Claim, Job, Standing, judge, parse_holder
from scratch_slurm.domain.dataset import Card, Failure
from scratch_slurm.domain.model import Permissions, SkippedImage

PRIVATE = Permissions(0, 500, 0o640)
PUBLIC = Permissions(0, 0, 0o644)

STANDINGS = [
    pytest.param(7, None, PUBLIC, True, Standing.COUNTS, id="what-everybody-may-read-needs-no-name-service"),
    pytest.param(7, frozenset({500}), PRIVATE, True, Standing.COUNTS, id="in-its-group"),
    pytest.param(7, frozenset({501}), PRIVATE, True, Standing.REFUSED, id="not-in-its-group"),
    pytest.param(7, None, PRIVATE, True, Standing.WAITS, id="a-user-whom-the-name-service-does-not-know"),
    pytest.param(7, frozenset({500}), None, True, Standing.WAITS, id="an-image-that-nobody-has-looked-at"),
    pytest.param(0, None, None, True, Standing.COUNTS, id="root-may-read-all"),
    pytest.param(7, None, None, False, Standing.COUNTS, id="the-name-of-nothing-has-nothing-to-hide"),
]


@pytest.mark.parametrize(("uid", "gids", "permissions", "is_here", "expected"), STANDINGS)
def test_what_a_claim_is_worth(
    uid: int, gids: frozenset[int] | None, permissions: Permissions | None, is_here: bool, expected: Standing
) -> None:
    assert judge(may_read(Person(uid, gids), permissions), is_here=is_here) is expected


@pytest.mark.parametrize("holder", [Job(7), Administrator()])
def test_holders_are_read_as_they_are_written(holder: Job | Administrator) -> None:
    assert parse_holder(str(holder)) == holder


@pytest.mark.parametrize("text", ["", "job:", "job:x", "job:-1", "someone"])
def test_what_is_no_holder(text: str) -> None:
    with pytest.raises(ValueError, match="no holder"):
        parse_holder(text)


def claimed(*standings: Standing, known: bool = True) -> Card:
    claims = tuple(Claim(Job(number), 7, number, standing) for number, standing in enumerate(standings, 1))
    return Card("a", claims=claims, are_claims_known=known)


@pytest.mark.parametrize(
    ("card", "is_pinned", "may_be_pinned"),
    [
        pytest.param(claimed(), False, False, id="nobody"),
        pytest.param(claimed(Standing.REFUSED, Standing.COUNTS), True, True, id="one-that-counts"),
        pytest.param(claimed(Standing.WAITS), False, True, id="one-that-may-count"),
        pytest.param(claimed(Standing.REFUSED), False, False, id="one-that-does-not"),
        pytest.param(claimed(known=False), False, True, id="whoever-it-may-be"),
    ],
)
def test_whether_a_dataset_is_pinned(card: Card, is_pinned: bool, may_be_pinned: bool) -> None:
    assert (card.is_pinned, card.may_be_pinned) == (is_pinned, may_be_pinned)


def test_what_failed_is_put_off_until_its_time_and_nothing_else_is() -> None:
    card = Card("a", failures={ActionKind.MOUNT: Failure("EIO", 1, 5.0)})
    assert not card.may(ActionKind.MOUNT, 4.9)
    assert card.may(ActionKind.MOUNT, 5.0)
    assert card.may(ActionKind.STAGE, 4.9)


def test_what_the_administrator_evicted_comes_back_for_a_pin_alone() -> None:
    assert not Card("a", held_off_until=5.0).may(ActionKind.STAGE, 4.9)
    pinned = Card("a", held_off_until=5.0, claims=claimed(Standing.WAITS).claims)
    assert pinned.may(ActionKind.STAGE, 4.9)


def test_only_a_whole_listing_tells_that_an_image_is_gone() -> None:
    assert Card("a").is_gone
    assert not Card("a", is_listed=False).is_gone
    assert not Card("a", skipped=SkippedImage("a.squashfs", "is cut short")).is_gone
