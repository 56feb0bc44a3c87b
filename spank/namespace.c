#include "namespace.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Of headers that are older than the kernel. */
#ifndef SYS_open_tree
#define SYS_open_tree 428
#endif
#ifndef SYS_move_mount
#define SYS_move_mount 429
#endif
#ifndef OPEN_TREE_CLONE
#define OPEN_TREE_CLONE 1
#endif
#ifndef AT_RECURSIVE
#define AT_RECURSIVE 0x8000
#endif
enum { BOTH_PATHS_EMPTY = 0x44 };

/* The groups of mounts between which mounts propagate, by their numbers; 0 for none. */
struct groups {
	unsigned shared, master;
};

/* What is asked of the child in the other namespace, and its answer: the directory's group, and a clone of it. */
struct question {
	int host;
	const char *directory;
	unsigned group;
	int tree;
	const char *failed;
	int error;
};

/* The mount that an open file is on, or -1. */
static long mount_id(int fd)
{
	char path[64], line[128];
	FILE *file;
	long id = -1;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	if ((file = fopen(path, "re")) == NULL)
		return -1;
	while (id < 0 && fgets(line, sizeof(line), file) != NULL)
		(void)sscanf(line, "mnt_id: %ld", &id);
	fclose(file);
	return id;
}

/* The number behind a tag among the optional fields of a line of mountinfo, which end with " - ": proc(5). */
static unsigned group_of(const char *line, const char *tag)
{
	const char *found = strstr(line, tag), *end = strstr(line, " - ");

	return found != NULL && found < end ? (unsigned)strtoul(found + strlen(tag), NULL, 10) : 0;
}

/* The groups of the mount that an open directory is on. Returns 0, or -1 with errno. */
static int read_groups(int fd, struct groups *groups)
{
	long wanted = mount_id(fd), id;
	FILE *file = fopen("/proc/self/mountinfo", "re");
	char *line = NULL;
	size_t size = 0;
	int rv = -1;

	if (file == NULL)
		return -1;
	errno = ENOENT;
	while (rv < 0 && getline(&line, &size, file) > 0) {
		if (sscanf(line, "%ld ", &id) != 1 || id != wanted)
			continue;
		groups->shared = group_of(line, " shared:");
		groups->master = group_of(line, " master:");
		rv = 0;
	}
	free(line);
	fclose(file);
	return rv;
}

static int fail(struct question *question, const char *what)
{
	question->failed = what;
	question->error = errno;
	return 1;
}

/* In a child that shares memory and descriptors with its parent, but not the namespace. */
static int look(void *argument)
{
	struct question *question = argument;
	struct groups groups;
	int fd;

	if (setns(question->host, CLONE_NEWNS) < 0)
		return fail(question, "enter the node's mount namespace");
	fd = open(question->directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return fail(question, "open it on the node");
	if (read_groups(fd, &groups) < 0)
		return fail(question, "find its mount on the node");
	question->group = groups.shared;
	question->tree = (int)syscall(SYS_open_tree, fd, "",
				      OPEN_TREE_CLONE | AT_RECURSIVE | AT_EMPTY_PATH | O_CLOEXEC);
	close(fd);
	return question->tree < 0 ? fail(question, "clone its mounts") : 0;
}

/*
 * A process that went to the other namespace itself might not come back from there. Returns 0, or -1 with `failed` and
 * `error` in the question.
 */
static int ask(struct question *question)
{
	static char stack[128 * 1024] __attribute__((aligned(16)));
	int status;
	/* The parent stands still until the child ends. */
	pid_t child = clone(look, stack + sizeof(stack), CLONE_VM | CLONE_VFORK | CLONE_FILES | SIGCHLD, question);

	if (child < 0)
		return -fail(question, "start a process");
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			break;
	return question->failed == NULL ? 0 : -1;
}

/* Put the clone over the directory. Returns 0, or -1 with errno. */
static int attach(const struct question *question, const char *directory)
{
	int fd = -1, rv = -1;

	/* Where the node propagates nothing, each task of the job brings a clone: only the last one stays. */
	if (question->group == 0)
		(void)umount2(directory, MNT_DETACH);
	fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	if (syscall(SYS_move_mount, question->tree, "", fd, "", BOTH_PATHS_EMPTY) == 0)
		/* What the job mounts there must not reach the node. */
		rv = mount(NULL, directory, NULL, MS_SLAVE | MS_REC, NULL);
	close(fd);
	return rv;
}

int namespace_open(void)
{
	return open("/proc/1/ns/mnt", O_RDONLY | O_CLOEXEC);
}

int namespace_show(int host, const char *directory, char why[WHY_SIZE])
{
	struct question question = {.host = host, .directory = directory, .tree = -1};
	struct groups groups;
	struct stat there, here;
	int fd = -1, rv = -1;

	if (fstat(host, &there) < 0 || stat("/proc/self/ns/mnt", &here) < 0) {
		(void)fail(&question, "compare mount namespaces");
		goto out;
	}
	if (there.st_dev == here.st_dev && there.st_ino == here.st_ino)
		return 0;
	fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || read_groups(fd, &groups) < 0) {
		(void)fail(&question, "find its mount");
		goto out;
	}
	if (ask(&question) < 0)
		goto out;
	if (question.group != 0 && (groups.shared == question.group || groups.master == question.group)) {
		rv = 0;
	} else {
		rv = attach(&question, directory);
		if (rv < 0)
			(void)fail(&question, "mount the clone");
	}

out:
	if (fd >= 0)
		close(fd);
	if (question.tree >= 0)
		close(question.tree);
	if (rv < 0)
		snprintf(why, WHY_SIZE, "cannot %s: %s", question.failed, strerror(question.error));
	return rv;
}
