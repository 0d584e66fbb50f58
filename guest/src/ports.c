#include "ports.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agent.h"
#include "connection.h"
#include "freeze.h"
#include "io.h"
#include "journal.h"
#include "log.h"
#include "modules.h"
#include "root.h"
#include "vsock.h"

#define WAIT_MS 20000

static int agent_port = -1, log_port = -1, journal_port = -1, listener = -1;

static void look(void)
{
	DIR *list = opendir("/sys/class/virtio-ports");
	if (!list)
		return;
	for (struct dirent *entry; (entry = readdir(list));) {
		char path[300], name[64];
		snprintf(path, sizeof path, "%s/name", entry->d_name);
		if (entry->d_name[0] == '.' || read_at(dirfd(list), path, name, sizeof name) <= 0)
			continue;
		name[strcspn(name, "\n")] = 0;
		int *port = strcmp(name, "dormouse.agent") == 0 ? &agent_port :
			    strcmp(name, "dormouse.log") == 0 ? &log_port :
			    strcmp(name, "dormouse.journal") == 0 ? &journal_port : NULL;
		snprintf(path, sizeof path, "/dev/%s", entry->d_name);
		if (port && *port < 0)
			*port = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	}
	closedir(list);
}

bool ports_open(void)
{
	/* Listening starts before looking, so that nothing can come in between. */
	int events = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);
	struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = 1 };
	bind(events, (struct sockaddr *)&address, sizeof address);
	uint64_t end = now_ms() + WAIT_MS;
	for (;;) {
		look();
		if (vsock_is_there() && modules_load(root_initrd(), "vsock") && (listener = vsock_listen(VSOCK_AGENT_PORT)) >= 0)
			break;
		uint64_t now = now_ms();
		if ((agent_port >= 0 && log_port >= 0 && journal_port >= 0) || now >= end)
			break;
		/* A port's name comes after its device without a word of its own, so the wait is also cut into short ones. */
		struct pollfd waiting = { .fd = events, .events = POLLIN };
		char event[4096];
		if (poll(&waiting, 1, 20) > 0)
			(void)!recv(events, event, sizeof event, 0);
	}
	close(events);
	return agent_port >= 0 || listener >= 0;
}

static int open_log_stream(void)
{
	return vsock_connect(VSOCK_LOG_PORT);
}

static int open_journal_stream(void)
{
	return vsock_connect(VSOCK_JOURNAL_PORT);
}

void ports_serve(void)
{
	if (listener >= 0) {
		log_stream(open_log_stream);
		journal_stream(open_journal_stream);
		connection_listen(listener);
		return;
	}
	log_start(log_port);
	journal_start(journal_port);
	connection_start(agent_port);
}

void ports_renew(void)
{
	/* With a workload that runs another could take their place meanwhile, and no memory has been woken under it. */
	if (!freeze_holds() && agent.phase != PHASE_PARKED)
		return;
	log_stream(open_log_stream);
	journal_stream(open_journal_stream);
}
