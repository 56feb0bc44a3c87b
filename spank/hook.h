/* Running a hook, prolog.d/50-scratch-slurm or epilog.d/50-scratch-slurm, for Slurm. No Slurm in here. */
#ifndef SCRATCH_SLURM_HOOK_H
#define SCRATCH_SLURM_HOOK_H

#include "parse.h"

/* What the stubs take as their own limit without a word, in seconds: the default of SCRATCH_SLURM_HOOK_LIMIT. */
enum { HOOK_LIMIT_DEFAULT_S = 900 };

/*
 * Tell how long a hook may take where Slurm ends it after `timeout_s` seconds, 0 for never: some releases drain the
 * node when Slurm has to. Returns milliseconds, less than Slurm's, or 0 for no limit.
 */
long hook_limit_ms(unsigned timeout_s);

/*
 * Run a program with this process's environment, in its process group, without its input and output, and wait for
 * its end. After `limit_ms` milliseconds (0: never) it gets SIGTERM, and soon SIGKILL. Its children may outlive it:
 * they end with the process group. A SIGTERM to this process meanwhile ends it, with exit code 0.
 * Returns 0, or -1 with the reason in `why`; what the program itself returns does not matter.
 */
int hook_run(const char *program, long limit_ms, char why[WHY_SIZE]);

#endif
