#include "arguments.h"

#include <string.h>

static const struct arguments defaults = {
	.mount_dir = "/datasets",
	.run_dir = "/run/scratch-slurm",
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

int arguments_read(struct arguments *arguments, int ac, char **av, log_f *log)
{
	int rv = 0;

	*arguments = defaults;
	for (int i = 0; i < ac; i++) {
		if (strncmp(av[i], "mount_dir=", strlen("mount_dir=")) == 0) {
			rv |= set_directory(&arguments->mount_dir, av[i] + strlen("mount_dir="), av[i], log);
		} else if (strncmp(av[i], "run_dir=", strlen("run_dir=")) == 0) {
			rv |= set_directory(&arguments->run_dir, av[i] + strlen("run_dir="), av[i], log);
		} else {
			log("scratch-slurm: plugstack.conf: cannot use '%.80s': the arguments are mount_dir=PATH and "
			    "run_dir=PATH", av[i]);
			rv = -1;
		}
	}
	return rv;
}
