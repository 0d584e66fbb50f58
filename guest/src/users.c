#include "users.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_MAX (4 << 20)

/* Reads a file whole, up to a size no such file has; a missing one is empty. The caller frees it. */
static char *slurp(const char *path)
{
	size_t used = 0, size = 16384;
	char *text = malloc(size);
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	while (text && fd >= 0) {
		if (size - used < 2) {
			char *more = size < FILE_MAX ? realloc(text, size *= 2) : NULL;
			if (!more)
				break;
			text = more;
		}
		ssize_t n = read(fd, text + used, size - used - 1);
		if (n <= 0)
			break;
		used += (size_t)n;
	}
	if (fd >= 0)
		close(fd);
	if (text)
		text[used] = 0;
	return text;
}

/* Cuts the next line and splits it at colons. Lines of too few fields are passed over. */
static bool next_line(char **rest, char **fields, size_t count)
{
	while (**rest) {
		char *line = *rest, *end = strchr(line, '\n');
		*rest = end ? end + 1 : line + strlen(line);
		if (end)
			*end = 0;
		size_t i = 0;
		for (; i < count; i++) {
			fields[i] = line;
			char *colon = strchr(line, ':');
			if (colon)
				*colon = 0;
			if (!colon) {
				i++;
				break;
			}
			line = colon + 1;
		}
		if (i == count && fields[0][0] != '#')
			return true;
	}
	return false;
}

static bool number(const char *text, unsigned *value)
{
	size_t n = strlen(text);
	if (n < 1 || n > 10 || strspn(text, "0123456789") != n)
		return false;
	unsigned long long wide = strtoull(text, NULL, 10);
	/* The last id means "leave as it is" to chown and setuid. */
	if (wide >= 0xffffffffULL)
		return false;
	*value = (unsigned)wide;
	return true;
}

static bool lists(const char *members, const char *name)
{
	size_t n = strlen(name);
	while (*members) {
		size_t length = strcspn(members, ",");
		if (length == n && memcmp(members, name, n) == 0)
			return true;
		members += length + (members[length] == ',');
	}
	return false;
}

/* Fills in what /etc/passwd says of the user; `name` is then its name. False when it says nothing. */
static bool find_user(struct identity *id, char *passwd, const char *want, char *name, size_t name_size)
{
	char *f[6];
	unsigned want_uid = 0, uid, gid;
	bool numeric = number(want, &want_uid);
	/* A name wins over a number, and of several lines the first. */
	for (char *rest = passwd; next_line(&rest, f, 6);) {
		if (!number(f[2], &uid) || !number(f[3], &gid) || (strcmp(f[0], want) != 0 && !(numeric && uid == want_uid)))
			continue;
		id->uid = uid;
		id->gid = gid;
		if (strlen(f[0]) < name_size)
			strcpy(name, f[0]);
		if (f[5][0] == '/' && strlen(f[5]) < sizeof id->home)
			strcpy(id->home, f[5]);
		return true;
	}
	return false;
}

/* The group that was named, or with none the groups that list the user. False when the named one is not there. */
static bool find_groups(struct identity *id, char *text, const char *group, const char *name)
{
	char *f[4];
	unsigned gid;
	bool found = !group || number(group, &gid);
	if (group && found)
		id->gid = gid;
	for (char *rest = text; next_line(&rest, f, 4);) {
		if (!number(f[2], &gid))
			continue;
		if (group && strcmp(f[0], group) == 0) {
			id->gid = gid;
			return true;
		}
		/* As Docker: a group that was named leaves out the groups of the user. */
		if (!group && name[0] && lists(f[3], name) && id->group_count < GROUPS_MAX)
			id->groups[id->group_count++] = gid;
	}
	return found;
}

const char *identity_resolve(struct identity *id, const char *user, const char *passwd_path, const char *group_path)
{
	char want[512], name[512] = "";
	if (strlen(user) >= sizeof want)
		return "The user's name is too long";
	strcpy(want, *user && *user != ':' ? user : "0");
	const char *group = strchr(user, ':');
	want[strcspn(want, ":")] = 0;
	if (group && !*++group)
		group = NULL;
	id->group_count = 0;
	id->gid = 0;
	strcpy(id->home, "/");

	char *passwd = slurp(passwd_path), *groups = slurp(group_path);
	const char *wrong = passwd && groups ? NULL : "Out of memory";
	if (!wrong && !find_user(id, passwd, want, name, sizeof name)) {
		if (!number(want, &id->uid))
			wrong = "There is no such user in the image's /etc/passwd";
		/* An image without a passwd file still has a root, whose home is known. */
		else if (id->uid == 0)
			strcpy(id->home, "/root");
	}
	if (!wrong && !find_groups(id, groups, group, name))
		wrong = "There is no such group in the image's /etc/group";
	free(passwd);
	free(groups);
	return wrong;
}
