"""What is learned of this node beside the rounds' own looks. Values only."""

from dataclasses import dataclass

from scratch_slurm.domain.model import Permissions

MountKey = tuple[str, int, str]
"""(dataset, mount id, device)"""


@dataclass(frozen=True)
class Hangs:
    """What is done with a dataset gives no answer, and was given up; it is not over before the kernel says so."""

    dataset: str
    since: float
    """Epoch seconds, to be shown."""


@dataclass(frozen=True)
class Answers:
    """What hung with a dataset is over."""

    dataset: str


@dataclass(frozen=True)
class Progress:
    """How far the copy of a dataset is. `phase` is resuming, copying or verifying."""

    dataset: str
    bytes_done: int
    phase: str


@dataclass(frozen=True)
class Gate:
    """The root directory of an image, as its mount shows it: who gets in."""

    generation_id: str
    permissions: Permissions


@dataclass(frozen=True)
class CutOff:
    """A mount whose backing can never answer again; what is in memory of it looks well."""

    key: MountKey
    why: str


Event = Hangs | Answers | Progress | Gate | CutOff
