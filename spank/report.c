#include "report.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/*
 * The sticky bit, which means nothing on a regular file, says that the messages were shown. It goes with the
 * file: the prolog of a requeued job renames a new report over the old one, and its messages are new again.
 */
#define SHOWN S_ISVTX

static int read_all(int fd, char text[REPORT_SIZE_MAX + 1])
{
	size_t size = 0;
	ssize_t n;

	/* One byte more than allowed, to see a file that grew after fstat(). */
	while (size <= REPORT_SIZE_MAX) {
		n = read(fd, text + size, REPORT_SIZE_MAX + 1 - size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -1;
		if (n == 0) {
			text[size] = '\0';
			return 0;
		}
		size += (size_t)n;
	}
	errno = EFBIG;
	return -1;
}

int report_read(const char *run_dir, uint32_t job_id, char text[REPORT_SIZE_MAX + 1], bool *first)
{
	char path[PATH_MAX];
	struct stat st;
	int saved, fd, rv = -1;

	snprintf(path, sizeof(path), "%s/jobs/%u", run_dir, job_id);
	fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
	if (fd < 0)
		return -1;
	if (fstat(fd, &st) < 0)
		goto out;
	if (!S_ISREG(st.st_mode) || st.st_uid != 0 || (st.st_mode & (S_IWGRP | S_IWOTH))) {
		errno = EPERM;
		goto out;
	}
	if (st.st_size > REPORT_SIZE_MAX) {
		errno = EFBIG;
		goto out;
	}
	if (read_all(fd, text) < 0)
		goto out;
	*first = !(st.st_mode & SHOWN);
	/* If the mark cannot be set the messages come again with the next step: better than never. */
	if (*first)
		(void)fchmod(fd, (st.st_mode & 07777) | SHOWN);
	rv = 0;

out:
	saved = errno;
	close(fd);
	errno = saved;
	return rv;
}
