/*
 * SPANK plugin: --datasets, --datasets-wait and --datasets-required for sbatch, salloc and srun.
 *
 * It carries a request from the user to the prolog (SPANK_DATASETS), and the prolog's word to the job
 * (SCRATCH_DATASETS). It decides nothing: what it checks is checked again by the hooks, as root.
 */
#include "plugin.h"

SPANK_PLUGIN(scratch_slurm, 1)

static struct arguments arguments;

static int on_datasets(int val, const char *arg, int remote)
{
	(void)val;
	if (!remote)
		return client_on_datasets(arg, &arguments);
	stepd_on_datasets(arg);
	return 0;
}

static int on_wait(int val, const char *arg, int remote)
{
	(void)val;
	return remote ? 0 : client_on_wait(arg);
}

static int on_required(int val, const char *arg, int remote)
{
	(void)val;
	(void)arg;
	return remote ? 0 : client_on_required();
}

static struct spank_option options[] = {
	{
		.name = "datasets",
		.arginfo = "NAME[,NAME...]",
		.usage = "datasets to read from the node's own disk: copied there before the job starts or, "
			 "when that takes too long, while it runs",
		.has_arg = 1,
		.cb = on_datasets,
	},
	{
		.name = "datasets-wait",
		.arginfo = "TIME",
		.usage = "how long the start waits for --datasets: 0, 90s, 10m, 2h, 1d, a time as in --time, "
			 "or all",
		.has_arg = 1,
		.cb = on_wait,
	},
	{
		.name = "datasets-required",
		.usage = "rather wait for nodes that have all of --datasets than start on others",
		.has_arg = 0,
		.cb = on_required,
	},
};

int slurm_spank_init(spank_t sp, int ac, char **av)
{
	spank_context_t context = spank_context();
	spank_err_t err;
	int rv;

	if (context == S_CTX_SLURMD) {
		(void)arguments_read(&arguments, ac, av, slurm_info);
		jobscript_check(&arguments);
	}
	if (context != S_CTX_LOCAL && context != S_CTX_ALLOCATOR && context != S_CTX_REMOTE)
		return 0;

	/* A wrong argument falls back to its default; the options stay, or #SBATCH --datasets would be refused. */
	rv = arguments_read(&arguments, ac, av, context == S_CTX_REMOTE ? slurm_info : slurm_error);
	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
		err = spank_option_register(sp, &options[i]);
		if (err != ESPANK_SUCCESS) {
			slurm_info("scratch-slurm: init: cannot register --%s: %s", options[i].name,
				   spank_strerror(err));
			rv = -1;
		}
	}
	if (context == S_CTX_REMOTE) {
		stepd_init();
		return 0;
	}
	client_init(sp);
	return rv;
}

int slurm_spank_init_post_opt(spank_t sp, int ac, char **av)
{
	(void)ac;
	(void)av;
	switch (spank_context()) {
	case S_CTX_LOCAL:
	case S_CTX_ALLOCATOR:
		client_init_post_opt(sp);
		return 0;
	case S_CTX_REMOTE:
		stepd_init_post_opt(sp, &arguments);
		return 0;
	default:
		return 0;
	}
}

int slurm_spank_local_user_init(spank_t sp, int ac, char **av)
{
	(void)ac;
	(void)av;
	client_local_user_init(sp);
	return 0;
}

int slurm_spank_task_init_privileged(spank_t sp, int ac, char **av)
{
	(void)ac;
	(void)av;
	stepd_task_init_privileged(sp, &arguments);
	return 0;
}

int slurm_spank_task_init(spank_t sp, int ac, char **av)
{
	(void)ac;
	(void)av;
	stepd_task_init(sp);
	return 0;
}

/* The context of these two has no init of its own. */
int slurm_spank_job_prolog(spank_t sp, int ac, char **av)
{
	(void)arguments_read(&arguments, ac, av, slurm_info);
	jobscript_run(sp, "prolog", &arguments);
	return 0;
}

int slurm_spank_job_epilog(spank_t sp, int ac, char **av)
{
	(void)arguments_read(&arguments, ac, av, slurm_info);
	jobscript_run(sp, "epilog", &arguments);
	return 0;
}
