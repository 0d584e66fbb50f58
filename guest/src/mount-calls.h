/* The kernel's newer mount calls, which the C library here does not wrap. */
#ifndef DORMOUSE_MOUNT_CALLS_H
#define DORMOUSE_MOUNT_CALLS_H
#include <stdbool.h>

/* A mount that hangs nowhere yet. `options` ends in NULL; one that the kernel does not know is passed over. -1 with errno. */
int mount_detached(const char *type, const char *const *options, unsigned attributes);
/* A handle on the mount at `path`, or with `clone` a detached copy of what stands there (a bind). */
int mount_handle(int dir, const char *path, bool clone);
/* Hangs it at `path`; a symlink as the last name is not followed. */
bool mount_attach(int mount, const char *path);
/* The same, over what a descriptor names. */
bool mount_attach_to(int mount, int target);

#endif
