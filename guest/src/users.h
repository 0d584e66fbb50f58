/* Who "user", "1000", "user:group" is, by the image's own /etc/passwd and /etc/group. */
#ifndef DORMOUSE_USERS_H
#define DORMOUSE_USERS_H
#include <stddef.h>
#include <sys/types.h>

#define GROUPS_MAX 1024

struct identity {
	uid_t uid;
	gid_t gid;
	gid_t groups[GROUPS_MAX];
	size_t group_count;
	char home[4096];
};

/* As Docker resolves it; an empty `user` is root. Gives NULL, or a sentence. `passwd` and `group` may be missing files. */
const char *identity_resolve(struct identity *identity, const char *user, const char *passwd, const char *group);

#endif
