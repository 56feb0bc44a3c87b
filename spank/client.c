#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "plugin.h"
#include "source.h"

/* Left in the environment by the job (or the salloc shell) in which this command runs. */
static const char *const of_the_outer_job[] = {
	DATASETS_OPTION_ENV, WAIT_OPTION_ENV, REQUIRED_OPTION_ENV, DATASETS_IN_JOB,
	WAIT_IN_JOB,         REQUIRED_IN_JOB, TOLD_IN_JOB,
};

/*
 * What one component of a heterogeneous job asks for, or the one job. One process sees the options of each component in
 * turn, and init_post_opt() after each.
 */
static struct {
	char datasets[LIST_SIZE];
	char wait_time[WAIT_SIZE];
	bool required;
} request;

/* What <COMMAND>_DATASETS and <COMMAND>_DATASETS_WAIT say, for each component that says nothing itself; or empty. */
static struct {
	char datasets[LIST_SIZE];
	char wait_time[WAIT_SIZE];
} usual;

/* Some component asks for datasets. */
static bool is_asked;
static char outer_job_id[16];
static bool said_too_late;

/* True for srun where it makes a step and no job. */
static bool in_allocation(void)
{
	return spank_context() == S_CTX_LOCAL && outer_job_id[0] != '\0';
}

/*
 * A value in SLURM_SPANK_<OPTION_ENV> counts as the flag. We never leave it there ourselves, so somebody set it on
 * purpose; but a step asks for nothing, and must not fail over such a value either.
 */
static void forget_flag_variables(void)
{
	unsetenv("SLURM_SPANK_" DATASETS_OPTION_ENV);
	unsetenv("SLURM_SPANK_" WAIT_OPTION_ENV);
	unsetenv("SLURM_SPANK_" REQUIRED_OPTION_ENV);
}

static int get(void *context, const char *name, char *value, size_t size)
{
	const char *found = getenv(name);

	(void)context;
	if (found == NULL || strlen(found) >= size)
		return -1;
	strcpy(value, found);
	return 0;
}

static void unset(void *context, const char *name)
{
	(void)context;
	unsetenv(name);
}

/*
 * Slurm's own options have such variables, which count for more than a #SBATCH line and less than the command line. So
 * does SLURM_SPANK_<OPTION_ENV>, which Slurm reads itself. Too long a value is left to the option to refuse.
 */
static void take_variable(const char *command, const char *option, const char *option_env)
{
	char name[64];
	const char *value;

	snprintf(name, sizeof(name), "%s_%s", command, option);
	value = getenv(name);
	snprintf(name, sizeof(name), "SLURM_SPANK_%s", option_env);
	if (value != NULL && *value != '\0')
		setenv(name, value, 0);
}

static void take_variables(void)
{
	const char *command = "SBATCH";

	if (spank_context() == S_CTX_LOCAL)
		command = "SRUN";
	else if (strcmp(program_invocation_short_name, "salloc") == 0)
		command = "SALLOC";
	else if (strcmp(program_invocation_short_name, "scrontab") == 0)
		return;
	take_variable(command, "DATASETS", DATASETS_OPTION_ENV);
	take_variable(command, "DATASETS_WAIT", WAIT_OPTION_ENV);
}

void client_init(spank_t sp)
{
	static const struct environment ours = {.get = get, .unset = unset};
	const char *job_id = getenv("SLURM_JOB_ID");

	(void)sp;
	if (job_id != NULL)
		snprintf(outer_job_id, sizeof(outer_job_id), "%.*s", (int)strspn(job_id, "0123456789"), job_id);
	if (in_allocation()) {
		forget_flag_variables();
		return;
	}
	for (size_t i = 0; i < sizeof(of_the_outer_job) / sizeof(of_the_outer_job[0]); i++)
		unsetenv(of_the_outer_job[i]);
	/* Outside of a job such variables are the user's own. */
	if (outer_job_id[0] != '\0')
		exported_forget(&ours);
	take_variables();
}

/* Tell of a dataset that the source does not have; what is done about it is the site's choice. */
static int check_source(const struct arguments *arguments)
{
	struct unknown_dataset unknown;
	char hint[WHY_SIZE];

	if (arguments->source_dir == NULL || arguments->unknown == UNKNOWN_IGNORE || in_allocation() ||
	    !source_find_unknown(arguments->source_dir, request.datasets, &unknown))
		return 0;
	nearest_hint(&unknown.nearest, hint);
	if (arguments->unknown == UNKNOWN_WARN) {
		slurm_spank_log("scratch-slurm: %s: no such dataset in %s%s", unknown.name, arguments->source_dir, hint);
		return 0;
	}
	slurm_error("scratch-slurm: options: cannot use --datasets: '%s': no such dataset in %s%s", unknown.name,
		    arguments->source_dir, hint);
	return -1;
}

/* scrontab takes the options of plugins and sends none of what they ask for: refused, rather than forgotten. */
static int check_crontab(const char *option)
{
	if (strcmp(program_invocation_short_name, "scrontab") != 0)
		return 0;
	slurm_error("scratch-slurm: options: cannot use --%s: scrontab does not pass it on; let the command submit "
		    "a job that asks (sbatch --%s)", option, option);
	return -1;
}

/* Checked here only to fail early for the user: the hook runs as root and checks again. */
int client_on_datasets(const char *arg, const struct arguments *arguments)
{
	char why[WHY_SIZE];

	if (check_crontab("datasets") < 0)
		return -1;
	if (parse_datasets(arg, request.datasets, why) < 0) {
		slurm_error("scratch-slurm: options: cannot use --datasets: %s", why);
		return -1;
	}
	is_asked = true;
	return check_source(arguments);
}

