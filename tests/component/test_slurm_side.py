"""The daemon's side to Slurm, beside a loop and a Slurm in memory: what is told when, and what is released when."""

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs

from scratch_slurm.domain.config import Config, build_config
from scratch_slurm.domain.dataset import Card
from scratch_slurm.domain.features import NodeFeatures, format_extra
from scratch_slurm.domain.model import ADMINISTRATOR, Backing, Permissions
from scratch_slurm.domain.prolog import PrologRules
from scratch_slurm.node.hookconfig import HookConfig, _with_rules
from scratch_slurm.node.ledger.ledger import Ledger
from scratch_slurm.service.features import FeatureTeller
from scratch_slurm.service.nodename import NodeName
from scratch_slurm.service.presence import JOBS_AT_ONCE, PinJudge
from scratch_slurm.service.rules import RulesReader
from scratch_slurm.service.slurm_calls import SlurmCalls
from tests.kit import strategies as world
from tests.kit.fake_slurm import FakeSlurm
from tests.kit.sketch import cards_of

PATIENCE_S = 10.0


class LoopInMemory:
    """The part of the loop that is looked at: the latest round, and its end."""

    def __init__(self) -> None:
        self.snapshot: object = None
        self.cards: dict[str, Card] = {}
        self.nudges = 0
        self._ended = asyncio.Condition()

    async def wait_for_change(self) -> None:
        async with self._ended:
            await self._ended.wait()

    def nudge(self) -> None:
        self.nudges += 1

    async def show(
        self,
        *cached: str,
        on_source: list[str] = (),
        leaving: list[str] = (),
        pins: list[tuple[float | str, ...]] = (),
        private: list[str] = (),
        not_known: list[str] = (),
    ) -> None:
        mounts = [world.mounted(name, backing=Backing.CACHE) for name in cached]
        mounts += [world.mounted(name) for name in on_source]
        copies = [world.cached(name) for name in leaving]
        seen = world.observation((), mounts, pins=tuple(pins), cached=copies, leaving=frozenset(leaving))
        self.cards, self.snapshot = cards_of(seen)
        for name in cached:
            if name not in not_known:
                readers = Permissions(mode=0o640 if name in private else 0o644)
                self.cards[name] = structs.replace(self.cards[name], permissions=readers)
        async with self._ended:
            self._ended.notify_all()


def make_config(reconcile: str = "1h", node="n1", **more: bool) -> Config:
    slurm = {"reconcile_interval": reconcile, "node_name": node, **more}
    values = {"source_dir": "/source", "cache_dir": "/cache", "interval": "1s", "slurm": slurm}
    return build_config(values, origin="test", host_name="n1")


