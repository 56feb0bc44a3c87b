"""The epilog: release the job's pins, take its word away, tell the daemon. Any number of times, for any job."""

import time

from scratch_slurm.domain.errors import DeniedError, LedgerError, ScratchError
from scratch_slurm.domain.pins import job_holder
from scratch_slurm.hooks import hooklog
from scratch_slurm.hooks.report import remove_report
from scratch_slurm.hooks.waiting import asker
from scratch_slurm.node.hookconfig import HookConfig
from scratch_slurm.node.ledger.ledger import Ledger, read_boot_id

# The daemon looks at the ledger on its own, too: this only makes it soon.
_NUDGE_TIMEOUT_S = 2.0


def run_epilog(config: HookConfig, job_id: int, node: str = "") -> None:
    """Let go of everything of a job's. Pins that cannot be released are the daemon's to find."""
    if _release(config, job_id):
        _nudge(config, job_id, node)
    try:
        remove_report(config.jobs_dir, job_id)
    except (OSError, DeniedError) as exc:
        hooklog.error("report-stays", job=job_id, jobs_dir=config.jobs_dir, error=exc)


def _release(config: HookConfig, job_id: int) -> tuple[str, ...]:
    try:
        with Ledger(config.ledger_path, boot_id=read_boot_id(), now=time.time) as ledger:
            released = ledger.release(job_holder(job_id))
            if ledger.moved_aside:
                hooklog.error("ledger-corrupt", job=job_id, kept_as=ledger.moved_aside)
    except LedgerError as exc:
        hooklog.error("not-released", job=job_id, error=exc.message, hint=exc.hint)
        return ()
    if released:
        hooklog.info("released", job=job_id, datasets=",".join(released))
    return released


def _nudge(config: HookConfig, job_id: int, node: str) -> None:
    try:
        asker(config.socket_path, _NUDGE_TIMEOUT_S, node=node)((), 0.0)
    except ScratchError as exc:
        hooklog.warning("no-answer", job=job_id, error=exc.message)
