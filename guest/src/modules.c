#include "modules.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "agent.h"
#include "io.h"

#define SET_MAX 16

static int by_name(const void *a, const void *b)
{
	return strcmp(a, b);
}

bool modules_wait(void)
{
	char words[4096];
	return read_at(agent.proc, "cmdline", words, sizeof words) > 0 && strstr(words, "dormouse.drivers=late");
}

bool modules_load(int root, const char *set)
{
	char names[SET_MAX][64], path[64];
	size_t count = 0;
	snprintf(path, sizeof path, "modules/%s", set);
	int dir = openat(root, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *list = dir < 0 ? NULL : fdopendir(dir);
	/* Built into the kernel: nothing to load. */
	if (!list)
		return errno == ENOENT;
	for (struct dirent *entry; count < SET_MAX && (entry = readdir(list));)
		if (entry->d_name[0] != '.' && strlen(entry->d_name) < sizeof *names)
			strcpy(names[count++], entry->d_name);
	qsort(names, count, sizeof *names, by_name);
	bool all = true;
	for (size_t i = 0; i < count; i++) {
		int fd = openat(dir, names[i], O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST)) {
			say("module %s: %s", names[i], strerror(errno));
			all = false;
		}
		if (fd >= 0)
			close(fd);
		unlinkat(dir, names[i], 0);
	}
	closedir(list);
	return all;
}
