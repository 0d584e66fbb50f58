#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

uint64_t now_us(void)
{
	struct timespec t;
	/* Not CLOCK_BOOTTIME: a guest that slept must not find all its deadlines passed. */
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

uint64_t now_ms(void)
{
	return now_us() / 1000;
}

void say(const char *format, ...)
{
	static int kmsg = -1;
	char line[512] = "<3>dormouse: ";
	size_t used = strlen(line);
	va_list rest;
	va_start(rest, format);
	vsnprintf(line + used, sizeof line - used, format, rest);
	va_end(rest);
	if (kmsg < 0)
		kmsg = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	if (kmsg >= 0)
		(void)!write(kmsg, line, strlen(line));
}

bool write_at(int dir, const char *path, const char *text)
{
	int fd = openat(dir, path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	ssize_t n = write(fd, text, strlen(text));
	int error = errno;
	close(fd);
	errno = error;
	return n == (ssize_t)strlen(text);
}

ssize_t read_at(int dir, const char *path, char *text, size_t size)
{
	int fd = openat(dir, path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	ssize_t n = read(fd, text, size - 1);
	int error = errno;
	close(fd);
	errno = error;
	text[n > 0 ? n : 0] = 0;
	return n;
}

bool write_all(int fd, const void *bytes, size_t count)
{
	const char *from = bytes;
	while (count > 0) {
		ssize_t n = write(fd, from, count);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return false;
		from += n;
		count -= (size_t)n;
	}
	return true;
}

bool put_at(int dir, const char *path, const char *text, size_t length, mode_t mode)
{
	int fd = openat(dir, path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, mode);
	if (fd < 0)
		return false;
	bool done = write_all(fd, text, length);
	close(fd);
	return done;
}

static bool make_prefix(const char *path, size_t length, mode_t mode)
{
	char prefix[4096];
	if (length >= sizeof prefix)
		return false;
	memcpy(prefix, path, length);
	prefix[length] = 0;
	return mkdir(prefix, mode) == 0 || errno == EEXIST;
}

bool make_parents(const char *path, mode_t mode)
{
	for (const char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/'))
		if (slash[1] && !make_prefix(path, (size_t)(slash - path), mode))
			return false;
	return true;
}

bool make_path(const char *path, mode_t mode)
{
	return make_parents(path, mode) && make_prefix(path, strlen(path), mode);
}
