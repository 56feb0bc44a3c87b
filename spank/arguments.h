/* The arguments of the plugin's line in plugstack.conf. */
#ifndef SCRATCH_SLURM_ARGUMENTS_H
#define SCRATCH_SLURM_ARGUMENTS_H

/* What becomes of a dataset that has no image in source_dir. */
enum unknown_policy { UNKNOWN_REFUSE, UNKNOWN_WARN, UNKNOWN_IGNORE };

struct arguments {
	const char *mount_dir;
	const char *run_dir;
	/* NULL: a submit host does not look. */
	const char *source_dir;
	enum unknown_policy unknown;
	/* Where prolog.d and epilog.d are; NULL: the plugin runs no hooks. */
	const char *hooks;
};

/* How to log: slurm_error where a person looks, slurm_info where it would end in a job's output. */
typedef void log_f(const char *format, ...) __attribute__((format(printf, 1, 2)));

/*
 * Read the arguments; what is wrong is logged and its default stays.
 * Returns 0, or -1 if anything was wrong. The strings stay Slurm's.
 */
int arguments_read(struct arguments *arguments, int ac, char **av, log_f *log);

#endif
