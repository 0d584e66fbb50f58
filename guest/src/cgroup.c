#include "cgroup.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "io.h"
#include "mount-calls.h"

/* A mount of the whole hierarchy that is attached nowhere, so that no one inside can cover or unmount it. */
static int top = -1, workload = -1, events = -1;

bool cgroup_prepare(void)
{
	top = mount_detached("cgroup2", (const char *const[]){ "nsdelegate", "memory_recursiveprot", NULL }, 0);
	if (top < 0)
		return false;
	/* One by one: a kernel that lacks one of them has the others. */
	static const char *const controllers[] = { "+cpu", "+memory", "+pids", "+io", "+cpuset" };
	for (size_t i = 0; i < sizeof controllers / sizeof *controllers; i++)
		write_at(top, "cgroup.subtree_control", controllers[i]);
	if (mkdirat(top, "workload", 0755) < 0 || mkdirat(top, "workload/main", 0755) < 0 || mkdirat(top, "workload/exec", 0755) < 0)
		return false;
	workload = openat(top, "workload", O_DIRECTORY | O_RDONLY | O_CLOEXEC);
	events = openat(workload, "cgroup.events", O_RDONLY | O_CLOEXEC);
	return workload >= 0 && events >= 0;
}

int cgroup_workload(void)
{
	return workload;
}

int cgroup_main(void)
{
	return openat(workload, "main", O_DIRECTORY | O_RDONLY | O_CLOEXEC);
}

static const char *exec_path(char *room, size_t size, uint32_t number, const char *file)
{
	snprintf(room, size, "exec/%u%s", number, file);
	return room;
}

int cgroup_exec(uint32_t number)
{
	char path[64];
	if (mkdirat(workload, exec_path(path, sizeof path, number, ""), 0755) < 0 && errno != EEXIST)
		return -1;
	return openat(workload, path, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
}

void cgroup_exec_kill(uint32_t number)
{
	char path[64];
	write_at(workload, exec_path(path, sizeof path, number, "/cgroup.kill"), "1");
}

void cgroup_exec_remove(uint32_t number)
{
	char path[64];
	unlinkat(workload, exec_path(path, sizeof path, number, ""), AT_REMOVEDIR);
}

bool cgroup_enter_workload(void)
{
	return write_at(workload, "cgroup.procs", "0");
}

bool cgroup_enter_main(void)
{
	return write_at(workload, "main/cgroup.procs", "0");
}

bool cgroup_freeze(bool freeze)
{
	return write_at(workload, "cgroup.freeze", freeze ? "1" : "0");
}

static uint64_t number_after(int dir, const char *file, const char *key)
{
	char text[1024];
	if (read_at(dir, file, text, sizeof text) <= 0)
		return 0;
	const char *found = strstr(text, key);
	return found ? strtoull(found + strlen(key), NULL, 10) : 0;
}

int cgroup_events(void)
{
	return events;
}

bool cgroup_is_frozen(void)
{
	/* By the watched descriptor itself: reading it is what arms the next notice. */
	char text[128];
	ssize_t n = pread(events, text, sizeof text - 1, 0);
	text[n > 0 ? n : 0] = 0;
	return strstr(text, "frozen 1");
}

bool cgroup_is_populated(void)
{
	return number_after(workload, "cgroup.events", "populated ") != 0;
}

void cgroup_kill(void)
{
	write_at(workload, "cgroup.kill", "1");
}

uint64_t cgroup_oom_kills(void)
{
	return number_after(workload, "memory.events", "oom_kill ");
}
