#include "volumes.h"

#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "agent.h"
#include "devices.h"
#include "io.h"
#include "timings.h"

#define RESIZE_EXT4 _IOW('f', 16, uint64_t)
#define LONGEST_LINE 16384

static char problem[512];

static const char *explain(const char *what, const char *name)
{
	snprintf(problem, sizeof problem, "%s%.300s: %s", what, name, strerror(errno));
	return problem;
}

/* In blocks of `block` bytes; 0 when it is no ext4. */
static uint64_t blocks_of_ext4(int device, uint64_t *block)
{
	uint8_t super[1024];
	uint32_t low, high, size;
	if (pread(device, super, sizeof super, 1024) != sizeof super || super[56] != 0x53 || super[57] != 0xef)
		return 0;
	memcpy(&size, super + 24, 4);
	memcpy(&low, super + 4, 4);
	memcpy(&high, super + 0x150, 4);
	*block = 1024ull << (le32toh(size) & 7);
	return (uint64_t)le32toh(high) << 32 | le32toh(low);
}

/* False with errno when it is smaller than its disk and stays so. */
static bool grow(const char *device, const char *path)
{
	uint64_t block = 0, bytes = 0;
	int fd = open(device, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	uint64_t has = blocks_of_ext4(fd, &block);
	bool known = has > 0 && ioctl(fd, BLKGETSIZE64, &bytes) == 0;
	close(fd);
	if (!known || bytes / block <= has)
		return true;
	uint64_t wanted = bytes / block;
	int dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	bool done = dir >= 0 && ioctl(dir, RESIZE_EXT4, &wanted) == 0;
	int error = errno;
	if (dir >= 0)
		close(dir);
	errno = error;
	return done;
}

/*
 * Of what is free no more than `room` bytes may be taken: the rest is set aside. The host would let a guest write a little more and then
 * fail its writes, which is no way to be told that a disk is full.
 */
static bool set_room(const char *device, const char *path, uint64_t room)
{
	struct statfs now;
	char file[80], text[24];
	if (statfs(path, &now) < 0)
		return false;
	uint64_t blocks = room / (uint64_t)now.f_bsize;
	snprintf(file, sizeof file, "fs/ext4/%s/reserved_clusters", device + strlen("/dev/"));
	snprintf(text, sizeof text, "%llu", (unsigned long long)(now.f_bfree > blocks ? now.f_bfree - blocks : 0));
	return write_at(agent.sys, file, text);
}

const char *volumes_mount(const struct volume *v)
{
	char device[32];
	if (!devices_await_disk(v->serial, device, sizeof device))
		return explain("There is no disk for: ", v->path);
	if (!make_path(v->path, 0755))
		return explain("The volume has no place: ", v->path);
	/* Of a reader's too, for a moment: the kernel first completes a journal that was left open, in a layer that the host put over it. */
	devices_allow_writing(device, true);
	if (mount(device, v->path, v->fs, v->read_only ? MS_RDONLY : 0, NULL) < 0)
		return explain("The volume could not be mounted: ", v->path);
	if (v->read_only)
		devices_allow_writing(device, false);
	else if (!grow(device, v->path))
		say("the volume at %s could not be made as large as its disk: %s", v->path, strerror(errno));
	if (v->room && !v->read_only && !set_room(device, v->path, v->room))
		say("the room at %s could not be limited: %s", v->path, strerror(errno));
	timings_took("mount volume");
	return NULL;
}

/* A line of mountinfo (proc_pid_mountinfo(5)). */
struct mounted {
	dev_t device;
	char *path, *root;
	bool writable;
};

static void unescape(char *text)
{
	char *to = text;
	for (; *text; text++)
		if (*text == '\\' && text[1] >= '0' && text[1] <= '3' && text[2] && text[3]) {
			*to++ = (char)((text[1] - '0') << 6 | (text[2] - '0') << 3 | (text[3] - '0'));
			text += 3;
		} else {
			*to++ = *text;
		}
	*to = 0;
}

static bool next_mount(FILE *table, char *line, struct mounted *m)
{
	while (fgets(line, LONGEST_LINE, table)) {
		unsigned major, minor;
		int at = 0;
		if (sscanf(line, "%*u %*u %u:%u %n", &major, &minor, &at) != 2 || at == 0)
			continue;
		char *rest = NULL, *options;
		m->root = strtok_r(line + at, " ", &rest);
		m->path = strtok_r(NULL, " ", &rest);
		options = strtok_r(NULL, " ", &rest);
		if (!m->root || !m->path || !options)
			continue;
		m->device = makedev(major, minor);
		m->writable = strncmp(options, "rw", 2) == 0;
		unescape(m->path);
		return true;
	}
	return false;
}

static FILE *mount_table(void)
{
	int fd = openat(agent.proc, "self/mountinfo", O_RDONLY | O_CLOEXEC);
	return fd < 0 ? NULL : fdopen(fd, "r");
}

static bool device_number(const char *device, dev_t *number)
{
	struct stat found;
	if (stat(device, &found) < 0)
		return false;
	*number = found.st_rdev;
	return true;
}

/* Where the whole of it is mounted last; false when it is nowhere. */
static bool find_mount(dev_t device, char *path, size_t size)
{
	static char line[LONGEST_LINE];
	struct mounted m;
	bool found = false;
	FILE *table = mount_table();
	while (table && next_mount(table, line, &m))
		if (m.device == device && strlen(m.path) < size) {
			strcpy(path, m.path);
			found = true;
		}
	if (table)
		fclose(table);
	return found;
}

void volumes_seal(void)
{
	static char line[LONGEST_LINE];
	struct mounted m;
	FILE *table = mount_table();
	while (table && next_mount(table, line, &m)) {
		if (!m.writable || strcmp(m.root, "/") != 0)
			continue;
		struct stat found;
		int dir = open(m.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK);
		/* Disks alone; and what is seen there is that disk, not something over it. */
		if (dir >= 0 && fstat(dir, &found) == 0 && found.st_dev == m.device && major(m.device) != 0 && ioctl(dir, FIFREEZE, 0) < 0 &&
		    errno != EBUSY)
			say("%s could not be settled: %s", m.path, strerror(errno));
	}
	if (table)
		fclose(table);
}

static void answer(const struct errand *errand, uint64_t status, const char *message)
{
	uint8_t bytes[1024];
	struct tlv_writer fields = { bytes, 0, sizeof bytes, false };
	tlv_put_number(&fields, TAG_STATUS, status);
	if (message)
		tlv_put_text(&fields, TAG_MESSAGE, message);
	errand_send_fields(errand, FRAME_REPLY, &fields);
}

void volumes_attach(const struct errand *errand, const struct request *r)
{
	const struct volume *v = &r->volumes[0];
	char device[32], path[4096];
	dev_t number;
	if (devices_find_disk(v->serial, device, sizeof device) && device_number(device, &number) &&
	    find_mount(number, path, sizeof path)) {
		answer(errand, STATUS_OK, NULL);
		return;
	}
	const char *wrong = volumes_mount(v);
	answer(errand, wrong ? STATUS_FAILED : STATUS_OK, wrong);
}

static bool is_on(int proc, const char *link, dev_t device)
{
	struct stat found;
	return fstatat(proc, link, &found, 0) == 0 && found.st_dev == device;
}

static bool has_open(int process, dev_t device)
{
	char link[300];
	int fd = openat(process, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *files = fd < 0 ? NULL : fdopendir(fd);
	bool found = false;
	for (struct dirent *file; files && !found && (file = readdir(files));) {
		snprintf(link, sizeof link, "fd/%s", file->d_name);
		found = file->d_name[0] != '.' && is_on(process, link, device);
	}
	if (files)
		closedir(files);
	return found;
}

/* Which programs use it, as far as that can be seen. */
static void name_users(dev_t device, char *text, size_t size)
{
	size_t used = 0, count = 0;
	int fd = openat(agent.proc, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *all = fd < 0 ? NULL : fdopendir(fd);
	for (struct dirent *entry; all && count < 8 && (entry = readdir(all));) {
		if (entry->d_name[0] < '1' || entry->d_name[0] > '9')
			continue;
		int process = openat(fd, entry->d_name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		char name[64] = "?";
		if (process >= 0 && (is_on(process, "cwd", device) || is_on(process, "root", device) || is_on(process, "exe", device) ||
				     has_open(process, device))) {
			read_at(process, "comm", name, sizeof name);
			name[strcspn(name, "\n")] = 0;
			for (char *c = name; *c; c++)
				if (*c < ' ' || *c > '~')
					*c = '?';
			int wrote = snprintf(text + used, size - used, "%s%s (%.20s)", count++ ? ", " : "", name, entry->d_name);
			if (wrote > 0 && (size_t)wrote < size - used)
				used += (size_t)wrote;
		}
		if (process >= 0)
			close(process);
	}
	if (all)
		closedir(all);
	if (count == 0)
		snprintf(text, size, "something");
}

static void answer_busy(const struct errand *errand, const char *path, dev_t device)
{
	char users[400], message[900];
	name_users(device, users, sizeof users);
	snprintf(message, sizeof message, "%.300s is in use by %s", path, users);
	answer(errand, STATUS_BUSY, message);
}

void volumes_detach(const struct errand *errand, const struct request *r)
{
	const struct volume *v = &r->volumes[0];
	char device[32], path[4096];
	dev_t number;
	/* A slot whose disk is gone already has no size; it is not mounted either. */
	if (!devices_find_disk(v->serial, device, sizeof device) || !device_number(device, &number)) {
		answer(errand, STATUS_OK, NULL);
		return;
	}
	while (find_mount(number, path, sizeof path))
		if (umount2(path, UMOUNT_NOFOLLOW) < 0) {
			if (errno == EBUSY)
				answer_busy(errand, path, number);
			else
				answer(errand, STATUS_FAILED, explain("The volume could not be unmounted: ", path));
			return;
		}
	/* Another mount namespace may still have it. */
	int held = open(device, O_RDONLY | O_EXCL | O_CLOEXEC);
	if (held < 0 && errno == EBUSY) {
		volumes_mount(v);
		answer_busy(errand, v->path, number);
		return;
	}
	if (held >= 0)
		close(held);
	answer(errand, STATUS_OK, NULL);
}

/* The new size comes by an interrupt of its own, which may be later than this. */
#define SIZE_MS 5000

void volumes_grow(const struct errand *errand, const struct request *r)
{
	const struct volume *v = &r->volumes[0];
	char device[32], path[4096];
	dev_t number;
	if (!devices_find_disk(v->serial, device, sizeof device) || !device_number(device, &number) || !find_mount(number, path, sizeof path)) {
		answer(errand, STATUS_NOT_FOUND, "The volume is not mounted");
		return;
	}
	if (!devices_await_size(device, r->size, SIZE_MS) || !grow(device, path)) {
		answer(errand, STATUS_FAILED, explain("The file system could not be made larger: ", path));
		return;
	}
	answer(errand, STATUS_OK, NULL);
}
