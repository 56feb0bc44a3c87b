/* The parts of the plugin: where a job is asked for, where it runs, and its hooks. */
#ifndef SCRATCH_SLURM_PLUGIN_H
#define SCRATCH_SLURM_PLUGIN_H

#include <slurm/spank.h>

#include "arguments.h"
#include "parse.h"

/*
 * The variables behind an option. Slurm takes SLURM_SPANK_<OPTION_ENV> as if the flag had been given, keeps
 * <OPTION_ENV> in the environment for slurmstepd, and in the job control environment, which it copies to
 * SLURM_SPANK_<OPTION_ENV>.
 */
#define DATASETS_OPTION_ENV "_SLURM_SPANK_OPTION_scratch_slurm_datasets"
#define WAIT_OPTION_ENV DATASETS_OPTION_ENV "_wait"
#define REQUIRED_OPTION_ENV DATASETS_OPTION_ENV "_required"

/*
 * The request in the job control environment, and how it looks from a job; hooks see SPANK_DATASETS. Whether all of
 * it is required concerns the job_submit script only.
 */
#define DATASETS_CONTROL "DATASETS"
#define WAIT_CONTROL "DATASETS_WAIT"
#define REQUIRED_CONTROL "DATASETS_REQUIRED"
#define DATASETS_IN_JOB "SLURM_SPANK_DATASETS"
#define WAIT_IN_JOB "SLURM_SPANK_DATASETS_WAIT"
#define REQUIRED_IN_JOB "SLURM_SPANK_DATASETS_REQUIRED"
#define DATASETS_IN_HOOK "SPANK_DATASETS"
#define COMMENT_IN_HOOK "SLURM_JOB_COMMENT"
/* Set in the steps of a job that was told that the prolog left no word; SLURM_ variables survive --export=NONE. */
#define TOLD_IN_JOB "SLURM_SPANK_DATASETS_TOLD"

/* What a job finds. */
#define JOB_DATASETS "SCRATCH_DATASETS"
#define JOB_DATASETS_DIR "SCRATCH_DATASETS_DIR"
#define JOB_DATASETS_STATE "SCRATCH_DATASETS_STATE"
/* The job that pins them: SLURM_JOB_ID is the leader's in all components of a heterogeneous job. */
#define JOB_DATASETS_JOB "SCRATCH_DATASETS_JOB"

/* Set by Slurm in heterogeneous jobs alone. */
#define HET_SIZE "SLURM_HET_SIZE"

/* exported.c: an environment that a job's variables may be in. */
struct environment {
	void *context;
	/* Copy a value. Returns 0, or -1 when it is not set, or longer than that. */
	int (*get)(void *context, const char *name, char *value, size_t size);
	void (*unset)(void *context, const char *name);
};

/*
 * Take away what a job found of its datasets, and nothing else: a path counts as such only if the list of names explains
 * it. Without a list nothing is a job's.
 */
void exported_forget(const struct environment *environment);

/* client.c: sbatch, salloc, srun, as the user. */
void client_init(spank_t sp);
int client_on_datasets(const char *arg, const struct arguments *arguments);
int client_on_wait(const char *arg);
int client_on_required(void);
void client_init_post_opt(spank_t sp);
void client_local_user_init(spank_t sp);

/* stepd.c: slurmstepd. Nothing here can fail a job. */
void stepd_init(void);
void stepd_on_datasets(const char *arg);
void stepd_init_post_opt(spank_t sp, const struct arguments *arguments);
void stepd_task_init_privileged(spank_t sp, const struct arguments *arguments);
void stepd_task_init(spank_t sp);

/* jobscript.c: slurmstepd as `spank prolog|epilog`, as root. Nothing here can fail a job or drain a node. */
void jobscript_run(spank_t sp, const char *hook, const struct arguments *arguments);
/* In slurmd: tell where Slurm will not call it. */
void jobscript_check(const struct arguments *arguments);

#endif
