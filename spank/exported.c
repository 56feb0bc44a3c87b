#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "plugin.h"

static void forget_paths(const struct environment *environment, char *list)
{
	char variable[VARIABLE_SIZE], dir[PATH_MAX], path[PATH_MAX + NAME_LENGTH_MAX + 1], value[sizeof(path)];
	char *rest = list, *name;

	if (environment->get(environment->context, JOB_DATASETS_DIR, dir, sizeof(dir)) < 0)
		return;
	while ((name = strsep(&rest, ",")) != NULL) {
		dataset_variable(name, variable);
		snprintf(path, sizeof(path), "%s/%s", dir, name);
		if (environment->get(environment->context, variable, value, sizeof(value)) == 0 &&
		    strcmp(value, path) == 0)
			environment->unset(environment->context, variable);
	}
}

void exported_forget(const struct environment *environment)
{
	static const char *const names[] = {JOB_DATASETS, JOB_DATASETS_DIR, JOB_DATASETS_STATE, JOB_DATASETS_JOB};
	char text[LIST_SIZE], list[LIST_SIZE], why[WHY_SIZE];

	if (environment->get(environment->context, JOB_DATASETS, text, sizeof(text)) < 0 ||
	    parse_datasets(text, list, why) < 0)
		return;
	forget_paths(environment, list);
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		environment->unset(environment->context, names[i]);
}
