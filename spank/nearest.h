/* The names most like a misspelt one. Pure. */
#ifndef SCRATCH_SLURM_NEAREST_H
#define SCRATCH_SLURM_NEAREST_H

#include "parse.h"

enum { NEAREST_MAX = 3 };

/* The best so far, nearest first, then by the alphabet; all zero is none. */
struct nearest {
	int count;
	int distance[NEAREST_MAX];
	char names[NEAREST_MAX][NAME_LENGTH_MAX + 1];
};

/*
 * Count the letters to add, drop, change or swap with their neighbour until `a` is `b`; case does not count.
 * Both have at most NAME_LENGTH_MAX letters.
 */
int edit_distance(const char *a, const char *b);

/* Keep `name` if it is like `wanted`: a third of the letters wrong at most, or one begins with the other. */
void nearest_offer(struct nearest *nearest, const char *wanted, const char *name);

/* Write `; did you mean a, b or c?`, or nothing where nothing is near. */
void nearest_hint(const struct nearest *nearest, char hint[WHY_SIZE]);

#endif
