/* Whatever an image has in /etc/passwd and /etc/group, and whatever user it names. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "users.h"

static int keep(const uint8_t *bytes, size_t size, char *path, size_t path_size)
{
	int fd = memfd_create("fuzz", 0);
	if (fd < 0 || write(fd, bytes, size) != (ssize_t)size)
		abort();
	snprintf(path, path_size, "/proc/self/fd/%d", fd);
	return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	static struct identity identity;
	/* user NUL passwd NUL group */
	char user[600] = "", passwd[64], group[64];
	const uint8_t *end = bytes + size, *at = memchr(bytes, 0, size);
	if (!at)
		return 0;
	size_t n = (size_t)(at - bytes) < sizeof user - 1 ? (size_t)(at - bytes) : sizeof user - 1;
	memcpy(user, bytes, n);
	const uint8_t *split = memchr(at + 1, 0, (size_t)(end - at - 1));
	if (!split)
		split = end;
	int first = keep(at + 1, (size_t)(split - at - 1), passwd, sizeof passwd);
	int second = keep(split, (size_t)(end - split), group, sizeof group);
	if (!identity_resolve(&identity, user, passwd, group) &&
	    (identity.uid == (uid_t)-1 || identity.gid == (gid_t)-1 || identity.group_count > GROUPS_MAX || identity.home[0] != '/'))
		abort();
	close(first);
	close(second);
	return 0;
}
