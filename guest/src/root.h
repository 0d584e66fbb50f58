/* From the initrd's root to the image's: the kernel's file systems before the park, the disks after it. */
#ifndef DORMOUSE_ROOT_H
#define DORMOUSE_ROOT_H
#include <stdbool.h>

#include "request.h"

/* /proc, /sys, /dev and what hangs below it, and the agent's own descriptors of them. */
bool root_prepare(void);
/* In a mount namespace that was copied from the first: takes hold of its own mounts, and keeps what is told here apart. */
bool root_part(void);
/* The initrd's root, which stays reachable to the agent alone. */
int root_initrd(void);
/* Finds the disks by serial, puts the writable layer over the image and makes it the root. NULL, or a sentence. */
const char *root_enter(const struct request *config);
/* Inside the new root. */
const char *root_mount_volumes(const struct request *config);
const char *root_mount_modules(const struct request *config);
/* Everything written and the file systems clean on their disks; nothing can be written afterwards. */
void root_seal(void);

#endif
