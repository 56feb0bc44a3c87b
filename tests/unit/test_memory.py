"""What the daemon remembers: back-off, and how far a copy is."""

import pytest

from scratch_slurm.domain.actions import ActionKind
from scratch_slurm.service.memory import Copy, Memory
from tests.kit.strategies import image

STAGE, MOUNT = ActionKind.STAGE, ActionKind.MOUNT


def test_each_failure_doubles_the_pause_up_to_ten_minutes() -> None:
    memory = Memory()
    pauses = [memory.fail("a", STAGE, "no", 1000.0).retry_at - 1000.0 for _ in range(10)]
    assert pauses == [5, 10, 20, 40, 80, 160, 320, 600, 600, 600]


def test_a_thousand_failures_are_still_ten_minutes_apart() -> None:
    memory = Memory()
    failures = [memory.fail("a", STAGE, "no", 0.0) for _ in range(2000)]
    assert (failures[-1].retry_at, failures[-1].attempts) == (600.0, 2000)


def test_a_failure_for_good_is_not_tried_again_before_the_source_has_another_image() -> None:
    memory = Memory()
    memory.fail("a", STAGE, "no", 0.0, image("a").generation.id, for_good=True)
    assert memory.backing_off(1e12, set()) == {("a", STAGE)}
    assert memory.problem("a", 1.0) == (
        "stage failed: no; not tried again before the image or its manifest is another one"
    )
    memory.forget_other_images({"a": image("a")})
    assert memory.failures
    memory.forget_other_images({"a": image("a", version=2)})
    assert not memory.failures


def test_a_success_begins_anew() -> None:
    memory = Memory()
    for _ in range(4):
        memory.fail("a", STAGE, "no", 0.0)
    memory.succeed("a", STAGE)
    assert memory.problem("a", 0.0) == ""
    assert memory.fail("a", STAGE, "no", 0.0).retry_at == 5.0


def test_succeeding_without_a_failure_is_fine() -> None:
    Memory().succeed("a", STAGE)


def test_datasets_and_kinds_fail_by_themselves() -> None:
    memory = Memory()
    memory.fail("a", STAGE, "no", 0.0)
    assert memory.fail("a", MOUNT, "no", 0.0).attempts == 1
    assert memory.fail("b", STAGE, "no", 0.0).attempts == 1
    memory.succeed("a", MOUNT)
    assert set(memory.failures) == {("a", STAGE), ("b", STAGE)}


def test_a_problem_says_what_failed_and_when_the_next_try_is() -> None:
    memory = Memory()
    memory.fail("a", STAGE, "disk full", 100.0)
    memory.fail("a", MOUNT, "refused", 100.0)
    memory.fail("b", MOUNT, "other", 100.0)
    assert memory.problem("a", 102.0) == (
        "stage failed: disk full; next try in 3 s; mount failed: refused; next try in 3 s"
    )
    assert memory.problem("a", 1000.0).startswith("stage failed: disk full; next try in 0 s")


COPIES = [
    pytest.param([], 10.0, 0.0, id="nothing-said-yet"),
    pytest.param([(0, "copying")], 10.0, 0.0, id="begun"),
    pytest.param([(0, "copying"), (500, "copying")], 10.0, 50.0, id="mean-since-the-start"),
    pytest.param([(300, "resuming"), (400, "copying"), (900, "copying")], 10.0, 50.0, id="what-was-there-is-no-speed"),
    pytest.param([(300, "resuming")], 10.0, 0.0, id="reading-what-was-there-is-no-speed"),
    pytest.param([(0, "copying"), (500, "copying")], 0.0, 0.0, id="no-time-passed"),
]


@pytest.mark.parametrize(("said", "after_s", "expected"), COPIES)
def test_the_speed_of_a_copy(said, after_s, expected) -> None:
    copy = Copy(image("a", 1000), "/cache", started_at=100.0)
    for bytes_done, phase in said:
        copy.progress(bytes_done, phase)
    assert copy.bytes_per_s(100.0 + after_s) == expected


def test_a_copy_that_waits_has_no_speed() -> None:
    assert Copy(image("a", 1000), "/cache").bytes_per_s(100.0) == 0.0


@pytest.mark.parametrize(
    ("version", "left"), [(1, 2), (2, 1), (None, 2)], ids=["the-same-image", "another-image", "no-image"]
)
def test_the_failures_of_an_image_go_with_it(version, left) -> None:
    memory = Memory()
    memory.fail("a", STAGE, "bad", 0.0, image("a", version=1).generation.id)
    memory.fail("a", MOUNT, "about no image", 0.0)
    memory.forget_other_images({"a": image("a", version=version)} if version else {})
    assert len(memory.failures) == left


def test_what_the_administrator_evicted_is_not_staged_for_its_throughput_but_for_a_pin() -> None:
    memory = Memory()
    memory.held_off["coco"] = 100.0
    assert memory.backing_off(99.0, set()) == {("coco", ActionKind.STAGE)}
    assert memory.backing_off(99.0, {"coco"}) == frozenset()
    assert memory.backing_off(100.0, set()) == frozenset()


def test_when_names_were_used_that_nothing_is_here_of_is_forgotten() -> None:
    memory = Memory()
    memory.last_used_at = {f"name{number}": 1.0 for number in range(1000)}
    memory.forget_other_uses({"name7"})
    assert memory.last_used_at == {"name7": 1.0}
