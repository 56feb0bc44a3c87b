"""The planner in a small world that does what it says: at once, late, not at all, or cut off by a crash."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scratch_slurm.domain.actions import Action, ActionKind, DropStaged, Evict, Mount, Replace, Retarget, Stage, Unmount
from scratch_slurm.domain.backing import FromCopy
from scratch_slurm.domain.model import Backing, Pin, Space
from tests.kit.sketch import Sketch, plan
from tests.kit.strategies import PLENTY, cached, image, mounted, observation, pin, staged

NAMES = ("a", "b", "c")
CAPACITY = 100
SIZES = (10, 20, 30, 40, 60, 110)
# A plan that is never content would go on for ever.
MANY_ROUNDS = 60
Numbered = tuple[str, int]


@dataclass
class World:
    """What the daemon, the kernel and the disks hold. A version of a dataset is (dataset, version)."""

    sizes: dict[Numbered, int] = field(default_factory=dict)
    """Version -> bytes, of all that ever was."""
    source: dict[str, int] = field(default_factory=dict)
    """Dataset -> version number in the source."""
    mounts: dict[str, tuple[int, Backing]] = field(default_factory=dict)
    """Dataset -> (version number, backing)."""
    cached: set[Numbered] = field(default_factory=set)
    parts: dict[Numbered, int] = field(default_factory=dict)
    """Version -> bytes of a left-over copy."""
    pins: list[Pin] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    running: dict[str, Action] = field(default_factory=dict)
    """Dataset -> action under way."""
    failed: set[tuple[str, ActionKind]] = field(default_factory=set)
    listed: bool = False

    def used_bytes(self) -> int:
        """All that is taken, by the copies under way in full."""
        under_way = {(each.dataset, self.source_version(each)) for each in self.copies()}
        left = sum(size for version, size in self.parts.items() if version not in under_way)
        return sum(self.sizes[version] for version in {*self.cached} | under_way) + left

    def copies(self) -> list[Stage]:
        return [action for action in self.running.values() if isinstance(action, Stage)]

    def source_version(self, stage: Stage) -> int:
        return self.number(stage.dataset, stage.image.generation.id)

    def see(self) -> Sketch:
        under_way = [(each.dataset, self.source_version(each)) for each in self.copies()]
        parts = [
            staged(*self.describe(version), size) for version, size in self.parts.items() if version not in under_way
        ]
        leaving = [action for action in self.running.values() if isinstance(action, Evict)]
        used_bytes = self.used_bytes()
        return observation(
            [image(*self.describe((name, version))) for name, version in self.source.items()] if self.listed else [],
            [
                mounted(*self.describe((name, version)), backing=backing)
                for name, (version, backing) in self.mounts.items()
            ],
            complete=self.listed,
            cached=tuple(cached(*self.describe(version)) for version in sorted(self.cached)),
            staged=(*parts, *(staged(*self.describe(version), under_way=True) for version in under_way)),
            pins=tuple(self.pins),
            space=Space(CAPACITY, 0, used_bytes, PLENTY),
            busy=frozenset(self.running),
            backing_off=frozenset(self.failed),
            leaving_bytes=sum(action.image.size_bytes for action in leaving),
            leaving=frozenset(action.dataset for action in leaving),
            bytes_per_s=dict(self.rates),
        )

    def describe(self, version: Numbered) -> tuple[str, int, int]:
        return version[0], self.sizes[version], version[1]

    def number(self, dataset: str, generation_id: str) -> int:
        """Find the version number that a generation stands for."""
        for (name, number), size in self.sizes.items():
            if name == dataset and image(name, size, number).generation.id == generation_id:
                return number
        raise LookupError(generation_id)


class PlannerInAWorld(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    # What people and jobs do.

    @rule(name=st.sampled_from(NAMES), size=st.sampled_from(SIZES))
    def publish(self, name: str, size: int) -> None:
        number = max((number for other, number in self.world.sizes if other == name), default=0) + 1
        self.world.sizes[name, number] = size
        self.world.source[name] = number

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        self.world.source.pop(name, None)

    @rule(name=st.sampled_from(NAMES), job_id=st.integers(1, 2))
    def begin_a_job(self, name: str, job_id: int) -> None:
        if pin(name, job_id) not in self.world.pins:
            self.world.pins.append(pin(name, job_id))

    @rule(job_id=st.integers(1, 2))
    def end_a_job(self, job_id: int) -> None:
        self.world.pins = [each for each in self.world.pins if each.job_id != job_id]

    @rule(name=st.sampled_from(NAMES), rate=st.sampled_from((0.0, 0.01, 0.1, 1.0)))
    def read(self, name: str, rate: float) -> None:
        self.world.rates[name] = rate

    @rule(name=st.sampled_from(NAMES))
    def delete_a_cached_image_by_hand(self, name: str) -> None:
        if name not in self.world.running:
            self.world.cached = {version for version in self.world.cached if version[0] != name}

    # What the daemon does.

    @rule()
    def list_the_source(self) -> None:
        self.world.listed = True

    @rule()
    def run_a_round(self) -> None:
        self.plan_and_start()

    def plan_and_start(self) -> list[Action]:
        world, seen = self.world, self.world.see()
        pinned = {each.dataset for each in world.pins}
        started: list[Action] = []
        for action in plan(seen).actions:
            if isinstance(action, Evict) and action.despite is not None:
                assert action.dataset not in pinned
            if isinstance(action, Replace | Unmount):
                assert action.dataset not in pinned
            if isinstance(action, DropStaged) and action.staged.under_way:
                self.cut_off(world.running.pop(action.dataset), 0.5)
                started.append(action)
            elif action.dataset not in world.running:
                world.running[action.dataset] = action
                started.append(action)
        return started

    @rule(rounds=st.integers(1, 4))
    def do_what_there_is(self, rounds: int) -> None:
        """Most of the time all goes well."""
        self.world.listed = True
        for _ in range(rounds):
            self.plan_and_start()
            for name in sorted(self.world.running):
                self.finish(name)
                self.the_capacity_holds()

    @precondition(lambda self: self.world.running)
    @rule(data=st.data())
    def finish_one(self, data: st.DataObject) -> None:
        self.finish(data.draw(st.sampled_from(sorted(self.world.running))))

    @precondition(lambda self: self.world.running)
    @rule(data=st.data(), done=st.sampled_from((0.0, 0.5, 1.0)))
    def fail_one(self, data: st.DataObject, done: float) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.running)))
        action = self.world.running.pop(name)
        self.cut_off(action, done)
        self.world.failed.add((name, action.kind))

    @rule()
    def try_again(self) -> None:
        self.world.failed.clear()

    @rule(done=st.sampled_from((0.0, 0.5, 1.0)))
    def crash(self, done: float) -> None:
        for action in self.world.running.values():
            self.cut_off(action, done)
        self.world.running.clear()
        self.world.failed.clear()
        self.world.rates.clear()
        self.world.listed = False

    def cut_off(self, action: Action, done: float) -> None:
        """What an action leaves behind that does not come to its end."""
        if isinstance(action, Stage):
            version = (action.dataset, self.world.source_version(action))
            self.world.parts[version] = int(action.image.size_bytes * done)

    def finish(self, name: str) -> None:
        world, action = self.world, self.world.running.pop(name)
        match action:
            case Mount():  # and Replace
                number = world.number(name, action.image.generation.id)
                from_cache = isinstance(action.backing, FromCopy)
                exists = (name, number) in world.cached if from_cache else world.source.get(name) == number
                if exists:
                    world.mounts[name] = (number, Backing.CACHE if from_cache else Backing.SOURCE)
            case Unmount():
                del world.mounts[name]
            case Retarget():
                self.switch(name, Backing.CACHE if isinstance(action.backing, FromCopy) else Backing.SOURCE)
            case Stage():
                version = (name, world.source_version(action))
                world.parts.pop(version, None)
                if world.source.get(name) == version[1]:
                    world.cached.add(version)
            case Evict():
                self.evict(action)
            case DropStaged():
                world.parts.pop((name, world.number(name, action.staged.generation_id)), None)

    def switch(self, name: str, backing: Backing) -> bool:
        """Switch if the other file is there; the device keeps its backing if not."""
        number, _ = self.world.mounts[name]
        there = (
            self.world.source.get(name) == number if backing is Backing.SOURCE else (name, number) in self.world.cached
        )
        if there:
            self.world.mounts[name] = (number, backing)
        return there

    def evict(self, action: Evict) -> None:
        world, name = self.world, action.dataset
        version = (name, world.number(name, action.image.generation_id))
        if action.back_to is not None and not self.switch(name, Backing.SOURCE):
            return
        # The ledger decides in one transaction whether a pin came first.
        if action.despite is None or name not in {each.dataset for each in world.pins}:
            assert world.mounts.get(name) != (version[1], Backing.CACHE), "deleted while it is read"
            world.cached.discard(version)

    # What must hold.

    @invariant()
    def the_capacity_holds(self) -> None:
        assert self.world.used_bytes() <= CAPACITY

    def teardown(self) -> None:
        """At rest, whatever came before: the daemon has nothing left to do, and what is pinned and fits is cached."""
        world = self.world
        world.listed = True
        world.failed.clear()
        for _ in range(MANY_ROUNDS):
            for name in sorted(world.running):
                self.finish(name)
            self.the_capacity_holds()
            if not self.plan_and_start():
                break
        else:
            raise AssertionError(f"never at rest: {world.running}")
        self.check_at_rest()

    def check_at_rest(self) -> None:
        world = self.world
        pinned = {each.dataset for each in world.pins}
        kept = {
            version
            for version in world.cached
            # A copy cannot go while nothing can take over for it.
            if version[0] in pinned or (version[0] in world.mounts and world.source.get(version[0]) != version[1])
        }
        room_bytes = CAPACITY - sum(world.sizes[version] for version in kept)
        for name in pinned & world.source.keys():
            version = (name, world.source[name])
            if world.mounts[name][0] != version[1]:
                continue  # a newer image waits for the last pin
            if version in world.cached:
                assert world.mounts[name] == (version[1], Backing.CACHE)
            else:
                assert world.sizes[version] > room_bytes, f"{name} would fit"
        for name, number in world.source.items():
            assert name in world.mounts
            assert name in pinned or world.mounts[name][0] == number
        assert world.mounts.keys() <= world.source.keys() | pinned
        assert not [version for version in world.parts if version[0] not in world.source]


PlannerInAWorld.TestCase.settings = settings(max_examples=100, stateful_step_count=30)
TestPlannerInAWorld = PlannerInAWorld.TestCase
