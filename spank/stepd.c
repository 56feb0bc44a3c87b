#include <errno.h>
#include <limits.h>
#include <slurm/slurm.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "namespace.h"
#include "plugin.h"
#include "report.h"

/* Value of the flag, where it reaches slurmstepd: some releases lose it with --export. */
static char flag_datasets[LIST_SIZE];

/* For the first task on this node to show. */
static char messages[32 * 1024];

/* The node's mount namespace; tasks may be in one of the job's own (job_container/tmpfs and its like). */
static int node_namespace = -1;

void stepd_init(void)
{
	node_namespace = namespace_open();
}

void stepd_on_datasets(const char *arg)
{
	char why[WHY_SIZE];

	(void)parse_datasets(arg, flag_datasets, why);
}

static void export(spank_t sp, const char *name, const char *value)
{
	spank_err_t err = spank_setenv(sp, name, value, 1);

	if (err != ESPANK_SUCCESS)
		slurm_info("scratch-slurm: stepd: cannot export %s: %s", name, spank_strerror(err));
}

static int get(void *context, const char *name, char *value, size_t size)
{
	return spank_getenv(context, name, value, (int)size) == ESPANK_SUCCESS ? 0 : -1;
}

static void unset(void *context, const char *name)
{
	spank_unsetenv(context, name);
}

/*
 * Variables of another job come with the environment: of the leader, to a component of a heterogeneous job, and of the
 * job in which this one was submitted where the plugin is missing.
 */
static void forget_other_job(spank_t sp, const char *job_id)
{
	const struct environment environment = {.context = sp, .get = get, .unset = unset};
	char of_job[16];

	if (spank_getenv(sp, JOB_DATASETS_JOB, of_job, sizeof(of_job)) == ESPANK_SUCCESS && strcmp(of_job, job_id) != 0)
		exported_forget(&environment);
}

static void add_message(const char *text)
{
	size_t used = strlen(messages);

	/* Whole lines only. */
	if (used + strlen("scratch-slurm: \n") + strlen(text) < sizeof(messages))
		snprintf(messages + used, sizeof(messages) - used, "scratch-slurm: %s\n", text);
}

static void apply_report(spank_t sp, char *text, bool first, const char *job)
{
	char *name, *value;

	export(sp, JOB_DATASETS_JOB, job);
	while (parse_report_line(&text, &name, &value)) {
		if (strcmp(name, "message") != 0)
			export(sp, name, value);
		else if (first)
			add_message(value);
	}
}

/*
 * What the job asked for, in `list`: as it stands in the environment of batch jobs and under salloc, else as srun
 * passed it. Empty in the environment means: this job asked for nothing, whatever the flag of the step says. What is in
 * the environment of a heterogeneous job, some component asked for; which one, only the prolog's word tells.
 */
static int read_request(spank_t sp, char list[LIST_SIZE])
{
	char text[LIST_SIZE], why[WHY_SIZE], size[16];
	spank_err_t err = spank_getenv(sp, DATASETS_IN_JOB, text, sizeof(text));

	if (spank_getenv(sp, HET_SIZE, size, sizeof(size)) != ESPANK_ENV_NOEXIST)
		return -1;
	if (err == ESPANK_SUCCESS)
		return parse_datasets(text, list, why);
	if (err != ESPANK_ENV_NOEXIST || flag_datasets[0] == '\0')
		return -1;
	memcpy(list, flag_datasets, LIST_SIZE);
	return 0;
}

/* Of several datasets with one variable the first has it. */
static void export_paths(spank_t sp, const char *mount_dir, char *list)
{
	char variable[VARIABLE_SIZE], path[PATH_MAX];
	char *rest = list, *name;

	while ((name = strsep(&rest, ",")) != NULL) {
		dataset_variable(name, variable);
		if (snprintf(path, sizeof(path), "%s/%s", mount_dir, name) < (int)sizeof(path))
			(void)spank_setenv(sp, variable, path, 0);
	}
}

/* The prolog left no word: the job reads the source, under the same paths. */
static void apply_request(spank_t sp, const struct arguments *arguments, uint32_t step_id, const char *job)
{
	char list[LIST_SIZE], told[2];

	if (read_request(sp, list) < 0)
		return;
	/* Once: the steps of a batch job inherit the mark, also with --export=NONE. */
	if ((step_id == 0 || step_id == SLURM_BATCH_SCRIPT || step_id == SLURM_INTERACTIVE_STEP) &&
	    spank_getenv(sp, TOLD_IN_JOB, told, sizeof(told)) == ESPANK_ENV_NOEXIST) {
		add_message("the prolog left no word on this node: the datasets are read from the source");
		export(sp, TOLD_IN_JOB, "1");
	}
	export(sp, JOB_DATASETS, list);
	export(sp, JOB_DATASETS_DIR, arguments->mount_dir);
	export(sp, JOB_DATASETS_JOB, job);
	spank_unsetenv(sp, JOB_DATASETS_STATE);
	export_paths(sp, arguments->mount_dir, list);
}

