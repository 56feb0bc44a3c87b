"""What the daemon remembers between rounds: nothing that must survive it."""

import math
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from scratch_slurm.domain import backoff
from scratch_slurm.domain.actions import Action, ActionKind
from scratch_slurm.domain.dataset import Failure
from scratch_slurm.domain.model import MountedImage, Permissions, SourceImage
from scratch_slurm.domain.throughput import ReadCounter
from scratch_slurm.service.events import MountKey

_FIRST_RETRY_S = 5.0
_LAST_RETRY_S = 600.0


@dataclass
class Copy:
    """A copy under way, or waiting for its turn."""

    image: SourceImage
    disk: str
    """The cache directory that it is made in."""
    started_at: float | None = None
    """Monotonic seconds; None while it waits."""
    bytes_done: int = 0
    bytes_at_start: int | None = None
    """What an interrupted copy had already, so that the rate is that of this copy."""
    phase: str = "queued"

    def progress(self, bytes_done: int, phase: str) -> None:
        """Take a worker's word. A copy that is read again to be verified is all there: its count begins anew."""
        if self.bytes_at_start is None and phase == "copying":
            self.bytes_at_start = bytes_done
        self.bytes_done, self.phase = self.image.size_bytes if phase == "verifying" else bytes_done, phase

    def bytes_per_s(self, now: float) -> float:
        if self.started_at is None or self.bytes_at_start is None or now <= self.started_at or self.phase != "copying":
            return 0.0
        return max(0, self.bytes_done - self.bytes_at_start) / (now - self.started_at)


@dataclass
class Memory:
    """State of the rounds. Everything in it is found again, or begun anew, by the next daemon."""

    started_at: float = field(default_factory=time.time)
    running: dict[str, Action] = field(default_factory=dict)
    """Dataset -> the action under way."""
    hanging_since: dict[str, float] = field(default_factory=dict)
    """Dataset -> epoch seconds since when its action gives no answer."""
    copies: dict[str, Copy] = field(default_factory=dict)
    failures: dict[tuple[str, ActionKind], Failure] = field(default_factory=dict)
    generations: dict[MountKey, str | None] = field(default_factory=dict)
    """Generation id on the device's tag; None: not ours."""
    unwell: dict[MountKey, str] = field(default_factory=dict)
    """Mounts that answer with an I/O error -> what they answered."""
    cut_off: dict[MountKey, str] = field(default_factory=dict)
    """Mounts whose backing can never answer again -> why; what is in memory of them looks well."""
    bad_copies: dict[str, str] = field(default_factory=dict)
    """Paths of cached images that cannot be read or mounted -> why; they go."""
    counters: dict[str, ReadCounter] = field(default_factory=dict)
    last_used_at: dict[str, float] = field(default_factory=dict)
    """Monotonic seconds."""
    held_off: dict[str, float] = field(default_factory=dict)
    """Dataset that the administrator evicted -> monotonic seconds until when its throughput does not bring it back."""
    roots: dict[str, Permissions] = field(default_factory=dict)
    """Generation id -> the root directory of its mount."""
    readers: dict[str, Permissions] = field(default_factory=dict)
    """Dataset -> its image's file, as of the latest round: who may read it. What is missing is private."""

    def fail(
        self,
        dataset: str,
        kind: ActionKind,
        message: str,
        now: float,
        generation_id: str | None = None,
        *,
        for_good: bool = False,
    ) -> Failure:
        """Remember a failure; the next try is twice as far away as this one was, ten minutes at most.

        Args:
            now: monotonic seconds.
            for_good: no other try with this generation can succeed.
        """
        old = self.failures.get((dataset, kind))
        attempts = old.attempts + 1 if old else 1
        pause_s = math.inf if for_good else backoff.pause_s(attempts, _FIRST_RETRY_S, _LAST_RETRY_S)
        failure = Failure(message, attempts, now + pause_s, generation_id)
        self.failures[dataset, kind] = failure
        return failure

    def keep(self, dataset: str, kind: ActionKind, message: str, retry_at: float) -> None:
        """Remember that a pin kept a dataset as it is: nothing is wrong, and it is tried again at that time.

        Args:
            retry_at: monotonic seconds.
        """
        self.failures[dataset, kind] = Failure(message, 0, retry_at, kept=True)

    def failed(self, dataset: str) -> bool:
        """Whether something has failed with a dataset; that a pin kept it is none."""
        return any(name == dataset and not failure.kept for (name, _), failure in self.failures.items())

    def forget_mount(self, dataset: str) -> None:
        """Forget whose a dataset's mount is; the kernel gives mount ids and devices out again at once."""
        for key in [key for key in self.generations if key[0] == dataset]:
            del self.generations[key]

    def backing_off(self, now: float, pinned: Set[str]) -> frozenset[tuple[str, ActionKind]]:
        """What is not tried now: what failed a moment ago, and copies that the administrator would not see come back.

        A pin asks anew for what was evicted.

        Args:
            now: monotonic seconds.
        """
        failed = {key for key, failure in self.failures.items() if failure.retry_at > now}
        held_off = {(name, ActionKind.STAGE) for name, until in self.held_off.items() if until > now}
        return frozenset(failed | {key for key in held_off if key[0] not in pinned})

    def succeed(self, dataset: str, kind: ActionKind) -> None:
        self.failures.pop((dataset, kind), None)

    def forget_other_images(self, images: Mapping[str, SourceImage]) -> None:
        """Forget the failures of images that the source has replaced: the new one is tried at once."""
        for (dataset, kind), failure in list(self.failures.items()):
            image = images.get(dataset)
            if failure.generation_id and image and image.generation.id != failure.generation_id:
                del self.failures[dataset, kind]

    def forget_other_uses(self, here: Set[str]) -> None:
        """Forget, now and then, when datasets were last used of which this node has nothing any more."""
        if len(self.last_used_at) > 2 * len(here) + 100:
            self.last_used_at = {name: at for name, at in self.last_used_at.items() if name in here}

    def forget_other_roots(self, images: Mapping[str, SourceImage], mounted: Mapping[str, MountedImage]) -> None:
        """Forget, now and then, the root directories of generations that are neither in the source nor mounted."""
        if len(self.roots) > 2 * (len(images) + len(mounted)) + 100:
            current = {image.generation.id for image in images.values()}
            current |= {mount.generation_id for mount in mounted.values() if mount.generation_id}
            self.roots = {key: root for key, root in self.roots.items() if key in current}

    def problem(self, dataset: str, now: float) -> str:
        """Word the failures of a dataset for people; empty without any.

        Args:
            now: monotonic seconds.
        """
        texts = []
        for (name, kind), failure in self.failures.items():
            if name == dataset and not failure.kept:
                wait_s = max(0.0, failure.retry_at - now)
                again = f"next try in {wait_s:.0f} s"
                if failure.is_for_good:
                    again = "not tried again before the image or its manifest is another one"
                texts.append(f"{kind} failed: {failure.message}; {again}")
        return "; ".join(texts)
