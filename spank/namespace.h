/* The mounts of the node in a job that has its own copy of them. No Slurm in here. */
#ifndef SCRATCH_SLURM_NAMESPACE_H
#define SCRATCH_SLURM_NAMESPACE_H

#include "parse.h"

/*
 * Open the mount namespace of the node, which is that of process 1, as for the daemon: slurmstepd itself may be in the
 * job's (namespace/linux, EntireStepInNS). -1 when that cannot be done. Needs root.
 */
int namespace_open(void);

/*
 * Let this process, root in a mount namespace of its own, see what is mounted below a directory in the namespace
 * `host`, now and later. Nothing is done in `host` itself, and where mounts made there come by themselves; else a
 * clone of the directory there, with its mounts, a slave of it, is put over the one here (Linux 5.2).
 * Returns 0, or -1 with the reason in `why`.
 */
int namespace_show(int host, const char *directory, char why[WHY_SIZE]);

#endif
