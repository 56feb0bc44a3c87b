"""Which mounts are looked at: those that were read since the last look, no more often than the interval."""

import pytest

from scratch_slurm.domain.dataset import Card, Reads
from scratch_slurm.domain.sight import Seen, SeenMount
from scratch_slurm.service.cards import fold, see
from scratch_slurm.service.events import Looked, Read
from scratch_slurm.service.health import Health
from tests.kit import virtual_time
from tests.kit.fake_hands import FakeHands, FakeNode

KEY = (100, "loop3")
MOUNT = SeenMount("coco", KEY)
CARD = see(Card("coco"), Seen(top=MOUNT))


@pytest.fixture
def health() -> Health:
    return Health(FakeHands(FakeNode()), lambda event: None, interval_s=30.0)


def read(total_bytes: int, card: Card = CARD) -> Card:
    return fold(card, Read("coco", Reads(source_bytes=total_bytes - 100, cache_bytes=100)))


def test_idle_mounts_are_never_looked_at(health: Health) -> None:
    assert [health.choose([CARD], now) for now in (0.0, 60.0, 6000.0)] == [[], [], []]


def test_what_is_read_is_looked_at_once_an_interval(health: Health) -> None:
    assert health.choose([CARD], 0.0) == []
    assert health.choose([read(8192)], 29.0) == []
    assert health.choose([read(8192)], 30.0) == [read(8192)]


def test_reads_of_the_look_itself_ask_for_no_other(health: Health) -> None:
    health.choose([CARD], 0.0)
    assert health.choose([read(8192)], 40.0)
    virtual_time.run(health.look(read(8192)))  # nothing is mounted on this node: it is over all the same
    assert health.choose([read(9000)], 41.0) == []
    assert health.choose([read(9000)], 100.0) == []
    assert health.choose([read(9001)], 101.0) == [read(9001)]


def test_what_is_unwell_is_looked_at_again_though_nobody_reads_it(health: Health) -> None:
    health.choose([CARD], 0.0)
    assert health.choose([fold(CARD, Looked("coco", KEY, "EIO"))], 31.0)


def test_a_mount_made_anew_is_another_one(health: Health) -> None:
    health.choose([CARD], 0.0)
    anew = see(read(8192), Seen(top=SeenMount("coco", (101, "loop3"))))
    assert health.choose([anew], 31.0) == []
    assert health.choose([fold(anew, Read("coco", Reads(source_bytes=9000)))], 61.0)


def test_what_is_not_ours_is_not_looked_at(health: Health) -> None:
    foreign = see(Card("coco"), Seen(top=SeenMount("coco", None)))
    health.choose([foreign], 0.0)
    assert health.choose([read(8192, foreign)], 60.0) == []
