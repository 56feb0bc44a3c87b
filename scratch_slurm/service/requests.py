"""What people ask of the daemon that is no question: to evict a dataset, to release a running job's pins."""

import logging

from scratch_slurm.domain import planner
from scratch_slurm.domain.config import Config
from scratch_slurm.domain.errors import DeviceError, NotFoundError, PinnedError, ScratchError
from scratch_slurm.domain.model import job_holder
from scratch_slurm.service.hands import LedgerAccess
from scratch_slurm.service.rounds import Rounds

log = logging.getLogger(__name__)


async def evict(rounds: Rounds, dataset: str) -> int:
    """Evict a dataset because the administrator says so; returns the bytes freed.

    Raises: ScratchError: it is pinned, busy, not cached, or the switch back to the source failed.
    """
    node = await rounds.see_at_rest(dataset)
    action = planner.plan_eviction(rounds.cards, node, dataset, "asked by the administrator")
    try:
        await rounds.do(action)
    except ScratchError as exc:
        if isinstance(exc, PinnedError):
            raise
        raise DeviceError(f"{dataset}: {exc.message}") from exc
    rounds.hold_off(dataset)
    return action.image.size_bytes


async def release_early(
    config: Config, ledger: LedgerAccess, job_id: int, datasets: list[str] | None, uid: int
) -> tuple[str, ...]:
    """Release pins of a running job for its user, or for root.

    Returns: the datasets that it did pin; none when it had released them before.
    Raises: DeniedError: they are another user's. NotFoundError: no such job asked for datasets on this node.
    """
    released = await ledger.release(
        job_holder(job_id),
        datasets,
        event="released-early",
        detail=f"uid={uid}",
        owner=uid or None,  # root may release anybody's
    )
    # The prolog's word to the job tells that it is here, even when it pins nothing any more.
    if not released and not (config.jobs_dir / str(job_id)).exists():
        raise NotFoundError(f"job {job_id}: has no datasets on this node")
    for dataset in released:
        log.info("released dataset=%s job=%d uid=%d reason=%r", dataset, job_id, uid, "given back early")
    return released
