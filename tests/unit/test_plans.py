"""A plan as it is told: to those that may be told of a dataset, and to the others."""

from collections.abc import Callable
from typing import Any

from scratch_slurm.domain.model import Backing
from scratch_slurm.service.plans import answer_plan
from tests.kit.sketch import cards_of
from tests.kit.sketch import plan as make_plan
from tests.kit.strategies import cached, image, mounted, observation, pin, room

# `secret` is pinned and needs the room of `common`, which nobody reads.
SEEN = observation(
    [image("secret"), image("common")],
    [mounted("secret"), mounted("common", backing=Backing.CACHE)],
    cached=(cached("common"),),
    pins=(pin("secret", 7),),
    space=room(0, used=10),
)


def told(is_told: Callable[..., Any]):
    answer = answer_plan(cards_of(SEEN)[1], make_plan(SEEN), 600.0, is_told)
    return [(each.kind, each.dataset, each.reason) for each in answer.actions], {each.name for each in answer.verdicts}


def test_an_eviction_names_the_dataset_that_needs_the_room() -> None:
    actions, names = told(lambda name: True)
    assert actions == [("evict", "common", "nobody reads it, its room is needed by secret, pinned by job:7")]
    assert names == {"secret", "common"}


def test_a_dataset_that_is_not_told_is_named_nowhere() -> None:
    actions, names = told(lambda name: name != "secret")
    assert actions == [("evict", "common", "nobody reads it, its room is needed by another dataset")]
    assert names == {"common"}
    assert told(lambda name: name != "common") == ([], {"secret"})
