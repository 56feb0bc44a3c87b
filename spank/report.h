/* The word that the prolog leaves for a job on this node: the file <run_dir>/jobs/<job id>. */
#ifndef SCRATCH_SLURM_REPORT_H
#define SCRATCH_SLURM_REPORT_H

#include <stdbool.h>
#include <stdint.h>

enum { REPORT_SIZE_MAX = 64 * 1024 };

/*
 * Read the report as text, and claim its messages: `*first` is true for the first caller on this node,
 * which is the step that shows them. Needs root.
 * Returns 0, or -1 with errno; ENOENT: the prolog left no word.
 */
int report_read(const char *run_dir, uint32_t job_id, char text[REPORT_SIZE_MAX + 1], bool *first);

#endif
