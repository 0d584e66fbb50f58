#include "mount-calls.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <unistd.h>

/* From linux/mount.h, which does not go together with sys/mount.h. */
#define FSOPEN_CLOEXEC 1
#define FSCONFIG_SET_FLAG 0
#define FSCONFIG_CMD_CREATE 6
#define FSMOUNT_CLOEXEC 1
#define OPEN_TREE_CLONE 1
#define MOVE_MOUNT_F_EMPTY_PATH 4
#define MOVE_MOUNT_T_EMPTY_PATH 64

int mount_detached(const char *type, const char *const *options, unsigned attributes)
{
	int fs = (int)syscall(SYS_fsopen, type, FSOPEN_CLOEXEC), mount = -1;
	if (fs < 0)
		return -1;
	for (; *options; options++)
		syscall(SYS_fsconfig, fs, FSCONFIG_SET_FLAG, *options, NULL, 0);
	if (syscall(SYS_fsconfig, fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) == 0)
		mount = (int)syscall(SYS_fsmount, fs, FSMOUNT_CLOEXEC, attributes);
	int error = errno;
	close(fs);
	errno = error;
	return mount;
}

int mount_handle(int dir, const char *path, bool clone)
{
	return (int)syscall(SYS_open_tree, dir, path, O_CLOEXEC | (clone ? OPEN_TREE_CLONE : 0));
}

bool mount_attach(int mount, const char *path)
{
	return syscall(SYS_move_mount, mount, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH) == 0;
}

bool mount_attach_to(int mount, int target)
{
	return syscall(SYS_move_mount, mount, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) == 0;
}
