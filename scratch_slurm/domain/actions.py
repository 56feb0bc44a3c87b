"""What a plan is made of: the actions, and the copies that are not whole yet. Values only."""

import enum
from dataclasses import dataclass
from typing import ClassVar

from scratch_slurm.domain.backing import Backing
from scratch_slurm.domain.model import CachedImage, SourceImage


@dataclass(frozen=True)
class StagedImage:
    """A copy that is not whole yet: under way, or left by an earlier daemon."""

    dataset: str
    generation_id: str
    reserved_bytes: int
    """What it counts in `Space.used_bytes`: its full size once its space is reserved."""
    under_way: bool
    done_bytes: int = 0
    """How much of it need not be read from the source again."""
    disk: str = ""
    """The cache directory that it lies in; empty: the only one."""
    made_as: str = ""
    """The id that its file is named by, where its image has another one by now; empty: `generation_id`."""


Despite = frozenset[str] | None
"""Holders whose pins do not keep a dataset from what is done: they do not stand, or are beyond their users' share.
None: it is done whoever pins. See `claims.find_keepers`."""


class ActionKind(enum.StrEnum):
    """What an action does; failures are remembered by dataset and kind."""

    MOUNT = "mount"
    REPLACE = "replace"
    UNCOVER = "uncover"
    UNMOUNT = "unmount"
    RETARGET = "retarget"
    STAGE = "stage"
    EVICT = "evict"
    DROP = "drop"


@dataclass(frozen=True)
class Mount:
    """Make the dataset visible at its mount point for the first time."""

    kind: ClassVar = ActionKind.MOUNT

    image: SourceImage
    backing: Backing
    reason: str

    @property
    def dataset(self) -> str:
        return self.image.dataset


@dataclass(frozen=True)
class Replace(Mount):
    """Put another generation in the place of the one that is mounted."""

    kind: ClassVar = ActionKind.REPLACE

    despite: Despite = frozenset()


@dataclass(frozen=True)
class Mend(Replace):
    """Mount the generation that is mounted anew, pinned or not: its file system remembers an I/O error."""


@dataclass(frozen=True)
class Uncover:
    """Finish a replacement that was cut short: the mount on top goes, and the one beneath it is seen."""

    kind: ClassVar = ActionKind.UNCOVER

    dataset: str
    device: str
    """Of the mount beneath."""
    reason: str
    despite: Despite
    """None where both mounts are of one generation."""


@dataclass(frozen=True)
class Unmount:
    kind: ClassVar = ActionKind.UNMOUNT

    dataset: str
    reason: str
    despite: Despite = frozenset()


@dataclass(frozen=True)
class Retarget:
    """Switch a mounted dataset to its cached image, or to the source."""

    kind: ClassVar = ActionKind.RETARGET

    dataset: str
    device: str
    backing: Backing
    image: SourceImage | None
    """With it the dataset can be mounted anew where the switch is refused; None: it is another generation now."""
    reason: str


@dataclass(frozen=True)
class Stage:
    kind: ClassVar = ActionKind.STAGE

    image: SourceImage
    reason: str
    preheat: bool
    """Somebody pins it: it goes before what is staged for its throughput."""
    disk: str = ""
    """The cache directory that the copy is made in; empty: the only one."""

    @property
    def dataset(self) -> str:
        return self.image.dataset


@dataclass(frozen=True)
class BackTo:
    """The loop device that reads a cached image, and the image in the source that it is switched back to."""

    device: str
    image: SourceImage


@dataclass(frozen=True)
class Evict:
    """Delete a cached image; a mounted dataset is switched back to its source first."""

    kind: ClassVar = ActionKind.EVICT

    image: CachedImage
    back_to: BackTo | None
    """None: nothing reads the image."""
    reason: str
    despite: Despite = frozenset()
    """None where its generation is served to nobody, and no pin can mean it."""
    needed_by: str = ""
    """The dataset whose room it makes, and which `reason` names; empty: none."""
    reason_unnamed: str = ""
    """The reason without that dataset."""

    @property
    def dataset(self) -> str:
        return self.image.dataset


@dataclass(frozen=True)
class DropStaged:
    """Stop a copy if it is under way, and delete what it has."""

    kind: ClassVar = ActionKind.DROP

    staged: StagedImage
    reason: str

    @property
    def dataset(self) -> str:
        return self.staged.dataset


Action = Mount | Replace | Mend | Uncover | Unmount | Retarget | Stage | Evict | DropStaged
