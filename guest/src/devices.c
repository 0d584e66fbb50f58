#include "devices.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "agent.h"
#include "io.h"

/* How long a size may take on its way. */
#define SIZE_MS 10000
/* How long a disk may that is plugged: its kernel hears of it by an interrupt, and looks for it in a worker of its own. */
#define PLUG_MS 10000

/*
 * A disk whose machine has just been woken is told its size by a worker of the kernel's, which on another CPU may come later than this.
 * Nothing else tells of it but the size itself.
 */
static bool await_size(int disks, const char *name, bool any)
{
	char file[300], sectors[24];
	snprintf(file, sizeof file, "%s/size", name);
	for (uint64_t end = now_ms() + SIZE_MS; read_at(disks, file, sectors, sizeof sectors) > 0 && now_ms() < end; poll(NULL, 0, 1))
		if ((strtoull(sectors, NULL, 10) > 0) == any)
			return true;
	errno = any ? ENOMEDIUM : EBUSY;
	return false;
}

/*
 * A machine whose disks cannot be given serials names them all in its kernel's command line, as in dormouse.disks=rootfs,overlay: in the
 * order of their places, in which its kernel finds them. -1: this is no such machine; else which one, from 0 on.
 */
static int place_of(const char *serial)
{
	char words[4096];
	char *list = read_at(agent.proc, "cmdline", words, sizeof words) > 0 ? strstr(words, "dormouse.disks=") : NULL;
	if (!list)
		return -1;
	list[strcspn(list, " \n")] = 0;
	int place = 0;
	for (char *rest = strchr(list, '=') + 1, *name; (name = strsep(&rest, ",")); place++)
		if (strcmp(name, serial) == 0)
			return place;
	return 26;
}

/* By serial, never by letter: those follow the order of discovery, which on most machines is no order at all. */
static bool has_serial(int disks, const char *name, const char *serial)
{
	char file[300], text[64];
	int place = place_of(serial);
	snprintf(file, sizeof file, "%s/serial", name);
	if (strncmp(name, "vd", 2) != 0)
		return false;
	if (place >= 0)
		return name[2] == 'a' + place && name[3] == 0;
	if (read_at(disks, file, text, sizeof text) < 0)
		return false;
	text[strcspn(text, "\n")] = 0;
	return strcmp(text, serial) == 0;
}

static bool find_disk(const char *serial, bool any, char *path, size_t size)
{
	int error = ENODEV, dir = openat(agent.sys, "block", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *disks = dir < 0 ? NULL : fdopendir(dir);
	for (struct dirent *entry; disks && (entry = readdir(disks));)
		if (has_serial(dir, entry->d_name, serial)) {
			snprintf(path, size, "/dev/%.20s", entry->d_name);
			error = await_size(dir, entry->d_name, any) ? 0 : errno;
			break;
		}
	if (disks)
		closedir(disks);
	errno = error;
	return error == 0;
}

bool devices_find_disk(const char *serial, char *path, size_t size)
{
	return find_disk(serial, true, path, size);
}

bool devices_await_disk(const char *serial, char *path, size_t size)
{
	for (uint64_t end = now_ms() + PLUG_MS;; poll(NULL, 0, 2))
		if (devices_find_disk(serial, path, size))
			return true;
		else if (errno != ENODEV || now_ms() >= end)
			return false;
}

bool devices_await_vacant(const char *serial)
{
	char path[32];
	return find_disk(serial, false, path, sizeof path);
}

void devices_allow_writing(const char *path, bool allow)
{
	int forbid = !allow, fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || ioctl(fd, BLKROSET, &forbid) < 0)
		say("%s: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
}

bool devices_await_size(const char *path, uint64_t bytes, unsigned limit_ms)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint64_t has = 0;
	for (uint64_t end = now_ms() + limit_ms; fd >= 0 && ioctl(fd, BLKGETSIZE64, &has) == 0 && has < bytes && now_ms() < end;)
		poll(NULL, 0, 5);
	int error = errno;
	if (fd >= 0)
		close(fd);
	errno = fd < 0 ? error : ETIME;
	return has >= bytes;
}
