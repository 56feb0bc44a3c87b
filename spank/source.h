/* The directory of images, as a submit host sees it. It may hang: whatever touches it is a process of its own. */
#ifndef SCRATCH_SLURM_SOURCE_H
#define SCRATCH_SLURM_SOURCE_H

#include "nearest.h"

/* A user does not wait longer for being helped. */
enum { SOURCE_LIMIT_MS = 2000 };

struct unknown_dataset {
	char name[NAME_LENGTH_MAX + 1];
	struct nearest nearest;
};

/*
 * Find the first dataset of a parsed list that has no image in `directory`, and the names most like it.
 *
 * Says only what is certain: a directory that is not there, may not be listed, has no image at all (what should be
 * mounted on it is not), fails, or does not answer within SOURCE_LIMIT_MS, makes no dataset unknown.
 * Returns 1 with `unknown`, or 0.
 */
int source_find_unknown(const char *directory, const char *list, struct unknown_dataset *unknown);

#endif
