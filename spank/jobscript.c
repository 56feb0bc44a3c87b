#include <limits.h>
#include <slurm/slurm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hook.h"
#include "plugin.h"

/* Of Slurm's programs, as they read slurm.conf; the plugin is built against the headers of the same release. */
extern slurm_conf_t slurm_conf __attribute__((weak));

/*
 * PrologEpilogTimeout, from 25.05 on PrologTimeout and EpilogTimeout, in seconds; 0 where there is none, or slurmd does
 * not pass it on (from 23.02 on). 22.05 to 24.05 drain the node of a plugin that outlives it; 24.11 and later ask for
 * the exit code (_run_spank_job_script() in Slurm's prep_script_slurmd.c), which a SIGTERM makes 0.
 */
static unsigned slurms_timeout(const char *hook)
{
	uint16_t timeout;

	if (&slurm_conf == NULL)
		return 0;
#if SLURM_VERSION_NUMBER >= SLURM_VERSION_NUM(25, 5, 0)
	timeout = strcmp(hook, "prolog") == 0 ? slurm_conf.prolog_timeout : slurm_conf.epilog_timeout;
#else
	(void)hook;
	timeout = slurm_conf.prolog_epilog_timeout;
#endif
	return timeout == NO_VAL16 || timeout == INFINITE16 ? 0 : timeout;
}

/* The word that the prolog left asks for the epilog too, should Slurm pass the request to the prolog alone. */
static bool has_report(spank_t sp, const char *run_dir)
{
	char path[PATH_MAX];
	uint32_t job_id;

	if (spank_get_item(sp, S_JOB_ID, &job_id) != ESPANK_SUCCESS)
		return false;
	snprintf(path, sizeof(path), "%s/jobs/%u", run_dir, job_id);
	return access(path, F_OK) == 0;
}

/* As the stub asks; here so that a job which asks for nothing costs no process. */
static bool is_asked(spank_t sp, const char *hook, const struct arguments *arguments)
{
	const char *datasets = getenv(DATASETS_IN_HOOK), *comment = getenv(COMMENT_IN_HOOK);

	if ((datasets != NULL && *datasets != '\0') || (comment != NULL && parse_comment_asks(comment)))
		return true;
	return strcmp(hook, "epilog") == 0 && has_report(sp, arguments->run_dir);
}

void jobscript_run(spank_t sp, const char *hook, const struct arguments *arguments)
{
	char program[PATH_MAX], seconds[16], why[WHY_SIZE];
	long limit_ms;

	if (arguments->hooks == NULL || !is_asked(sp, hook, arguments))
		return;
	/* As a wrapper of the administrator's would: the stub finds what the daemon made ready for it. */
	setenv("SCRATCH_SLURM_RUN_DIR", arguments->run_dir, 1);
	limit_ms = hook_limit_ms(slurms_timeout(hook));
	if (limit_ms > 0 && limit_ms < HOOK_LIMIT_DEFAULT_S * 1000L) {
		snprintf(seconds, sizeof(seconds), "%ld", limit_ms < 1000 ? 1 : limit_ms / 1000);
		setenv("SCRATCH_SLURM_HOOK_LIMIT", seconds, 1);
	}
	snprintf(program, sizeof(program), "%s/%s.d/50-scratch-slurm", arguments->hooks, hook);
	if (hook_run(program, limit_ms, why) < 0)
		slurm_info("scratch-slurm: %s: cannot run %s: %s", hook, program, why);
}

void jobscript_check(const struct arguments *arguments)
{
#ifdef PROLOG_FLAG_RUN_IN_JOB
	if (arguments->hooks != NULL && &slurm_conf != NULL && (slurm_conf.prolog_flags & PROLOG_FLAG_RUN_IN_JOB))
		slurm_info("scratch-slurm: init: hooks= does nothing under PrologFlags=RunInJob: Prolog= and Epilog= "
			   "have to name the stubs");
#else
	(void)arguments;
#endif
}
