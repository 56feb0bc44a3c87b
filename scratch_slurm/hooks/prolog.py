"""The prolog: pin what the job asked for, have the daemon see to it, wait a little, leave word for the job.

Must not copy anything, nor touch the source or a mount: scancel does not stop a prolog (a long wait looks now and then
whether the job is still there), and dead storage would hang it. Where the daemon is down, and a dataset has no path, a
worker process mounts it, which may be lost.
Killed at any point it leaves pins, which the epilog releases.
"""

import time
from collections.abc import Callable

from scratch_slurm.domain.errors import DaemonError, DeniedError, LedgerError, ScratchError, UsageError
from scratch_slurm.domain.names import parse_dataset_list
from scratch_slurm.domain.pins import job_holder
from scratch_slurm.domain.sizes import NO_LIMIT_S, format_duration, parse_wait
from scratch_slurm.domain.states import DatasetState
from scratch_slurm.hooks import hooklog
from scratch_slurm.hooks.answer import Seen
from scratch_slurm.hooks.report import Report, format_report, write_report
from scratch_slurm.hooks.request import JobRequest
from scratch_slurm.hooks.waiting import ANSWER_TIMEOUT_S, SLICE_S, asker, wait_for
from scratch_slurm.hooks.wording import word_status
from scratch_slurm.node.hookconfig import HookConfig
from scratch_slurm.node.ledger.ledger import Ledger, read_boot_id

# What the hook needs beside the waiting: the ledger's patience, the daemon's last answer, writing the report. Where
# Slurm's limit is short it is half of that: the rest seldom takes long, and the stubs end well when it does.
_MARGIN_S = 30.0
_LEAST_MOUNT_S = 10.0

_CUT_SHORT = "the prolog was cut short: the datasets are read from the source until they are cached"


def run_prolog(config: HookConfig, request: JobRequest) -> None:
    """Serve one job. What fails is logged and told to the job, which then reads the source."""
    try:
        datasets = parse_dataset_list(request.datasets_text)
    except UsageError as exc:
        hooklog.warning("refused", job=request.job_id, uid=request.uid, error=exc.message)
        _leave_word(config, request, Report(config.mount_dir, messages=(_one_line(exc) + "; nothing is cached",)))
        return
    began_at = time.monotonic()
    messages = _pin(config, request, datasets)
    wait_s, wait_message = choose_wait(request, config)
    if messages:  # without a pin nothing comes that is worth waiting for
        wait_s = 0.0
    early = Report(config.mount_dir, datasets, (), (*messages, wait_message, _CUT_SHORT))
    _leave_word(config, request, early)
    statuses, problem = _ask_and_wait(config, request, datasets, wait_s)
    waited_s = time.monotonic() - began_at
    all_cached = bool(statuses) and all(status.state is DatasetState.CACHED for status in statuses)
    if all_cached and not request.wait_text:
        wait_message = ""
    messages += [wait_message, problem, *(word_status(status) or "" for status in statuses)]
    _leave_word(config, request, Report(config.mount_dir, datasets, statuses, tuple(messages)))
    states = ",".join(f"{status.name}:{status.state}" for status in statuses)
    log = hooklog.info if all_cached else hooklog.warning
    log("cached" if all_cached else "degraded", job=request.job_id, states=states, waited_s=f"{waited_s:.2f}")


def choose_wait(request: JobRequest, config: HookConfig) -> tuple[float, str]:
    """Decide how long the job's start waits.

    Returns: seconds, and what the job is told if that is not what it asked for, else empty text.
    """
    longest_s, why = _longest_wait(request, config)
    if not request.wait_text:
        told = f"the job's start waits {format_duration(longest_s)} at most: {why}" if why else ""
        return min(config.wait_s, longest_s), told if longest_s < config.wait_s else ""
    try:
        asked_s = parse_wait(request.wait_text)
    except UsageError as exc:
        wait_s = min(config.wait_s, longest_s)
        return wait_s, f"{exc.message}; the job's start waits {format_duration(wait_s)} at most"
    if longest_s < asked_s and (why or asked_s < NO_LIMIT_S):
        told = f"--datasets-wait: this node waits {format_duration(longest_s)} at most"
        return longest_s, f"{told}: {why}" if why else told
    return min(asked_s, longest_s), ""


def _longest_wait(request: JobRequest, config: HookConfig) -> tuple[float, str]:
    """Tell the longest wait here in seconds, and why it is shorter than the site's configuration allows, if it is."""
    if config.prolog_serial:
        return 0.0, "Slurm runs one prolog at a time on this node (PrologFlags=Serial), and other jobs would wait, too"
    longest_s = max(0.0, min(config.wait_limit_s, request.limit_s - _MARGIN_S))
    if config.prolog_timeout_s is None:
        return longest_s, ""
    by_slurm_s = config.prolog_timeout_s - _margin_s(config.prolog_timeout_s)
    if by_slurm_s < longest_s:
        return by_slurm_s, f"Slurm ends a prolog after {config.prolog_timeout_s:.0f} s ({config.prolog_timeout_key})"
    return longest_s, ""


