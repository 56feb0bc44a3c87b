/* What users and the prolog write, parsed. Pure: no Slurm, no files, no logging. */
#ifndef SCRATCH_SLURM_PARSE_H
#define SCRATCH_SLURM_PARSE_H

#include <stddef.h>

enum {
	NAME_LENGTH_MAX = 64,
	NAMES_MAX = 64,
	/* 64 names of 64 letters, a comma or the end after each. */
	LIST_SIZE = NAMES_MAX * (NAME_LENGTH_MAX + 1),
	/* 999999-99:99:99 and the end, with room. */
	WAIT_SIZE = 24,
	WHY_SIZE = 256,
	REPORT_LINE_MAX = 8192,
	/* SCRATCH_DATASET_, a name, and the end. */
	VARIABLE_SIZE = 16 + NAME_LENGTH_MAX + 1,
};

/* The value of parse_wait() for `all`. */
#define WAIT_ALL (-1LL)

/* Tell whether the first `length` bytes of a string are the name of a dataset. */
int parse_is_name(const char *text, size_t length);

/*
 * Parse `NAME[,NAME...]`: write the names to `list` in the order of asking, each once, comma separated.
 * Returns 0, or -1 with the reason in `why`, which shows the offending name.
 */
int parse_datasets(const char *text, char list[LIST_SIZE], char why[WHY_SIZE]);

/*
 * Parse 0, all, 90s, 10m, 2h, 1d, or minutes, MM:SS, HH:MM:SS, D-HH, D-HH:MM, D-HH:MM:SS.
 * Returns 0, or -1 with the reason in `why`, which shows the text.
 */
int parse_wait(const char *text, long long *seconds, char why[WHY_SIZE]);

/* Tell whether a job's comment has a word `datasets=...`; the hook reads it (scratch_slurm/hooks/request.py). */
int parse_comment_asks(const char *comment);

/*
 * Name the variable of a dataset: SCRATCH_DATASET_ and the name in capitals, `_` for what is neither letter nor digit.
 * The hook names them the same (dataset_variables in scratch_slurm/domain/names.py).
 */
void dataset_variable(const char *name, char variable[VARIABLE_SIZE]);

/*
 * Take the next good line `NAME=value` from the prolog's report, where NAME is `message` or SCRATCH_[A-Z0-9_]+;
 * other lines, those above REPORT_LINE_MAX and values with control characters are passed over.
 * Cuts the text in place and moves `*cursor`. Returns 1, or 0 at the end.
 */
int parse_report_line(char **cursor, char **name, char **value);

#endif
