#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

/* So much memory is one file of the kernel's (memory-hotplug.rst); at most so many are taken at once: 32 GiB in the smallest blocks. */
#define BLOCKS_MAX 256

static void on_alarm(int number)
{
	(void)number;
}

/* What must stay free, the eighth part of all at least: a kernel that has to make room page by page stands still for everyone. */
#define LEFT_BYTES (64ull << 20)
#define LEFT_PART 8

/* By their names: an errand's child has no descriptor but its two. */
static ssize_t read_text(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, text, size - 1);
	if (fd >= 0)
		close(fd);
	text[got < 0 ? 0 : got] = 0;
	return got;
}

static const char *state_of(uint64_t block)
{
	static char path[64];
	snprintf(path, sizeof path, "/sys/devices/system/memory/memory%llu/state", (unsigned long long)block);
	return path;
}

static bool is_offline(uint64_t block)
{
	char text[32];
	return read_text(state_of(block), text, sizeof text) > 0 && strncmp(text, "offline", 7) == 0;
}

/* Free, or to be had without anyone's noticing; what is free of the stretch itself included. */
static bool can_spare(uint64_t bytes)
{
	char text[4096];
	if (read_text("/proc/meminfo", text, sizeof text) <= 0)
		return false;
	const char *total = strstr(text, "MemTotal:"), *available = strstr(text, "MemAvailable:");
	if (!total || !available)
		return false;
	uint64_t left = strtoull(total + strlen("MemTotal:"), NULL, 10) * 1024 / LEFT_PART;
	return strtoull(available + strlen("MemAvailable:"), NULL, 10) * 1024 >= bytes + (left > LEFT_BYTES ? left : LEFT_BYTES);
}

static int set_state(uint64_t block, const char *state)
{
	int fd = open(state_of(block), O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return errno;
	int error = write(fd, state, strlen(state)) < 0 ? errno : 0;
	close(fd);
	return error;
}

/* Those that are in use again are used for what can be moved, as before. */
static void use_again(uint64_t first, uint64_t end)
{
	for (uint64_t block = first; block < end; block++)
		if (is_offline(block))
			set_state(block, "online_movable");
}

void memory_offline(const struct errand *errand, const struct request *r)
{
	char text[32];
	uint64_t size = read_text("/sys/devices/system/memory/block_size_bytes", text, sizeof text) > 0 ? strtoull(text, NULL, 16) : 0;
	if (!size || r->address % size || r->size % size || r->size / size > BLOCKS_MAX) {
		errand_fail(errand, FRAME_REPLY, EINVAL, NULL);
		return;
	}
	if (!can_spare(r->size)) {
		errand_fail(errand, FRAME_REPLY, EBUSY, NULL);
		return;
	}
	/* What hangs in the kernel over a page that cannot be moved is interrupted by a signal, and by nothing else. */
	sigaction(SIGALRM, &(struct sigaction){ .sa_handler = on_alarm }, NULL);
	sigset_t alarms;
	sigemptyset(&alarms);
	sigaddset(&alarms, SIGALRM);
	sigprocmask(SIG_UNBLOCK, &alarms, NULL);
	/* Again and again: one that came between two blocks would be lost. */
	struct itimerval timer = { .it_value = { (time_t)(r->timeout_ms / 1000), (suseconds_t)(r->timeout_ms % 1000) * 1000 }, .it_interval = { 0, 100000 } };
	setitimer(ITIMER_REAL, &timer, NULL);
	uint64_t first = r->address / size, end = first + r->size / size;
	int error = 0;
	for (uint64_t block = first; block < end && !error; block++)
		if (!is_offline(block))
			error = set_state(block, "offline");
	setitimer(ITIMER_REAL, &(struct itimerval){ 0 }, NULL);
	if (error)
		use_again(first, end);
	errand_fail(errand, FRAME_REPLY, error == EINTR ? EBUSY : error, NULL);
}
