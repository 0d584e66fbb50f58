#include "rehearsal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent.h"
#include "cgroup.h"
#include "connection.h"
#include "devices.h"
#include "io.h"
#include "loop.h"
#include "net.h"
#include "ports.h"
#include "power.h"
#include "root.h"
#include "stream.h"

#define ANSWER_MS 1000

/*
 * It is process 1 of its own, with mounts and names of its own: what it starts dies with it, what it mounts goes with it, and to power
 * off ends it alone. The network card is the only thing that both have.
 */
static void live(void)
{
	agent.rehearsing = true;
	loop_start();
	ports_serve();
	if (!root_part()) {
		say("a rehearsal could not begin: %s", strerror(errno));
		_exit(1);
	}
	loop_run();
}

/* No one has mounted it, and nothing that was read from it is kept. */
static bool let_go_of_disk(const char *name)
{
	int writable = 0;
	int fd = openat(agent.dev, name, O_RDONLY | O_EXCL | O_CLOEXEC);
	if (fd < 0)
		return false;
	bool done = ioctl(fd, BLKFLSBUF, 0) == 0 && ioctl(fd, BLKROSET, &writable) == 0;
	close(fd);
	return done;
}

static bool let_go_of_disks(void)
{
	bool all = true;
	int dir = openat(agent.sys, "block", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *list = dir < 0 ? NULL : fdopendir(dir);
	for (struct dirent *entry; list && (entry = readdir(list));)
		if (strncmp(entry->d_name, "vd", 2) == 0)
			all &= let_go_of_disk(entry->d_name);
	if (!list)
		return false;
	closedir(list);
	return all;
}

/* As process 1 of a PID namespace sees its own power_off: from pid_namespaces(7). */
static bool powered_off(int status)
{
	return WIFSIGNALED(status) && WTERMSIG(status) == SIGINT;
}

void rehearse(uint32_t id)
{
	uint8_t mac[6];
	int status = 0;
	if (agent.phase != PHASE_PARKED || agent.rehearsing) {
		stream_reply(id, STATUS_WRONG_PHASE, "Only a parked guest rehearses");
		return;
	}
	bool has_card = net_read_mac(mac);
	stream_reply(id, STATUS_OK, NULL);
	connection_flush(ANSWER_MS);
	pid_t pid = (pid_t)syscall(SYS_clone, CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | SIGCHLD, 0, 0, 0, 0);
	if (pid == 0)
		live();
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	bool ended = pid > 0 && powered_off(status);
	bool card = !has_card || net_forget(mac);
	bool disks = let_go_of_disks();
	bool groups = cgroup_renew();
	if (ended && card && disks && groups)
		return;
	say("a rehearsal left something:%s%s%s%s (%d)", ended ? "" : " its end", card ? "" : " its network", disks ? "" : " its disks",
	    groups ? "" : " its processes", status);
	power_off();
}

void vacate(uint32_t id)
{
	if (agent.phase != PHASE_PARKED || agent.rehearsing)
		stream_reply(id, STATUS_WRONG_PHASE, "Only a parked guest has no disks");
	else if (!devices_await_vacant("rootfs") || !devices_await_vacant("overlay"))
		stream_reply(id, STATUS_FAILED, strerror(errno));
	else
		stream_reply(id, STATUS_OK, NULL);
}
