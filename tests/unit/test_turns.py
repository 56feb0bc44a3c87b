"""Whose turn it is to copy: who goes first, how many at once, and no turn is ever lost."""

import asyncio
import random

import pytest

from scratch_slurm.service.turns import Turns


class Copies:
    """Copies that take a turn, and keep it until they are told to end."""

    def __init__(self, limit):
        self.turns = Turns(limit)
        self.running = []
        self.tasks = {}
        self.ends = {}

    async def ask(self, *names):
        """Ask for turns; a name in capitals is a preheat."""
        for name in names:
            self.ends[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._copy(name))
            await settle()
        return "".join(self.running)

    async def end(self, *names):
        for name in names:
            self.ends[name].set()
            await settle()
        return "".join(self.running)

    async def cancel(self, *names):
        for name in names:
            self.tasks[name].cancel()
        await settle()
        return "".join(self.running)

    async def _copy(self, name):
        async with self.turns.take(preheat=name.isupper()):
            self.running.append(name)
            try:
                await self.ends[name].wait()
            finally:
                self.running.remove(name)


async def settle():
    """Let all that can run come to where it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


def run(scenario):
    asyncio.run(asyncio.wait_for(scenario, 10))


def test_as_many_at_once_as_the_limit() -> None:
    async def scenario():
        copies = Copies(2)
        assert await copies.ask(*"ABCD") == "AB"
        assert await copies.end("A") == "BC"
        assert await copies.end("B", "C") == "D"

    run(scenario())


def test_preheats_go_first_and_each_kind_in_the_order_of_asking() -> None:
    async def scenario():
        copies = Copies(1)
        assert await copies.ask(*"abcXY") == "a"
        assert [await copies.end(name) for name in "aXYb"] == ["X", "Y", "b", "c"]

    run(scenario())


def test_one_worker_is_left_to_preheats() -> None:
    async def scenario():
        copies = Copies(3)
        assert await copies.ask(*"abc") == "ab"
        assert await copies.ask("X") == "abX"
        assert await copies.end("X") == "ab"
        assert await copies.end("a") == "bc"

    run(scenario())


def test_a_single_worker_serves_both() -> None:
    async def scenario():
        copies = Copies(1)
        assert await copies.ask("a", "X") == "a"
        assert await copies.end("a") == "X"

    run(scenario())


def test_preheats_may_have_all_workers() -> None:
    async def scenario():
        assert await Copies(3).ask(*"WXYZ") == "WXY"

    run(scenario())


@pytest.mark.parametrize(
    ("asked", "cancelled", "left"),
    [
        pytest.param("aX", "a", "X", id="while-it-runs-its-turn-goes-on"),
        pytest.param("aXY", "X", "a", id="while-it-waits-nobody-notices"),
        pytest.param("aXY", "aX", "Y", id="the-runner-and-the-next-at-once"),
        pytest.param("aXY", "Xa", "Y", id="the-next-and-the-runner-at-once"),
        pytest.param("aXb", "aXb", "", id="all-at-once"),
    ],
)
def test_a_cancelled_copy(asked, cancelled, left) -> None:
    async def scenario():
        copies = Copies(1)
        await copies.ask(*asked)
        assert await copies.cancel(*cancelled) == left
        await copies.end(*(name for name in asked if name not in cancelled))
        assert await copies.ask("N") == "N", "a turn is lost"

    run(scenario())


@pytest.mark.parametrize("preheat", [True, False])
def test_cancelled_between_being_given_a_turn_and_taking_it(preheat) -> None:
    async def scenario():
        copies = Copies(2)
        first, second, last = "ABC" if preheat else "abc"
        await copies.ask("Z", first, second)
        copies.ends[first].set()
        while copies.tasks[first] and not copies.tasks[first].done():
            await asyncio.sleep(0)
        # `second` has its turn now, or is just about to run.
        copies.tasks[second].cancel()
        await settle()
        assert await copies.ask(last) == "Z" + last

    run(scenario())


def test_a_copy_that_fails_gives_its_turn_back() -> None:
    async def scenario():
        turns = Turns(1)
        for _ in range(3):
            with pytest.raises(OSError, match="broken"):
                async with turns.take(preheat=False):
                    raise OSError("broken")

    run(scenario())


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_cancelled_no_turn_is_lost_and_none_is_given_twice(seed) -> None:
    async def scenario():
        rng = random.Random(seed)
        limit = rng.randint(1, 4)
        copies = Copies(limit)
        names = [chr(code) for code in (*range(ord("a"), ord("z") + 1), *range(ord("A"), ord("Z") + 1))]
        rng.shuffle(names)
        for name in names:
            await copies.ask(name)
            alive = [other for other, task in copies.tasks.items() if not task.done()]
            for other in rng.sample(alive, min(len(alive), rng.randint(0, 2))):
                if rng.random() < 0.5:
                    copies.tasks[other].cancel()
                else:
                    copies.ends[other].set()
                for _ in range(rng.randint(0, 3)):
                    await asyncio.sleep(0)
            assert len(copies.running) <= limit
            assert sum(other.islower() for other in copies.running) <= max(1, limit - 1)
        for task in copies.tasks.values():
            task.cancel()
        await settle()
        assert not copies.running
        full = await copies.ask(*(str(number) + "X" for number in range(limit)))
        assert len(full) == 2 * limit, "a turn is lost"

    run(scenario())
