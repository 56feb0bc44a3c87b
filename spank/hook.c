#include "hook.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

/* What is left of Slurm's time when our own limit is over: 2 s, or half of a time that is shorter than 4 s. */
enum { MARGIN_MS = 2000 };

/* From SIGTERM to SIGKILL, and on. */
enum { PATIENCE_MS = 200 };

static volatile sig_atomic_t alarms;

static void on_alarm(int number)
{
	(void)number;
	alarms = 1 + (alarms > 0);
}

/* slurmd leaves 10 ms to a process that it ends, and drains the node for an exit code other than 0. */
static void on_term(int number)
{
	(void)number;
	_exit(0);
}

long hook_limit_ms(unsigned timeout_s)
{
	long timeout_ms = timeout_s * 1000L;

	return timeout_ms - (timeout_ms < 2 * MARGIN_MS ? timeout_ms / 2 : MARGIN_MS);
}

static struct timeval milliseconds(long ms)
{
	return (struct timeval){ms / 1000, ms % 1000 * 1000};
}

/* Returns 0 or an error number, that of execve() too. */
static int start(const char *program, pid_t *child)
{
	char *argv[] = {(char *)program, NULL};
	posix_spawn_file_actions_t files;
	posix_spawnattr_t attributes;
	sigset_t none, all;
	int error;

	sigemptyset(&none);
	sigfillset(&all);
	if ((error = posix_spawn_file_actions_init(&files)) != 0)
		return error;
	if ((error = posix_spawnattr_init(&attributes)) != 0)
		goto out;
	for (int fd = STDIN_FILENO; error == 0 && fd <= STDERR_FILENO; fd++)
		error = posix_spawn_file_actions_addopen(&files, fd, "/dev/null", O_RDWR, 0);
	if (error == 0)
		error = posix_spawnattr_setsigmask(&attributes, &none);
	if (error == 0)
		error = posix_spawnattr_setsigdefault(&attributes, &all);
	if (error == 0)
		error = posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	if (error == 0)
		error = posix_spawn(child, program, &files, &attributes, argv, environ);
	posix_spawnattr_destroy(&attributes);
out:
	posix_spawn_file_actions_destroy(&files);
	return error;
}

/* Wait for the child's end; the first alarm and those that follow end it. Returns 0 or an error number. */
static int await(pid_t child)
{
	while (waitpid(child, NULL, 0) < 0) {
		if (errno != EINTR)
			return errno;
		if (alarms > 0)
			kill(child, alarms == 1 ? SIGTERM : SIGKILL);
	}
	return 0;
}

int hook_run(const char *program, long limit_ms, char why[WHY_SIZE])
{
	const struct itimerval timer = {.it_value = milliseconds(limit_ms), .it_interval = milliseconds(PATIENCE_MS)};
	const struct itimerval off = {0};
	/* No SA_RESTART: waitpid() has to return. */
	const struct sigaction alarm = {.sa_handler = on_alarm}, term = {.sa_handler = on_term};
	struct sigaction old_alarm, old_term;
	sigset_t ours, old_mask;
	pid_t child;
	int error;

	alarms = 0;
	sigaction(SIGALRM, &alarm, &old_alarm);
	sigaction(SIGTERM, &term, &old_term);
	sigemptyset(&ours);
	sigaddset(&ours, SIGALRM);
	sigaddset(&ours, SIGTERM);
	sigprocmask(SIG_UNBLOCK, &ours, &old_mask);
	error = start(program, &child);
	if (error == 0) {
		if (limit_ms > 0)
			setitimer(ITIMER_REAL, &timer, NULL);
		error = await(child);
		setitimer(ITIMER_REAL, &off, NULL);
	}
	sigprocmask(SIG_SETMASK, &old_mask, NULL);
	sigaction(SIGTERM, &old_term, NULL);
	sigaction(SIGALRM, &old_alarm, NULL);
	if (error != 0)
		snprintf(why, WHY_SIZE, "%s", strerror(error));
	else if (alarms > 0)
		snprintf(why, WHY_SIZE, "it took more than %ld ms", limit_ms);
	return error != 0 || alarms > 0 ? -1 : 0;
}