int client_on_wait(const char *arg)
{
	char why[WHY_SIZE];
	long long seconds;

	if (check_crontab("datasets-wait") < 0)
		return -1;
	if (parse_wait(arg, &seconds, why) < 0) {
		slurm_error("scratch-slurm: options: cannot use --datasets-wait: %s", why);
		return -1;
	}
	snprintf(request.wait_time, sizeof(request.wait_time), "%s", arg);
	return 0;
}

int client_on_required(void)
{
	if (check_crontab("datasets-required") < 0)
		return -1;
	request.required = true;
	return 0;
}

static void set_control(spank_t sp, const char *name, const char *value)
{
	spank_err_t err = spank_job_control_setenv(sp, name, value, 1);

	if (err != ESPANK_SUCCESS)
		slurm_error("scratch-slurm: options: cannot pass %s to the prolog: %s", name, spank_strerror(err));
}

static void say_too_late(const char *job_id)
{
	if (said_too_late)
		return;
	said_too_late = true;
	slurm_spank_log("scratch-slurm: --datasets comes too late for a step of job %s: ask with sbatch, salloc, or "
			"an srun that starts the job", job_id);
}

/*
 * Without PrologFlags=Alloc the prolog runs with the first step on a node and sees the step's job control
 * environment, which srun starts with what the job's environment has: hand on what the job asked for. In a
 * heterogeneous job that is what its leader asked for, and nobody else.
 */
static void pass_on_request_of_job(spank_t sp)
{
	char list[LIST_SIZE], why[WHY_SIZE];
	const char *asked = getenv(DATASETS_IN_JOB);
	const char *wait = getenv(WAIT_IN_JOB);
	long long seconds;

	if (asked == NULL || getenv(HET_SIZE) != NULL || parse_datasets(asked, list, why) < 0)
		return;
	set_control(sp, DATASETS_CONTROL, list);
	if (wait != NULL && parse_wait(wait, &seconds, why) == 0)
		set_control(sp, WAIT_CONTROL, wait);
}

/* What a component before this one asked for, in the control environment and where sbatch and salloc copy it to. */
static void forget_request_before(spank_t sp)
{
	spank_job_control_unsetenv(sp, DATASETS_CONTROL);
	spank_job_control_unsetenv(sp, WAIT_CONTROL);
	spank_job_control_unsetenv(sp, REQUIRED_CONTROL);
	if (in_allocation())
		return;
	unsetenv(DATASETS_IN_JOB);
	unsetenv(WAIT_IN_JOB);
	unsetenv(REQUIRED_IN_JOB);
}

/*
 * The variables of the first component's options must not stay in the environment, which becomes the job's. What they
 * said is kept for the others. (There a #SBATCH line counts for more.)
 */
static void apply_usual(void)
{
	const char *datasets = getenv("SLURM_SPANK_" DATASETS_OPTION_ENV);
	const char *wait_time = getenv("SLURM_SPANK_" WAIT_OPTION_ENV);
	char why[WHY_SIZE];
	long long seconds;

	if (datasets != NULL)
		(void)parse_datasets(datasets, usual.datasets, why);
	if (wait_time != NULL && parse_wait(wait_time, &seconds, why) == 0)
		snprintf(usual.wait_time, sizeof(usual.wait_time), "%s", wait_time);
	if (request.datasets[0] == '\0')
		strcpy(request.datasets, usual.datasets);
	if (request.wait_time[0] == '\0' && request.datasets[0] != '\0')
		strcpy(request.wait_time, usual.wait_time);
}

static void ask(spank_t sp)
{
	if (request.datasets[0] == '\0') {
		if (request.wait_time[0] != '\0' && getenv("SLURM_SPANK_" WAIT_OPTION_ENV) == NULL)
			slurm_spank_log("scratch-slurm: --datasets-wait does nothing without --datasets");
		if (request.required && getenv("SLURM_SPANK_" REQUIRED_OPTION_ENV) == NULL)
			slurm_spank_log("scratch-slurm: --datasets-required does nothing without --datasets");
		return;
	}
	set_control(sp, DATASETS_CONTROL, request.datasets);
	if (request.wait_time[0] != '\0')
		set_control(sp, WAIT_CONTROL, request.wait_time);
	if (request.required)
		set_control(sp, REQUIRED_CONTROL, "1");
}

void client_init_post_opt(spank_t sp)
{
	/*
	 * Slurm would copy these to SLURM_SPANK_<OPTION_ENV> in the job's environment (and in the shell of salloc),
	 * where a nested sbatch takes them for its own flag. The hooks need only DATASETS, which sets nothing.
	 */
	spank_job_control_unsetenv(sp, DATASETS_OPTION_ENV);
	spank_job_control_unsetenv(sp, WAIT_OPTION_ENV);
	spank_job_control_unsetenv(sp, REQUIRED_OPTION_ENV);
	forget_request_before(sp);
	if (in_allocation()) {
		if (request.datasets[0] != '\0') {
			say_too_late(outer_job_id);
			/* slurmstepd sees the flag too: say that the job itself asked for nothing. */
			setenv(DATASETS_IN_JOB, "", 0);
		}
		pass_on_request_of_job(sp);
	} else {
		apply_usual();
		ask(sp);
	}
	forget_flag_variables();
	memset(&request, 0, sizeof(request));
}

/* `srun --jobid` from outside shows only here: a job that srun made itself begins with step 0. */
void client_local_user_init(spank_t sp)
{
	uint32_t job_id, step_id;
	char text[16];

	if (!is_asked)
		return;
	if (spank_get_item(sp, S_JOB_ID, &job_id) != ESPANK_SUCCESS ||
	    spank_get_item(sp, S_JOB_STEPID, &step_id) != ESPANK_SUCCESS || step_id == 0)
		return;
	snprintf(text, sizeof(text), "%u", job_id);
	say_too_late(text);
}
