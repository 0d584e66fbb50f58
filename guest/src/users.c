#include "users.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FILE_MAX (4 << 20)

/* Reads a file whole; a missing one is empty. The caller is a child that soon becomes another program: nothing is freed. */
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

const char *identity_resolve(struct identity *id, const char *user, const char *passwd_path, const char *group_path)
{
	char want[512], name[512] = "";
	char *group = NULL, *f[6];
	unsigned uid = 0, gid = 0, found;
	if (strlen(user) >= sizeof want)
		return "The user's name is too long";
	strcpy(want, *user ? user : "0");
	group = strchr(want, ':');
	if (group)
		*group++ = 0;
	if (group && !*group)
		group = NULL;
	id->group_count = 0;
	strcpy(id->home, "/");

	bool numeric = number(want, &uid), known = false;
	char *rest = slurp(passwd_path);
	if (!rest)
		return "Out of memory";
	/* A name wins over a number, and of several lines the first. */
	while (next_line(&rest, f, 6)) {
		bool same = strcmp(f[0], want) == 0 || (numeric && number(f[2], &found) && found == uid);
		unsigned line_uid, line_gid;
		if (!same || !number(f[2], &line_uid) || !number(f[3], &line_gid))
			continue;
		known = true;
		uid = line_uid;
		gid = line_gid;
		if (strlen(f[0]) < sizeof name)
			strcpy(name, f[0]);
		if (f[5][0] == '/' && strlen(f[5]) < sizeof id->home)
			strcpy(id->home, f[5]);
		break;
	}
	if (!known && !numeric)
		return "There is no such user in the image's /etc/passwd";
	/* An image without a passwd file still has a root, whose home is known. */
	if (!known && uid == 0)
		strcpy(id->home, "/root");

	bool group_known = !group || number(group, &gid);
	rest = slurp(group_path);
	if (!rest)
		return "Out of memory";
	while (next_line(&rest, f, 4)) {
		unsigned line_gid;
		if (!number(f[2], &line_gid))
			continue;
		if (group && strcmp(f[0], group) == 0) {
			gid = line_gid;
			group_known = true;
		}
		/* As Docker: a group that was named leaves out the groups of the user. */
		if (!group && name[0] && lists(f[3], name) && id->group_count < GROUPS_MAX)
			id->groups[id->group_count++] = line_gid;
	}
	if (!group_known)
		return "There is no such group in the image's /etc/group";
	id->uid = uid;
	id->gid = gid;
	return NULL;
}
