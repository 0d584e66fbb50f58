#include "devices.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "agent.h"
#include "io.h"

/* From linux/virtio_ids.h, as sysfs writes them. */
#define ID_NETWORK "0x0001"
#define ID_DISK "0x0002"

bool devices_hold(bool hold)
{
	return write_at(agent.sys, "bus/virtio/drivers_autoprobe", hold ? "0" : "1");
}

static DIR *list(const char *path)
{
	int dir = openat(agent.sys, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return dir < 0 ? NULL : fdopendir(dir);
}

/* Brings the next device of this kind that has no driver yet to one. False when there is none left. */
static bool probe_next(const char *kind)
{
	DIR *devices = list("bus/virtio/devices");
	bool found = false;
	for (struct dirent *entry; devices && !found && (entry = readdir(devices));) {
		char path[300], id[16];
		if (entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof path, "%s/driver", entry->d_name);
		if (faccessat(dirfd(devices), path, F_OK, 0) == 0)
			continue;
		snprintf(path, sizeof path, "%s/device", entry->d_name);
		if (read_at(dirfd(devices), path, id, sizeof id) < 0 || strncmp(id, kind, strlen(kind)) != 0)
			continue;
		found = write_at(agent.sys, "bus/virtio/drivers_probe", entry->d_name);
	}
	if (devices)
		closedir(devices);
	return found;
}

static bool look_for_disk(const char *serial, char *path, size_t size)
{
	DIR *disks = list("block");
	bool found = false;
	for (struct dirent *entry; disks && !found && (entry = readdir(disks));) {
		char file[300], text[64];
		if (strncmp(entry->d_name, "vd", 2) != 0)
			continue;
		snprintf(file, sizeof file, "%s/serial", entry->d_name);
		if (read_at(dirfd(disks), file, text, sizeof text) < 0)
			continue;
		text[strcspn(text, "\n")] = 0;
		found = strcmp(text, serial) == 0;
		if (found)
			snprintf(path, size, "/dev/%.20s", entry->d_name);
	}
	if (disks)
		closedir(disks);
	return found;
}

bool devices_find_disk(const char *serial, char *path, size_t size)
{
	/* By serial, never by letter: those follow the order of discovery, which is no order at all. */
	while (!look_for_disk(serial, path, size))
		if (!probe_next(ID_DISK)) {
			errno = ENODEV;
			return false;
		}
	return true;
}

bool devices_probe_network(void)
{
	return probe_next(ID_NETWORK);
}