async def until(is_so: Callable[..., Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def told(*names: str, own: list[str] = ()) -> NodeFeatures:
    features = (*own, *(f"ds:{name}" for name in names))
    return NodeFeatures(features, features, format_extra(names))


def tell(scenario: Callable[..., Any], slurm: FakeSlurm, retry_s: float = 5.0, **values: bool | str) -> None:
    """Run a scenario beside a teller."""

    async def run() -> None:
        loop, config = LoopInMemory(), make_config(**values)
        task = asyncio.create_task(
            FeatureTeller(config, SlurmCalls(slurm), loop, NodeName(config), retry_s=retry_s).run()
        )
        try:
            await scenario(loop)
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(run())


def test_nothing_is_told_before_the_first_round_then_what_is_served_from_the_cache() -> None:
    slurm = FakeSlurm("n1")

    async def scenario(loop) -> None:
        await asyncio.sleep(0)
        assert slurm.calls == []
        await loop.show("a", "b", on_source=["c"], leaving=["b"])
        await until(lambda: slurm.features["n1"] == told("a"))

    tell(scenario, slurm)


def test_a_private_dataset_is_not_told_to_the_cluster() -> None:
    slurm = FakeSlurm("n1")

    async def scenario(loop) -> None:
        await loop.show("a", "secret", private=["secret"])
        await until(lambda: slurm.features["n1"] == told("a"))

    tell(scenario, slurm)


def test_a_private_dataset_is_told_where_the_site_says_so() -> None:
    slurm = FakeSlurm("n1")

    async def scenario(loop) -> None:
        await loop.show("a", "secret", private=["secret"])
        await until(lambda: slurm.features["n1"] == told("a", "secret"))

    tell(scenario, slurm, private_features=True)


def test_until_it_is_known_who_may_read_a_dataset_it_is_told_only_if_slurm_has_it_already() -> None:
    slurm = FakeSlurm("n1")
    slurm.features["n1"] = told("a", "b")

    async def scenario(loop) -> None:
        await loop.show("a", "b", "c", "d", not_known=["a", "b", "c"])
        await until(lambda: slurm.features["n1"] == told("a", "b", "d"))
        await loop.show("a", "b", "c", "d", private=["b"])
        await until(lambda: slurm.features["n1"] == told("a", "c", "d"))

    tell(scenario, slurm, reconcile="1s")


def test_what_is_not_known_yet_is_not_asked_about_again_and_again() -> None:
    slurm = FakeSlurm("n1")
    slurm.features["n1"] = told("a")

    async def scenario(loop) -> None:
        for _ in range(20):
            await loop.show("a", "b", not_known=["a", "b"])
            await asyncio.sleep(0.01)
        assert slurm.calls == ["read"]

    tell(scenario, slurm)


def test_changes_that_come_together_are_told_together() -> None:
    slurm = FakeSlurm("n1")

    async def scenario(loop) -> None:
        await loop.show()
        await until(lambda: slurm.calls == ["read"])
        for names in (["a"], ["a", "b"], ["b"], ["b", "c"]):
            await loop.show(*names)
            await asyncio.sleep(0.05)
        await until(lambda: slurm.features["n1"] == told("b", "c"))
        assert slurm.calls == ["read", "read", "write"]

    tell(scenario, slurm)


def test_what_did_not_change_is_not_asked_about_again() -> None:
    slurm = FakeSlurm("n1")

    async def scenario(loop) -> None:
        await loop.show("a")
        await until(lambda: slurm.calls == ["read", "write"])
        for _ in range(20):
            await loop.show("a")
            await asyncio.sleep(0.01)
        assert slurm.calls == ["read", "write"]

    tell(scenario, slurm)


def test_what_slurm_forgot_is_told_again_within_the_interval() -> None:
    slurm = FakeSlurm("n1")

    async def scenario(loop) -> None:
        await loop.show("a")
        await until(lambda: slurm.features["n1"] == told("a"))
        slurm.features["n1"] = NodeFeatures(("gpu",), ("gpu",), format_extra(["a"]))
        await until(lambda: slurm.features["n1"] == told("a", own=["gpu"]))

    tell(scenario, slurm, reconcile="0.1s")


def test_a_job_that_comes_is_a_reason_to_look_sooner() -> None:
    slurm = FakeSlurm("n1")

    async def scenario(loop) -> None:
        await loop.show("a")
        await until(lambda: slurm.calls == ["read", "write"])
        slurm.features["n1"] = NodeFeatures()
        began = time.monotonic()
        await loop.show("a", pins=[world.pin("a", 7)])
        await until(lambda: slurm.features["n1"] == told("a"))
        assert time.monotonic() - began < 10

    tell(scenario, slurm, reconcile="12s")


def test_a_controller_that_is_down_is_tried_again_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    slurm = FakeSlurm("n1")
    slurm.down = True
    caplog.set_level(logging.INFO)

    async def scenario(loop) -> None:
        await loop.show("a")
        await until(lambda: len(slurm.calls) >= 3)
        slurm.down = False
        await until(lambda: slurm.features["n1"] == told("a"))

    tell(scenario, slurm, reconcile="0.05s")
    assert caplog.text.count("slurm-silent") == 1
    assert caplog.text.count("slurm-answers") == 1


def test_a_node_that_slurm_does_not_know_yet_is_asked_about_again_and_that_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    slurm = FakeSlurm("n2")
    caplog.set_level(logging.INFO)

    async def scenario(loop) -> None:
        await loop.show("a")
        await until(lambda: len(slurm.calls) >= 3)
        slurm.features["n1"] = NodeFeatures(("gpu",), ("gpu",), "")
        await until(lambda: slurm.features["n1"] == told("a", own=["gpu"]))

    tell(scenario, slurm, retry_s=0.02)
    assert caplog.text.count("no-features node=n1") == 1


def test_a_node_that_slurm_does_not_know_is_asked_about_ever_more_seldom() -> None:
    slurm = FakeSlurm("n2")

    async def scenario(loop) -> None:
        for names in (["a"], ["b"], ["a"]):
            await loop.show(*names)
            await until(lambda: slurm.calls)
            await asyncio.sleep(0.05)
        assert slurm.calls == ["read"], "a change of the cache is no reason"
        await asyncio.sleep(0.5)
        # Pauses of 0.2, 0.4, 0.8 s.
        assert len(slurm.calls) <= 3

    tell(scenario, slurm, retry_s=0.2)


def test_a_job_on_a_node_that_slurm_did_not_know_is_a_reason_to_ask_at_once() -> None:
    slurm = FakeSlurm("n2")

    async def scenario(loop) -> None:
        await loop.show("a")
        await until(lambda: slurm.calls == ["read"])
        slurm.features["n1"] = NodeFeatures()
        await loop.show("a", pins=[world.pin("a", 7)])
        await until(lambda: slurm.features["n1"] == told("a"))

    tell(scenario, slurm, retry_s=3600)


def test_an_extra_of_the_administrators_is_left_alone_and_said_once(caplog: pytest.LogCaptureFixture) -> None:
    slurm = FakeSlurm("n1")
    slurm.features["n1"] = NodeFeatures((), (), "rack 7")
    caplog.set_level(logging.INFO)

    async def scenario(loop) -> None:
        await loop.show("a")
        await until(lambda: slurm.calls.count("read") >= 3)

    tell(scenario, slurm, reconcile="0.05s")
    assert slurm.features["n1"] == dataclasses.replace(told("a"), extra="rack 7")
    assert caplog.text.count("extra-left-alone node=n1") == 1


@pytest.fixture(params=[0.0, -1e9, 1e9], ids=["a-clock-that-is-right", "thirty-years-back", "thirty-years-ahead"])
def clock(request: pytest.FixtureRequest):
    """When pins are asked for: by the clock that counts since the boot, and by the wall clock, which says anything."""
    return SimpleNamespace(at=time.monotonic(), wall=time.time() + request.param)


@pytest.fixture
def ledger(tmp_path: Path, clock) -> Iterator[Ledger]:
    tmp_path.chmod(0o700)
    path = tmp_path / "state" / "ledger.sqlite"
    with Ledger(path, boot_id="boot", now=lambda: clock.wall, monotonic=lambda: clock.at) as opened:
        yield opened


def judge(scenario: Callable[..., Any], slurm: FakeSlurm, ledger: Ledger) -> None:
    """Run a scenario beside a judge."""

    async def run() -> None:
        loop = LoopInMemory()
        config = make_config(reconcile="0.05s")
        task = asyncio.create_task(PinJudge(config, SlurmCalls(slurm), loop, ledger, NodeName(config)).run())
        try:
            await scenario(loop)
            assert not task.done()
        finally:
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(run())


def holders(ledger: Ledger) -> set[str]:
    return {pin.holder for pin in ledger.pins()}


def pin(ledger: Ledger, clock, age_s: int, *job_ids: int) -> None:
    clock.at = time.monotonic() - age_s
    for job_id in job_ids:
        ledger.pin(f"job:{job_id}", ["a"], uid=0)
    clock.at = time.monotonic()


def test_only_what_is_certainly_gone_is_released(ledger: Ledger, clock: float) -> None:
    slurm = FakeSlurm("n1", "n2")
    slurm.jobs = {
        1: ("RUNNING", ("n1",)),
        2: ("COMPLETED", ("n1",)),
        3: ("PENDING", ()),
        4: ("RUNNING", ("n2",)),
        6: ("A_STATE_OF_2030", ("n1",)),
    }
    pin(ledger, clock, 600, 1, 2, 3, 4, 5, 6)
    ledger.pin(ADMINISTRATOR, ["a"], uid=0)

    async def scenario(loop) -> None:
        await until(lambda: loop.nudges == 3)
        await until(lambda: slurm.calls.count("presence") >= 4)

    judge(scenario, slurm, ledger)
    assert holders(ledger) == {"job:1", "job:3", "job:6", ADMINISTRATOR}
    gone = {event.holder for event in ledger.events(100) if event.event == "released-gone"}
    assert gone == {"job:2", "job:4", "job:5"}


def test_a_node_whose_name_slurm_does_not_know_judges_nobody_by_nodes(ledger: Ledger, clock: float) -> None:
    slurm = FakeSlurm("n7")  # this node is n1 by its configuration
    slurm.jobs = {1: ("RUNNING", ("n7",)), 2: ("FAILED", ()), 3: ("COMPLETING", ("n1",))}
    pin(ledger, clock, 300, 1, 2, 3, 4)

    async def scenario(loop) -> None:
        await until(lambda: holders(ledger) == {"job:1", "job:3"})
        await until(lambda: slurm.calls.count("presence") >= 3)
        assert holders(ledger) == {"job:1", "job:3"}, "what has ended is gone, and nobody else"

    judge(scenario, slurm, ledger)


def test_a_young_pin_is_not_asked_about_nor_is_its_jobs_older_one(ledger: Ledger, clock: float) -> None:
    slurm = FakeSlurm("n1")
    pin(ledger, clock, 100, 1)
    pin(ledger, clock, 600, 2, 3)
    ledger.pin("job:2", ["b"], uid=0)

    async def scenario(loop) -> None:
        await until(lambda: "job:3" not in holders(ledger))
        await asyncio.sleep(0.2)

    judge(scenario, slurm, ledger)
    assert holders(ledger) == {"job:1", "job:2"}
    assert slurm.calls == ["presence"]


def test_with_the_controller_down_every_pin_stays_and_that_is_said_once(
    ledger: Ledger, clock: float, caplog: pytest.LogCaptureFixture
) -> None:
    slurm = FakeSlurm("n1")
    slurm.down = True
    caplog.set_level(logging.INFO)
    pin(ledger, clock, 600, 1, 2)

    async def scenario(loop) -> None:
        await until(lambda: len(slurm.calls) >= 4)
        assert holders(ledger) == {"job:1", "job:2"}
        slurm.down = False
        await until(lambda: not holders(ledger))

    judge(scenario, slurm, ledger)
    assert caplog.text.count("pins-stay") == 1


def test_many_jobs_are_asked_about_in_turns(ledger: Ledger, clock: float) -> None:
    slurm = FakeSlurm("n1")
    jobs = range(1, 3 * JOBS_AT_ONCE)
    slurm.jobs = dict.fromkeys(jobs, ("RUNNING", ("n1",)))
    pin(ledger, clock, 600, *jobs)

    async def scenario(loop) -> None:
        await until(lambda: len(slurm.calls) >= 3)
        del slurm.jobs[max(jobs)]
        await until(lambda: f"job:{max(jobs)}" not in holders(ledger))

    judge(scenario, slurm, ledger)
    assert len(holders(ledger)) == len(jobs) - 1


def test_nobody_is_asked_while_no_job_pins(ledger: Ledger) -> None:
    slurm = FakeSlurm("n1")
    ledger.pin(ADMINISTRATOR, ["a"], uid=0)

    async def scenario(loop) -> None:
        await asyncio.sleep(0.3)

    judge(scenario, slurm, ledger)
    assert slurm.calls == []


# Slurm's rules for prologs


def test_the_hooks_learn_slurms_rules_for_prologs_at_the_start_and_whenever_they_change(tmp_path: Path) -> None:
    slurm, run_dir = FakeSlurm("n1"), tmp_path / "run"
    run_dir.mkdir(mode=0o755)
    (tmp_path / "config.yaml").write_text(f"{{source_dir: /s, cache_dir: /c, run_dir: {run_dir}}}")
    values = {"source_dir": "/s", "cache_dir": "/c", "run_dir": str(run_dir), "slurm": {"reconcile_interval": "0.05s"}}
    config = build_config(values, origin="test", host_name="n1")
    base = HookConfig("/datasets", str(run_dir), "/state", 10.0, 600.0)

    async def run() -> None:
        slurm.down = True
        task = asyncio.create_task(RulesReader(config, SlurmCalls(slurm), retry_s=0.01).run())
        try:
            await until(lambda: slurm.calls.count("rules") >= 2)
            assert _with_rules(base) == base, "what is not known changes nothing"
            slurm.down, slurm.rules = False, PrologRules(15.0, "PrologTimeout")
            await until(lambda: _with_rules(base).prolog_timeout_s == 15.0)
            assert _with_rules(base).prolog_timeout_key == "PrologTimeout"
            slurm.rules = PrologRules(serial=True)
            await until(lambda: _with_rules(base).prolog_serial)
            assert _with_rules(base).prolog_timeout_s is None
            (run_dir / "slurm.json").unlink()
            await until((run_dir / "slurm.json").exists)
        finally:
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(run())


@pytest.mark.parametrize(
    "text", ["", "7", "{}", '{"prolog_timeout_s": "x", "prolog_timeout_key": "", "prolog_serial": 1}']
)
def test_rules_that_are_none_change_nothing(tmp_path: Path, text: str) -> None:
    base = HookConfig("/datasets", str(tmp_path), "/state", 10.0, 600.0)
    (tmp_path / "slurm.json").write_text(text)
    assert _with_rules(base) == base
