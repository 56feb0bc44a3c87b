#include "source.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* The names that a hint is chosen from are those that were listed in this time. */
enum { LISTING_MS = SOURCE_LIMIT_MS / 2 };

/* As IMAGE_SUFFIXES in scratch_slurm/domain/names.py. */
static const char *const suffixes[] = {".squashfs", ".sqsh", ".sqfs", ".erofs"};

enum { SUFFIXES = sizeof(suffixes) / sizeof(suffixes[0]), SUFFIX_LENGTH_MAX = 9 };

static long long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

/* 1, 0, or -1 when it cannot be told. */
static int has_image(int directory, const char *name)
{
	char file[NAME_LENGTH_MAX + SUFFIX_LENGTH_MAX + 1];
	struct stat st;

	for (size_t i = 0; i < SUFFIXES; i++) {
		snprintf(file, sizeof(file), "%s%s", name, suffixes[i]);
		if (fstatat(directory, file, &st, AT_SYMLINK_NOFOLLOW) == 0)
			return 1;
		if (errno != ENOENT)
			return -1;
	}
	return 0;
}

/* Write the dataset whose image a file is; 0 for any other file. */
static int dataset_of(const char *file, char name[NAME_LENGTH_MAX + 1])
{
	size_t length = strlen(file);

	for (size_t i = 0; i < SUFFIXES; i++) {
		size_t suffix = strlen(suffixes[i]);

		if (length <= suffix || strcmp(file + length - suffix, suffixes[i]) != 0)
			continue;
		length -= suffix;
		if (!parse_is_name(file, length))
			return 0;
		memcpy(name, file, length);
		name[length] = '\0';
		return 1;
	}
	return 0;
}

/* Look through the directory: for the name itself, which a cache of the file system may have denied, and its like. */
static int is_unlisted(int directory, struct unknown_dataset *unknown)
{
	long long deadline = now_ms() + LISTING_MS;
	char name[NAME_LENGTH_MAX + 1];
	int images = 0, fd = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *listing = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;

	if (listing == NULL)
		return 0;
	while (now_ms() < deadline && (entry = readdir(listing)) != NULL) {
		if (!dataset_of(entry->d_name, name))
			continue;
		if (strcmp(name, unknown->name) == 0)
			return 0;
		images++;
		nearest_offer(&unknown->nearest, unknown->name, name);
	}
	return images > 0;
}

/* In the process that may hang; what it opens it does not close. */
static int look(const char *path, const char *list, struct unknown_dataset *unknown)
{
	int directory = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);

	if (directory < 0)
		return 0;
	while (*list) {
		size_t length = strcspn(list, ",");

		if (length > NAME_LENGTH_MAX)
			return 0;
		memset(unknown, 0, sizeof(*unknown));
		memcpy(unknown->name, list, length);
		switch (has_image(directory, unknown->name)) {
		case 0:
			return is_unlisted(directory, unknown);
		case -1:
			return 0;
		}
		list += length;
		list += *list == ',';
	}
	return 0;
}

/*
 * Ends by itself, as a child that hangs in the kernel could not be waited for. It holds nothing of its parents open:
 * somebody may wait for the end of sbatch's output.
 */
static void run_look(int answer, const char *path, const char *list)
{
	const struct itimerval limit = {.it_value = {SOURCE_LIMIT_MS / 1000, SOURCE_LIMIT_MS % 1000 * 1000}};
	struct unknown_dataset unknown;
	sigset_t alarms;
	long files = sysconf(_SC_OPEN_MAX);

	sigemptyset(&alarms);
	sigaddset(&alarms, SIGALRM);
	signal(SIGALRM, SIG_DFL);
	sigprocmask(SIG_UNBLOCK, &alarms, NULL);
	setitimer(ITIMER_REAL, &limit, NULL);
	for (int fd = 0; fd < (files < 0 || files > 65536 ? 65536 : files); fd++)
		if (fd != answer)
			close(fd);
	if (look(path, list, &unknown) && write(answer, &unknown, sizeof(unknown)) < 0)
		_exit(1);
	_exit(0);
}

static int read_answer(int answer, struct unknown_dataset *unknown)
{
	long long left, deadline = now_ms() + SOURCE_LIMIT_MS;
	struct pollfd poll_answer = {.fd = answer, .events = POLLIN};

	while ((left = deadline - now_ms()) > 0) {
		int ready = poll(&poll_answer, 1, (int)left);

		if (ready < 0 && errno == EINTR)
			continue;
		/* Smaller than PIPE_BUF: whole or not at all. */
		return ready > 0 && read(answer, unknown, sizeof(*unknown)) == sizeof(*unknown);
	}
	return 0;
}

int source_find_unknown(const char *directory, const char *list, struct unknown_dataset *unknown)
{
	int ends[2], found;
	pid_t child;

	if (pipe2(ends, O_CLOEXEC) < 0)
		return 0;
	child = fork();
	if (child == 0) {
		/* The grandchild is init's: nobody here has to wait for it. */
		if (fork() == 0)
			run_look(ends[1], directory, list);
		_exit(0);
	}
	close(ends[1]);
	found = child > 0 && read_answer(ends[0], unknown);
	close(ends[0]);
	while (child > 0 && waitpid(child, NULL, 0) < 0 && errno == EINTR)
		continue;
	return found;
}
