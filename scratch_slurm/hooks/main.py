"""`scratch-slurm-hook prolog|epilog`: whatever happens, Slurm sees exit code 0. Must import nothing heavy up here.

The stubs in prolog.d and epilog.d run it, with a time limit, for jobs that asked for datasets.
"""

import os
import sys

from scratch_slurm.hooks import hooklog

USAGE = """usage: scratch-slurm-hook prolog|epilog

The SPANK plugin runs it, or Slurm's Prolog and Epilog, through prolog.d/50-scratch-slurm and epilog.d/50-scratch-slurm.
It reads SLURM_JOB_ID, SLURM_JOB_UID, SPANK_DATASETS (or a word datasets=a,b in SLURM_JOB_COMMENT) and
SPANK_DATASETS_WAIT; by hand, as root:
  SLURM_JOB_ID=1 SLURM_JOB_UID=1000 SPANK_DATASETS=imagenet scratch-slurm-hook prolog
"""


def main() -> int:
    """Run one hook. Returns: 0, or 2 when a person without a job called it wrongly."""
    hook = sys.argv[1] if len(sys.argv) == 2 else ""
    if hook not in ("prolog", "epilog") or "SLURM_JOB_ID" not in os.environ:
        sys.stderr.write(USAGE)
        return 0 if "SLURM_JOB_ID" in os.environ else 2
    try:
        _run(hook)
    except Exception as exc:  # promise 1: a bug, a broken installation and a full disk cost the cache, not the job
        hooklog.error("hook-failed", job=os.environ["SLURM_JOB_ID"], hook=hook, error=f"{type(exc).__name__}: {exc}")
    return 0


def _run(hook: str) -> None:
    # Here, so that a missing library is caught like everything else.
    from scratch_slurm.hooks.epilog import run_epilog
    from scratch_slurm.hooks.prolog import run_prolog
    from scratch_slurm.hooks.request import parse_request
    from scratch_slurm.node.hookconfig import load_hook_config

    request = parse_request(os.environ)
    if hook == "prolog" and not request.datasets_text:
        return
    config = load_hook_config()
    if config.stale:
        hooklog.error("configuration-wrong", job=request.job_id, error=config.stale, serves="the last values")
    if hook == "epilog":
        run_epilog(config, request.job_id, request.node)
    else:
        run_prolog(config, request)
