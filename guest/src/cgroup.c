#include "cgroup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io.h"
#include "mount-calls.h"

/* From linux/sched.h. */
#define CLONE_INTO_CGROUP_FLAG 0x200000000ull

/* A mount of the whole hierarchy that is attached nowhere, so that no one inside can cover or unmount it. */
static int top = -1, workload = -1, events = -1, namespace = -1;

/*
 * A namespace's root is where the process stood that made it. So one is born into /workload, makes it, mounts the tree as it is seen
 * from there, and goes. Done before the park, no workload has to be moved between cgroups, which waits for the whole kernel.
 */
static bool make_namespace(void)
{
	int made[2];
	char path[64], byte;
	if (pipe2(made, O_CLOEXEC) < 0)
		return false;
	pid_t pid = cgroup_fork(workload);
	if (pid == 0) {
		close(made[0]);
		if (unshare(CLONE_NEWCGROUP) == 0 &&
		    mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) == 0)
			write_all(made[1], "y", 1);
		/* Until it has been looked at. */
		pause();
	}
	close(made[1]);
	snprintf(path, sizeof path, "/proc/%d/ns/cgroup", pid);
	if (pid > 0 && read(made[0], &byte, 1) == 1)
		namespace = open(path, O_RDONLY | O_CLOEXEC);
	close(made[0]);
	if (pid > 0) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
	return namespace >= 0;
}

pid_t cgroup_fork(int cgroup)
{
	struct {
		uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
	} how = { .flags = CLONE_INTO_CGROUP_FLAG, .exit_signal = SIGCHLD, .cgroup = (uint64_t)cgroup };
	return (pid_t)syscall(SYS_clone3, &how, sizeof how);
}

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
	return workload >= 0 && events >= 0 && make_namespace();
}

/* None may be there that has something in it: a directory of cgroups goes only when it is empty. */
static bool remove_all(const char *path)
{
	bool all = true;
	int dir = openat(workload, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *list = dir < 0 ? NULL : fdopendir(dir);
	for (struct dirent *entry; list && (entry = readdir(list));)
		if (entry->d_type == DT_DIR && entry->d_name[0] != '.')
			all &= unlinkat(dir, entry->d_name, AT_REMOVEDIR) == 0;
	if (list)
		closedir(list);
	return all;
}

bool cgroup_renew(void)
{
	return remove_all("exec") && remove_all(".") && mkdirat(workload, "main", 0755) == 0 && mkdirat(workload, "exec", 0755) == 0;
}

int cgroup_namespace(void)
{
	return namespace;
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
	if (unlinkat(workload, exec_path(path, sizeof path, number, ""), AT_REMOVEDIR) == 0 && number % 64 != 0)
		return;
	/* Something runs on in it. Those whose last process has gone since are cleared away with this one, or now and then. */
	int dir = openat(workload, "exec", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *list = dir < 0 ? NULL : fdopendir(dir);
	for (struct dirent *entry; list && (entry = readdir(list));)
		if (entry->d_type == DT_DIR && entry->d_name[0] != '.')
			unlinkat(dir, entry->d_name, AT_REMOVEDIR);
	if (list)
		closedir(list);
}

bool cgroup_enter_workload(void)
{
	return write_at(workload, "cgroup.procs", "0");
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
