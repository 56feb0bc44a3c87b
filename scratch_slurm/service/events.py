"""What is learned of a dataset, and done with it, beside the rounds' own looks. `cards.fold` takes it in. Values only.

Each names its dataset.
"""

from dataclasses import dataclass

from scratch_slurm.domain.actions import Action, ActionKind
from scratch_slurm.domain.claims import Claim
from scratch_slurm.domain.dataset import Failure, Reads
from scratch_slurm.domain.model import Permissions
from scratch_slurm.domain.sight import MountKey


@dataclass(frozen=True)
class Begun:
    """Something begins with a dataset; nothing else may."""

    dataset: str
    action: Action | None = None
    """None: it is only looked at."""


@dataclass(frozen=True)
class CopyStarted:
    """A copy has its turn."""

    dataset: str
    at: float
    """Monotonic seconds."""


@dataclass(frozen=True)
class Progress:
    """How far the copy of a dataset is. `phase` is resuming, copying or verifying."""

    dataset: str
    bytes_done: int
    phase: str


@dataclass(frozen=True)
class Ended:
    """What was under way with a dataset is over."""

    dataset: str
    action: Action | None = None
    """None: it was only looked at."""


@dataclass(frozen=True)
class Succeeded:
    """An action was done."""

    dataset: str
    action: Action


@dataclass(frozen=True)
class Failed:
    """An action was not done."""

    dataset: str
    kind: ActionKind
    failure: Failure


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
class Gate:
    """The root directory of an image, as its mount shows it: who gets in."""

    dataset: str
    generation_id: str
    permissions: Permissions


@dataclass(frozen=True)
class Identified:
    """A device told its tag."""

    dataset: str
    mount: MountKey
    generation_id: str | None
    """None: it is not ours."""


@dataclass(frozen=True)
class Looked:
    """Somebody looked through a mount."""

    dataset: str
    mount: MountKey
    fault: str
    """What it answered instead of data; empty: it is well."""


@dataclass(frozen=True)
class BadCopy:
    """A cached copy cannot be read, or not be mounted."""

    dataset: str
    path: str
    why: str


@dataclass(frozen=True)
class CutOff:
    """A mount's backing can never answer again; what is in memory of it looks well."""

    dataset: str
    mount: MountKey
    why: str


@dataclass(frozen=True)
class Read:
    """How it is read."""

    dataset: str
    reads: Reads


@dataclass(frozen=True)
class Claimed:
    """What its claims are worth."""

    dataset: str
    claims: tuple[Claim, ...]
    now: float
    """Monotonic seconds; a claim that counts is a use."""


@dataclass(frozen=True)
class HeldOff:
    """The administrator evicted it: no throughput brings it back before `until`, in monotonic seconds."""

    dataset: str
    until: float


Event = (
    Begun
    | CopyStarted
    | Progress
    | Ended
    | Succeeded
    | Failed
    | Hangs
    | Answers
    | Gate
    | Identified
    | Looked
    | BadCopy
    | CutOff
    | Read
    | Claimed
    | HeldOff
)
