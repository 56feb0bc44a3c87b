"""A node in memory under random operations, and what must be true after each of them.

People, jobs, faults, hangs, full and dying disks and crashes of the daemon come in any order; the promises of
docs/ARCHITECTURE.md are checked at every verb and after every step. A seed gives the same story again.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from scratch_slurm.service.rounds import Rounds
from tests.kit.fake_hands import Device, FakeNode

NAMES = ("a", "b", "c", "d")
CAPACITY_BYTES = 1_000_000_000
_SIZES = (100_000_000, 250_000_000, 400_000_000, 700_000_000, 1_200_000_000)
_VERBS = ("show", "switch", "copy", "publish", "drop", "retire", "discard", "unmount", "uncover", "identify")


@dataclass
class RandomNode:
    """See the module: `step()` does one thing, lets time pass, and checks all."""

    rng: random.Random
    node: FakeNode = field(init=False)
    rounds: Rounds | None = None
    history: list[str] = field(default_factory=list)
    published: dict[str, set[str]] = field(default_factory=lambda: {name: set() for name in NAMES})
    """Dataset -> all generations that there ever were."""
    shown: set[str] = field(default_factory=set)
    """Datasets that served what the source has, and whose image was not removed since."""
    held: list[tuple[Device, str]] = field(default_factory=list)
    """Open files, and the generation that each had."""
    kept: dict[str, str] = field(default_factory=dict)
    """Dataset that is pinned and was met at rest -> its generation."""
    unsure: set[str] = field(default_factory=set)
    """Datasets of which what lies beneath a mount may have failed to be shown."""

    def __post_init__(self) -> None:
        self.node = FakeNode(self.rng.randrange(1, 4), capacity="1 GB", interval="10", period="60")

    def begin(self) -> None:
        self.node.on_verb = self._see
        self.rounds = self.node.start()

    def _see(self, verb: str, dataset: str) -> None:
        if verb == "unmount" and dataset in self.unsure and len(self.node.mounts.get(dataset, ())) > 1:
            # A replacement was cut short, and what it left beneath could not be shown. Where nobody pins it, both go,
            # and the new one comes in the next round: for that moment there is no path.
            self.shown.discard(dataset)
        self.check()

    async def step(self) -> None:
        does = self.rng.choice(
            (self.publish, self.publish, self.remove, self.pin, self.pin, self.pin, self.release, self.release,
             self.read, self.read, self.hold, self.let_go, self.fail, self.hang_or_heal, self.fill, self.sicken,
             self.lose_ledger)
        )  # fmt: skip
        self.history.append(does())
        self.check()
        if self.rng.random() < 0.08:
            await self.crash()
        if self.rounds is not None:
            self.rounds.nudge()
        await self.node.until(self._time_has_come(self.rng.choice((0.0, 0.05, 1.0, 5.0, 20.0))))
        self.check()

    def _time_has_come(self, seconds: float) -> Callable[[], bool]:
        left = [seconds]

        def is_so() -> bool:
            self.check()
            left[0] -= 0.02
            return left[0] <= 0

        return is_so

    async def crash(self) -> None:
        assert self.rounds is not None
        await self.node.crash(self.rounds)
        self.history.append("crash")
        self.rounds = self.node.start()

    def publish(self) -> str:
        name = self.rng.choice(NAMES)
        image = self.node.publish(name, size_bytes=self.rng.choice(_SIZES))
        self.published[name].add(image.generation.id)
        return f"publish {name} {image.generation.id[-3:]} {image.size_bytes}"

    def remove(self) -> str:
        name = self.rng.choice(NAMES)
        self.node.remove(name)
        self.shown.discard(name)
        return f"remove {name}"

    def pin(self) -> str:
        name, job = self.rng.choice(NAMES), self.rng.randrange(1, 4)
        self.node.ledger.pin(name, job)
        return f"pin {name} by {job}"

    def release(self) -> str:
        job = self.rng.randrange(1, 4)
        self.node.ledger.unpin(job)
        self.kept = {name: each for name, each in self.kept.items() if self._is_pinned(name)}
        return f"release {job}"

    def read(self) -> str:
        name = self.rng.choice(NAMES)
        if self.node.device(name):
            self.node.read(name, self.rng.choice((10**6, 10**9, 10**11)))
        return f"read {name}"

    def hold(self) -> str:
        name = self.rng.choice(NAMES)
        content = self.node.content(name)
        if content:
            self.held.append((self.node.open(name), content))
        return f"hold {name}"

    def let_go(self) -> str:
        if self.held:
            self.node.close(self.held.pop(0)[0])
        return "let go"

    def fail(self) -> str:
        verb, name = self.rng.choice(_VERBS), self.rng.choice(NAMES)
        self.node.fail(verb, name)
        if verb in ("uncover", "identify"):
            self.unsure.add(name)
        return f"fail {verb} {name}"

    def hang_or_heal(self) -> str:
        name = self.rng.choice(NAMES)
        for hanging in self.node.hanging:
            self.node.heal(hanging)
        if self.rng.random() < 0.3:
            self.node.hang(name)
            self.unsure.add(name)
        return f"hang or heal {name}"

    def fill(self) -> str:
        disk = self.rng.choice(self.node.disks)
        disk.whole_bytes = 2 * CAPACITY_BYTES
        disk.other_bytes = self.rng.choice((0, 0, CAPACITY_BYTES, 19 * CAPACITY_BYTES // 10))
        return f"fill {disk.dir} {disk.other_bytes}"

    def sicken(self) -> str:
        disk = self.rng.choice(self.node.disks)
        disk.problem, disk.is_unknown = self.rng.choice((*[("", False)] * 6, ("EIO", False), ("hangs", True)))
        return f"disk {disk.dir} {disk.problem!r}"

    def lose_ledger(self) -> str:
        self.node.ledger.error = self.rng.choice((*[""] * 5, "cannot be read"))
        return f"ledger {self.node.ledger.error!r}"

    def _is_pinned(self, name: str) -> bool:
        return any(pin.dataset == name for pin in self.node.ledger.held)

    def check(self) -> None:
        """Check what must hold at every moment. Raises: AssertionError."""
        node, story = self.node, "\n".join(self.history[-40:])
        for disk in node.disks:
            used_bytes = disk.used_bytes(node.devices.values())
            assert used_bytes <= CAPACITY_BYTES, f"{disk.dir}: {used_bytes} bytes\n{story}"
        for name in NAMES:
            content = node.content(name)
            if content is not None:
                if name in node.source and content == node.source[name][0].generation.id:
                    self.shown.add(name)
                assert content in self.published[name], f"{name}: readers get {content}\n{story}"
            assert content is not None or name not in self.shown or name not in node.source, f"{name}: no path\n{story}"
            if name in self.kept:
                assert content == self.kept[name], f"{name}: replaced under a pin\n{story}"
            elif self._is_pinned(name) and content is not None and self._is_settled(name):
                self.kept[name] = content
        for device, content in self.held:
            assert device.file.content == content, f"an open file has changed\n{story}"

    def _is_settled(self, name: str) -> bool:
        """Whether a job that pins the dataset would have been told to start: a round has seen its pin."""
        if self.rounds is None or self.rounds.snapshot is None or self.rounds.is_busy:
            return False
        moves = {action.dataset for action in self.rounds.snapshot.plan.actions}
        return name not in moves and name in self.rounds.cards and self.rounds.cards[name].is_pinned

    async def settle(self) -> None:
        """End all hardship and all jobs, and see that the node becomes what it should be."""
        node = self.node
        assert self.rounds is not None
        for name in NAMES:
            node.heal(name)
        for disk in node.disks:
            disk.other_bytes, disk.problem, disk.is_unknown = 0, "", False
        node.ledger.error = ""
        node.clear_faults()
        for job in (1, 2, 3):
            node.ledger.unpin(job)
        self.kept.clear()
        self.publish()  # an empty source is not believed
        story = "\n".join(self.history[-40:])
        await node.rest(self.rounds, 1300)  # what failed is tried again after ten minutes at most
        await node.rest(self.rounds, 1300)
        self.check()
        for name in NAMES:
            image = node.source[name][0] if name in node.source else None
            assert node.content(name) == (image.generation.id if image else None), f"{name}\n{story}"
            assert len(node.mounts.get(name, ())) <= 1, f"{name}: mounts left\n{story}"
            assert len(node.copies(name)) <= 1, f"{name}: {len(node.copies(name))} copies\n{story}"
        for disk in node.disks:
            assert all(path.endswith(".image") for path in disk.files), f"{list(disk.files)} left\n{story}"
        latest = self.rounds.latest()
        assert not latest.plan.actions, f"{latest.plan.actions}\n{story}"
        assert all(verdict.reason for verdict in latest.plan.wishes.verdicts.values())
        wanted = {name for name, verdict in latest.plan.wishes.verdicts.items() if verdict.wanted}
        assert wanted - latest.plan.unplaced <= {name for name in NAMES if node.is_cached(name)}, f"{wanted}\n{story}"
        self._check_use_counts()
        await self._lose_a_disk_and_get_it_back()

    async def _lose_a_disk_and_get_it_back(self) -> None:
        """Let a disk fail under pinned copies, and come back: what was copied again meanwhile is there once."""
        node, rounds = self.node, self.rounds
        assert rounds is not None
        for name in node.source:
            node.ledger.pin(name, 1)
        await node.rest(rounds, 60)
        self._check_use_counts()
        lost = self.rng.choice(node.disks)
        lost.problem = "EIO"
        await node.rest(rounds, 60)
        lost.problem = ""
        await node.rest(rounds, 60)
        self.check()
        story = "\n".join(self.history[-40:])
        for name in node.source:
            assert len(node.copies(name)) <= 1, f"{name}: {len(node.copies(name))} copies\n{story}"
            assert node.is_cached(name) == bool(node.copies(name)), f"{name}: its copy is not read\n{story}"

    def _check_use_counts(self) -> None:
        """A use count is the number of distinct jobs that hold a pin, in the ledger and nowhere else."""
        assert self.rounds is not None
        for name, card in self.rounds.cards.items():
            jobs = {pin.holder for pin in self.node.ledger.held if pin.dataset == name}
            assert len(card.counting) == len(jobs), f"{name}: {card.counting}"
