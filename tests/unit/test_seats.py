"""How many connections a user may have, and whose turn it is."""

import asyncio

from scratch_slurm.service.paced import Paced
from scratch_slurm.service.seats import Seats


def test_a_user_has_so_many_seats_and_takes_none_of_anothers() -> None:
    seats = Seats(2)
    assert [seats.take(7) for _ in range(4)] == [True, True, False, False]
    assert seats.take(8)
    seats.leave(7)
    assert [seats.take(7), seats.take(7)] == [True, False]


def test_root_has_any_number() -> None:
    seats = Seats(2)
    assert all(seats.take(0) for _ in range(100))


def test_nothing_is_kept_of_users_that_are_gone() -> None:
    seats = Seats(1)
    for uid in range(1000):
        assert seats.take(uid)
        seats.leave(uid)
    assert not seats._users


def test_a_user_has_one_turn_at_a_time_and_others_have_theirs_meanwhile() -> None:
    async def story() -> None:
        seats, has_it, ends = Seats(2), [], {name: asyncio.Event() for name in ("a", "b", "c")}
        for uid in (7, 7, 8):
            seats.take(uid)

        async def speak(name, uid) -> None:
            async with seats.turn(uid):
                has_it.append(name)
                await ends[name].wait()

        tasks = [asyncio.create_task(speak(*each)) for each in (("a", 7), ("b", 7), ("c", 8))]
        for _ in range(5):
            await asyncio.sleep(0)
        assert has_it == ["a", "c"]
        ends["a"].set()
        await tasks[0]
        for _ in range(5):
            await asyncio.sleep(0)
        assert has_it == ["a", "c", "b"]
        for each in ends.values():
            each.set()
        await asyncio.gather(*tasks)

    asyncio.run(story())


def test_many_callers_at_once_share_what_begins_after_they_asked() -> None:
    async def story() -> None:
        begun: list[int] = []
        ends = asyncio.Event()

        async def do() -> None:
            begun.append(len(begun))
            await ends.wait()

        paced = Paced(do, 0.0)
        first = [asyncio.create_task(paced.done()) for _ in range(50)]
        while not begun:
            await asyncio.sleep(0)
        late = [asyncio.create_task(paced.done()) for _ in range(50)]
        while len(begun) < 2:
            await asyncio.sleep(0)
        ends.set()
        await asyncio.gather(*first, *late)
        assert begun == [0, 1], "a caller that came when it had begun got another one"

    asyncio.run(story())


def test_it_begins_no_sooner_than_a_pause_after_the_last_beginning() -> None:
    async def story() -> None:
        now, begun = [100.0], []

        async def do() -> None:
            begun.append(now[0])

        paced = Paced(do, 3600.0, monotonic=lambda: now[0])
        await paced.done()
        waiting = asyncio.create_task(paced.done())
        for _ in range(20):
            await asyncio.sleep(0)
        assert begun == [100.0]
        waiting.cancel()
        paced.ask().cancel()

    asyncio.run(story())
