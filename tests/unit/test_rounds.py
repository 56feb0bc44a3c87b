"""Rounds over a node in memory, in virtual time: what only a root daemon met before."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from scratch_slurm.domain.errors import DeviceError, DigestError, DiskError, NotFoundError, PinnedError, RetargetError
from scratch_slurm.domain.model import Permissions
from scratch_slurm.service.requests import evict
from scratch_slurm.service.rounds import Rounds
from scratch_slurm.service.status import word_failures
from tests.kit import virtual_time
from tests.kit.fake_hands import FakeNode

PRIVATE = Permissions(0, 50, 0o640)
CLOSED = Permissions(0, 50, 0o750)


Story = Callable[[FakeNode], Awaitable[None]]


def story(run: Story) -> Callable[[], None]:
    """Make a test of a story about a node."""
    return story_with()(run)


def story_with(**values: str) -> Callable[[Story], Callable[[], None]]:
    """Make a test of a story about a node with such a configuration."""

    def make(run: Story) -> Callable[[], None]:
        def test() -> None:
            async def tell() -> None:
                await run(FakeNode(1, **values))

            virtual_time.run(tell())

        test.__name__, test.__doc__ = run.__name__, run.__doc__
        return test

    return make


async def cached(node: FakeNode, rounds: Rounds, *names: str) -> None:
    """Let datasets be published, pinned by job 1, and cached; then the job ends."""
    for name in names:
        node.publish(name)
        node.ledger.pin(name)
    rounds.nudge()
    await node.until(lambda: all(node.is_cached(name) for name in names))
    node.ledger.unpin()
    await node.rest(rounds)


def is_hanging(rounds: Rounds) -> bool:
    return any(card.under_way and card.under_way.hanging_since for card in rounds.cards.values())


def begun(node: FakeNode, verb: str, dataset: str = "coco") -> int:
    return node.verbs.count((verb, dataset))


@story
async def test_what_is_published_is_mounted_and_what_is_pinned_is_cached(node: FakeNode) -> None:
    coco = node.publish("coco")
    rounds = node.start()
    await node.until(lambda: node.content("coco") == coco.generation.id)
    assert not node.is_cached("coco")
    reader = node.open("coco")
    node.ledger.pin("coco")
    rounds.nudge()
    await node.until(lambda: node.is_cached("coco"))
    assert node.content("coco") == coco.generation.id
    assert node.device("coco") is reader, "the file that was open reads on, from the copy"


@story
async def test_a_daemon_takes_over_what_another_one_left_and_touches_nothing(node: FakeNode) -> None:
    rounds = node.start()
    await cached(node, rounds, "coco", "tiny")
    await node.crash(rounds)
    node.verbs.clear()
    await node.rest(node.start(), 120)
    assert {verb for verb, _ in node.verbs} == {"identify"}
    assert node.is_cached("coco") and node.is_cached("tiny")


@pytest.mark.parametrize("steps", range(1, 30))
def test_killed_anywhere_in_a_replacement_the_next_daemon_brings_it_to_its_end(steps: int) -> None:
    async def tell() -> None:
        node = FakeNode()
        rounds = node.start()
        await cached(node, rounds, "coco")
        new = node.publish("coco")
        rounds.nudge()
        for _ in range(steps):
            assert node.content("coco") is not None, "the path is never empty"
            await half_a_step(node)
        await node.crash(rounds)
        rounds = node.start()
        await node.until(lambda: node.content("coco") == new.generation.id)
        await node.rest(rounds)
        assert len(node.mounts["coco"]) == 1

    virtual_time.run(tell())


@story
async def test_killed_in_a_replacement_while_a_third_version_comes_the_path_is_never_empty(node: FakeNode) -> None:
    rounds = node.start()
    node.publish("coco")
    await node.until(lambda: node.content("coco") is not None)
    node.publish("coco")
    rounds.nudge()
    while len(node.mounts["coco"]) == 1:
        await half_a_step(node)
    await node.crash(rounds)
    third = node.publish("coco")
    rounds = node.start()
    while node.content("coco") != third.generation.id:
        assert node.content("coco") is not None, "the path is never empty"
        await half_a_step(node)
    await node.rest(rounds)
    assert len(node.mounts["coco"]) == 1


@story
async def test_a_disk_that_takes_no_copy_comes_after_the_other_one(node: FakeNode) -> None:
    node = FakeNode(2)
    rounds = node.start()
    node.publish("coco")
    node.fail("copy", "coco", DiskError("read-only"))
    node.ledger.pin("coco")
    await node.until(lambda: node.is_cached("coco"))
    (copy,) = node.copies("coco")
    (shunned,) = [disk.dir for disk in rounds.latest().node.disks if disk.shunned_until]
    assert copy.disk != shunned
    node.publish("tiny")
    node.ledger.pin("tiny")
    rounds.nudge()
    await node.until(lambda: node.is_cached("tiny"))
    assert [each.disk for each in node.copies("tiny")] == [copy.disk], "though the other one is the emptier"


@story
async def test_a_disk_under_a_copy_that_hangs_comes_after_the_other_one(node: FakeNode) -> None:
    node = FakeNode(2)
    rounds = node.start()
    node.publish("coco", size_bytes=1)
    await node.until(lambda: node.content("coco") is not None)
    await node.rest(rounds)
    node.hang("coco")
    node.ledger.pin("coco")
    rounds.nudge()
    await node.until(lambda: any(disk.shunned_until for disk in rounds.latest().node.disks))
    (shunned,) = [disk.dir for disk in rounds.latest().node.disks if disk.shunned_until]
    for name in ("tiny", "more"):
        node.publish(name)
        node.ledger.pin(name)
    rounds.nudge()
    await node.until(lambda: node.is_cached("tiny") and node.is_cached("more"))
    assert shunned not in {each.disk for name in ("tiny", "more") for each in node.copies(name)}
    node.heal("coco")
    await node.until(lambda: node.is_cached("coco"))


async def half_a_step(node: FakeNode) -> None:
    await asyncio.sleep(node.step_s / 2)


@story
async def test_a_newer_image_waits_while_the_old_one_is_pinned(node: FakeNode) -> None:
    rounds = node.start()
    old = node.publish("coco")
    node.ledger.pin("coco")
    await node.until(lambda: node.is_cached("coco"))
    new = node.publish("coco")
    await node.rest(rounds, 120)
    assert node.content("coco") == old.generation.id
    assert node.copies("coco"), "pinned means pinned"
    node.ledger.unpin()
    rounds.nudge()
    await node.until(lambda: node.content("coco") == new.generation.id)
    await node.rest(rounds, 10)
    assert node.copies("coco") == [], "a copy of the old one serves nobody"


@story_with(capacity="1500000", period="1h")
async def test_room_is_made_of_what_nobody_pins_and_never_beyond_the_capacity(node: FakeNode) -> None:
    rounds = node.start()
    await cached(node, rounds, "old")
    node.publish("new")
    node.ledger.pin("new")
    rounds.nudge()
    most = 0

    def is_done() -> bool:
        nonlocal most
        most = max(most, node.disk.used_bytes(node.devices.values()))
        return node.is_cached("new")

    await node.until(is_done)
    assert most <= 1_500_000
    assert not node.is_cached("old") and node.content("old") is not None


@story
async def test_what_fails_is_tried_again_ever_more_seldom_and_told(node: FakeNode) -> None:
    for _ in range(5):
        node.fail("show", "coco")
    node.publish("coco")
    rounds = node.start()
    await node.rest(rounds, 30)
    assert begun(node, "show") == 3, "at 0, 5 and 15 seconds"
    assert "mount failed: coco: show failed" in word_failures(rounds.cards["coco"], virtual_time.now())
    await node.until(lambda: node.content("coco") is not None)
    assert word_failures(rounds.cards["coco"], virtual_time.now()) == ""


@story
async def test_what_hangs_keeps_only_its_own_dataset_busy(node: FakeNode) -> None:
    node.hang("coco")
    node.publish("coco")
    rounds = node.start()
    await node.until(lambda: is_hanging(rounds))
    node.publish("tiny")
    rounds.nudge()
    await node.until(lambda: node.content("tiny") is not None)
    assert begun(node, "show") == 1, "nothing else is tried on it meanwhile"
    node.heal("coco")
    await node.until(lambda: node.content("coco") is not None)
    assert not is_hanging(rounds)


@story
async def test_a_switch_that_is_refused_is_answered_by_a_fresh_mount(node: FakeNode) -> None:
    rounds = node.start()
    coco = node.publish("coco")
    await node.until(lambda: node.content("coco") is not None)
    node.fail("switch", "coco", RetargetError("the old backing is dead"))
    before = node.device("coco")
    node.ledger.pin("coco")
    rounds.nudge()
    await node.until(lambda: node.is_cached("coco"))
    assert node.device("coco") is not before
    assert node.content("coco") == coco.generation.id


@story
async def test_an_image_that_is_not_what_its_manifest_says_is_not_copied_again(node: FakeNode) -> None:
    node.publish("coco")
    node.ledger.pin("coco")
    node.fail("copy", "coco", DigestError("coco: is another image"))
    rounds = node.start()
    await node.rest(rounds, 7200)
    assert begun(node, "copy") == 1
    node.publish("coco")
    node.ledger.unpin()
    rounds.nudge()
    await node.rest(rounds)
    node.ledger.pin("coco")
    rounds.nudge()
    await node.until(lambda: node.is_cached("coco"))


@story
async def test_the_pin_of_a_user_who_may_not_read_it_is_taken_back(node: FakeNode) -> None:
    node.publish("secret", permissions=PRIVATE, root=CLOSED)
    node.groups[1000], node.groups[1001] = frozenset((7,)), frozenset((50,))
    node.ledger.pin("secret", 1, uid=1000)
    rounds = node.start()
    await node.until(lambda: node.ledger.held == [])
    await node.rest(rounds, 60)
    assert begun(node, "copy", "secret") == 0
    node.ledger.pin("secret", 2, uid=1001)
    rounds.nudge()
    await node.until(lambda: node.is_cached("secret"))


@story
async def test_an_image_that_lets_in_people_who_may_not_read_its_file_is_mounted_for_nobody(node: FakeNode) -> None:
    node.publish("secret", permissions=PRIVATE, root=Permissions(mode=0o755))
    rounds = node.start()
    await node.rest(rounds, 3600)
    assert node.content("secret") is None
    assert begun(node, "show", "secret") == 1, "it is known from then on"


@story
async def test_a_dead_disk_costs_the_cache_and_nothing_else(node: FakeNode) -> None:
    rounds = node.start()
    await cached(node, rounds, "coco")
    node.disk.problem = "I/O error"
    rounds.nudge()
    await node.until(lambda: not node.is_cached("coco"))
    assert node.content("coco") is not None
    assert "I/O error" in rounds.problem
    node.disk.problem = ""
    rounds.nudge()
    await node.until(lambda: node.is_cached("coco"))


@story
async def test_without_the_ledger_what_may_be_pinned_stays_as_it_is(node: FakeNode) -> None:
    rounds = node.start()
    await cached(node, rounds, "coco")
    old = node.content("coco")
    node.ledger.error = "the disk is gone"
    node.publish("coco")
    await node.rest(rounds, 600)
    assert node.content("coco") == old
    node.ledger.error = ""
    rounds.nudge()
    await node.until(lambda: node.content("coco") != old)


@story
async def test_a_kernel_that_tells_nothing_is_a_problem_and_changes_nothing(node: FakeNode) -> None:
    rounds = node.start()
    await cached(node, rounds, "coco")
    node.kernel_error = "/proc/self/mountinfo: cannot read it"
    node.verbs.clear()
    await rounds.after_next_round()
    await node.rest(rounds, 120)
    assert (rounds.problem, node.verbs) == (node.kernel_error, [])


@story
async def test_a_copy_that_nobody_wants_any_more_is_stopped_and_its_part_goes(node: FakeNode) -> None:
    node.copy_bytes_per_s = 1.0
    node.publish("coco")
    node.ledger.pin("coco")
    rounds = node.start()
    await node.until(lambda: any(path.endswith(".part") for path in node.disk.files))
    node.ledger.unpin()
    rounds.nudge()
    await node.until(lambda: node.disk.files == {})


@story
async def test_something_of_somebody_elses_on_the_path_is_left_alone(node: FakeNode) -> None:
    node.cover("coco")
    node.publish("coco")
    rounds = node.start()
    await node.rest(rounds, 600)
    assert len(node.mounts["coco"]) == 1 and begun(node, "show") == 0


@story
async def test_the_administrator_evicts_and_throughput_does_not_bring_it_back_at_once(node: FakeNode) -> None:
    rounds = node.start()
    await cached(node, rounds, "coco")
    assert await evict(rounds, "coco") == 1_000_000
    assert not node.is_cached("coco") and node.copies("coco") == []
    with pytest.raises(NotFoundError):
        await evict(rounds, "coco")


@story
async def test_the_administrator_is_refused_what_is_pinned_and_told_what_fails(node: FakeNode) -> None:
    rounds = node.start()
    await cached(node, rounds, "coco")
    node.fail("retire", "coco", DeviceError("no"))
    with pytest.raises(DeviceError, match=r"^coco: no$"):
        await evict(rounds, "coco")
    assert node.copies("coco"), "it is served as before"
    node.ledger.pin("coco")
    with pytest.raises(PinnedError):
        await evict(rounds, "coco")


@story
async def test_a_pin_that_comes_between_the_looks_of_an_eviction_keeps_the_copy(node: FakeNode) -> None:
    rounds = node.start()
    await cached(node, rounds, "coco")

    def pin_at_the_retirement(verb: str, dataset: str) -> None:
        if verb == "retire":
            node.ledger.pin("coco", 9)

    node.on_verb = pin_at_the_retirement
    with pytest.raises(PinnedError):
        await evict(rounds, "coco")
    await node.until(lambda: node.is_cached("coco"))
    assert begun(node, "copy") == 1, "no byte was copied again"


@story
async def test_what_is_removed_from_the_source_goes_when_nobody_pins_it(node: FakeNode) -> None:
    rounds = node.start()
    await cached(node, rounds, "coco", "tiny")
    node.ledger.pin("coco")
    node.remove("coco")
    await node.rest(rounds, 120)
    assert node.content("coco") is not None
    node.ledger.unpin()
    rounds.nudge()
    await node.until(lambda: node.mount("coco") is None)
    await node.until(lambda: node.copies("coco") == [])


@story
async def test_an_empty_source_is_no_proof_that_anything_is_gone(node: FakeNode) -> None:
    rounds = node.start()
    await cached(node, rounds, "coco")
    node.remove("coco")
    await node.rest(rounds, 600)
    assert node.is_cached("coco")


@story
async def test_rounds_that_are_nudged_all_the_time_are_few(node: FakeNode) -> None:
    rounds = node.start()
    node.publish("coco")
    await node.until(lambda: node.content("coco") is not None)
    began = virtual_time.now()
    for _ in range(10):
        rounds.nudge()
        await rounds.wait_for_change()
    assert virtual_time.now() - began >= 9 * 0.02
