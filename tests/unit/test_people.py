"""Whose groups are known, asked for and trusted, with a name service written by hand."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from scratch_slurm.domain.errors import NotFoundError, ScratchError
from scratch_slurm.domain.model import Permissions
from scratch_slurm.service.people import FRESH_S, People
from tests.kit.fake_hands import FakeHands, FakeNode

FOR_STAFF = Permissions(0, 50, 0o640)


class NameService(FakeHands):
    """Answers when it is told to."""

    def __init__(self) -> None:
        super().__init__(FakeNode())
        self.groups: dict[int, tuple[int, ...]] = {}
        self.asked: list[int] = []
        self.answers = asyncio.Event()
        self.answers.set()
        self.failure: ScratchError | None = None

    async def groups_of(self, uid: int) -> frozenset[int]:
        self.asked.append(uid)
        await self.answers.wait()
        if self.failure:
            raise self.failure
        return frozenset(self.groups[uid])


class Story:
    """One daemon's people, with a clock to turn."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.service = NameService()
        self.news = asyncio.Event()
        self.people = People(self.service, on_news=self.news.set, monotonic=lambda: self.now)

    def judge(self, uid: int = 7) -> bool | None:
        return self.people.judge(uid, FOR_STAFF)

    async def told(self) -> None:
        await self.news.wait()
        self.news.clear()


def told(story: "Callable[[Story], Coroutine[Any, Any, None]]") -> None:
    async def tell() -> None:
        await story(Story())

    asyncio.run(tell())


def test_it_is_unknown_until_the_name_service_has_answered_and_is_asked_once() -> None:
    @told
    async def story(it: Story) -> None:
        it.service.groups[7] = (7, 50)
        assert [it.judge(), it.judge(), it.judge()] == [None, None, None]
        await it.told()
        assert (it.judge(), it.service.asked) == (True, [7])


def test_nobody_asks_where_groups_do_not_matter() -> None:
    @told
    async def story(it: Story) -> None:
        assert it.people.judge(7, Permissions(0, 50, 0o644)) is True
        assert it.people.judge(7, Permissions(0, 50, 0o600)) is False
        assert it.judge(0) is True
        assert it.service.asked == []


def test_nobody_asks_while_the_permissions_are_not_known() -> None:
    @told
    async def story(it: Story) -> None:
        assert it.people.judge(7, None) is None
        assert it.people.judge(0, None) is True
        assert it.service.asked == []


def test_no_more_users_wait_to_be_asked_about_than_are_remembered() -> None:
    @told
    async def story(it: Story) -> None:
        it.people = People(it.service, on_news=it.news.set, most=5)
        it.service.answers.clear()
        assert [it.judge(uid) for uid in range(1, 50)] == [None] * 49
        assert len(it.people._asking) == 5
        it.people.close()


def test_a_name_service_that_hangs_holds_up_nobody() -> None:
    @told
    async def story(it: Story) -> None:
        it.service.answers.clear()
        assert [it.judge(uid) for uid in range(1, 50)] == [None] * 49
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(it.service.asked) == 2, "few processes wait for it"
        assert it.people.judge(7, Permissions(7, 50, 0o600)) is True
        it.people.close()


def test_an_old_answer_holds_until_the_new_one_is_there() -> None:
    @told
    async def story(it: Story) -> None:
        it.service.groups[7] = (7, 50)
        it.judge()
        await it.told()
        it.now += FRESH_S - 1
        assert (it.judge(), it.service.asked) == (True, [7])
        it.now += 1
        it.service.groups[7] = (7,)
        assert it.judge() is True
        await it.told()
        assert (it.judge(), it.service.asked) == (False, [7, 7])


def test_a_failure_is_told_and_tried_again_after_a_pause_and_takes_nothing_away() -> None:
    @told
    async def story(it: Story) -> None:
        it.service.failure = NotFoundError("user 7 is not known to this node")
        it.judge()
        await it.told()
        assert (it.judge(), it.people.problem(7)) == (None, "user 7 is not known to this node")
        assert it.service.asked == [7], "not at once"
        it.now += 60
        it.service.failure, it.service.groups[7] = None, (50,)
        assert it.judge() is None
        await it.told()
        assert (it.judge(), it.people.problem(7)) == (True, "")
        it.now += FRESH_S
        it.service.failure = NotFoundError("user 7 is not known to this node")
        it.judge()
        await it.told()
        assert (it.judge(), it.people.problem(7)) == (True, ""), "what was known stays known"


def test_strangers_do_not_fill_the_memory() -> None:
    @told
    async def story(it: Story) -> None:
        for uid in range(10_000, 15_000):
            it.service.groups[uid] = (50,)
            it.judge(uid)
            await it.told()
        known = [uid for uid in range(10_000, 15_000) if uid in it.people._groups]
        assert len(known) < 4200
        assert it.judge(14_999) is True
