#include "arguments.h"

#include <string.h>

static const struct arguments defaults = {
	.mount_dir = "/datasets",
	.run_dir = "/run/scratch-slurm",
	.source_dir = NULL,
	.unknown = UNKNOWN_REFUSE,
	.hooks = NULL,
};

static int set_directory(const char **directory, const char *path, const char *argument, log_f *log)
{
	if (*path != '/' || strlen(path) > 1024) {
		log("scratch-slurm: plugstack.conf: cannot use '%.80s': an absolute path is needed", argument);
		return -1;
	}
	*directory = path;
	return 0;
}

static int set_policy(enum unknown_policy *policy, const char *word, const char *argument, log_f *log)
{
	static const char *const words[] = {
		[UNKNOWN_REFUSE] = "refuse",
		[UNKNOWN_WARN] = "warn",
		[UNKNOWN_IGNORE] = "ignore",
	};

	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		if (strcmp(word, words[i]) == 0) {
			*policy = (enum unknown_policy)i;
			return 0;
		}
	}
	log("scratch-slurm: plugstack.conf: cannot use '%.80s': refuse, warn or ignore is needed", argument);
	return -1;
}

/* The value of `name=value`, or NULL. */
static const char *value_of(const char *argument, const char *name)
{
	size_t length = strlen(name);

	return strncmp(argument, name, length) == 0 && argument[length] == '=' ? argument + length + 1 : NULL;
}

int arguments_read(struct arguments *arguments, int ac, char **av, log_f *log)
{
	const char *value;
	int rv = 0;

	*arguments = defaults;
	for (int i = 0; i < ac; i++) {
		if ((value = value_of(av[i], "mount_dir")) != NULL) {
			rv |= set_directory(&arguments->mount_dir, value, av[i], log);
		} else if ((value = value_of(av[i], "run_dir")) != NULL) {
			rv |= set_directory(&arguments->run_dir, value, av[i], log);
		} else if ((value = value_of(av[i], "source_dir")) != NULL) {
			rv |= set_directory(&arguments->source_dir, value, av[i], log);
		} else if ((value = value_of(av[i], "hooks")) != NULL) {
			rv |= set_directory(&arguments->hooks, value, av[i], log);
		} else if ((value = value_of(av[i], "unknown")) != NULL) {
			rv |= set_policy(&arguments->unknown, value, av[i], log);
		} else {
			log("scratch-slurm: plugstack.conf: cannot use '%.80s': the arguments are mount_dir=PATH, "
			    "run_dir=PATH, hooks=PATH, source_dir=PATH and unknown=refuse|warn|ignore",
			    av[i]);
			rv = -1;
		}
	}
	return rv;
}
