#include "root.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent.h"
#include "devices.h"
#include "io.h"
#include "mount-calls.h"
#include "timings.h"
#include "volumes.h"

static int initrd = -1;
/* The kernel's file systems as mounted before the park, to be moved into the image's root. */
static int moved_proc = -1, moved_sys = -1, moved_dev = -1;
/* A directory on the instance's own disk, to settle it at the end: its mount is out of sight by then. */
static int written = -1;

static char problem[512];

static const char *explain(const char *what, const char *name)
{
	snprintf(problem, sizeof problem, "%s%.300s: %s", what, name, strerror(errno));
	return problem;
}

static bool place(const char *type, const char *path, unsigned long flags, const char *options)
{
	mkdir(path, 0755);
	if (mount(type, path, type, flags, options) == 0)
		return true;
	say("mounting %s: %s", path, strerror(errno));
	return false;
}

int root_initrd(void)
{
	return initrd;
}

static int directory(const char *path)
{
	return open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
}

static const unsigned long quiet = MS_NOSUID | MS_NODEV | MS_NOEXEC;

/* Those in which something is kept that is not on a disk. */
static bool place_kept(void)
{
	return place("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777") & place("mqueue", "/dev/mqueue", quiet, NULL) &
	       place("tmpfs", "/private", quiet, "mode=755,size=4m");
}

static void take_hold(void)
{
	moved_proc = mount_handle(AT_FDCWD, "/proc", false);
	moved_sys = mount_handle(AT_FDCWD, "/sys", false);
	moved_dev = mount_handle(AT_FDCWD, "/dev", false);
	agent.proc = directory("/proc");
	agent.sys = directory("/sys");
	agent.dev = directory("/dev");
	agent.pts = directory("/dev/pts");
	agent.private = directory("/private");
}

bool root_prepare(void)
{
	umask(0);
	initrd = directory("/");
	bool all = place("proc", "/proc", quiet, NULL) & place("sysfs", "/sys", quiet, NULL) &
		   place("devtmpfs", "/dev", MS_NOSUID, "mode=755") &
		   place("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666") &
		   place_kept();
	symlink("/proc/self/fd", "/dev/fd");
	symlink("/proc/self/fd/0", "/dev/stdin");
	symlink("/proc/self/fd/1", "/dev/stdout");
	symlink("/proc/self/fd/2", "/dev/stderr");
	take_hold();
	/* As Docker: whoever may run here may ping and listen on any port. */
	write_at(agent.proc, "sys/net/ipv4/ping_group_range", "0 2147483647");
	write_at(agent.proc, "sys/net/ipv4/ip_unprivileged_port_start", "0");
	return all;
}

bool root_part(void)
{
	bool done = place_kept();
	take_hold();
	return done && moved_proc >= 0 && moved_sys >= 0 && moved_dev >= 0 && agent.private >= 0;
}

static const char *mount_disk(const char *serial, const char *path, const char *type, unsigned long flags, bool is_written)
{
	char device[32];
	if (!devices_find_disk(serial, device, sizeof device))
		return explain("There is no disk for: ", serial);
	if (flags & MS_RDONLY)
		devices_allow_writing(device, false);
	timings_took("find disk");
	if (mount(device, path, type, flags, NULL) < 0)
		return explain("The disk could not be mounted: ", serial);
	timings_took("mount disk");
	if (is_written)
		written = directory(path);
	return NULL;
}

static bool move_into(int mount, const char *path)
{
	mkdir(path, 0755);
	return mount_attach(mount, path);
}

const char *root_enter(const struct request *config)
{
	const char *wrong;
	mkdir("/image", 0755);
	mkdir("/disk", 0755);
	mkdir("/root", 0755);
	if ((wrong = mount_disk("rootfs", "/image", "squashfs", MS_RDONLY, false)))
		return wrong;
	if (config->overlay) {
		if ((wrong = mount_disk("overlay", "/disk", "ext4", 0, true)))
			return wrong;
	} else if (mount("tmpfs", "/disk", "tmpfs", 0, "mode=755") < 0) {
		return explain("No memory for what is written: ", "tmpfs");
	}
	if ((mkdir("/disk/upper", 0755) < 0 && errno != EEXIST) || (mkdir("/disk/work", 0755) < 0 && errno != EEXIST))
		return explain("The overlay disk cannot be written: ", "upper, work");
	timings_took("make directories");
	/*
	 * redirect_dir: directories of the image can be renamed. xino: one device number and inodes that do not collide, so
	 * that tar, cp -a and find -xdev see one file system.
	 */
	if (mount("overlay", "/root", "overlay", 0, "lowerdir=/image,upperdir=/disk/upper,workdir=/disk/work,redirect_dir=on,xino=on") < 0)
		return explain("The image's root could not be put together: ", "overlay");
	timings_took("mount overlay");
	if (chdir("/root") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		return explain("The image's root could not be entered: ", "/");
	/* From here on paths are the image's, and its links lead nowhere else. */
	if (!move_into(moved_proc, "/proc") || !move_into(moved_sys, "/sys") || !move_into(moved_dev, "/dev"))
		return explain("The image's root has no place for: ", "/proc, /sys, /dev");
	timings_took("enter root");
	return NULL;
}

const char *root_mount_modules(const struct request *config)
{
	(void)config;
	if (!make_path("/lib/modules", 0755))
		return explain("The kernel's modules have no place: ", "/lib/modules");
	return mount_disk("modules", "/lib/modules", "squashfs", MS_RDONLY | MS_NODEV | MS_NOSUID, false);
}

const char *root_mount_volumes(const struct request *config)
{
	const char *wrong;
	for (size_t i = 0; i < config->volume_count; i++)
		if ((wrong = volumes_mount(&config->volumes[i])))
			return wrong;
	if (config->workload_kind == WORKLOAD_SYSTEMD)
		place("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=755");
	return NULL;
}

void root_seal(void)
{
	sync();
	/* A frozen file system would outlive its mounts. */
	if (agent.rehearsing)
		return;
	/* Freezing writes the journal home and marks the file system clean, whatever still holds files open on it. */
	volumes_seal();
	if (written >= 0 && ioctl(written, FIFREEZE, 0) < 0)
		say("the disk could not be settled: %s", strerror(errno));
}
