"""Rounds over a node in memory, under anything that may happen in any order; promises 2 to 7 hold at every moment."""

import random

import pytest

from tests.kit import virtual_time
from tests.kit.random_node import RandomNode

SHORT, LONG = range(8), range(8, 60)


def live(seed: int, steps: int) -> None:
    async def tell() -> None:
        world = RandomNode(random.Random(seed))
        world.begin()
        for _ in range(steps):
            await world.step()
        await world.settle()

    virtual_time.run(tell())


@pytest.mark.parametrize("seed", SHORT)
def test_the_promises_hold_whatever_happens(seed: int) -> None:
    live(seed, 120)


@pytest.mark.stress
@pytest.mark.parametrize("seed", LONG)
def test_the_promises_hold_whatever_happens_for_long(seed: int) -> None:
    live(seed, 600)