void stepd_init_post_opt(spank_t sp, const struct arguments *arguments)
{
	static char text[REPORT_SIZE_MAX + 1];
	uint32_t job_id, step_id;
	char job[16];
	bool first;

	/* A job submitted from within this one asks for itself. */
	spank_unsetenv(sp, "SLURM_SPANK_" DATASETS_OPTION_ENV);
	spank_unsetenv(sp, "SLURM_SPANK_" WAIT_OPTION_ENV);
	spank_unsetenv(sp, "SLURM_SPANK_" REQUIRED_OPTION_ENV);

	if (spank_get_item(sp, S_JOB_ID, &job_id) != ESPANK_SUCCESS ||
	    spank_get_item(sp, S_JOB_STEPID, &step_id) != ESPANK_SUCCESS || step_id == SLURM_EXTERN_CONT)
		return;
	snprintf(job, sizeof(job), "%u", job_id);
	forget_other_job(sp, job);
	if (report_read(arguments->run_dir, job_id, text, &first) == 0) {
		apply_report(sp, text, first, job);
		return;
	}
	if (errno != ENOENT)
		slurm_info("scratch-slurm: stepd: cannot read %s/jobs/%u: %s", arguments->run_dir, job_id,
			   strerror(errno));
	apply_request(sp, arguments, step_id, job);
}

/* The states of a dataset that is mounted: scratch_slurm/domain/states.py. */
static bool is_mounted_in(const char *state)
{
	static const char *const states[] = {"cached", "staging", "queued", "source"};

	for (size_t i = 0; i < sizeof(states) / sizeof(states[0]); i++)
		if (strcmp(state, states[i]) == 0)
			return true;
	return false;
}

/* True where a dataset of `NAME:STATE,...` should be mounted below a directory, and is not in this namespace. */
static bool find_missing(char *list, const char *mount_dir, char missing[NAME_LENGTH_MAX + 1])
{
	char *rest = list, *name, *state;
	char path[PATH_MAX];
	struct stat above, st;

	while ((name = strsep(&rest, ",")) != NULL) {
		state = strchr(name, ':');
		if (state == NULL || !is_mounted_in(state + 1) || !parse_is_name(name, (size_t)(state - name)))
			continue;
		*state = '\0';
		snprintf(path, sizeof(path), "%s/%s", mount_dir, name);
		if (stat(mount_dir, &above) < 0 || stat(path, &st) < 0 || st.st_dev == above.st_dev) {
			strcpy(missing, name);
			return true;
		}
	}
	return false;
}

/*
 * Runs in the task, as root, in the job's namespace. There the prolog's mounts, or those made since the job's start, may
 * be missing: an empty directory in the place of a dataset. The first task of a job mends it for all that follow. Where
 * that does not help (a PID namespace hides the node's mounts altogether) the job is told, and finds no state.
 */
void stepd_task_init_privileged(spank_t sp, const struct arguments *arguments)
{
	char why[WHY_SIZE], text[WHY_SIZE + 128], missing[NAME_LENGTH_MAX + 1];
	char states[LIST_SIZE + NAMES_MAX * 16];
	bool failed = node_namespace >= 0 && namespace_show(node_namespace, arguments->mount_dir, why) < 0;

	if (failed)
		slurm_info("scratch-slurm: task: %s in the job's mount namespace: %s", arguments->mount_dir, why);
	if (spank_getenv(sp, JOB_DATASETS_STATE, states, sizeof(states)) != ESPANK_SUCCESS ||
	    !find_missing(states, arguments->mount_dir, missing))
		return;
	if (failed)
		snprintf(text, sizeof(text), "%s: cannot be seen in this job's own mount namespace: %s", missing, why);
	else
		snprintf(text, sizeof(text), "%s: is not mounted for this job", missing);
	add_message(text);
	spank_unsetenv(sp, JOB_DATASETS_STATE);
}

/* Runs in the task, as the user, with the job's own stderr: no slurmstepd prefix, no error. */
void stepd_task_init(spank_t sp)
{
	const char *at = messages;
	int task_id;

	if (spank_get_item(sp, S_TASK_ID, &task_id) != ESPANK_SUCCESS || task_id != 0)
		return;
	while (*at) {
		ssize_t n = write(STDERR_FILENO, at, strlen(at));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return;
		at += n;
	}
}
