"""What the daemon says on its socket: the answers of `GET /v1/status` and its like, as JSON.

Paths: GET /v1/status -> NodeStatus. POST /v1/wait with WaitRequest -> WaitAnswer, after at least one round of the
loop that has seen the ledger as it was when the request came. POST /v1/evict with EvictRequest -> EvictAnswer.
POST /v1/plan with PlanRequest -> PlanAnswer. POST /v1/release with ReleaseRequest -> ReleaseAnswer.
Of a dataset that the caller may not read the answers tell no more than its name and the state PRIVATE.
An error is an HTTP status of 400 or more with an ErrorAnswer.
"""

import msgspec

from scratch_slurm.domain.about import NOTHING_SAID, About
from scratch_slurm.domain.states import DatasetState as DatasetState


class DatasetStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """One dataset on one node."""

    name: str
    state: DatasetState
    size_bytes: int = 0
    cached_bytes: int = 0
    """Bytes that cached copies occupy on this node's disk."""
    staged_bytes: int = 0
    """Of a copy under way."""
    stage_bytes_per_s: float = 0.0
    eta_s: float | None = None
    use_count: int = 0
    """Jobs that pin the dataset now; the administrator's pin is not a use."""
    holders: tuple[str, ...] = ()
    """Who pins it: `job:<id>`, `administrator`."""
    read_bytes_per_s: float = 0.0
    """Reads from its loop device lately; what RAM serves does not count."""
    source_read_bytes: int = 0
    """Reads that the source served, since the counts began."""
    cache_read_bytes: int = 0
    """Reads that the cache served: what the slow storage was saved."""
    path: str = ""
    """The mount point."""
    problem: str = ""
    """Why it is not as wished, and when the next try is; empty when all is well."""
    update_waiting: bool = False
    """The source has a newer image, which waits for the last pin to go."""
    disks: tuple[str, ...] = ()
    """The cache directories with a copy of it."""
    about: About = NOTHING_SAID
    """What its manifest says of it, for people."""


class DiskStatus(msgspec.Struct, frozen=True):
    """One disk with a cache directory."""

    cache_dir: str
    capacity_bytes: int
    reserve_bytes: int
    used_bytes: int
    free_bytes: int
    problem: str = ""
    """Why it is not used, or gives no answer; empty when all is well."""


class NodeStatus(msgspec.Struct, frozen=True):
    """One node: its cache and its datasets."""

    node: str
    version: str
    pid: int
    started_at: float
    source_dir: str
    cache_dir: str
    """The first of the cache directories; `disks` has them all."""
    mount_dir: str
    capacity_bytes: int
    """Of all disks, like the other sizes."""
    reserve_bytes: int
    used_bytes: int
    """Cached images, space reserved by copies under way, and deleted images that a device still holds."""
    free_bytes: int
    """Free on the cache's file system, for everybody."""
    problem: str
    """What is wrong with the node as a whole, like a source that hangs; empty when all is well."""
    datasets: tuple[DatasetStatus, ...]
    source_read_bytes: int = 0
    """Reads of all datasets that the source served, since the counts began."""
    cache_read_bytes: int = 0
    """Reads of all datasets that the cache served."""
    slurm: str = ""
    """Who is asked about jobs and features: `Slurm's commands 22.05.8`, `pyslurm 25.11`, `no Slurm`."""
    warnings: tuple[str, ...] = ()
    """What had better be otherwise, although all goes on."""
    disks: tuple[DiskStatus, ...] = ()


class WaitRequest(msgspec.Struct, frozen=True):
    """Ask for the states of some datasets, now or as soon as they are all settled.

    Settled: cached, unknown, or beyond what waiting can mend (it does not fit, its image is bad).
    """

    datasets: tuple[str, ...]
    timeout_s: float = 0.0
    uid: int | None = None
    """For whom root asks; None: for itself. From anybody else it does not count."""
    node: str = ""
    """What slurmd calls this node, which a hook knows; from anybody but root it does not count."""


class WaitAnswer(msgspec.Struct, frozen=True):
    """The states in the order asked for."""

    datasets: tuple[DatasetStatus, ...]
    settled: bool


class EvictRequest(msgspec.Struct, frozen=True):
    dataset: str


class EvictAnswer(msgspec.Struct, frozen=True):
    freed_bytes: int


class ReleaseRequest(msgspec.Struct, frozen=True):
    """Give pins of a job back before its end; root may for every job, others for their own."""

    job_id: int
    datasets: tuple[str, ...] = ()
    """Empty: all that the job pins."""


class ReleaseAnswer(msgspec.Struct, frozen=True):
    """What the job did pin until now; empty when it had given all of it back before."""

    released: tuple[str, ...]


class PlanRequest(msgspec.Struct, frozen=True):
    """Ask what the daemon would do now, and why; with other figures than its own, what it would do then."""

    capacity: str = ""
    """A size or a percentage, as in the configuration, for each disk; empty: the node's own."""
    period_s: float = 0.0
    """Take the read rates over so many seconds; 0: the node's own. No longer than the node watches."""
    horizon_s: float = 0.0


class VerdictAnswer(msgspec.Struct, frozen=True):
    """What the plan thinks of one dataset."""

    name: str
    size_bytes: int
    cached: bool
    wanted: bool
    bytes_per_s: float
    value_bytes: float
    """Reads of the slow storage that having it saves over the horizon, less what its copy reads."""
    reason: str


class ActionAnswer(msgspec.Struct, frozen=True):
    """One thing that the plan would do."""

    kind: str
    dataset: str
    reason: str
    disk: str = ""
    """The cache directory that a copy is made in, or that a cached image goes from; empty: it concerns none."""


class PlanAnswer(msgspec.Struct, frozen=True):
    """What would be done, in order, and why. Nothing was changed."""

    capacity_bytes: int
    """Of all disks, like the other two."""
    reserve_bytes: int
    used_bytes: int
    period_s: float
    horizon_s: float
    value_bytes: float
    """What the chosen images save together, as far as disks were found for them."""
    gap: float
    """By which part of what could be saved at most the plan saves less; 0: nothing saves more."""
    actions: tuple[ActionAnswer, ...]
    verdicts: tuple[VerdictAnswer, ...]


class ErrorAnswer(msgspec.Struct, frozen=True):
    """An error of the tree in domain.errors, by class name."""

    error: str
    message: str
    hint: str | None = None
