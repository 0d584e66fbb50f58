#include "vsock.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "io.h"

/* VIRTIO_ID_VSOCK */
#define DEVICE 19

bool vsock_is_there(void)
{
	bool found = false;
	DIR *list = opendir("/sys/bus/virtio/devices");
	if (!list)
		return false;
	for (struct dirent *entry; !found && (entry = readdir(list));) {
		char path[300], kind[32];
		snprintf(path, sizeof path, "%s/device", entry->d_name);
		if (entry->d_name[0] != '.' && read_at(dirfd(list), path, kind, sizeof kind) > 0)
			found = strtoul(kind, NULL, 16) == DEVICE;
	}
	closedir(list);
	return found;
}

static int open_socket(void)
{
	return socket(AF_VSOCK, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
}

int vsock_listen(unsigned port)
{
	int fd = open_socket();
	struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port };
	if (fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 4) == 0)
		return fd;
	if (fd >= 0)
		close(fd);
	return -1;
}

int vsock_accept(int listener)
{
	for (;;) {
		struct sockaddr_vm from;
		socklen_t length = sizeof from;
		int fd = accept4(listener, (struct sockaddr *)&from, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
		/* Whoever is in the guest has no business here. */
		if (fd < 0 || from.svm_cid == VMADDR_CID_HOST)
			return fd;
		close(fd);
	}
}

int vsock_connect(unsigned port)
{
	int fd = open_socket();
	struct sockaddr_vm address = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = port };
	if (fd >= 0)
		(void)!connect(fd, (struct sockaddr *)&address, sizeof address);
	return fd;
}