def _margin_s(limit_s: float) -> float:
    return min(_MARGIN_S, limit_s / 2)


def _answer_timeout_s(config: HookConfig) -> float:
    """How long the daemon may take to answer beyond the wait: half the margin, where Slurm's limit is short."""
    if config.prolog_timeout_s is None:
        return ANSWER_TIMEOUT_S
    return min(ANSWER_TIMEOUT_S, _margin_s(config.prolog_timeout_s) / 2)


def _pin(config: HookConfig, request: JobRequest, datasets: tuple[str, ...]) -> list[str]:
    """Pin the datasets. Returns: what the job is told of it."""
    try:
        with Ledger(config.ledger_path, boot_id=read_boot_id(), now=time.time) as ledger:
            ledger.pin(job_holder(request.job_id), datasets, uid=request.uid)
            if ledger.moved_aside:
                hooklog.error("ledger-corrupt", job=request.job_id, kept_as=ledger.moved_aside)
    except LedgerError as exc:
        hooklog.error("not-pinned", job=request.job_id, datasets=",".join(datasets), error=exc.message, hint=exc.hint)
        return [f"nothing is cached for this job: {exc.message}"]
    hooklog.info("pinned", job=request.job_id, uid=request.uid, datasets=",".join(datasets))
    return []


def _ask_and_wait(
    config: HookConfig, request: JobRequest, datasets: tuple[str, ...], wait_s: float
) -> tuple[tuple[Seen, ...], str]:
    """Have the daemon see to the pins, and wait. Returns: the states, and what the job is told of a silent daemon."""
    try:
        ask = asker(config.socket_path, _answer_timeout_s(config), uid=request.uid, node=request.node)
        answer = wait_for(datasets, wait_s, ask, is_over=_over_check(request.job_id, wait_s))
        if len(answer.datasets) == len(datasets):
            return answer.datasets, ""
        raise DaemonError(f"{config.socket_path}: the daemon has not seen the node yet")
    except ScratchError as exc:
        hooklog.warning("no-answer", job=request.job_id, error=exc.message)
        problem = f"nothing more is cached for this job now: {exc.message}"
    # Here, not above: it costs 20 ms that a job with a daemon need not wait.
    from scratch_slurm.hooks.look import look_at

    seen = look_at(datasets, config.mount_dir)
    missing = [status.name for status in seen if status.state is DatasetState.UNMOUNTED]
    if not missing or not config.source_dir:
        return seen, problem
    # It costs a hundred milliseconds more, for a job that would have no path.
    from scratch_slurm.hooks.mounting import mount_missing

    failed = mount_missing(config, missing, _mount_patience_s(request, config))
    mounted = [name for name in missing if name not in failed]
    hooklog.warning("mounted", job=request.job_id, datasets=",".join(mounted), failed=",".join(failed), by="prolog")
    seen = tuple(
        status._replace(problem=failed[status.name])
        if status.state is DatasetState.UNMOUNTED and status.name in failed
        else status
        for status in look_at(datasets, config.mount_dir)
    )
    return seen, problem


def _mount_patience_s(request: JobRequest, config: HookConfig) -> float:
    """How long mounting may take: as a wait, though a job that waits for nothing needs its path, too."""
    longest_s, _ = _longest_wait(request, config)
    limit_s = min(request.limit_s, request.limit_s if config.prolog_timeout_s is None else config.prolog_timeout_s)
    return min(config.source_timeout_s, max(longest_s, min(_LEAST_MOUNT_S, limit_s / 2)))


def _over_check(job_id: int, wait_s: float) -> Callable[[], bool]:
    """Make the function that tells whether the job was cancelled meanwhile; short waits never ask Slurm."""
    if wait_s <= SLICE_S:
        return lambda: False
    # Here, not above: it costs 10 ms that most jobs need not wait.
    from scratch_slurm.hooks.cancelled import CancelWatch

    return CancelWatch(job_id).is_over


def _leave_word(config: HookConfig, request: JobRequest, report: Report) -> None:
    try:
        write_report(config.jobs_dir, request.job_id, format_report(report))
    except (OSError, DeniedError) as exc:
        hooklog.error("no-report", job=request.job_id, jobs_dir=config.jobs_dir, error=exc)


def _one_line(exc: ScratchError) -> str:
    return exc.message + (f" ({exc.hint})" if exc.hint else "")
